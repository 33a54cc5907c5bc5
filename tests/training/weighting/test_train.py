"""Whole runs of the tiny BERT with weights that are found in training."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.json_files import read_lines
from mtl_jax.freezing import partition
from mtl_jax.runs.head_sweep import Grid, sweep
from mtl_jax.runs.loop import train, train_seeds
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.tools.plan import warnings_of
from mtl_jax.training.inputs import Inputs
from mtl_jax.training.weighting.registry import METHODS
from tests.conftest import TASKS, settings_of, weights
from tests.faults.runs import without_times
from tests.runs.test_loop import final_params

BALANCING = tuple(name for name in METHODS if name != "fixed")
EPOCHS, EVERY, STOP = 4, 5, 17


@pytest.fixture
def settings(small_settings):
    """Of one layer: what is weighted does not depend on how many there are."""
    return dict(small_settings)


@pytest.fixture(scope="module")
def inputs(small_settings):
    return Inputs(TrainConfig(**small_settings, workdir=""))


@pytest.fixture
def make_config(settings, tmp_path):
    def make(name, folder="run", **changes):
        settings.update(epochs=EPOCHS, checkpoint_every=EVERY, scenario="top_1", weighting=name)
        return TrainConfig(**settings | changes, workdir=str(tmp_path / folder))

    return make


def interrupted_at(step):
    """A progress bar at whose update after a step the user presses Ctrl-C."""

    @contextlib.contextmanager
    def bar(title, total, done):
        def update(done, losses, rate):
            if done == step:
                raise KeyboardInterrupt

        yield update

    return bar


def weights_by_step(folder):
    log = read_lines(folder / "metrics.jsonl")
    return {r["step"]: r.get("task_weights", {}) for r in log if r["event"] == "step"}


@pytest.mark.parametrize("name", BALANCING)
def test_a_run_resumes_to_the_same_end(name, make_config, inputs, tmp_path, monkeypatch, capsys):
    whole = train(make_config(name, "whole"), inputs)
    with monkeypatch.context() as patch:
        patch.setattr("mtl_jax.runs.loop.training_bar", interrupted_at(STOP))
        with pytest.raises(KeyboardInterrupt):
            train(make_config(name, "resumed"), inputs)
    capsys.readouterr()
    resumed = train(make_config(name, "resumed"), inputs)
    assert f"resuming from step {STOP - STOP % EVERY} of 24" in capsys.readouterr().err
    assert without_times(resumed) == without_times(whole)
    assert resumed["frozen_digest_unchanged"]
    folders = tmp_path / "whole", tmp_path / "resumed"
    assert partition.digest(final_params(folders[0])) == partition.digest(final_params(folders[1]))
    logs = [without_times(read_lines(folder / "metrics.jsonl")) for folder in folders]
    assert logs[0] == logs[1]
    weights = weights_by_step(folders[0])
    assert list(weights) == [10, 20]
    for of_step in weights.values():
        assert of_step.keys() == set(TASKS)
        assert all(np.isfinite(list(of_step.values())))
    if name != "pcgrad":
        assert weights[20] != {"classifier": 1.0, "sentiment": 1.0}
    settings = json.loads((folders[0] / "config.json").read_text())["settings"]
    assert settings["weighting"] == name


def test_fixed_weights_are_not_logged_and_say_nothing(make_config, inputs, tmp_path, capsys):
    config = make_config("fixed", task_weights=("classifier=0.5",))
    assert warnings_of(PhaseRun(config, inputs)) == ()
    train(config, inputs)
    assert list(weights_by_step(tmp_path / "run").values()) == [{}, {}]
    assert "note: --weighting" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("famo", {"scenario": "backbone_frozen"}, "--weighting famo can only scale the gradient"),
        (
            "uncertainty",
            {"task_weights": ("classifier=0.0",)},
            "has no effect, for classifier has weight 0",
        ),
    ],
)
def test_a_run_says_where_a_method_can_do_nothing(
    name, changes, words, make_config, inputs, capsys
):
    config = make_config(name, epochs=1, **changes)
    assert any(words in warning for warning in warnings_of(PhaseRun(config, inputs)))
    train(config, inputs)
    assert [words in line for line in capsys.readouterr().err.splitlines()].count(True) == 1


def test_what_a_method_can_do_is_not_warned_of(make_config, inputs):
    for name in BALANCING:
        assert warnings_of(PhaseRun(make_config(name), inputs)) == ()


@pytest.mark.parametrize("name", ["pcgrad", "gradnorm"])
def test_without_anything_shared_gradient_surgery_changes_nothing(
    name, make_config, inputs, tmp_path, capsys
):
    results, words = [], f"--weighting {name} has no effect, for no para"
    for weighting in ("fixed", name):
        config = make_config(weighting, weighting, scenario="backbone_frozen")
        told = any(words in warning for warning in warnings_of(PhaseRun(config, inputs)))
        results.append(train(config, inputs))
        said = [words in line for line in capsys.readouterr().err.splitlines()].count(True)
        assert (told, said) == ((True, 1) if weighting == name else (False, 0))
    for split in ("train", "validation", "test"):
        for task in TASKS:
            losses = [result[split][task]["loss"] for result in results]
            assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for of_step in weights_by_step(tmp_path / name).values():
        assert of_step == {"classifier": 1.0, "sentiment": 1.0}


def test_seeds_at_once_log_weights_of_their_own(make_config, inputs, tmp_path):
    base = make_config("uncertainty", "0", checkpoint_every=0)
    others = [base, dataclasses.replace(base, seed=1, workdir=str(tmp_path / "1"))]
    train_seeds(others, inputs)
    alone = dataclasses.replace(base, seed=1, workdir=str(tmp_path / "alone"))
    train(alone, inputs)
    first, second, single = (weights_by_step(tmp_path / name)[20] for name in ("0", "1", "alone"))
    assert first != second
    assert second == pytest.approx(single, rel=1e-3)


def test_a_run_of_a_sweep_is_weighted_as_alone(make_config, inputs, tmp_path, capsys):
    config = make_config("famo", scenario="backbone_frozen", checkpoint_every=0)
    grid = Grid((0, 1), (1e-2,), (0.01,), weights((1.0,), (0.5, 2.0)))
    result = sweep(config, grid, inputs)
    assert "can only scale the gradient of each head" in capsys.readouterr().err
    for setting in range(2):
        alone = dataclasses.replace(
            config,
            seed=1,
            workdir=str(tmp_path / str(setting)),
            **settings_of(result.settings[setting]),
        )
        train(alone, inputs)
        log = read_lines(tmp_path / str(setting) / "metrics.jsonl")
        scores = [
            np.mean([record["validation"][task]["macro_f1"] for task in TASKS])
            for record in log
            if record["event"] == "epoch"
        ]
        np.testing.assert_allclose(result.validation[1, setting], scores, atol=1e-9)
