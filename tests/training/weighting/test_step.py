"""Weighted steps of the model: against single tasks, on several devices, with several seeds."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtl_jax.freezing.partition import Partition
from mtl_jax.freezing.scenarios import scenario_rules
from mtl_jax.training.executables import Compiled
from mtl_jax.training.losses import masked_cross_entropy
from mtl_jax.training.program import Program, stream
from mtl_jax.training.runners import JitRunner, make_runner
from mtl_jax.training.step import scanned_steps, take, train_step
from mtl_jax.training.weighting.methods.famo import Famo
from mtl_jax.training.weighting.methods.fixed import Fixed
from mtl_jax.training.weighting.methods.gradnorm import GradNorm
from mtl_jax.training.weighting.methods.pcgrad import PcGrad
from mtl_jax.training.weighting.registry import METHODS, make_weighting
from tests.conftest import TASKS
from tests.training.test_runners import (
    LOSS_TOLERANCE,
    PARAMETER_TOLERANCE,
    SHALLOW,
    pooled_batch,
    uneven_batch,
)
from tests.training.test_seed_runner import together
from tests.training.test_step import (
    CONFIG,
    NO_DROPOUT,
    flat,
    gradient_of,
    looking,
    make_program,
    random_batch,
    random_params,
)

STEPS = 4
# Epochs of one step, so that weights move within a few.
BALANCING = [make_weighting(name, 1) for name in METHODS if name != "fixed"]
each_method = pytest.mark.parametrize("method", BALANCING, ids=lambda method: method.name)


def weighted_program(method, scenario="top_1", config=CONFIG, task_weights=(1.0, 0.5)):
    params = random_params(config)
    rules = scenario_rules(scenario, config.num_hidden_layers, TASKS)
    partition, program = make_program(params, rules, config, weights=task_weights)
    return partition, dataclasses.replace(program, weighting=method)


def weights_of(metrics):
    return np.array([float(metrics["task_weights"][task]) for task in TASKS])


# Fixed weights.


def plain_step(program: Program, state, frozen, batch) -> Any:
    """A step without any weighting but the user's, written out."""
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    counts = {task: (batch[task] >= 0).sum().astype(jnp.float32) for task in TASKS}

    def loss(trainable):
        params = {"params": Partition.merge(trainable, frozen)}
        depth, rngs = program.frozen_depth, {"dropout": rng}
        logits: Any = program.model.apply(params, batch, train=True, frozen_depth=depth, rngs=rngs)
        losses = {task: masked_cross_entropy(logits[task], batch[task]) for task in TASKS}
        total = sum(
            weight * losses[task][0] / jnp.maximum(counts[task], 1.0)
            for task, weight in zip(TASKS, program.task_weights, strict=True)
        )
        return total, losses

    gradient, losses = jax.grad(loss, has_aux=True)(state.trainable)
    updates, opt_state = program.optimizer.update(gradient, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    state = state.replace(step=state.step + 1, trainable=trainable, opt_state=opt_state)
    return state, {"loss": losses, "grad_norm": optax.tree.norm(gradient)}


def test_fixed_weights_are_one_backward_pass_bit_for_bit():
    partition, program = weighted_program(Fixed())
    trainable, frozen = partition.split(random_params())
    found = expected = program.init(trainable, 3)
    assert found.weighting == ()
    step, plain = (jax.jit(functools.partial(f, program)) for f in (train_step, plain_step))
    for i in range(2):
        found, metrics = step(found, frozen, random_batch(seed=i))
        expected, wanted = plain(expected, frozen, random_batch(seed=i))
        for one, other in ((found, expected), (metrics, wanted)):
            assert jax.tree.structure(one) == jax.tree.structure(other)
            assert jax.tree.all(jax.tree.map(np.array_equal, one, other))


# Against the gradients of single tasks.


def weighted_gradient_of(method, batch, task_weights=(1.0, 1.0)):
    """What a step hands to the optimizer, and its metrics."""
    partition, program = weighted_program(method, "none_frozen", NO_DROPOUT)
    program, step = looking(program)
    trainable, frozen = partition.split(random_params())
    start = program.init(trainable, 0)
    after, metrics = step(jnp.array(task_weights), start, frozen, batch)
    return flat(after.opt_state), metrics, after.weighting


def shared_vector(gradient):
    return np.concatenate(
        [np.ravel(gradient[path]) for path in sorted(gradient) if path.startswith("backbone/")]
    ).astype(np.float64)


@pytest.fixture(scope="module")
def by_sign():
    """By the sign of the inner product of the tasks' gradients a batch, and the gradients."""
    found = {}
    for seed in range(10):
        batch = random_batch(seed=seed)
        alone = [gradient_of(random_params(), batch, weights=w)[0] for w in ((1, 0), (0, 1))]
        first, second = map(shared_vector, alone)
        found.setdefault(np.sign(first @ second), (batch, alone))
        if found.keys() == {-1, 1}:
            break
    return found


def test_pcgrad_projects_the_gradients_of_the_backbone(by_sign):
    batch, alone = by_sign[-1]
    first, second = map(shared_vector, alone)
    inner = first @ second
    wanted = (first - inner / (second @ second) * second) + (
        second - inner / (first @ first) * first
    )
    gradient, metrics, _ = weighted_gradient_of(PcGrad(), batch)
    np.testing.assert_allclose(shared_vector(gradient), wanted, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(
        weights_of(metrics), 1 - inner / np.array([first @ first, second @ second]), rtol=1e-4
    )
    # Against neither task any more.
    found = shared_vector(gradient)
    assert min(found @ first, found @ second) > -1e-6
    for i, task in enumerate(TASKS):
        for leaf in ("kernel", "bias"):
            path = f"{task}/{leaf}"
            np.testing.assert_allclose(gradient[path], alone[i][path], rtol=1e-5, atol=1e-7)


def test_pcgrad_leaves_gradients_that_agree(by_sign):
    batch, _ = by_sign[1]
    gradient, metrics, _ = weighted_gradient_of(PcGrad(), batch)
    whole, _ = gradient_of(random_params(), batch)
    np.testing.assert_array_equal(weights_of(metrics), [1, 1])
    for path, leaf in gradient.items():
        np.testing.assert_allclose(leaf, whole[path], rtol=1e-3, atol=1e-6)


def test_gradnorm_measures_the_top_layer(by_sign):
    batch, alone = by_sign[-1]
    norms = []
    for gradient in alone:
        top = [leaf for path, leaf in gradient.items() if path.startswith("backbone/layer_1/")]
        norms.append(np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in top)))
    method = GradNorm(alpha=0.0)
    gradient, metrics, state = weighted_gradient_of(method, batch)
    np.testing.assert_array_equal(weights_of(metrics), [1, 1])
    longer, shorter = int(np.argmax(norms)), int(np.argmin(norms))
    np.testing.assert_allclose(state["weights"][longer], 1 - 0.025, rtol=1e-5)
    np.testing.assert_allclose(state["weights"][shorter], 1 + 0.025, rtol=1e-5)
    # The first moment holds a tenth of the gradient, whose size is the norm.
    np.testing.assert_allclose(np.abs(state["adam"][0].mu), np.array(norms) / 10, rtol=1e-4)
    for i, task in enumerate(TASKS):
        total, count = metrics["loss"][task]
        np.testing.assert_allclose(state["first"][i], total / count, rtol=1e-6)
    whole, _ = gradient_of(random_params(), batch)
    for path, leaf in gradient.items():
        np.testing.assert_allclose(leaf, whole[path], rtol=1e-3, atol=1e-6)


def test_famo_looks_again_with_the_same_dropout():
    """Where the step changes nothing, so does the second look."""
    partition, program = weighted_program(Famo(gamma=0.0))
    program = dataclasses.replace(program, optimizer=optax.set_to_zero())
    trainable, frozen = partition.split(random_params())
    step = jax.jit(functools.partial(train_step, program))
    state, metrics = step(program.init(trainable, 0), frozen, random_batch())
    # The first moment, which holds a tenth of the gradient: rounding, and no other dropout.
    assert np.abs(state.weighting["adam"][1][0].mu).max() < 1e-7
    losses = np.array([float(np.divide(*metrics["loss"][task])) for task in TASKS])
    wanted = (1 / losses) / (1 / losses).sum() * [1.0, 0.5]
    np.testing.assert_allclose(weights_of(metrics), wanted, rtol=1e-5)


@functools.cache
def gradient_of_one_task():
    return gradient_of(random_params(), random_batch(), weights=(2.0, 0.0))[0]


@each_method
def test_a_weight_of_0_is_the_user_s_and_moves_no_head(method):
    gradient, metrics, _ = weighted_gradient_of(method, random_batch(), task_weights=(2.0, 0.0))
    np.testing.assert_array_equal(weights_of(metrics), [2, 0])
    wanted = gradient_of_one_task()
    for path, leaf in gradient.items():
        np.testing.assert_allclose(leaf, wanted[path], rtol=1e-4, atol=1e-6)
    assert not np.any(gradient["sentiment/kernel"])


# On several devices.


def run_on(kind, method, batches):
    partition, program = weighted_program(method, config=SHALLOW)
    trainable, frozen = partition.split(random_params(SHALLOW))
    runner = make_runner(kind)
    step = Compiled(runner, train_step, program, donate=True)
    state, frozen = runner.replicate(program.init(trainable, 0)), runner.replicate(frozen)
    logged = []
    for batch in batches:
        state, metrics = step(state, frozen, runner.shard(batch))
        # The same on every device.
        for leaf in jax.tree.leaves((state.weighting, metrics)) if kind == "pmap" else ():
            assert all(np.array_equal(leaf[0], each) for each in np.asarray(leaf))
        logged.append(jax.tree.map(np.asarray, runner.fetch(metrics)))
    return jax.tree.map(np.asarray, runner.fetch(state)), logged


@each_method
def test_on_several_devices_as_on_one(method):
    batches = [uneven_batch(i) for i in range(STEPS)]
    expected, expected_log = run_on("jit", method, batches)
    kinds = ("pmap", "mesh") if method == PcGrad() else ("pmap",)
    for kind in kinds:
        state, logged = run_on(kind, method, batches)
        for metrics, other in zip(logged, expected_log, strict=True):
            np.testing.assert_allclose(weights_of(metrics), weights_of(other), rtol=1e-4)
            for task in TASKS:
                np.testing.assert_array_equal(metrics["loss"][task][1], other["loss"][task][1])
                np.testing.assert_allclose(
                    metrics["loss"][task][0], other["loss"][task][0], rtol=10 * LOSS_TOLERANCE
                )
        for path, leaf in flat(state.trainable).items():
            if not path.endswith("key/bias"):
                wanted = flat(expected.trainable)[path]
                np.testing.assert_allclose(leaf, wanted, rtol=0, atol=4 * PARAMETER_TOLERANCE)
    moved = np.array([weights_of(metrics) for metrics in expected_log])
    assert np.ptp(moved, axis=0).max() > 1e-3


# Many steps, or seeds, in one program.


@functools.cache
def vectors() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    return {
        "pooled": draw.standard_normal((20, CONFIG.hidden_size)).astype(np.float32),
        "classifier": draw.integers(-1, 3, 20).astype(np.int32),
        "sentiment": draw.integers(-1, 4, 20).astype(np.int32),
    }


@each_method
def test_many_steps_in_one_program_are_the_steps_one_by_one(method):
    partition, program = weighted_program(method, "backbone_frozen")
    trainable, _ = partition.split(random_params())
    examples = np.random.default_rng(1).integers(0, 20, (2, STEPS + 1, 4)).astype(np.int32)
    examples[:, 1] = -1  # not there: passed over
    held = jax.tree.map(jnp.asarray, vectors())
    scan = jax.jit(functools.partial(scanned_steps, program))
    scanned, metrics = scan(program.init(trainable, 0), {}, held, {"example": examples})
    state, step = program.init(trainable, 0), jax.jit(functools.partial(train_step, program))
    for i in range(STEPS + 1):
        if i == 1:
            assert float(metrics["task_weights"]["classifier"][i]) == 0
            continue
        state, of_step = step(state, {}, take(held, jnp.asarray(examples[:, i])))
        found = jax.tree.map(lambda leaf, i=i: leaf[i], metrics)
        np.testing.assert_allclose(weights_of(found), weights_of(of_step), rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(scanned), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("method", [Famo(), GradNorm()], ids=lambda method: method.name)
def test_each_seed_has_weights_of_its_own(method):
    partition, program = weighted_program(method)
    params, begun = random_params(), []
    for seed in range(3):
        heads = jax.tree.map(np.array, program.model.init_heads(stream(seed, "heads")))
        trainable, frozen = partition.split({**params, **heads})
        begun.append((program.init(trainable, seed), frozen))
    batches = [[random_batch(seed=10 * seed + i) for i in range(STEPS)] for seed in range(3)]
    _, logged, _ = together(program, begun, train_step, batches, False)
    runner = JitRunner()
    step = Compiled(runner, train_step, program)
    for seed, (state, frozen) in enumerate(begun):
        for i, batch in enumerate(batches[seed]):
            state, metrics = step(state, frozen, runner.shard(batch))
            np.testing.assert_allclose(weights_of(logged[i][seed]), weights_of(metrics), rtol=1e-3)
    last = [weights_of(logged[-1][seed]) for seed in range(3)]
    assert not np.allclose(last[0], last[1], rtol=1e-4)


@each_method
def test_heads_alone_on_several_devices(method):
    """Of batches that lack a task's labels, too."""
    silent = pooled_batch(1) | {"classifier": np.full((8, 3), -1, np.int32)}
    batches = [pooled_batch(0), silent, pooled_batch(2)]
    partition, program = weighted_program(method, "backbone_frozen", NO_DROPOUT)
    trainable, _ = partition.split(random_params())
    finals = []
    for kind in ("jit", "pmap"):
        runner = make_runner(kind)
        step = Compiled(runner, train_step, program)
        state = runner.replicate(program.init(trainable, 0))
        for batch in batches:
            state, metrics = step(state, {}, runner.shard(batch))
            assert np.isfinite(weights_of(runner.fetch(metrics))).all()
        finals.append(runner.fetch(state))
    for one, other in zip(*map(jax.tree.leaves, finals), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=PARAMETER_TOLERANCE)
