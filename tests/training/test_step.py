"""The pure training step, and what its optimizer is given."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from mtl_jax.freezing.partition import Partition
from mtl_jax.freezing.scenarios import scenario_rules
from mtl_jax.models.multitask import MultiTaskModule
from mtl_jax.training.optimizer import OptimizerConfig, build_optimizer
from mtl_jax.training.program import Program, stream
from mtl_jax.training.step import eval_step, pooled_step, train_step
from tests import conftest
from tests.conftest import TASKS, head_sizes

CONFIG = dataclasses.replace(conftest.TINY, num_hidden_layers=2)
NO_DROPOUT = dataclasses.replace(
    CONFIG, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0
)
CLASSES = (3, 4)
RULES = scenario_rules("none_frozen", CONFIG.num_hidden_layers, TASKS)
OPTIMIZER = OptimizerConfig(
    learning_rates=(("head", 1e-2), ("backbone", 1e-3)),
    total_steps=10,
    warmup_steps=2,
    weight_decay=0.1,
    clip_norm=0.5,
)


def random_batch(rows=4, length=12, slots=3, seed=0, **labels) -> dict[str, Any]:
    """Rows of packed texts, the last of a row shorter, some labels missing or as given."""
    draw = np.random.default_rng(seed)
    segments = np.zeros((rows, length), np.int32)
    positions = np.zeros((rows, length), np.int32)
    for row in range(rows):
        end = 0
        for slot in range(slots):
            size = draw.integers(2, length // slots + 1)
            segments[row, end : end + size] = slot + 1
            positions[row, end : end + size] = np.arange(size)
            end += size
    words = draw.integers(5, CONFIG.vocab_size, (rows, length)).astype(np.int32)
    batch = {
        "input_ids": np.where(segments > 0, words, 0),
        "segment_ids": segments,
        "position_ids": positions,
    }
    for task, classes in zip(TASKS, CLASSES, strict=True):
        batch[task] = draw.integers(-1, classes, (rows, slots)).astype(np.int32)
        batch[task] = np.asarray(labels.get(task, batch[task]), np.int32)
    return batch


@functools.cache
def _param_shapes(config):
    model = MultiTaskModule(config, head_sizes(*CLASSES))
    return jax.eval_shape(model.init, jax.random.key(0), random_batch())["params"]


def random_params(config=CONFIG, seed=0) -> Any:
    """The parameters of the tiny model, on the host; no leaf is all zeros."""
    draw = np.random.default_rng(seed)
    return jax.tree.map_with_path(
        lambda path, leaf: (
            (path[-1].key == "scale") + 0.3 * draw.standard_normal(leaf.shape)
        ).astype(np.float32),
        _param_shapes(config),
    )


def flat(tree) -> dict[str, Any]:
    """{path: leaf}."""
    return dict(flatten_dict(tree, sep="/"))


def make_program(params, rules=RULES, config=CONFIG, optimizer=OPTIMIZER, weights=(1.0, 1.0)):
    """The partition and the program of a set of rules."""
    partition = Partition.from_rules(params, rules)
    depth = partition.depth(config.num_hidden_layers)
    transform = build_optimizer(partition, optimizer)
    model = MultiTaskModule(config, head_sizes(*CLASSES))
    return partition, Program(model, transform, depth, task_weights=weights)


def run(program, partition, params, batches, seed=0):
    """The state after a step per batch, and the metrics of each."""
    trainable, frozen = partition.split(params)
    state, logged = program.init(trainable, seed), []
    step = jax.jit(functools.partial(train_step, program))
    for batch in batches:
        state, metrics = step(state, frozen, batch)
        logged.append(metrics)
    return state, logged


def looking(program):
    """The program with an optimizer that changes nothing and keeps the gradient as its state.

    Returns:
        The program, and its step as one compiled function of the tasks' weights, too.
    """

    def init(params):
        return jax.tree.map(jnp.zeros_like, params)

    def look(updates, state, params=None):
        del state, params
        return init(updates), updates

    program = dataclasses.replace(program, optimizer=optax.GradientTransformation(init, look))

    @jax.jit
    def step(weights, state, frozen, batch):
        weighted = dataclasses.replace(program, task_weights=tuple(weights))
        return train_step(weighted, state, frozen, batch)

    return program, step


@functools.cache
def _looking(rules, config):
    partition, program = make_program(random_params(config), rules, config)
    return partition, *looking(program)


def gradient_of(params, batch, rules=RULES, config=NO_DROPOUT, weights=(1.0, 1.0)):
    """What ``train_step`` hands to the optimizer, and its metrics."""
    partition, program, step = _looking(tuple(rules), config)
    trainable, frozen = partition.split(params)
    state, metrics = step(jnp.array(weights), program.init(trainable, 0), frozen, batch)
    return flat(state.opt_state), metrics


def losses_of(metrics):
    return {task: tuple(float(x) for x in pair) for task, pair in metrics["loss"].items()}


def softmax_losses(logits, labels):
    """Sum of -log softmax at the label, and the number of labels, in float64."""
    logits = np.asarray(logits, np.float64)[labels >= 0]
    top = logits.max(-1)
    normal = top + np.log(np.exp(logits - top[:, None]).sum(-1))
    chosen = np.take_along_axis(logits, labels[labels >= 0][:, None], -1)[:, 0]
    return float((normal - chosen).sum()), int((labels >= 0).sum())


def test_losses_are_the_sums_and_counts_over_the_labels():
    params, batch = random_params(), random_batch()
    partition, program = make_program(params, config=NO_DROPOUT)
    _, [metrics] = run(program, partition, params, [batch])
    logits: Any = program.model.apply({"params": params}, batch)
    _, evaluated = eval_step(program.model, params, batch)
    for task in TASKS:
        total, count = softmax_losses(logits[task], batch[task])
        assert 0 < count < batch[task].size
        np.testing.assert_allclose(losses_of(metrics)[task], (total, count), rtol=1e-5)
        np.testing.assert_allclose(evaluated[task], (total, count), rtol=1e-5)


def test_evaluation_gives_the_logits_and_the_pooled_vectors_of_the_model():
    params, batch = random_params(), random_batch()
    model = MultiTaskModule(CONFIG, head_sizes(*CLASSES))
    logits, _ = eval_step(model, params, batch)
    vectors = pooled_step(model, params, batch)
    for task in TASKS:
        head = params[task]
        expected = vectors @ head["kernel"] + head["bias"]
        np.testing.assert_allclose(logits[task], expected, rtol=1e-5, atol=1e-5)
    again, _ = eval_step(model, params, {task: batch[task] for task in TASKS} | {"pooled": vectors})
    assert jax.tree.all(jax.tree.map(np.array_equal, again, logits))


def test_the_gradient_is_that_of_the_weighted_sum_of_task_means():
    """One task at a time, and by finite differences: no formula of the step is used."""
    params, batch = random_params(), random_batch()
    whole, _ = gradient_of(params, batch, weights=(0.7, 0.2))
    alone = [gradient_of(params, batch, weights=w)[0] for w in ((1.0, 0.0), (0.0, 1.0))]
    for path, gradient in whole.items():
        mixed = 0.7 * alone[0][path] + 0.2 * alone[1][path]
        np.testing.assert_allclose(gradient, mixed, rtol=1e-3, atol=1e-6)

    model = MultiTaskModule(NO_DROPOUT, head_sizes(*CLASSES))

    apply = jax.jit(model.apply)

    def loss(params):
        logits: Any = apply({"params": params}, batch)
        means = [np.divide(*softmax_losses(logits[task], batch[task])) for task in TASKS]
        return 0.7 * means[0] + 0.2 * means[1]

    draw = np.random.default_rng(1)
    away = jax.tree.map(lambda p: draw.standard_normal(p.shape).astype(np.float32), params)
    step = 3e-3
    ahead, behind = (
        loss(jax.tree.map(lambda p, d, sign=sign: p + sign * step * d, params, away))
        for sign in (1, -1)
    )
    slope = sum(float(np.vdot(whole[path], d)) for path, d in flat(away).items())
    np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=2e-2)


def test_a_task_without_a_label_in_the_batch_moves_nothing():
    params = random_params()
    silent = random_batch(classifier=np.full((4, 3), -1))
    gradient, metrics = gradient_of(params, silent)
    expected, _ = gradient_of(params, silent, weights=(0.0, 1.0))
    assert losses_of(metrics)["classifier"] == (0.0, 0.0)
    assert float(metrics["grad_norm"]) > 0
    for path, leaf in gradient.items():
        assert np.isfinite(leaf).all()
        assert np.array_equal(leaf, expected[path])
        assert np.any(leaf) != path.startswith("classifier/") or path.endswith("key/bias")


def test_a_batch_without_any_label_moves_nothing_but_what_decays():
    params = random_params()
    nothing = dict.fromkeys(TASKS, np.full((4, 3), -1))
    gradient, metrics = gradient_of(params, random_batch(**nothing))
    assert losses_of(metrics) == dict.fromkeys(TASKS, (0.0, 0.0))
    assert float(metrics["grad_norm"]) == 0
    assert not any(np.any(leaf) for leaf in gradient.values())


def test_task_weight_0_still_reports_the_loss_and_moves_no_head():
    params, batch = random_params(), random_batch()
    gradient, metrics = gradient_of(params, batch, weights=(1.0, 0.0))
    _, both = gradient_of(params, batch)
    assert losses_of(metrics) == losses_of(both)
    assert losses_of(metrics)["sentiment"][0] > 0
    moved = {path for path, leaf in gradient.items() if np.any(leaf)}
    assert "classifier/kernel" in moved
    assert not moved & {"sentiment/kernel", "sentiment/bias"}
    # The same gradient as on a batch that lacks the task's labels.
    silent, _ = gradient_of(params, batch | {"sentiment": np.full((4, 3), -1, np.int32)})
    assert all(np.array_equal(leaf, silent[path]) for path, leaf in gradient.items())


@pytest.mark.parametrize("head", TASKS)
def test_the_loss_of_a_frozen_head_reaches_the_backbone(head):
    params, batch = random_params(), random_batch()
    rules = scenario_rules(f"{head}_frozen", CONFIG.num_hidden_layers, TASKS)
    gradient, _ = gradient_of(params, batch, rules)
    whole, _ = gradient_of(params, batch)
    weights = (0.0, 1.0) if head == "classifier" else (1.0, 0.0)
    without, _ = gradient_of(params, batch, rules, weights=weights)
    assert gradient.keys() == {path for path in whole if not path.startswith(f"{head}/")}
    for path, leaf in gradient.items():
        np.testing.assert_allclose(leaf, whole[path], rtol=1e-4, atol=1e-7)
    word = "backbone/embeddings/word/embedding"
    assert np.abs(gradient[word] - without[word]).max() > 1e-3


def test_dropout_depends_on_the_seed_and_the_step_alone():
    params, batch = random_params(), random_batch()
    partition, program = make_program(params)
    losses, compiled = {}, jax.jit(functools.partial(train_step, program))
    for seed in (0, 1):
        trainable, frozen = partition.split(params)
        for step in (0, 1):
            state = program.init(trainable, seed)
            state = state.replace(step=state.step + step)
            _, metrics = compiled(state, frozen, batch)
            losses[seed, step] = losses_of(metrics)["classifier"][0]
    assert len(set(losses.values())) == 4
    state, logged = run(program, partition, params, [batch, batch])
    assert losses_of(logged[0])["classifier"][0] == losses[0, 0]
    assert int(state.step) == 2
    assert np.array_equal(state.rng, jax.random.key_data(stream(0, "dropout")))
