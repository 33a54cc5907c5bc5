"""The three ways to run the steps give the same numbers, on unevenly labelled batches."""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import numpy as np
import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.freezing.partition import Partition
from mtl_jax.freezing.scenarios import scenario_rules
from mtl_jax.models.multitask import MultiTaskModule
from mtl_jax.runs.loop import train as run_training
from mtl_jax.training.executables import Compiled
from mtl_jax.training.losses import masked_cross_entropy
from mtl_jax.training.optimizer import build_optimizer
from mtl_jax.training.program import Program
from mtl_jax.training.runners import JitRunner, MeshRunner, PmapRunner, gathered, make_runner
from mtl_jax.training.step import eval_step, pooled_step, train_step
from tests.conftest import TASKS, head_sizes
from tests.training.test_step import (
    CLASSES,
    CONFIG,
    NO_DROPOUT,
    OPTIMIZER,
    flat,
    make_program,
    random_batch,
    random_params,
)

KINDS = ("jit", "pmap", "mesh")
# What several devices make of a step does not depend on how many layers there are.
SHALLOW = dataclasses.replace(NO_DROPOUT, num_hidden_layers=1)
ROWS, SLOTS = 8, 3
RATES = (("head", 1e-2), ("backbone", 1e-3), ("lora", 1e-3))
# What another order of summation in float32 may make of a loss, of a gradient's norm, and of
# a parameter after Adam has divided by the root of the second moment.
LOSS_TOLERANCE, NORM_TOLERANCE, PARAMETER_TOLERANCE = 1e-5, 1e-5, 5e-5


def uneven_batch(seed):
    """Two rows per device; classifier labels on the first two of four, sentiment 1 to 6 each."""
    batch = random_batch(ROWS, slots=SLOTS, seed=seed)
    draw = np.random.default_rng(100 + seed)
    for task, classes in zip(TASKS, CLASSES, strict=True):
        batch[task] = draw.integers(0, classes, (ROWS, SLOTS)).astype(np.int32)
    batch["classifier"][3:] = -1
    for device, count in enumerate((6, 1, 3, 2)):
        batch["sentiment"][2 * device : 2 * device + 2].reshape(-1)[count:] = -1
    return batch


def pooled_batch(seed, width=CONFIG.hidden_size) -> dict[str, Any]:
    """The same labels, on random vectors in the place of tokens."""
    vectors = np.random.default_rng(seed).standard_normal((ROWS, SLOTS, width))
    batch = uneven_batch(seed)
    return {task: batch[task] for task in TASKS} | {"pooled": vectors.astype(np.float32)}


def made(scenario, config, gathered=None):
    """The program of a scenario, and the parameters that it trains and those that it does not."""
    params = random_params(config)
    partition = Partition(params, scenario)
    params = partition.with_factors(params, jax.random.key(1))
    optimizer = dataclasses.replace(OPTIMIZER, learning_rates=RATES)
    program = Program(
        MultiTaskModule(config, head_sizes(*CLASSES)),
        build_optimizer(partition, optimizer),
        partition.depth(config.num_hidden_layers),
        task_weights=(1.0, 1.0),
        gathered=gathered,
    )
    return program, partition.split(params)


def train(kind, scenario, batches, config=NO_DROPOUT):
    """Parameters and metrics after the compiled, donating step has run on every batch."""
    program, (trainable, frozen) = made(scenario, config, gathered(kind))
    runner = make_runner(kind)
    step = Compiled(runner, train_step, program, donate=True)
    state, frozen = runner.replicate(program.init(trainable, 0)), runner.replicate(frozen)
    logged = []
    for batch in batches:
        state, metrics = step(state, frozen, runner.shard(batch))
        logged.append(jax.tree.map(np.asarray, runner.fetch(metrics)))
    final = runner.fetch(Partition.merge(state.trainable, frozen))
    assert int(runner.fetch(state).step) == len(batches)
    return flat(jax.tree.map(np.asarray, final)), logged


@pytest.fixture(scope="module")
def trained():
    batches = [uneven_batch(i) for i in range(3)]
    return {kind: train(kind, "none_frozen", batches, SHALLOW) for kind in KINDS}


def test_four_devices():
    assert jax.local_device_count() == 4
    found = {kind: make_runner(kind) for kind in (*KINDS, "auto")}
    kinds = {kind: (type(runner), runner.devices) for kind, runner in found.items()}
    assert kinds == {
        "jit": (JitRunner, 1),
        "pmap": (PmapRunner, 4),
        "mesh": (MeshRunner, 4),
        "auto": (MeshRunner, 4),
    }


def test_operation_by_operation_one_device_computes():
    with jax.disable_jit():
        assert isinstance(make_runner("auto"), JitRunner)


def test_some_device_has_no_label():
    for seed in range(3):
        counts = {
            task: (uneven_batch(seed)[task].reshape(4, -1) >= 0).sum(1).tolist() for task in TASKS
        }
        assert counts == {"classifier": [6, 3, 0, 0], "sentiment": [6, 1, 3, 2]}


@pytest.mark.parametrize("kind", ["pmap", "mesh"])
def test_three_steps_are_those_of_one_device(trained, kind):
    (params, logged), (expected, expected_logged) = trained[kind], trained["jit"]
    for metrics, other in zip(logged, expected_logged, strict=True):
        for task in TASKS:
            assert metrics["loss"][task][1] == other["loss"][task][1] in (9, 12)
            np.testing.assert_allclose(
                metrics["loss"][task][0], other["loss"][task][0], rtol=LOSS_TOLERANCE
            )
        np.testing.assert_allclose(metrics["grad_norm"], other["grad_norm"], rtol=NORM_TOLERANCE)
    start = flat(random_params(SHALLOW))
    for path, leaf in params.items():
        if path.endswith("key/bias"):
            # The softmax takes no notice of it: its gradient is rounding, which Adam scales up.
            continue
        np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=PARAMETER_TOLERANCE)
        # The tolerance is small beside what the steps change.
        assert np.abs(leaf - start[path]).max() > 20 * PARAMETER_TOLERANCE


@pytest.mark.parametrize("scenario", ["lora_2", "bias_only", "layer_norm_only"])
def test_what_trains_little_of_every_layer_is_that_of_one_device(scenario):
    """Low-rank factors, biases, and scales of layer norms, on unevenly labelled batches."""
    batches = [uneven_batch(i) for i in range(2)]
    expected, [_, expected_logged] = train("jit", scenario, batches, SHALLOW)
    start, moved = flat(random_params(SHALLOW)), set()
    for kind in ("pmap", "mesh", "fsdp"):
        params, [_, logged] = train(kind, scenario, batches, SHALLOW)
        np.testing.assert_allclose(
            logged["grad_norm"], expected_logged["grad_norm"], rtol=NORM_TOLERANCE
        )
        for path, leaf in params.items():
            if not path.endswith("key/bias"):
                np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=PARAMETER_TOLERANCE)
            if path.startswith("backbone/") and not np.array_equal(leaf, start.get(path, 0)):
                moved.add(path.rpartition("/")[2])
    assert (
        moved
        == {
            "lora_2": {"lora_a", "lora_b"},
            "bias_only": {"bias"},
            "layer_norm_only": {"bias", "scale"},
        }[scenario]
    )


def of_other_kinds(seed):
    """The same texts: classifier is a regression's values, sentiment marks of several labels."""
    batch = uneven_batch(seed)
    values, numbers = batch["classifier"], batch["sentiment"]
    batch["classifier"] = np.where(values < 0, np.nan, values - 1.5).astype(np.float32)
    batch["sentiment"] = np.eye(CLASSES[1], dtype=np.int8)[np.maximum(numbers, 0)]
    batch["sentiment"][numbers < 0] = -1
    return batch


def test_steps_on_other_kinds_of_labels_are_those_of_one_device():
    batches = [of_other_kinds(i) for i in range(2)]
    expected, expected_logged = train("jit", "backbone_frozen", batches)
    for kind in ("pmap", "mesh"):
        params, logged = train(kind, "backbone_frozen", batches)
        for metrics, other in zip(logged, expected_logged, strict=True):
            for task in TASKS:
                assert metrics["loss"][task][1] == other["loss"][task][1] in (9, 12)
                np.testing.assert_allclose(
                    metrics["loss"][task][0], other["loss"][task][0], rtol=LOSS_TOLERANCE
                )
        for path, leaf in params.items():
            if not path.endswith("key/bias"):
                np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=PARAMETER_TOLERANCE)


def test_a_large_vocabulary_whose_gradient_is_summed_by_rows():
    config = dataclasses.replace(SHALLOW, vocab_size=20_000)
    batches = [uneven_batch(i) for i in range(2)]
    for batch in batches:
        # Some words on all devices, some on one.
        batch["input_ids"][::2, 1:] += 19_900 * (batch["input_ids"][::2, 1:] > 9)
    (found, logged), (known, known_logged) = (
        train(kind, "none_frozen", batches, config) for kind in ("mesh", "jit")
    )
    for metrics, other in zip(logged, known_logged, strict=True):
        np.testing.assert_allclose(metrics["grad_norm"], other["grad_norm"], rtol=NORM_TOLERANCE)
    words = "backbone/embeddings/word/embedding"
    np.testing.assert_allclose(found[words], known[words], rtol=0, atol=PARAMETER_TOLERANCE)
    moved = np.abs(known[words] - flat(random_params(config))[words]).max(-1)
    read = np.unique(batches[-1]["input_ids"])
    assert moved[read[read > 19_900]].max() > 20 * PARAMETER_TOLERANCE


def exchanged(program):
    """The collectives of a compiled program, and how many numbers each gives."""
    found = re.findall(r"= \(?\w+\[([\d,]*)\]\S* (all-reduce|all-gather)\(", program)
    return [(name, math.prod(map(int, shape.split(",")))) for shape, name in found if shape]


@pytest.mark.parametrize("kind", ["pmap", "mesh"])
def test_devices_exchange_small_gradients_together_and_of_the_words_what_was_read(kind):
    config = dataclasses.replace(SHALLOW, vocab_size=20_000)
    program, (trainable, frozen) = made("none_frozen", config)
    runner = make_runner(kind)
    state, frozen = runner.replicate(program.init(trainable, 0)), runner.replicate(frozen)
    batch = uneven_batch(0)
    step = Compiled(runner, train_step, program).lower(state, frozen, runner.shard(batch))
    found = exchanged(step.compile().as_text())
    words = trainable["backbone"]["embeddings"]["word"]["embedding"]
    others = sum(leaf.size for leaf in jax.tree.leaves(trainable)) - words.size
    assert len(found) <= 4
    assert max(sizes := [size for name, size in found if name == "all-gather"]) == (
        batch["input_ids"].size * words.shape[1]
    )
    assert sum(size for _, size in found) - sum(sizes) in range(others, others + 10)


def head_gradients(batch, params, counts):
    """The heads' gradient by hand: vectors' transpose times (softmax - one-hot) / count."""
    gradients = []
    for task, count in zip(TASKS, counts, strict=True):
        labels = batch[task].reshape(-1)
        vectors = batch["pooled"].reshape(len(labels), -1).astype(np.float64)
        logits = vectors @ params[task]["kernel"] + params[task]["bias"]
        error = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        error[np.arange(len(labels)), np.maximum(labels, 0)] -= 1
        error[labels < 0] = 0
        gradients += [vectors.T @ error / max(count, 1), error.sum(0) / max(count, 1)]
    return gradients


def one_task_batch(seed, width=CONFIG.hidden_size) -> dict[str, Any]:
    """Every text has a label of one task: topics on the first rows, moods on the last."""
    batch = pooled_batch(seed, width)
    draw = np.random.default_rng(seed)
    for task, classes in zip(TASKS, CLASSES, strict=True):
        batch[task] = draw.integers(0, classes, (ROWS, SLOTS)).astype(np.int32)
    topics = np.arange(ROWS * SLOTS).reshape(ROWS, SLOTS) < 7
    batch["classifier"][~topics] = -1
    batch["sentiment"][topics] = -1
    return batch


def norm(arrays):
    return np.sqrt(sum(np.sum(array**2) for array in arrays))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mean_of_the_devices_means_would_be_another_gradient(kind):
    batch, params = pooled_batch(0), random_params()
    _, [metrics] = train(kind, "backbone_frozen", [batch])
    counts = [(batch[task] >= 0).sum() for task in TASKS]
    np.testing.assert_allclose(
        metrics["grad_norm"], norm(head_gradients(batch, params, counts)), rtol=1e-5
    )
    parts = [{name: np.split(array, 4)[i] for name, array in batch.items()} for i in range(4)]
    means = [head_gradients(p, params, [(p[task] >= 0).sum() for task in TASKS]) for p in parts]
    wrong = [sum(arrays) / 4 for arrays in zip(*means, strict=True)]
    right = head_gradients(batch, params, counts)
    assert norm([a - b for a, b in zip(wrong, right, strict=True)]) > 0.3 * norm(right)
    assert abs(metrics["grad_norm"] / norm(wrong) - 1) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_any_label_of_a_task(kind):
    batch = pooled_batch(0) | {"classifier": np.full((ROWS, SLOTS), -1, np.int32)}
    params, logged = train(kind, "backbone_frozen", [batch])
    assert logged[0]["loss"]["classifier"] == (0, 0)
    start = flat(random_params())
    assert np.array_equal(params["classifier/bias"], start["classifier/bias"])
    # Decay alone: the first step's rate is a third of the peak.
    np.testing.assert_allclose(
        params["classifier/kernel"], start["classifier/kernel"] * (1 - 1e-2 / 3 * 0.1), rtol=1e-6
    )
    assert np.abs(params["sentiment/bias"] - start["sentiment/bias"]).min() > 1e-3


def test_the_devices_draw_dropout_of_their_own():
    """On rows that are all alike, four devices with one key would lose just what one loses."""
    rows = pooled_batch(0)
    alike = {name: np.repeat(array[:1], ROWS, 0) for name, array in rows.items()}
    quarter = {name: array[: ROWS // 4] for name, array in alike.items()}
    _, [over_four] = train("pmap", "backbone_frozen", [alike], CONFIG)
    _, [on_one] = train("jit", "backbone_frozen", [quarter], CONFIG)
    found, other = (m["loss"]["sentiment"][0] for m in (over_four, on_one))
    assert abs(found / (4 * other) - 1) > 1e-3
    _, [again] = train("pmap", "backbone_frozen", [alike], CONFIG)
    assert again["loss"]["sentiment"][0] == found


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_donated_and_the_frozen_part_is_not(kind):
    params = random_params()
    partition, program = make_program(params, scenario_rules("backbone_frozen", 2, TASKS))
    trainable, frozen = partition.split(params)
    runner = make_runner(kind)
    held = runner.replicate(frozen)
    state = runner.replicate(program.init(trainable, 0))
    step = Compiled(runner, train_step, program, donate=True)
    after, _ = step(state, held, runner.shard(pooled_batch(0)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((held, after)))
    # Nor has the host's copy, which the device may share, been written over.
    assert jax.tree.all(jax.tree.map(np.array_equal, params, random_params()))


@functools.cache
def compiled(step, model: Any):
    return jax.jit(functools.partial(step, model))


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_gathers_the_rows_in_their_order(kind):
    batch, params = pooled_batch(1), random_params()
    model: Any = MultiTaskModule(CONFIG, head_sizes(*CLASSES))
    runner = make_runner(kind)
    step = Compiled(runner, eval_step, model)
    placed = runner.replicate(params), runner.shard(batch)
    logits, losses = step(*placed)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(placed[0]))
    found, totals = runner.gather(logits), runner.fetch(losses)
    expected, expected_totals = compiled(eval_step, model)(params, batch)
    for task in TASKS:
        assert isinstance(found[task], np.ndarray)
        np.testing.assert_allclose(found[task], expected[task], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(totals[task], expected_totals[task], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_pooled_vectors_are_those_of_the_model(kind):
    batch, params = random_batch(ROWS, seed=2), random_params()
    model: Any = MultiTaskModule(CONFIG, head_sizes(*CLASSES))
    runner = make_runner(kind)
    step = Compiled(runner, pooled_step, model)
    found = runner.gather(step(runner.replicate(params), runner.shard(batch)))
    expected = compiled(pooled_step, model)(params, batch)
    assert found.shape == (ROWS, SLOTS, CONFIG.hidden_size)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_other_shapes_are_another_program_beside_the_first(kind):
    params, model = random_params(), MultiTaskModule(CONFIG, head_sizes(*CLASSES))
    runner = make_runner(kind)
    step = Compiled(runner, eval_step, model)
    assert step.seconds == 0
    placed = runner.replicate(params)
    first = step(placed, runner.shard(pooled_batch(0)))
    seconds = step.seconds
    assert seconds > 0
    double = {name: np.concatenate([a, a]) for name, a in pooled_batch(0).items()}
    _, once = runner.fetch(first)
    _, twice = runner.fetch(step(placed, runner.shard(double)))
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(2 * a, b), once, twice))
    assert step.seconds > seconds
    seconds = step.seconds
    step(placed, runner.shard(pooled_batch(1)))
    assert step.seconds == seconds


@pytest.mark.parametrize("kind", KINDS)
def test_replicate_and_fetch_are_inverse(kind):
    runner = make_runner(kind)
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": {"c": np.int32(7)}}
    placed = runner.replicate(tree)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(placed)} == {runner.devices}
    fetched = runner.fetch(placed)
    assert jax.tree.structure(fetched) == jax.tree.structure(tree)
    assert jax.tree.all(jax.tree.map(np.array_equal, fetched, tree))


@pytest.mark.parametrize(
    ("kind", "scenario", "size"),
    [("jit", "top_1", 19), ("pmap", "backbone_frozen", 18), ("mesh", "backbone_frozen", 17)],
)
def test_a_whole_run_traces_each_step_once(kind, scenario, size, settings, tmp_path, monkeypatch):
    """Two epochs, then three splits: a trace to train, one to test, one to count the FLOPs."""
    traced = []

    def counted(logits, labels):
        traced.append((labels.shape, type(logits)))
        return masked_cross_entropy(logits, labels)

    monkeypatch.setattr("mtl_jax.training.kinds.single_label.masked_cross_entropy", counted)
    # Sizes that no other test has: nothing of this is compiled or counted already.
    data = dataclasses.replace(settings["data"], max_length=size)
    changes = {"data": data, "parallel": kind, "scenario": scenario, "batch_size": size}
    result = run_training(TrainConfig(**settings | changes, workdir=str(tmp_path / "run")))
    assert result["step"] == 2 * 6
    assert result["frozen_digest_unchanged"]
    assert result["test_examples"] == 32
    # Each trace computes the loss of both tasks. Another test may have compiled, or counted, steps
    # of the same shapes.
    assert 0 < len(traced) <= 3 * len(TASKS), traced
    traces = len(traced)
    # Another seed is no other program, and neither are other rates, lengths and weights.
    for name, others in {
        "seed": {"seed": 1},
        "numbers": {
            "epochs": 1,
            "head_learning_rate": 3e-3,
            "layer_decay": 1.0,
            "weight_decay": 0.2,
            "clip_norm": 0.5,
            "warmup_fraction": 0.5,
            "schedule": "slanted_triangular",
            "task_weights": ("classifier=0.5",),
        },
    }.items():
        config = TrainConfig(**settings | changes | others, workdir=str(tmp_path / name))
        other = run_training(config)
        assert other["train"]["classifier"]["loss"] != result["train"]["classifier"]["loss"]
        assert other["compile_seconds"] == 0
        assert len(traced) == traces, traced


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_one_task_each_count_by_their_labels_over_all_devices(kind):
    batch, params = one_task_batch(0), random_params()
    assert ((batch["classifier"] >= 0) != (batch["sentiment"] >= 0)).all()
    of_device = [(batch[task].reshape(4, -1) >= 0).sum(1).tolist() for task in TASKS]
    assert of_device == [[6, 1, 0, 0], [0, 5, 6, 6]]
    _, [metrics] = train(kind, "backbone_frozen", [batch])
    assert [int(metrics["loss"][task][1]) for task in TASKS] == [7, 17]
    expected = norm(head_gradients(batch, params, (7, 17)))
    np.testing.assert_allclose(metrics["grad_norm"], expected, rtol=1e-5)
    # Dividing by the texts of the batch would be another gradient.
    assert abs(norm(head_gradients(batch, params, (24, 24))) / expected - 1) > 0.1
