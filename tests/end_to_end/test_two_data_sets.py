"""Tasks from two data sets: the merged corpus, its epochs, and a training through the command."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mtl_jax.config.train import DataConfig, TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.data.batches import train_batches
from mtl_jax.data.corpus import load_corpus
from mtl_jax.data.kinds import MISSING
from mtl_jax.runs.loop import train
from mtl_jax.tools.predict import Predictor
from mtl_jax.training.inputs import Inputs
from tests.cli.test_commands import assert_mistake, call
from tests.conftest import TASKS


class TinyTopics(tfds.core.GeneratorBasedBuilder):
    """A data set with its text in a feature of another name."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        label = tfds.features.ClassLabel(names=["sport", "science"])
        features = {"headline": tfds.features.Text(), "topic": label}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(30)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"headline": f"headline {i}", "topic": i % 2}


@pytest.fixture
def settings(small_settings):
    """Of one layer: what is tried here does not depend on how many there are."""
    return dict(small_settings)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Topics with a test file and without one to validate; reviews with the opposite."""
    folder = tmp_path_factory.mktemp("two")
    nouns, verdicts = ("film", "book", "phone"), {"good": "pos", "bad": "neg", "fine": "neu"}

    def topics(name, count, start):
        lines = [
            f"{nouns[i % 3]},the {nouns[i % 3]}{' very' * (i % 9)} {i}"
            for i in start + np.arange(count)
        ]
        (folder / name).write_text("\n".join(["topic,headline", *lines]) + "\n")

    def reviews(name, count, start):
        words = list(verdicts.items())
        pairs = [words[i % 3] for i in range(count)]
        rows = [{"text": f"it is {w} {start + i}", "mood": m} for i, (w, m) in enumerate(pairs)]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    topics("topics.csv", 90, 0)
    topics("topics_test.csv", 12, 100)
    reviews("reviews.jsonl", 24, 0)
    reviews("reviews_validation.jsonl", 9, 100)
    return folder


def data_flags(folder):
    """As keyword arguments of a ``DataConfig``, and as flags of the command."""
    return {
        "train_file": (f"classifier={folder}/topics.csv", f"sentiment={folder}/reviews.jsonl"),
        "validation_file": (f"sentiment={folder}/reviews_validation.jsonl",),
        "test_file": (f"classifier={folder}/topics_test.csv",),
        "text_column": ("classifier=headline", "sentiment=text"),
        "label_columns": ("classifier=topic", "sentiment=mood"),
    }


@pytest.fixture
def data(files):
    return data_flags(files)


def test_each_example_has_the_label_of_its_own_data_set(data, files):
    corpus = load_corpus(DataConfig(**data))
    topics, reviews = str(files / "topics.csv"), str(files / "reviews.jsonl")
    assert corpus.sources == (topics, reviews)
    assert corpus.name == f"{topics} and {reviews}"
    assert corpus.classes == {
        "classifier": ("book", "film", "phone"),
        "sentiment": ("neg", "neu", "pos"),
    }
    assert corpus.splits == ("train", "validation", "test")
    train, validation, test = (corpus.read(split) for split in corpus.splits)

    def tenth(text):
        return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10 == 0

    headlines = [line.split(",")[1] for line in (files / "topics.csv").read_text().splitlines()[1:]]
    kept = [text for text in headlines if not tenth(text)]
    texts = [
        json.loads(line)["text"] for line in (files / "reviews.jsonl").read_text().splitlines()
    ]
    assert train.texts == kept + texts
    assert 0 < len(kept) < 90
    assert validation.texts == [text for text in headlines if tenth(text)] + [
        f"it is {word} {100 + i}" for i, word in enumerate(["good", "bad", "fine"] * 3)
    ]
    nouns = ("book", "film", "phone")
    topic = [nouns.index(text.split()[1]) for text in kept]
    assert train.labels["classifier"].tolist() == topic + [MISSING] * 24
    assert train.labels["sentiment"].tolist() == [MISSING] * len(kept) + [2, 0, 1] * 8
    assert train.sources is not None
    assert train.sources.tolist() == [0] * len(kept) + [1] * 24
    assert train.groups is not None
    assert train.groups.tolist() == [topics] * len(kept) + [reviews] * 24
    # Only one of them has a test file.
    assert len(test) == 12
    assert set(test.labels["sentiment"].tolist()) == {MISSING}
    assert corpus.notes == (
        f"{topics}, validation: a tenth of the training texts, set aside by hash",
        f"{reviews}, test: there is none, so it says nothing of this data set",
    )


def test_the_fingerprint_covers_both(data, files, tmp_path):
    first = load_corpus(DataConfig(**data)).fingerprint
    assert load_corpus(DataConfig(**data)).fingerprint == first
    for name, task in (("topics.csv", 0), ("reviews.jsonl", 1)):
        copy = tmp_path / name
        contents = (files / name).read_text()
        copy.write_text(contents)
        pairs = list(data["train_file"])
        pairs[task] = f"{pairs[task].split('=')[0]}={copy}"
        config = DataConfig(**{**data, "train_file": tuple(pairs)})
        assert load_corpus(config).fingerprint == first
        copy.write_text(contents + contents.splitlines()[-1] + "\n")
        assert load_corpus(config).fingerprint != first


def test_one_task_from_a_file_and_the_other_from_sentences(files):
    corpus = load_corpus(
        DataConfig(
            train_file=f"classifier={files}/topics.csv",
            dataset="sentiment=sentences",
            text_column=("classifier=headline", "sentiment=text"),
            label_columns=("classifier=topic", "sentiment=sentiment"),
        )
    )
    assert corpus.classes == {
        "classifier": ("book", "film", "phone"),
        "sentiment": ("negative", "neutral", "positive"),
    }
    train = corpus.read("train")
    assert train.sources is not None
    assert train.groups is not None
    assert int((train.sources == 1).sum()) == 10_639
    assert (train.labels["classifier"][train.sources == 1] == MISSING).all()
    assert set(train.groups.tolist()) == {
        str(files / "topics.csv"),
        "tweet",
        "movie_review",
        "product_review",
        "editorial",
    }
    assert len(corpus.read("test")) == 11_865


def test_one_task_from_a_file_and_the_other_from_tfds(files, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    corpus = load_corpus(
        DataConfig(
            train_file=f"sentiment={files}/reviews.jsonl",
            dataset="classifier=tiny_topics",
            text_column=("classifier=headline", "sentiment=text"),
            label_columns=("classifier=topic", "sentiment=mood"),
        )
    )
    assert corpus.sources == ("tiny_topics/1.0.0", str(files / "reviews.jsonl"))
    assert corpus.classes["classifier"] == ("sport", "science")
    assert corpus.splits == ("train", "validation")
    whole = [corpus.read(split) for split in corpus.splits]
    assert sum(len(examples) for examples in whole) == 30 + 24
    for examples in whole:
        assert (examples.labelled(["classifier"]) != examples.labelled(["sentiment"])).all()


@pytest.fixture
def make_inputs(settings, data):
    def make(**changes):
        config = DataConfig(**{**data, **changes})
        return Inputs(TrainConfig(**{**settings, "data": config}, workdir=""))

    return make


def epochs_of(inputs, count, batch_size=8, seed=0, **tasks):
    """The texts of each of the first epochs, in the order of their batches."""
    plan = inputs.plan(batch_size, 1, **tasks)
    texts = inputs.training(**tasks).texts
    batches = train_batches(texts, plan, seed, 0, count * plan.steps)
    found = [batch["example"][batch["example"] >= 0] for batch in batches]
    steps = plan.steps
    return [np.concatenate(found[i * steps : (i + 1) * steps]) for i in range(count)]


def test_by_size_the_batches_are_those_of_one_data_set(make_inputs):
    inputs = make_inputs()
    mixed = inputs.plan(8, 1)
    split = inputs.split("train")
    alone = dataclasses.replace(split.examples, sources=None)
    inputs._splits["train"] = dataclasses.replace(split, examples=alone)
    inputs._plans.clear()
    inputs._training.clear()
    plain = inputs.plan(8, 1)
    assert mixed.mixture is not None
    assert plain.mixture is None
    assert plain.layout == mixed.layout
    pairs = zip(
        train_batches(split.texts, mixed, 5, 0, 3 * mixed.steps),
        train_batches(split.texts, plain, 5, 0, 3 * plain.steps),
        strict=True,
    )
    for one, other in pairs:
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_equal_shares(make_inputs):
    inputs = make_inputs(mixing="equal")
    sources = inputs.split("train").examples.sources
    topics, reviews = (int((sources == source).sum()) for source in (0, 1))
    total = topics + reviews
    places = [-(-total // 2), total // 2]
    for name, size, place in zip(inputs.corpus.sources, (topics, reviews), places, strict=True):
        assert f"an epoch has {place} texts of the {size} of {name}" in inputs.notes()
    met = np.zeros(total, int)
    for epoch in epochs_of(inputs, topics):
        assert np.bincount(sources[epoch]).tolist() == places
        met += np.bincount(epoch, minlength=total)
    assert set(met[:topics]) == {places[0]}
    repeats = met[topics:] / topics
    assert np.abs(repeats - places[1] / reviews).max() < 1


def test_a_cap_limits_what_a_data_set_counts_for(make_inputs):
    inputs = make_inputs(mixing_cap=24)
    sources = inputs.split("train").examples.sources
    first, second = np.bincount(sources[epochs_of(inputs, 1)[0]])
    assert 0 <= first - second <= 1


def test_an_order_goes_on_from_any_batch(make_inputs):
    inputs = make_inputs(mixing="equal")
    plan, texts = inputs.plan(8, 1), inputs.training().texts
    whole = list(train_batches(texts, plan, 2, 0, 5 * plan.steps))
    for start in (0, 1, plan.steps, 2 * plan.steps + 3):
        part = list(train_batches(texts, plan, 2, start, 7))
        for one, other in zip(part, whole[start : start + 7], strict=True):
            np.testing.assert_array_equal(one["example"], other["example"])
            np.testing.assert_array_equal(one["input_ids"], other["input_ids"])
    before = train_batches(texts, plan, 2, 0, 5 * plan.steps)
    for _ in range(2 * plan.steps + 3):
        next(before)
    after = train_batches(texts, plan, 2, 0, 5 * plan.steps)
    after.set_state(json.loads(json.dumps(before.get_state())))
    for one, other in zip(after, whole[2 * plan.steps + 3 :], strict=True):
        np.testing.assert_array_equal(one["example"], other["example"])


def test_training_texts_of_one_task(make_inputs):
    inputs = make_inputs(mixing="equal")
    split = inputs.split("train")
    assert inputs.training() is split
    assert inputs.training(("sentiment", "classifier")) is split
    only = inputs.training(("sentiment",))
    assert inputs.training(["sentiment"]) is only
    rows = np.flatnonzero(split.examples.labels["sentiment"] != MISSING)
    assert only.examples.texts == [split.examples.texts[i] for i in rows]
    assert len(only.texts) == 24
    again = inputs.reader(only.examples.texts, only.examples.labels)
    assert only.texts.tokens.digest == again.tokens.digest
    np.testing.assert_array_equal(only.texts.labels["sentiment"], [2, 0, 1] * 8)
    # One data set is left: an epoch is each of its texts once.
    plan = inputs.plan(8, 1, ("sentiment",))
    assert plan is inputs.plan(8, 1, ["sentiment"])
    assert plan is not inputs.plan(8, 1)
    assert [sorted(e) for e in epochs_of(inputs, 2, tasks=("sentiment",))] == [list(range(24))] * 2


def test_no_text_of_a_task_is_told(settings, data):
    config = DataConfig(
        **{**data, "label_columns": ("classifier=topic",)}
        | {
            "train_file": data["train_file"][:1],
            "validation_file": None,
            "text_column": "headline",
        }
    )
    inputs = Inputs(TrainConfig(**{**settings, "data": config}, workdir=""))
    with pytest.raises(UserError, match="no training text has a label for sentiment: name its"):
        inputs.training(("sentiment",))
    assert inputs.training(("classifier",)) is inputs.split("train")


def test_kept_activations_are_picked_with_their_texts(make_inputs):
    texts = make_inputs().split("train").texts
    states = np.arange(2 * len(texts.tokens.ids), dtype=np.float32).reshape(-1, 2)
    pooled = np.arange(len(texts), dtype=np.float32)[:, None]
    targets = {"sentiment": -pooled}
    kept = dataclasses.replace(texts, states=states, depth=2, pooled=pooled, targets=targets)
    part = kept.take(np.array([5, 0, 5]))
    offsets = texts.tokens.offsets
    spans = [np.arange(offsets[i], offsets[i + 1]) for i in (5, 0, 5)]
    assert part.states is not None
    assert part.pooled is not None
    assert part.depth == 2
    np.testing.assert_array_equal(part.states, states[np.concatenate(spans)])
    np.testing.assert_array_equal(part.tokens.ids, texts.tokens.ids[np.concatenate(spans)])
    assert part.tokens.lengths.tolist() == [len(span) for span in spans]
    assert part.pooled[:, 0].tolist() == [5, 0, 5]
    assert part.targets["sentiment"][:, 0].tolist() == [-5, 0, -5]


def test_evaluation_repeats_the_run(settings, data, tmp_path):
    config = DataConfig(**data, mixing="temperature", label_fraction=("classifier=0.3",))
    result = train(TrainConfig(**{**settings, "data": config}, workdir=str(tmp_path / "run")))
    model = Predictor(tmp_path / "run")
    for split in ("train", "validation", "test"):
        assert model.evaluate(split) == result[split]
    assert result["train"]["sentiment"]["examples"] == 24
    assert result["test"]["sentiment"] == {
        "accuracy": None,
        "macro_f1": None,
        "examples": 0,
        "weighted_f1_by_source": {},
        "per_class": {},
        "ece": None,
        "loss": None,
    }


def test_train_evaluate_predict(small, data, tmp_path):
    folder = f"--workdir={tmp_path / 'run'}"
    flags = [
        word for name, values in data.items() for word in (f"--{name.replace('_', '-')}", *values)
    ]
    more = ["--mixing=equal", "--label-fraction", "classifier=0.5", "--epochs=2", "--batch-size=8"]
    common = [folder, "--backbone", str(small), "--scenario=none_frozen", *flags, *more]
    done = call("mtl_jax", "train", *common)
    assert done.returncode == 0, done.stderr
    assert "classifier labels remain (--label-fraction)" in done.stderr
    assert "says nothing of this data set" in done.stderr
    test = json.loads(done.stdout)
    assert test["classifier"]["examples"] == 12
    assert test["sentiment"]["examples"] == 0

    evaluated = call("mtl_jax", "evaluate", folder)
    assert evaluated.returncode == 0, evaluated.stderr
    answered = json.loads(evaluated.stdout)
    assert all(answered[task].items() >= metrics.items() for task, metrics in test.items())
    assert "has changed" not in evaluated.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    epochs = [record for record in map(json.loads, lines) if record["event"] == "epoch"]
    assert len(epochs) == 2
    for epoch in epochs:
        assert all(epoch["validation"][task]["examples"] > 0 for task in TASKS)

    predicted = call("mtl_jax", "predict", folder, stdin="the film was good\n")
    assert predicted.returncode == 0, predicted.stderr
    answer = json.loads(predicted.stdout)
    assert answer["classifier"]["label"] in ("book", "film", "phone")
    assert answer["sentiment"]["label"] in ("neg", "neu", "pos")
    # Called again it is done.
    assert json.loads(call("mtl_jax", "train", *common).stdout) == test

    assert_mistake(
        call("mtl_jax", "train", *common, "--label-fraction", "classifier=2"),
        "--label-fraction classifier=2 must be a number above 0 and at most 1",
    )
    assert_mistake(
        call("mtl_jax", "train", *common, "--dataset", "sentiment=sentences"),
        "--dataset and --train-file both name one of sentiment",
    )
