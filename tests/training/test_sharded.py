"""Parameters and moments over the mesh: each device keeps a part, and the numbers stay."""

import dataclasses
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.data.batches import train_batches
from mtl_jax.runs.loop import train as run_training
from mtl_jax.runs.loop import train_seeds
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.training.inputs import Inputs
from mtl_jax.training.runners import ShardedRunner, gathered, make_runner
from mtl_jax.training.step import _gathering
from tests.conftest import SMALL, TASKS, write_checkpoint
from tests.training.test_runners import SHALLOW, train, uneven_batch


def test_each_device_keeps_a_quarter_of_every_kernel():
    runner = make_runner("fsdp")
    assert isinstance(runner, ShardedRunner)
    tree = {"a": np.zeros((8, 12)), "b": np.zeros((4, 6)), "c": np.zeros((3, 5)), "d": np.zeros(16)}
    placed = runner.replicate(tree)
    shapes = {name: leaf.sharding.shard_shape(leaf.shape) for name, leaf in placed.items()}
    # The last two are no kernels that four devices can share.
    assert shapes == {"a": (8, 3), "b": (1, 6), "c": (3, 5), "d": (16,)}
    assert jax.tree.all(jax.tree.map(np.array_equal, runner.fetch(placed), tree))


def test_three_steps_are_those_of_whole_copies():
    """On unevenly labelled batches, within what another order of summation makes."""
    batches = [uneven_batch(i) for i in range(3)]
    (params, logged), (expected, expected_logged) = (
        train(kind, "none_frozen", batches, SHALLOW) for kind in ("fsdp", "mesh")
    )
    for metrics, other in zip(logged, expected_logged, strict=True):
        for one, two in zip(jax.tree.leaves(metrics), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-6)
    for path, leaf in params.items():
        if not path.endswith("key/bias"):
            np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=1e-6, err_msg=path)


def bytes_of_each(tree):
    """What one device keeps of a tree, and how much that is as a whole."""
    leaves = jax.tree.leaves(tree)
    kept = (np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.itemsize for leaf in leaves)
    return int(sum(kept)), sum(leaf.nbytes for leaf in leaves)


def test_a_step_leaves_the_parts_where_they_were(small_settings, tmp_path):
    """Parameters and moments, less than two fifths of them on each of four devices."""
    config = TrainConfig(
        **{**small_settings, "parallel": "mesh"},
        scenario="none_frozen",
        shard="fsdp",
        accumulate=2,
        workdir=str(tmp_path),
    )
    run = PhaseRun(config, Inputs(config))
    step = run.compiled_step()
    state, frozen = step.place([run.start()], [run.partition.split(run.params)[1]])
    before = jax.tree.map(lambda leaf: leaf.sharding, state)
    kept, whole = bytes_of_each((state.trainable, state.opt_state))
    assert kept < 0.4 * whole
    data = train_batches(run.training.texts, run.plan, 0, 0, 2)
    for _ in range(2):
        state, _ = step(state, frozen, None, [[next(data)]])
    assert len(step.step._executables) == 1
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    program: Any = step.step._executables.popitem()[1]
    assert " all-gather(" in program.as_text()


def test_parameters_are_gathered_again_for_the_backward_pass():
    """What has been gathered is not among what the forward pass keeps."""
    everywhere, kernel = gathered("fsdp"), jnp.ones((8, 8))

    def product(params, rows):
        return jnp.sin(rows @ params["kernel"]).sum()

    assert _gathering(product, None) is product
    text = str(
        jax.make_jaxpr(jax.grad(_gathering(product, everywhere)))({"kernel": kernel}, kernel)
    )
    assert text.count("sharding_constraint") > 1


def test_a_run_goes_on_from_the_folders_of_others(small_settings, tmp_path):
    """Without dropout the numbers and the files are those of whole copies, and of both in turns."""
    bert = dataclasses.replace(SMALL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    settings = {
        **small_settings,
        "backbone": str(write_checkpoint(tmp_path / "checkpoint", bert)),
        "parallel": "mesh",
        "scenario": "top_1",
        "epochs": 2,
        "checkpoint_every": 6,
    }
    whole = run_training(TrainConfig(**settings, workdir=str(tmp_path / "whole")))
    config = TrainConfig(**settings, shard="fsdp", workdir=str(tmp_path / "parts"))
    parts = run_training(config)
    ends = [parts]
    for begun, then in (("whole", "parts"), ("parts", "whole")):
        folder = tmp_path / f"{begun}, then {then}"
        shutil.copytree(tmp_path / begun, folder)
        # A finished run whose last checkpoint is lost is an unfinished one.
        shutil.rmtree(folder / "checkpoints" / "12")
        log = folder / "metrics.jsonl"
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
        shard = "fsdp" if then == "parts" else None
        ends.append(run_training(TrainConfig(**settings, shard=shard, workdir=str(folder))))
    for end in ends:
        for split in ("train", "validation", "test"):
            for task in TASKS:
                loss = whole[split][task]["loss"]
                assert end[split][task]["loss"] == pytest.approx(loss, rel=1e-5)
        assert end["frozen_digest_unchanged"]


def test_seeds_that_share_parameters_are_trained_one_after_the_other(small_settings, tmp_path):
    settings = {**small_settings, "parallel": "auto", "epochs": 1, "shard": "fsdp"}
    configs = [
        TrainConfig(**settings, seed=seed, workdir=str(tmp_path / f"{seed}")) for seed in (0, 1)
    ]
    assert [type(end) for end in train_seeds(configs)] == [dict, dict]


def test_a_mesh_is_what_parts_are_spread_over():
    with pytest.raises(UserError, match="--shard fsdp spreads over a mesh: leave --parallel pmap"):
        TrainConfig(workdir="", shard="fsdp", parallel="pmap")
