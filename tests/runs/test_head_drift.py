"""A frozen head over a backbone that trains: how far it drifts, and what is done about it."""

import json
import math

import jax
import numpy as np
import pytest

from mtl_jax.config.tasks import Task
from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import read_lines
from mtl_jax.runs.checkpoints.manager import CheckpointManager
from mtl_jax.runs.head_drift import Reference, drift_warning
from mtl_jax.runs.loop import train
from mtl_jax.runs.workdir import Workdir
from mtl_jax.training.inputs import Inputs
from mtl_jax.training.kinds.registry import KINDS

TASKS = {
    "classifier": Task("classifier", classes=("a", "b", "c")),
    "sentiment": Task("sentiment", classes=("bad", "good")),
}
divergence = KINDS["single_label"].divergence


def test_divergence_by_hand():
    """KL of (3/4, 1/4) against (1/2, 1/2) is log 2 less the entropy of the former."""
    before = np.log([[0.75, 0.25], [0.5, 0.5]])
    now = np.array([[3.0, 3.0], [0.0, 0.0]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert divergence(before, now) == pytest.approx((math.log(2) - entropy) / 2)
    assert divergence(before, before + 7.0) == pytest.approx(0, abs=1e-15)
    assert divergence(before[:0], now[:0]) == 0.0


def test_drift_is_by_watched_task():
    before = {"classifier": np.zeros((2, 3))}
    logits = {"classifier": np.ones((2, 3)), "sentiment": np.full((2, 3), np.nan)}
    assert Reference(before, {}).drift(logits, TASKS) == {"classifier": 0.0}


def test_targets_are_probabilities():
    logits = {"sentiment": np.log(np.array([[1.0, 3.0]])), "classifier": np.zeros((1, 2))}
    held = Reference({}, logits).targets([TASKS["sentiment"]])
    assert list(held) == ["sentiment"]
    np.testing.assert_allclose(held["sentiment"], [[0.25, 0.75]])


def test_a_warning_names_the_heads_that_have_drifted_too_far():
    assert drift_warning(0.5, {"sentiment": 0.5}) is None
    assert drift_warning(0.5, {"sentiment": 0.6, "classifier": 0.1}) == (
        "a frozen head's predictions have drifted more than 0.5 nats, that of sentiment 0.600: "
        "unfreeze the head, or hold them with --hold-frozen-heads"
    )


@pytest.fixture
def settings(small_settings):
    """Of one layer, which is enough for a head's inputs to drift."""
    return dict(small_settings)


@pytest.fixture(scope="module")
def inputs(small_settings):
    return Inputs(TrainConfig(**small_settings, workdir=""))


@pytest.fixture
def watched(settings, inputs, tmp_path):
    """Trains both heads, then the backbone for sentiment alone, the classifier head frozen."""

    def run(name, last=True, **watch):
        first = {"scenario": "backbone_frozen", "epochs": 2}
        second = {
            "scenario": "classifier_frozen",
            "epochs": 3,
            "task_weights": {"classifier": 0, "sentiment": 1},
            **watch,
        }
        still = {"scenario": "backbone_frozen", "steps": 1, "learning_rates": {"head": 1e-30}}
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps([first, second, *([still] if last else [])]))
        settings_of = settings | {"workdir": str(tmp_path / name), "recipe": str(file)}
        train(TrainConfig(**settings_of), inputs)
        log = read_lines(tmp_path / name / "metrics.jsonl")
        return [record for record in log if record["event"] != "step"]

    return run


def measured(log, phase):
    return [r for r in log if r["event"] == "epoch" and r["phase"] == phase]


def test_drift_is_logged_and_warned_of(watched, capsys):
    log = watched("warn", drift_limit=1e-3)
    assert all("drift" not in record for record in (*measured(log, 1), *measured(log, 3)))
    second = measured(log, 2)
    assert len(second) == 3
    assert all(list(record["drift"]) == ["classifier"] for record in second)
    drift = [record["drift"]["classifier"] for record in second]
    assert min(drift) > 1e-3
    # Said once in a phase, not at each measurement.
    assert capsys.readouterr().err.count("warning: a frozen head's predictions have drifted") == 1
    assert len([record for record in log if record["event"] == "drift"]) == 1


def test_a_head_that_never_trained_has_nothing_to_lose(settings, inputs, tmp_path, capsys):
    """Its predictions are those of chance: how far they drift is logged, and that is all."""
    config = TrainConfig(
        **settings,
        workdir=str(tmp_path),
        scenario="classifier_frozen",
        drift_limit=1e-3,
    )
    train(config, inputs)
    log = read_lines(tmp_path / "metrics.jsonl")
    epochs = [record for record in log if record["event"] == "epoch"]
    assert [record["epoch"] for record in epochs] == [1, 2]
    assert epochs[0]["drift"]["classifier"] > 1e-3
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"scenario": "classifier_frozen"}, "--scenario classifier_frozen is one phase: use a "),
        ({"recipe": "scarce_head_last"}, "no phase of scarce_head_last freezes such a head while"),
    ],
)
def test_nothing_can_be_done_about_a_head_that_never_trained(
    recipe, words, settings, inputs, tmp_path
):
    asked = {**settings, "workdir": str(tmp_path / "run"), **recipe}
    with pytest.raises(UserError, match=f"--hold-frozen-heads 2 is for a head that an .*{words}"):
        train(TrainConfig(**asked, hold_frozen_heads=2.0), inputs)
    assert not (tmp_path / "run").exists()


def test_a_drift_within_the_limit_is_not_warned_of(watched, capsys):
    log = watched("quiet", drift_limit=1e3)
    assert measured(log, 2)[-1]["drift"]["classifier"] > 0
    assert "warning" not in capsys.readouterr().err
    assert not [record for record in log if record["event"] == "drift"]


def test_predictions_can_be_held(watched):
    """From the first step of the phase on."""
    free, held = (
        [record["drift"]["classifier"] for record in measured(watched(name, **watch), 2)]
        for name, watch in (("free", {}), ("held", {"hold_frozen_heads": 30.0}))
    )
    assert all(now < 0.5 * before for before, now in zip(free, held, strict=True))


def test_what_is_held_outlasts_a_restart(settings, inputs, tmp_path):
    """Interrupted between two measurements."""
    file = tmp_path / "recipe.json"
    phase = {
        "scenario": "classifier_frozen",
        "epochs": 3,
        "task_weights": {"classifier": 0, "sentiment": 1},
    }
    phase |= {"hold_frozen_heads": 1.0}
    file.write_text(json.dumps([{"scenario": "backbone_frozen", "steps": 2}, phase]))
    settings = settings | {"recipe": str(file), "checkpoint_every": 5}
    whole = TrainConfig(**settings, workdir=str(tmp_path / "whole"))
    train(whole, inputs)

    cut = TrainConfig(**settings, workdir=str(tmp_path / "cut"))
    with pytest.MonkeyPatch.context() as patch:
        from mtl_jax.runs.seed_run import SeedRun

        draw = SeedRun.draw

        def press_ctrl_c(seed_run, steps):
            if int(seed_run.checkpoints.last_step or 0) == 12:
                raise KeyboardInterrupt
            return draw(seed_run, steps)

        # The press of a key at a known step; what is tested runs as it is.
        patch.setattr(SeedRun, "draw", press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            train(cut, inputs)
    assert Workdir(cut.workdir).result() is None
    train(cut, inputs)
    digests = []
    for config in (whole, cut):
        checkpoints = CheckpointManager(Workdir(config.workdir).checkpoints)
        params = checkpoints.restore_params(checkpoints.last_step or 0)
        digests.append([np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)])
        checkpoints.close()
    assert digests[0] == digests[1]
