"""A loop of one's own: the numbers of ``train``, and whatever optimizer, loss or head one has."""

import csv
import dataclasses
import functools
import importlib
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mtl_jax as mtl
from mtl_jax.core.errors import UserError
from mtl_jax.training.evaluator import evaluator
from tests.conftest import TINY, WORDS, write_checkpoint

TASKS = {"topic": "topic", "mood": "mood", "queue": "queue"}
EXAMPLES = Path(__file__).parents[2] / "experiments" / "examples"


def written(file, count, seed):
    draw = np.random.default_rng(seed)
    texts = [draw.choice(WORDS[5:], draw.integers(3, 13)).tolist() for _ in range(count)]
    with file.open("w", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["text", *TASKS])
        for words in texts:
            mood = "up" if "good" in words else "down"
            topic = "film" if "film" in words else "other"
            rows.writerow([" ".join(words), topic, mood, str(len(words) % 3)])
    return str(file)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    return {
        "train": written(folder / "train.csv", 96, 0),
        "validation": written(folder / "dev.csv", 40, 1),
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of two layers: one to freeze and one to train."""
    config = dataclasses.replace(TINY, num_hidden_layers=2)
    return write_checkpoint(tmp_path_factory.mktemp("two") / "checkpoint", config)


@pytest.fixture(scope="module")
def encoder(checkpoint):
    return mtl.load_encoder(checkpoint)


@pytest.fixture(scope="module")
def data(files, encoder):
    return mtl.load_data(**files, tasks=TASKS, encoder=encoder, max_length=24)


@pytest.fixture(scope="module")
def model(data, encoder):
    return mtl.MultiTaskModel(encoder, data.tasks)


def headed(model, data, head):
    return mtl.MultiTaskModel(model.encoder, data.tasks, {"mood": head})


def optimizer(model, rates, steps=1, scenario="top_1", **how):
    return mtl.make_optimizer(mtl.Partition(model.params, scenario), rates, steps, **how)


def begun(model, params):
    return mtl.TrainStep(model, mtl.Partition(model.params, "top_1"), optax.sgd(1)).init(0, params)


def loaded(model, **how):
    return mtl.load_data(encoder=model.encoder, **how)


def looped(model, data, scenario, epochs=1, loss=None, optimizer=None, parts=1, **how):
    partition = mtl.Partition(model.params, scenario)
    batches = data.train_batches(batch_size=16, epochs=epochs, seed=3, accumulate=parts)
    if optimizer is None:
        rates = {"head": 1e-3, "backbone": 1e-4, "lora": 5e-4}
        optimizer = mtl.make_optimizer(partition, rates, len(batches))
    step = mtl.TrainStep(model, partition, optimizer, loss, **how)
    state, metrics = step.init(seed=3), {}
    for batch in batches:
        state, metrics = step(state, batch)
    return step.params(state), metrics


@pytest.mark.optimized
@pytest.mark.parametrize(
    ("scenario", "epochs", "r_drop"),
    [("top_1", 1, None), ("mood_frozen", 1, 2.0), ("backbone_frozen", 3, None), ("lora_4", 1, 2.0)],
)
def test_it_has_the_numbers_of_train(
    scenario, epochs, r_drop, model, data, files, checkpoint, tmp_path
):
    params, metrics = looped(model, data, scenario, epochs, r_drop=r_drop)
    result = mtl.train(
        mtl.TrainConfig(
            workdir=str(tmp_path),
            scenario=scenario,
            backbone=str(checkpoint),
            epochs=epochs,
            r_drop=r_drop,
            batch_size=16,
            seed=3,
            head_learning_rate=1e-3,
            weight_decay=0.01,
            class_weights=("topic={}",),
            data=mtl.DataConfig(
                train_file=files["train"],
                validation_file=files["validation"],
                label_columns=tuple(f"{task}={task}" for task in TASKS),
                max_length=24,
            ),
        )
    )
    scores, expected = mtl.evaluate(model, params, data.validation), result["validation"]
    for task in TASKS:
        # ``train`` measures on kept activations, which may round logits otherwise.
        for name in ("loss", "ece"):
            assert scores[task].pop(name) == pytest.approx(expected[task].pop(name), rel=1e-5)
    assert scores == expected
    assert set(metrics) == {"loss", "grad_norm"}
    assert metrics["loss"].keys() == TASKS.keys()


def test_frozen_parameters_keep_their_bytes_and_need_no_telling(model, data):
    before = model.init(3)
    params, _ = looped(model, data, "top_1")
    for path, (old, new) in flat_pairs(before, params).items():
        trained = path.startswith("backbone/layer_1/") or not path.startswith("backbone/")
        assert np.array_equal(old, new) != trained, path
    partition = mtl.Partition(model.params, "top_1")
    step = mtl.TrainStep(model, partition, optax.sgd(0.1))
    # The embeddings and one of two layers.
    assert step.frozen_depth == 2


def test_low_rank_factors_need_no_telling(model, data):
    before = model.init(3)
    params, _ = looped(model, data, "lora_2")
    for path, (old, new) in flat_pairs(before, params).items():
        assert np.array_equal(old, new) == path.startswith("backbone/"), path
    ids = np.array([[1, 7, 8, 9]])
    scores, plain = model(params, ids), model(mtl.merge_lora(params), ids)
    for task, expected in model(before, ids).items():
        np.testing.assert_allclose(scores[task], plain[task], atol=1e-5)
        assert np.abs(scores[task] - expected).max() > 1e-3
    # What has factors is gone on from: with them, or with what they have made of the kernels.
    for scenario in ("lora_2", "top_1"):
        partition = mtl.Partition(params, scenario)
        step = mtl.TrainStep(model, partition, optax.sgd(0.1))
        begun = model(step.params(step.init(params=params)), ids)
        np.testing.assert_allclose(begun["mood"], scores["mood"], atol=1e-5)


def flat_pairs(old, new):
    old, new = (
        {"/".join(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (old, new)
    )
    return {path: (old[path], new[path]) for path in old}


@pytest.mark.optimized
def test_the_cache_changes_no_number(model, data):
    # With dropout in what trains: the masks are the same. Adam would scale rounding up.
    kept, _ = looped(model, data, "top_1", optimizer=optax.sgd(0.1))
    computed, _ = looped(model, data, "top_1", optimizer=optax.sgd(0.1), cache=False)
    for old, new in flat_pairs(kept, computed).values():
        np.testing.assert_allclose(old, new, atol=1e-5)


@pytest.mark.optimized
def test_micro_batches_make_the_update_of_the_whole(model, data):
    # Heads alone have no dropout, whose masks would be others.
    whole, _ = looped(model, data, "backbone_frozen", optimizer=optax.sgd(0.1))
    parts, _ = looped(
        model, data, "backbone_frozen", optimizer=optax.sgd(0.1), parts=2, accumulate=2
    )
    for old, new in flat_pairs(whole, parts).values():
        np.testing.assert_allclose(old, new, atol=1e-6)


def test_any_optimizer_of_optax(model, data):
    params, metrics = looped(model, data, "backbone_frozen", optimizer=optax.sgd(0.0))
    for old, new in flat_pairs(model.init(3), params).values():
        np.testing.assert_array_equal(old, new)
    assert metrics["grad_norm"] > 0


def test_gradients_are_accumulated_over_batches(model, data):
    still, _ = looped(model, data, "backbone_frozen", optimizer=optax.MultiSteps(optax.sgd(1), 99))
    moved, _ = looped(model, data, "backbone_frozen", optimizer=optax.MultiSteps(optax.sgd(1), 2))
    first = model.init(3)["mood"]["kernel"]
    np.testing.assert_array_equal(still["mood"]["kernel"], first)
    assert np.abs(moved["mood"]["kernel"] - first).max() > 0


def doubled(logits, labels):
    there = labels >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return 2 * jnp.where(there, losses, 0.0).sum(), there.sum().astype(jnp.float32)


def test_an_own_loss_is_what_is_trained_and_nothing_compiled_is_reused(model, data):
    still: dict[str, Any] = {"optimizer": optax.sgd(0.0)}
    _, plain = looped(model, data, "backbone_frozen", **still)
    _, own = looped(model, data, "backbone_frozen", loss={"mood": doubled}, **still)
    assert own["loss"]["mood"] == pytest.approx(2 * plain["loss"]["mood"], rel=1e-6)
    assert own["loss"]["topic"] == plain["loss"]["topic"]
    _, every = looped(model, data, "backbone_frozen", loss=doubled, **still)
    assert every["loss"]["queue"] == pytest.approx(2 * plain["loss"]["queue"], rel=1e-6)


RATES = {"head": 1e-3, "backbone": 1e-4}
NAME: Any = "bert"
NAMES: Any = ["mood"]
OTHER = mtl.Task("other", classes=("a", "b"))


class Wide(nn.Module):
    classes: int = 3

    @nn.compact
    def __call__(self, vectors):
        return nn.Dense(self.classes)(nn.tanh(nn.Dense(8)(vectors)))


def test_an_own_head_is_part_of_the_tree(data, encoder):
    model = mtl.MultiTaskModel(encoder, data.tasks, heads={"queue": Wide()})
    assert set(model.params["queue"]) == {"Dense_0", "Dense_1"}
    rules = [("queue/*", "frozen"), ("backbone/*", "frozen"), ("*", "head")]
    params, _ = looped(model, data, rules)
    np.testing.assert_array_equal(
        params["queue"]["Dense_0"]["kernel"], model.init(3)["queue"]["Dense_0"]["kernel"]
    )
    params, _ = looped(model, data, "backbone_frozen")
    assert np.abs(params["queue"]["Dense_0"]["kernel"]).max() > 0
    assert mtl.evaluate(model, params, data.validation)["queue"]["examples"] == 40


def test_a_head_is_a_module_or_what_makes_one_for_the_classes(data, encoder):
    model = mtl.MultiTaskModel(encoder, data.tasks, heads={"mood": Wide, "queue": Wide()})
    assert model.heads == {"mood": Wide(classes=2), "queue": Wide(classes=3)}


def test_an_own_metric_stands_beside_the_others_and_compiles_nothing(model, data, encoder):
    def right(labels, predicted):
        return (labels == predicted).mean()

    def of_numbers(labels, predicted):
        return 0.0

    of_numbers.kinds = ("regression",)  # pyright: ignore[reportFunctionMemberAccess]
    params = model.params
    scores = mtl.evaluate(model, params, data.validation)
    before = evaluator.cache_info().misses
    own = mtl.evaluate(model, params, data.validation, metrics={"right": right})
    assert evaluator.cache_info().misses == before
    assert own == {
        task: {**found, "right": pytest.approx(found["accuracy"])} for task, found in scores.items()
    }
    refused: Any = (
        ({"accuracy": right}, "metrics accuracy already exists"),
        ({"wrong": lambda labels: 0}, "the metric wrong makes no number of"),
        ({"far": of_numbers}, "the metric far is for regression alone, and no task is that"),
    )
    for metrics, words in refused:
        with pytest.raises(UserError, match=words):
            mtl.evaluate(model, params, data.validation, metrics=metrics)


def test_classes_in_another_order_than_the_data_have_are_refused(files, encoder):
    def classes_of(*classes):
        task = mtl.Task("queue", classes=classes)
        return mtl.load_data(**files, tasks=[task], encoder=encoder).tasks[0].classes

    assert classes_of("0", "1", "2") == classes_of() == ("0", "1", "2")
    with pytest.raises(UserError, match="'queue' is given the classes '2', '1', '0', and"):
        classes_of("2", "1", "0")


def test_the_model_is_a_pure_function_of_its_parameters(model, data, encoder):
    params = model.init(0)
    ids = encoder.tokenizer(["the film was good", "a"], padding=True, return_tensors="np")
    logits = model(params, ids["input_ids"], ids["attention_mask"])
    assert {task: each.shape for task, each in logits.items()} == {
        "topic": (2, 2),
        "mood": (2, 2),
        "queue": (2, 3),
    }
    alone = model(params, ids["input_ids"][1:, :3])
    np.testing.assert_allclose(logits["mood"][1], alone["mood"][0], atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (([2, 5, 3],), r"input_ids has the shape \(3,\): give it as \[batch, length\]"),
        (([[2, 5, 999]],), "input_ids has the id 999, and the encoder's are 0 to 40: use its own"),
        (([[2, -5, 3]],), "input_ids has the id -5, and"),
        (([[2.0, 5.5]],), "input_ids is no array of whole numbers: give what the tokenizer makes"),
        ((["a text"],), "input_ids is no array of whole numbers"),
        (([[2, 5], [3]],), "input_ids is no array of whole numbers"),
        (([[2] * 25],), "25 tokens are more than the encoder's 24 positions: cut the texts"),
        (([[2, 5], [6, 3]], [[1, 1]]), r"attention_mask has the shape \(1, 2\), and input_ids"),
    ],
)
def test_tokens_that_can_not_be_are_refused(tokens, words, model, encoder):
    for call in (encoder, functools.partial(model, model.params)):
        with pytest.raises(UserError, match=words):
            call(*tokens)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda m, d: mtl.TrainStep(m, mtl.Partition(m.params, "all_frozen"), optax.sgd(1)),
            "trai",
        ),
        (lambda m, d: looped(m, d, "top_1", loss={"stars": doubled}), "the task 'stars'"),
        (lambda m, d: looped(m, d, "top_1", task_weights={"stars": 1}), "the task 'stars'"),
        (lambda m, d: looped(m, d, "top_9"), "top_9"),
        (lambda m, d: looped(m, d, [("backbone/*", "frozen")]), "no rule matches parameter"),
        (lambda m, d: mtl.MultiTaskModel(m.encoder, [mtl.Task("a")]), "'a' has no classes"),
        (lambda m, d: mtl.MultiTaskModel(m.encoder, d.tasks, {"a": Wide()}), "the task 'a'"),
        (lambda m, d: headed(m, d, Wide()), "the task has 2 classes: make it"),
        (lambda m, d: headed(m, d, int), "is not a Flax module and does not return one"),
        (lambda m, d: looped(m, d, "top_1", task_weights={"mood": -1}), "task_weights mood is -1"),
        (
            lambda m, d: looped(m, d, "top_1", weighting="famos"),
            "weighting 'famos' is unknown: use",
        ),
        (lambda m, d: looped(m, d, "top_1", parallel="map"), "parallel 'map' is unknown: use auto"),
        (lambda m, d: optimizer(m, {"head": 1}), "no learning rate for the label 'backbone'"),
        (lambda m, d: optimizer(m, {**RATES, "body": 1}), "'body', which is not a label"),
        (lambda m, d: optimizer(m, {**RATES, "head": -1}), "learning rate of head is -1"),
        (lambda m, d: optimizer(m, RATES, schedule="liner"), "schedule 'liner' is unknown: use"),
        (lambda m, d: optimizer(m, RATES, 0), "total_steps 0 must be at least 1"),
        (lambda m, d: optimizer(m, RATES, weight_decay=-1), "weight_decay -1 must be"),
        (lambda m, d: d.train_batches(batch_size=0), "batch_size 0 must be at least 1"),
        (lambda m, d: looped(m, d, "top_1", accumulate=0), "accumulate 0 must be at least 1"),
        (lambda m, d: looped(m, d, "top_1", r_drop=0.0), "r_drop 0.0 must be above 0"),
        (lambda m, d: looped(m, d, "top_1", accumulate=3), r"train_batches\(accumulate=3\)"),
        (lambda m, d: d.test, "no test split"),
        (lambda m, d: optimizer(m, 1e-3), "learning_rates has the type float: give one rate for"),
        (lambda m, d: optimizer(m, RATES, schedule=lambda step: step), "schedule makes no sched"),
        (
            lambda m, d: looped(m, d, "top_1", optimizer=optimizer(m, RATES, scenario="top_2")),
            "the optimizer was made for another partition",
        ),
        (lambda m, d: looped(m, d, "top_1", optimizer=1e-3), "optimizer has the type float: give"),
        (lambda m, d: looped(m, d, "top_1", loss="mine:loss"), "loss has the type str: give a fun"),
        (lambda m, d: looped(m, d, "top_1", weighting=1), "weighting has the type int: name a"),
        (lambda m, d: looped(m, d, "top_1", loss=len), "the loss of topic can't be called with"),
        (
            lambda m, d: looped(m, d, "top_1", loss={"mood": lambda logits, labels: logits.sum()}),
            "the loss of mood returns .* let it return the sum of the losses and the number",
        ),
        (
            lambda m, d: looped(mtl.MultiTaskModel(m.encoder, [OTHER]), d, "top_1"),
            "without the model's task 'other'",
        ),
        (lambda m, d: mtl.evaluate(m, m.encoder.params, d.validation), "params has no 'backbone'"),
        (lambda m, d: m({"backbone": m.encoder.params}, [[2, 3]]), "params has no 'topic': give"),
        (lambda m, d: begun(m, m.encoder.params), "params has no 'backbone': give all parameters"),
        (lambda m, d: mtl.train(NAMES), "config has the type list: give a TrainConfig"),
        (lambda m, d: mtl.export("", "", format=NAME), "format is 'bert': give 'hugging"),
        (lambda m, d: mtl.export("", "", dtype=NAME), "dtype is 'bert': give 'float32'"),
        (lambda m, d: mtl.Partition(m, "top_1"), "params has the type MultiTaskModel: give"),
        (lambda m, d: mtl.Partition(m.encoder.params, "top_1"), "params has no backbone: give all"),
        (lambda m, d: mtl.MultiTaskModel(NAME, d.tasks), "encoder has the type str: give what"),
        (lambda m, d: mtl.MultiTaskModel(m.encoder, d), "tasks has the type Data: give the tasks"),
        (lambda m, d: mtl.MultiTaskModel(m.encoder, NAMES), "'mood' has the type str: give"),
        (lambda m, d: mtl.evaluate(m, m.params, d), "split has the type Data: give a split of"),
        (
            lambda m, d: mtl.evaluate(m, m.params, d.validation, metrics=NAMES),
            "metrics has the type list: give functions by name",
        ),
        (lambda m, d: loaded(m, tasks="mood"), "tasks has the type str: give the column of each"),
        (lambda m, d: loaded(m, tasks=["mood"]), "the task 'mood' has the type str: give the col"),
        (lambda m, d: loaded(m, tasks={"mood": 1}), "'mood' has the type int: name its column"),
        (lambda m, d: loaded(m, train=[{"text": "a"}]), "train has the type list: write it to a"),
        (lambda m, d: mtl.load_data(encoder=NAME), "encoder has the type str: give what"),
    ],
)
def test_what_can_not_be_is_refused(make, words, model, data):
    with pytest.raises(UserError, match=words):
        make(model, data)


def test_a_state_is_used_once(model, data):
    partition = mtl.Partition(model.params, "backbone_frozen")
    step = mtl.TrainStep(model, partition, optax.sgd(0.1))
    batch = next(iter(data.train_batches(batch_size=16)))
    with pytest.raises(UserError, match="batch has the type dict: give one of"):
        step(step.init(), batch.arrays())
    first = step.init()
    second, _ = step(first, batch)
    with pytest.raises(UserError, match="used by a step already, which reuses its buffers: go on"):
        step(first, batch)
    assert repr(first) == "<LoopState, used by a step>"
    assert repr(second) == "<LoopState, 1 steps done>"


def test_a_notebook_shows_each_part_in_a_line(model, data):
    partition = mtl.Partition(model.params, "backbone_frozen")
    step = mtl.TrainStep(model, partition, optax.sgd(0.1))
    batches = data.train_batches(batch_size=16)
    batch = next(iter(batches))
    _, metrics = step(step.init(), batch)
    shown = [model.encoder, model, partition, data, data.train, data.train.examples, step, batch]
    for each in (*shown, data.train.texts, batches):
        words = repr(each)
        assert words.startswith(f"<{type(each).__name__}")
        assert len(words) < 500
        assert " object at 0x" not in words
    assert repr(metrics) == repr(dict(metrics))


def test_the_example_of_a_loop_runs(files, tiny, capsys):
    script = EXAMPLES / "own_loop.py"
    assert len(script.read_text().splitlines()) <= 40
    sys.path.insert(0, str(EXAMPLES))
    try:
        main = importlib.import_module("own_loop").main
    finally:
        sys.path.remove(str(EXAMPLES))
    words = ["--train", files["train"], "--validation", files["validation"], "--epochs=1"]
    scores = main([*words, "--backbone", str(tiny), "--tasks", "topic=topic", "mood"])
    assert scores.keys() == {"topic", "mood"}
    assert "loss {'topic': " in capsys.readouterr().out
