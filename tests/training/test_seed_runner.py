"""The steps of several seeds in one program are those of each seed alone."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from mtl_jax.freezing.partition import Partition
from mtl_jax.freezing.scenarios import scenario_rules
from mtl_jax.training.executables import Compiled
from mtl_jax.training.program import stream
from mtl_jax.training.runners import JitRunner
from mtl_jax.training.seed_runner import SHARED, SeedRunner
from mtl_jax.training.step import scanned_steps, train_step
from tests.conftest import TASKS
from tests.training.test_runners import LOSS_TOLERANCE, NORM_TOLERANCE, PARAMETER_TOLERANCE
from tests.training.test_step import CONFIG, flat, make_program, random_batch, random_params

STEPS = 3
SHALLOW = dataclasses.replace(CONFIG, num_hidden_layers=1)


@functools.cache
def starts(scenario, seeds=6):
    """Per seed the state and the frozen part, on one backbone, with heads of their own."""
    params = random_params(SHALLOW)
    rules = scenario_rules(scenario, SHALLOW.num_hidden_layers, TASKS)
    partition, program = make_program(params, rules, SHALLOW)
    found = []
    for seed in range(seeds):
        heads = jax.tree.map(np.array, program.model.init_heads(stream(seed, "heads")))
        trainable, frozen = partition.split({**params, **heads})
        found.append((program.init(trainable, seed), frozen))
    return program, found


def batches_of(seed):
    return [random_batch(seed=10 * seed + i) for i in range(STEPS)]


@functools.cache
def compiled_alone(scenario, step):
    return Compiled(JitRunner(), step, starts(scenario)[0])


def alone(scenario, seed, step, batches, vectors=()):
    runner, compiled = JitRunner(), compiled_alone(scenario, step)
    start = starts(scenario)[1][seed]
    state, frozen = start
    logged = []
    for batch in batches:
        state, metrics = compiled(state, frozen, *vectors, runner.shard(batch))
        logged.append(jax.tree.map(np.asarray, metrics))
    return flat(jax.tree.map(np.asarray, Partition.merge(state.trainable, frozen))), logged


def together(program, begun, step, batches, spread, vectors=()):
    """The same for all seeds at once; ``batches`` are per seed."""
    runner = SeedRunner(len(begun), spread=spread)
    compiled = Compiled(runner, step, program, donate=True)
    state = runner.place([state for state, _ in begun])
    shared = {name: tree for name, tree in begun[0][1].items() if name in SHARED}
    own = [{k: tree for k, tree in frozen.items() if k not in SHARED} for _, frozen in begun]
    frozen = {**runner.replicate(shared), **runner.place(own)}
    vectors = [runner.replicate(tree) for tree in vectors]
    logged = []
    for of_step in zip(*batches, strict=True):
        given = state
        state, metrics = compiled(given, frozen, *vectors, runner.shard(*of_step))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
        logged.append(runner.unplace(metrics))
    states = runner.unplace(state)
    frozen = [
        {**runner.fetch({k: frozen[k] for k in shared}), **heads}
        for heads in runner.unplace({k: frozen[k] for k in own[0]})
    ]
    params = [
        flat(jax.tree.map(np.asarray, Partition.merge(one.trainable, part)))
        for one, part in zip(states, frozen, strict=True)
    ]
    devices = {device for leaf in jax.tree.leaves(state) for device in leaf.devices()}
    return params, logged, len(devices)


def assert_alike(found, expected):
    params, logged = found
    others, other_logged = expected
    for metrics, other in zip(logged, other_logged, strict=True):
        for task in TASKS:
            np.testing.assert_array_equal(metrics["loss"][task][1], other["loss"][task][1])
            np.testing.assert_allclose(
                metrics["loss"][task][0], other["loss"][task][0], rtol=LOSS_TOLERANCE
            )
        np.testing.assert_allclose(metrics["grad_norm"], other["grad_norm"], rtol=NORM_TOLERANCE)
    for path, leaf in params.items():
        # The softmax takes no notice of it: its gradient is rounding, which Adam scales up.
        if not path.endswith("key/bias"):
            np.testing.assert_allclose(leaf, others[path], rtol=0, atol=PARAMETER_TOLERANCE)


@pytest.mark.optimized
@pytest.mark.parametrize(
    ("seeds", "spread", "devices"),
    # Six are two on each of three devices, without a fourth; five are, too, one of them twice.
    [(3, False, 1), (6, True, 3), (5, True, 3)],
)
def test_each_seed_trains_as_alone(seeds, spread, devices):
    program, begun = starts("classifier_frozen")
    batches = [batches_of(seed) for seed in range(seeds)]
    params, logged, used = together(program, begun[:seeds], train_step, batches, spread)
    assert used == devices
    for seed in range(seeds):
        expected = alone("classifier_frozen", seed, train_step, batches[seed])
        assert_alike((params[seed], [metrics[seed] for metrics in logged]), expected)
        for name, leaf in flat(begun[seed][1]).items():
            assert params[seed][name].tobytes() == leaf.tobytes()
    first, second = (params[i]["backbone/layer_0/attention/query/kernel"] for i in (0, 1))
    assert np.abs(first - second).max() > 20 * PARAMETER_TOLERANCE


@pytest.mark.optimized
@pytest.mark.parametrize(("seeds", "spread"), [(3, False), (5, True)])
def test_scanned_steps_share_the_vectors(seeds, spread):
    program, begun = starts("backbone_frozen")
    draw = np.random.default_rng(0)
    vectors: dict[str, Any] = {
        "pooled": draw.standard_normal((20, CONFIG.hidden_size)).astype(np.float32),
        "classifier": draw.integers(-1, 3, 20).astype(np.int32),
        "sentiment": draw.integers(-1, 4, 20).astype(np.int32),
    }
    batches = []
    for _ in range(seeds):
        examples = draw.integers(0, 20, (2, STEPS + 1, 4)).astype(np.int32)
        examples[:, STEPS:] = -1  # not there: passed over
        batches.append([{"example": examples}])
    found = together(program, begun[:seeds], scanned_steps, batches, spread, [vectors])
    for seed in range(seeds):
        expected = alone("backbone_frozen", seed, scanned_steps, batches[seed], [vectors])
        assert_alike((found[0][seed], [metrics[seed] for metrics in found[1]]), expected)


@pytest.mark.parametrize("spread", [False, True])
def test_nothing_shared_is_copied_by_seed(spread):
    runner = SeedRunner(6, spread=spread)
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    placed = runner.replicate(tree)
    shards = placed["a"].addressable_shards
    assert len(shards) == (3 if spread else 1)
    assert {shard.data.size for shard in shards} == {6}
    assert np.array_equal(runner.fetch(placed)["a"], tree["a"])


@pytest.mark.parametrize(("seeds", "spread"), [(1, True), (3, False), (5, True)])
def test_place_and_unplace_are_inverse(seeds, spread):
    runner = SeedRunner(seeds, spread=spread)
    trees = [{"a": np.full((2, 3), s, np.float32), "b": {"c": np.int32(s)}} for s in range(seeds)]
    found = runner.unplace(runner.place(trees))
    assert len(found) == seeds
    for one, tree in zip(found, trees, strict=True):
        assert jax.tree.structure(one) == jax.tree.structure(tree)
        assert jax.tree.all(jax.tree.map(np.array_equal, one, tree))


@pytest.mark.optimized
def test_a_seed_that_diverges_leaves_the_others_alone():
    program, begun = starts("classifier_frozen")
    batches = [batches_of(seed) for seed in range(3)]
    state, frozen = begun[1]
    broken = state.replace(trainable=jax.tree.map(lambda leaf: leaf * np.nan, state.trainable))
    sick = [begun[0], (broken, frozen), begun[2]]
    healthy = together(program, begun[:3], train_step, batches, False)
    found = together(program, sick, train_step, batches, False)
    assert np.isnan(found[1][0][1]["grad_norm"])
    for seed in (0, 2):
        for path, leaf in found[0][seed].items():
            assert leaf.tobytes() == healthy[0][seed][path].tobytes()


def test_as_many_trees_as_seeds():
    for trees in (1, 3):
        with pytest.raises(ValueError, match=f"{trees} trees for 2 seeds"):
            SeedRunner(2, spread=False).place([{"a": np.zeros(2)}] * trees)
