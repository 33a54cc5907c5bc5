"""Distributions over classes, from cells to the step: read, refused, trained on, not measured."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mtl_jax as mtl
from mtl_jax.config.data import DataConfig
from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.data.corpus import load_corpus
from mtl_jax.data.soft_labels import soft_name
from mtl_jax.data.sources.vader import Sentence
from mtl_jax.freezing.partition import Partition
from mtl_jax.training.kinds.single_label import CrossEntropy
from mtl_jax.training.losses import masked_cross_entropy
from mtl_jax.training.step import scanned_steps, train_step
from tests.conftest import TASKS
from tests.training.test_step import NO_DROPOUT, make_program, random_batch, random_params

ROWS = [
    ("good film", "pos", {"pos": 3, "neg": 1}),
    ("bad film", "neg", [0.75, 0.25]),
    ("fine film", "pos", "neg"),
    ("a film", "pos", None),
    ("no film", None, {"pos": 1}),
]
# In the order of the classes: neg, pos.
SHARES = [[0.25, 0.75], [0.75, 0.25], [1, 0], [0, 0]]


def files(folder, column="raters"):
    """The rows as CSV, JSON Lines and Parquet; validation has no distributions."""
    cells = [c if c is None or isinstance(c, str) else json.dumps(c) for *_, c in ROWS]
    quoted = ['"{}"'.format((cell or "").replace('"', '""')) for cell in cells]
    lines = [
        f"{text},{label or ''},{cell}" for (text, label, _), cell in zip(ROWS, quoted, strict=True)
    ]
    (folder / "train.csv").write_text("\n".join([f"text,mood,{column}", *lines]) + "\n")
    objects = [{"text": text, "mood": label, column: cell} for text, label, cell in ROWS]
    (folder / "train.jsonl").write_text("".join(json.dumps(each) + "\n" for each in objects))
    structs = [{"pos": 3, "neg": 1}, {"neg": 0.75, "pos": 0.25}, {"neg": 1}, None, {"pos": 1}]
    columns = {"text": [r[0] for r in ROWS], "mood": [r[1] for r in ROWS], column: structs}
    pq.write_table(pa.table(columns), folder / "train.parquet")
    (folder / "dev.csv").write_text("text,mood\ngreat film,pos\ndull film,neg\n")


def config_of(folder, train, soft=("mood=raters",), labels=("mood=mood",)):
    return DataConfig(
        train_file=str(folder / train),
        validation_file=str(folder / "dev.csv"),
        label_columns=labels,
        soft_labels=soft,
    )


@pytest.mark.parametrize("train", ["train.csv", "train.jsonl", "train.parquet"])
def test_shares_are_read_beside_the_labels(train, tmp_path):
    files(tmp_path)
    corpus = load_corpus(config_of(tmp_path, train))
    examples = corpus.read("train")
    assert corpus.classes == {"mood": ("neg", "pos")}
    # A text is trained on for its label alone.
    assert list(examples.texts) == [text for text, *_ in ROWS[:4]]
    np.testing.assert_array_equal(examples.labels["mood"], [1, 0, 1, 1])
    np.testing.assert_allclose(examples.soft["mood"], SHARES)
    np.testing.assert_allclose(examples.take([2, 0]).soft["mood"], [SHARES[2], SHARES[0]])
    assert corpus.read("validation").soft == {}
    assert any(
        "3 of 5 texts have a distribution over the classes of mood; of 2 its most" in note
        for note in corpus.notes
    )


def test_of_one_column_the_label_is_the_most_probable_class(tmp_path):
    lines = ['a,"{""x"": 0.5, ""y"": 0.5}"', 'b,"{""y"": 1, ""z"": 0.5}"', "c,y", "d,"]
    (tmp_path / "train.csv").write_text("\n".join(["text,mood", *lines]) + "\n")
    (tmp_path / "dev.csv").write_text("text,mood\ne,x\nf,y\n")
    corpus = load_corpus(config_of(tmp_path, "train.csv", soft=("mood=mood",)))
    # z is the most probable class of no text, and is one.
    assert corpus.classes == {"mood": ("x", "y", "z")}
    examples = corpus.read("train")
    np.testing.assert_array_equal(examples.labels["mood"], [0, 1, 1])
    np.testing.assert_allclose(examples.soft["mood"], [[0.5, 0.5, 0], [0, 2 / 3, 1 / 3], [0, 1, 0]])
    np.testing.assert_array_equal(corpus.read("validation").labels["mood"], [0, 1])


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ('{"pos": 1, "odd": 1}', r"line 2: 'raters' has a share of 'odd', which is no class of"),
        ("[0.5, 0.25, 0.25]", r"line 2: 'raters' has the shares \[0\.5, 0\.25, 0\.25\], and mood"),
        ('{"pos": -1}', r"line 2: 'raters' is a distribution with '-1' in it, no share: write"),
        ('{"pos": 0}', r"line 2: 'raters' is a distribution without any share above 0"),
        ('{"pos": 1', r"line 2: 'raters' is .*, which is no JSON: write"),
    ],
)
def test_what_is_no_distribution_is_refused_by_its_place(cell, words, tmp_path):
    rows = [["good film", "pos", cell], ["bad film", "neg", ""]]
    quoted = [",".join('"{}"'.format(c.replace('"', '""')) for c in row) for row in rows]
    (tmp_path / "train.csv").write_text("\n".join(["text,mood,raters", *quoted]) + "\n")
    (tmp_path / "dev.csv").write_text("text,mood\ne,pos\nf,neg\n")
    with pytest.raises(UserError, match=words):
        load_corpus(config_of(tmp_path, "train.csv")).read("train")


def test_what_can_have_none_is_refused(tmp_path):
    files(tmp_path)
    with pytest.raises(UserError, match=r"no column 'shares'.*--label-columns and --soft-labels"):
        load_corpus(config_of(tmp_path, "train.csv", soft=("mood=shares",)))
    with pytest.raises(UserError, match=r"--soft-labels names mood, which is multi_label"):
        DataConfig(
            label_columns=("mood=mood",), task_kinds=("mood=multi_label",), soft_labels=("mood=m",)
        )
    data = config_of(tmp_path, "train.csv")
    with pytest.raises(UserError, match=r"names mood, which has a loss of its own \(--loss\)"):
        TrainConfig(workdir="", data=data, loss=("mood=tests.conftest:weights",))


def test_the_loss_is_that_of_the_distribution():
    logits = jnp.asarray([[1.0, -1.0], [0.0, 2.0], [3.0, 0.0], [1.0, 1.0]])
    labels = jnp.asarray([0, 1, 1, -1])
    soft = jnp.asarray([[0.25, 0.75], [0.0, 0.0], [0.5, 0.5], [1.0, 0.0]])
    logs = np.asarray(jax.nn.log_softmax(logits))
    expected = -(0.25 * logs[0, 0] + 0.75 * logs[0, 1]) - logs[1, 1] - logs[2].mean()
    total, count = CrossEntropy()(logits, labels, soft)
    assert (float(total), float(count)) == (pytest.approx(expected), 3.0)
    weighted, _ = CrossEntropy((2.0, 1.0))(logits[:1], labels[:1], soft[:1])
    assert float(weighted) == pytest.approx(-(0.5 * logs[0, 0] + 0.75 * logs[0, 1]), rel=1e-5)
    hard, _ = CrossEntropy()(logits, labels, jax.nn.one_hot(labels, 2))
    assert float(hard) == pytest.approx(float(masked_cross_entropy(logits, labels)[0]), rel=1e-6)


def test_a_step_learns_from_them_on_tokens_and_on_kept_vectors():
    params, batch = random_params(NO_DROPOUT), random_batch(seed=2)
    logits: Any
    found: Any
    task, slots = TASKS[1], batch[TASKS[1]].shape
    soft = np.random.default_rng(0).dirichlet(np.ones(4), slots).astype(np.float32)
    partition, program = make_program(params, config=NO_DROPOUT)
    trainable, frozen = partition.split(params)
    state = program.init(trainable, 0)
    with_soft: Any = batch | {soft_name(task): soft}
    _, metrics = train_step(program, state, frozen, with_soft)
    logits = program.model.apply({"params": params}, batch)
    expected, _ = CrossEntropy()(logits[task], jnp.asarray(batch[task]), jnp.asarray(soft))
    others, _ = CrossEntropy()(logits[TASKS[0]], jnp.asarray(batch[TASKS[0]]))
    assert metrics["loss"][task][0] == pytest.approx(float(expected), rel=1e-5)
    assert metrics["loss"][TASKS[0]][0] == pytest.approx(float(others), rel=1e-5)

    # As vectors that stay on the device; an empty slot is no text, and no number either.
    vectors = {
        "pooled": np.asarray(program.model.apply({"params": params}, batch, method="pooled"))
    }
    flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in vectors.items()}
    flat |= {name: batch[name].ravel() for name in TASKS} | {soft_name(task): soft.reshape(-1, 4)}
    heads = Partition.from_rules(params, [("backbone/*", "frozen"), ("*", "head")])
    _, alone = make_program(params, [("backbone/*", "frozen"), ("*", "head")], config=NO_DROPOUT)
    trained, _ = heads.split(params)
    count = slots[0] * slots[1]
    example = np.full((1, 1, count + 2), -1, np.int32)
    example[0, 0, :count] = np.arange(count)
    flat = jax.tree.map(jnp.asarray, flat)
    batches: Any = {"example": example}
    after, found = scanned_steps(alone, alone.init(trained, 0), {}, flat, batches)
    assert float(found["loss"][task][0][0]) == pytest.approx(float(expected), rel=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.trainable))


def test_a_run_trains_on_them_and_is_measured_on_its_labels(tiny, reviews, tmp_path):
    """From files to a result, and by a loop of one's own."""
    rows = (reviews / "train.csv").read_text().splitlines()
    flipped = {"pos": "neg", "neg": "pos"}
    lines = [f"{rows[0]},shares"]
    for row in rows[1:]:
        mood = row.rpartition(",")[2]
        lines.append(f"{row},{flipped.get(mood, mood) if mood != '-1' else ''}")
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    data = DataConfig(
        train_file=str(tmp_path / "train.csv"),
        validation_file=str(reviews / "validation.csv"),
        label_columns=("classifier=topic", "sentiment=mood"),
        soft_labels=("sentiment=shares",),
    )
    config = TrainConfig(
        workdir=str(tmp_path / "run"),
        backbone=str(tiny),
        data=data,
        scenario="backbone_frozen",
        epochs=20,
        head_learning_rate=3e-2,
        parallel="jit",
        cache_folder=str(tmp_path / "cache"),
    )
    result = mtl.train(config)
    # It has learned the opposite of the labels that it is measured on.
    assert result["validation"]["sentiment"]["accuracy"] < 0.3
    assert result["train"]["sentiment"]["loss"] > np.log(3)
    assert mtl.Predictor(tmp_path / "run").predict(["the film was good !"])[0]["sentiment"]

    encoder = mtl.load_encoder(tiny)
    own = mtl.load_data(
        encoder=encoder,
        train=tmp_path / "train.csv",
        validation=reviews / "validation.csv",
        tasks={"sentiment": "mood"},
        soft_labels=("sentiment=shares",),
    )
    model = mtl.MultiTaskModel(encoder, own.tasks)
    partition = mtl.Partition(model.params, "backbone_frozen")
    batches = own.train_batches(batch_size=16, epochs=1)
    step = mtl.TrainStep(
        model, partition, mtl.make_optimizer(partition, {"head": 1e-2}, 6, ema=0.9)
    )
    state, metrics = step.init(), {}
    for batch in batches:
        assert soft_name("sentiment") in batch.arrays()
        state, metrics = step(state, batch)
    assert metrics["loss"]["sentiment"] > 0
    average = step.params(state)["sentiment"]["kernel"]
    raw = dataclasses.replace(state).train.trainable["sentiment"]["kernel"]
    assert not np.array_equal(average, raw)


def test_what_raters_make_of_a_sentence():
    sentence = Sentence("tweet", "1", "text", 0.25, 0.829156, (1, 1, -1, 0))
    assert sentence.sentiment == "positive"
    assert sentence.of_raters == [0.25, 0.25, 0.5]
    # Of a standard error of 0.829156 / sqrt(3) about 0.25.
    np.testing.assert_allclose(sentence.of_other_raters, [0.173643, 0.284872, 0.541485], atol=2e-4)
    assert Sentence("tweet", "1", "text", 1.0, 0.0, (1, 1)).of_other_raters == [0.0, 0.0, 1.0]
