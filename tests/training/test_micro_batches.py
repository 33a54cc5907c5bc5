"""A batch in micro-batches makes the update that it makes as a whole."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.freezing.scenarios import scenario_rules
from mtl_jax.runs.loop import train_seeds
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.training.executables import Compiled
from mtl_jax.training.inputs import Inputs
from mtl_jax.training.micro_batches import WHOLE, MicroBatches
from mtl_jax.training.runners import make_runner
from mtl_jax.training.step import train_step
from mtl_jax.training.weighting.registry import make_weighting
from tests.conftest import TASKS
from tests.training.test_runners import SHALLOW, uneven_batch
from tests.training.test_step import flat, make_program, random_params

# What another order of summation in float32 makes of a gradient, against its own size.
TOLERANCE = 2e-6


@functools.cache
def gradient_and_metrics(parts, kind: Any = "jit", weighting="fixed", held=False) -> Any:
    """What a step on eight unevenly labelled rows hands to the optimizer, and its metrics."""
    params, batch = random_params(SHALLOW), uneven_batch(0)
    rules = scenario_rules("none_frozen", SHALLOW.num_hidden_layers, TASKS)
    partition, program = make_program(params, rules, SHALLOW)
    if held:
        draw = np.random.default_rng(1).dirichlet(np.ones(4), batch["sentiment"].shape)
        batch["target_sentiment"] = draw.astype(np.float32)
    program = dataclasses.replace(
        program,
        weighting=make_weighting(weighting, 4),
        hold_weight=0.5 if held else 0.0,
        parts=parts,
    )
    trainable, frozen = partition.split(params)
    runner = make_runner(kind)
    state = runner.replicate(program.init(trainable, 0))
    state, metrics = Compiled(runner, train_step, program)(
        state, runner.replicate(frozen), runner.shard(batch)
    )
    state = runner.fetch(state)
    # After the first step Adam's means are a tenth of the gradient.
    return flat(state.opt_state["moments"].mu), runner.fetch(metrics), state.weighting


def assert_alike(found, expected):
    """Gradients leaf by leaf against the largest of each, and what is measured."""
    for path, leaf in found[0].items():
        size = max(np.abs(expected[0][path]).max(), 1e-3)
        np.testing.assert_allclose(leaf, expected[0][path], rtol=0, atol=TOLERANCE * size)
    for one, other in zip(*(jax.tree.leaves(each[1:]) for each in (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "parts", "weighting", "held"),
    [
        ("jit", MicroBatches(8), "fixed", False),
        ("jit", MicroBatches(2), "fixed", True),
        ("jit", MicroBatches(4), "pcgrad", True),
        ("jit", MicroBatches(2), "famo", False),
        ("mesh", MicroBatches(2), "fixed", False),
        ("fsdp", MicroBatches(2, 4), "fixed", False),
        ("pmap", MicroBatches(2), "uncertainty", False),
    ],
    ids=str,
)
def test_gradients_losses_and_weights_are_those_of_the_whole(kind, parts, weighting, held):
    whole = gradient_and_metrics(WHOLE, "jit", weighting, held)
    assert_alike(gradient_and_metrics(parts, kind, weighting, held), whole)


def test_each_device_has_its_share_of_every_micro_batch():
    """Of the rows 0 to 7 on 4 devices, two each, the first of each, and then the second."""
    rows = MicroBatches(2, 4).split({"rows": jnp.arange(8)})["rows"]
    assert rows.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert MicroBatches(4).split({"rows": jnp.arange(8)})["rows"].tolist()[1] == [2, 3]
    runner = make_runner("mesh")
    split = jax.jit(MicroBatches(2, 4).split).lower(runner.shard({"x": np.zeros((8, 64))}))
    # Nothing goes from one device to another.
    assert "all-" not in str(split.compile().as_text())


def test_micro_batches_draw_dropout_of_their_own():
    batch, key = {"rows": jnp.zeros((4, 1))}, jax.random.key(0)

    def drawn(part, key):
        return jax.random.uniform(key, (2,)) + part["rows"].sum()

    parts = [jax.random.uniform(jax.random.fold_in(key, i), (2,)) for i in range(2)]
    np.testing.assert_allclose(MicroBatches(2).summed(drawn, batch, key), sum(parts), rtol=1e-6)


def test_runs_leave_what_whole_batches_leave(small_settings, tmp_path):
    """Packed texts, several seeds as one program, and a run by itself over four devices."""
    settings = {**small_settings, "epochs": 1, "scenario": "none_frozen"}
    inputs = Inputs(TrainConfig(**settings, workdir=str(tmp_path)))
    bert = dataclasses.replace(
        inputs.bert, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    inputs.bert = dataclasses.replace(bert, classifier_dropout=0.0)

    def ends(name, seeds, **changes) -> Any:
        configs = [
            TrainConfig(
                **{**settings, **changes}, seed=seed, workdir=str(tmp_path / f"{name}{seed}")
            )
            for seed in seeds
        ]
        return train_seeds(configs, inputs)

    whole = ends("whole", (0, 1))
    for name, seeds, changes in (
        ("parts", (0, 1), {}),
        ("mesh", (0,), {"parallel": "mesh"}),
    ):
        for end, expected in zip(ends(name, seeds, accumulate=2, **changes), whole, strict=False):
            assert end["train_flops"] == expected["train_flops"]
            for task in TASKS:
                loss = expected["validation"][task]["loss"]
                assert end["validation"][task]["loss"] == pytest.approx(loss, rel=1e-5)


def test_rows_are_enough_for_every_micro_batch(small_settings, tmp_path):
    config = TrainConfig(
        **{**small_settings, "parallel": "mesh"}, accumulate=3, workdir=str(tmp_path)
    )
    run = PhaseRun(config, Inputs(config))
    assert run.plan.layout.rows % (4 * 3) == 0
    assert run.compiled_step().template.parts == MicroBatches(3)
