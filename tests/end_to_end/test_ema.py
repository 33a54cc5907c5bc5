"""Runs that average what trains: the average is what is measured, kept and used."""

import dataclasses
import shutil
from typing import Any

import jax
import numpy as np
import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.freezing.partition import digest
from mtl_jax.runs.checkpoints.reader import CheckpointReader
from mtl_jax.runs.loop import train
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.runs.workdir import Workdir
from mtl_jax.tools.predict import Predictor
from mtl_jax.training.inputs import Inputs
from tests.faults.runs import without_times

DECAY = 0.6


@pytest.fixture(scope="module")
def trained(small_settings, tmp_path_factory):
    """A run of 12 steps with a checkpoint of each, and its result."""
    settings = small_settings | {"checkpoint_every": 1, "keep_every": 1, "epochs": 2}
    folder = tmp_path_factory.mktemp("ema") / "run"
    config = TrainConfig(**settings, scenario="top_1", ema=DECAY, workdir=str(folder))
    inputs = Inputs(config)
    return config, inputs, train(config, inputs)


def state_at(config, inputs, step):
    """All parameters of a checkpoint, and its state, in which they are those that are kept."""
    run = PhaseRun(config, inputs)
    reader = CheckpointReader(Workdir(config.workdir).checkpoints)
    return reader.restore(step, run.start(), run.partition)


def test_a_checkpoint_has_the_average_and_beside_it_what_trains(trained):
    config, inputs, result = trained
    run = PhaseRun(config, inputs)
    average = run.partition.split(run.params)[0]
    for step in range(1, 13):
        _, state = state_at(config, inputs, step)
        # TensorFlow's ExponentialMovingAverage with num_updates = step - 1.
        kept = min(DECAY, step / (9 + step))
        expected = jax.tree.map(
            lambda old, new, kept=kept: kept * old + (1 - kept) * new,
            average,
            state.swapped().trainable,
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), expected, state.trainable
        )
        assert digest(state.trainable) != digest(state.swapped().trainable)
        assert digest(state.swapped().swapped().trainable) == digest(state.trainable)
        average = state.trainable
    certificate = Workdir(config.workdir).certificate()
    # Two moments and an average of each trained parameter, 4 bytes each, and counts of steps.
    assert certificate["optimizer_state_bytes"] > 3 * 4 * certificate["trainable_parameters"]
    assert certificate["frozen_digest_unchanged"]
    predictor = Predictor(config.workdir)
    kept = CheckpointReader(Workdir(config.workdir).checkpoints).restore_best()
    assert kept is not None
    best = max(
        range(6, 13, 6), key=lambda step: digest(state_at(config, inputs, step)[0]) == digest(kept)
    )
    assert digest(state_at(config, inputs, best)[0]) == digest(kept)
    again = predictor.evaluate("test")
    for task, metrics in result["test"].items():
        assert again[task]["macro_f1"] == metrics["macro_f1"]
        assert again[task]["loss"] == pytest.approx(metrics["loss"], rel=1e-5)


def test_it_resumes_to_the_same_bytes(trained, tmp_path):
    config, inputs, result = trained
    folder = tmp_path / "run"
    shutil.copytree(config.workdir, folder)
    for step in range(6, 13):
        shutil.rmtree(folder / "checkpoints" / str(step))
    other = dataclasses.replace(config, workdir=str(folder))
    again = train(other, inputs)
    assert without_times(again) == without_times(result)
    ends = [state_at(each, inputs, 12) for each in (config, other)]
    (params, state), (same, as_was) = ends
    assert digest(params) == digest(same)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, as_was.opt_state)


def test_a_phase_begins_with_the_average_of_the_one_before(small_settings, trained, tmp_path):
    _, inputs, _ = trained
    settings = small_settings | {"checkpoint_every": 1, "keep_every": 1, "epochs": 1}
    config = TrainConfig(**settings, recipe="lp_ft", ema=DECAY, workdir=str(tmp_path))
    train(config, inputs)
    reader = CheckpointReader(Workdir(tmp_path).checkpoints)
    over = [step for step in reader.steps if reader.progress(step)["phase_progress"]["over"]]
    run = PhaseRun(config, inputs)
    params, _ = reader.restore(over[0], run.start(), run.partition)
    second = run.at(1, params)
    _, state = reader.restore(over[0] + 1, second.start(), second.partition)
    opt_state: Any = state.opt_state
    assert opt_state["average"].steps == 1
    jax.tree.map(
        lambda old, raw, now: np.testing.assert_allclose(0.1 * old + 0.9 * raw, now, atol=1e-6),
        second.partition.split(params)[0],
        state.swapped().trainable,
        state.trainable,
    )


def test_no_decay_is_refused():
    with pytest.raises(UserError, match=r"--ema 1\.0 must be above 0 and below 1"):
        TrainConfig(workdir="", ema=1.0)
