"""A frozen head over a backbone that trains: how far it drifts, and what is done about it."""

import json
import math

import jax
import numpy as np
import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import read_lines
from mtl_jax.freezing.phase import Phase
from mtl_jax.runs.checkpoints.manager import CheckpointManager
from mtl_jax.runs.head_drift import Reference, divergence, judge
from mtl_jax.runs.loop import train
from mtl_jax.runs.progress import PhaseProgress
from mtl_jax.runs.workdir import Workdir
from mtl_jax.training.inputs import Inputs


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
    assert Reference(before, {}).drift(logits) == {"classifier": 0.0}


def test_targets_are_log_probabilities():
    logits = {"sentiment": np.log(np.array([[1.0, 3.0]])), "classifier": np.zeros((1, 2))}
    held = Reference({}, logits).targets(["sentiment"])
    assert list(held) == ["sentiment"]
    np.testing.assert_allclose(np.exp(held["sentiment"]), [[0.25, 0.75]])


@pytest.mark.parametrize(
    ("does", "changed"),
    [
        ("warn", {}),
        ("stop", {"over": True}),
        ("back", {"over": True, "returns": True}),
        ("distill", {"holds": True}),
    ],
)
def test_what_a_phase_does_about_drift(does, changed):
    phase = Phase(scenario="sentiment_frozen", drift_limit=0.5, on_drift=does)
    progress = PhaseProgress()
    assert judge(phase, progress, {"sentiment": 0.5}, 10) is None
    assert progress == PhaseProgress(steady=10)
    words = judge(phase, progress, {"sentiment": 0.6}, 20)
    assert words is not None
    assert words.startswith(
        "a frozen head's predictions have drifted more than 0.5 nats, that of sentiment 0.600"
    )
    assert progress.steady == 10
    assert judge(phase, progress, {"sentiment": 0.7}, 30) is None
    state = {name: bool(getattr(progress, name)) for name in ("over", "returns", "holds")}
    assert state == {"over": False, "returns": False, "holds": False} | changed


@pytest.fixture(scope="module")
def inputs(shared_settings):
    return Inputs(TrainConfig(**shared_settings, workdir=""))


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
    with pytest.raises(UserError, match=f"--on-drift back is for a head that an earlier.*{words}"):
        train(TrainConfig(**asked, on_drift="back"), inputs)
    assert not (tmp_path / "run").exists()


def test_what_is_gone_back_from_is_not_chosen(watched, tmp_path):
    """Though no other phase follows: the result is of the phase before."""
    log = watched("last", last=False, drift_limit=1e-3, on_drift="back")
    result = log[-1]
    assert result["event"] == "result"
    assert (result["best_phase"], result["phases"]) == (1, 2)


def test_a_drift_within_the_limit_is_not_warned_of(watched, capsys):
    log = watched("quiet", drift_limit=1e3)
    assert measured(log, 2)[-1]["drift"]["classifier"] > 0
    assert "warning" not in capsys.readouterr().err
    assert not [record for record in log if record["event"] == "drift"]


def test_drift_can_stop_the_phase(watched):
    log = watched("stop", drift_limit=1e-3, on_drift="stop")
    assert len(measured(log, 2)) == 1
    over = [record["over"] for record in log if record["event"] == "phase"]
    assert over[1].startswith("a frozen head's predictions have drifted more than 0.001 nats")
    # The next phase goes on from what has drifted, but for one step at no rate to speak of.
    before, after = measured(log, 2)[-1], measured(log, 3)[-1]
    assert after["validation"]["classifier"]["loss"] == pytest.approx(
        before["validation"]["classifier"]["loss"], rel=1e-4
    )


def test_drift_can_send_the_run_back(watched, tmp_path):
    """To the start of the phase, where no measurement in it was within the limit."""
    log = watched("back", drift_limit=1e-3, on_drift="back")
    before, drifted, after = (measured(log, phase)[-1] for phase in (1, 2, 3))
    losses = [r["validation"]["classifier"]["loss"] for r in (before, drifted, after)]
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)
    assert losses[1] != pytest.approx(losses[0], rel=1e-4)
    assert len(measured(log, 2)) == 1


def test_predictions_can_be_held(watched):
    free = measured(watched("free", drift_limit=1e-3), 2)
    held = measured(
        watched("held", drift_limit=1e-3, on_drift="distill", distillation_weight=30.0), 2
    )
    drift = [[record["drift"]["classifier"] for record in log] for log in (free, held)]
    # It holds from the first measurement on, and no sooner.
    assert drift[0][0] == drift[1][0]
    assert drift[1][-1] < 0.5 * drift[0][-1]
    assert drift[1][-1] < drift[1][0]


def test_what_is_held_outlasts_a_restart(settings, inputs, tmp_path):
    """Interrupted between two measurements, after the first has turned the term on."""
    file = tmp_path / "recipe.json"
    phase = {
        "scenario": "classifier_frozen",
        "epochs": 3,
        "task_weights": {"classifier": 0, "sentiment": 1},
    }
    phase |= {"on_drift": "distill", "drift_limit": 1e-6}
    file.write_text(json.dumps([{"scenario": "backbone_frozen", "steps": 2}, phase]))
    settings = settings | {"recipe": str(file), "checkpoint_every": 5}
    whole = TrainConfig(**settings, workdir=str(tmp_path / "whole"))
    train(whole, inputs)

    cut = TrainConfig(**settings, workdir=str(tmp_path / "cut"))
    with pytest.MonkeyPatch.context() as patch:
        from mtl_jax.runs.seed_run import SeedRun

        draw = SeedRun.draw

        def press_ctrl_c(seed_run, steps):
            if seed_run.progress.holds and int(seed_run.checkpoints.last_step or 0) == 12:
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
