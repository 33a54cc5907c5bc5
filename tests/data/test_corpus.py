import hashlib
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_jax.config.train import DataConfig
from mtl_jax.core.errors import UserError
from mtl_jax.data.corpus import load_corpus
from mtl_jax.data.data_set import Keeping
from mtl_jax.data.examples import Examples
from mtl_jax.data.kinds import MISSING, has_label


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(count, **labels):
    return [
        {"text": f"text {i}", **{k: v[i % len(v)] for k, v in labels.items()}} for i in range(count)
    ]


def config(train, *pairs, **settings):
    return DataConfig(train_file=train, label_columns=pairs or ("sentiment=mood",), **settings)


def test_take_keeps_the_order_asked_for():
    examples = Examples(
        ["a", "b", "c"], {"sentiment": np.array([0, 1, 2], np.int32)}, np.array(["x", "y", "z"])
    )
    taken = examples.take([2, 0])
    assert taken.texts == ["c", "a"]
    assert taken.labels["sentiment"].tolist() == [2, 0]
    assert taken.groups is not None
    assert taken.groups.tolist() == ["z", "x"]
    assert len(examples.take([])) == 0


def test_a_tenth_is_set_aside_by_the_text(tmp_path):
    data = rows(200, mood=["up", "down"])
    data += data[:50]
    corpus = load_corpus(config(write(tmp_path / "t.jsonl", data)))
    assert corpus.splits == ("train", "validation")
    train, validation = corpus.read("train"), corpus.read("validation")
    expected = [
        row["text"]
        for row in data
        if int(hashlib.sha256(row["text"].encode()).hexdigest(), 16) % 10 == 0
    ]
    assert validation.texts == expected
    assert 10 < len(expected) < 40
    assert len(train) == 250 - len(expected)
    assert not set(train.texts) & set(expected)
    assert corpus.notes == ("validation: a tenth of the training texts, set aside by hash",)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), min_size=2))
def test_something_is_on_either_side_of_any_texts(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("any") / "t.jsonl"
    corpus = load_corpus(config(write(path, [{"text": t, "mood": "up"} for t in texts])))
    if len(set(texts)) < 2:
        with pytest.raises(UserError, match="name a --validation-file"):
            corpus.read("train")
        return
    train, validation = corpus.read("train"), corpus.read("validation")
    assert len(train) > 0
    assert len(validation) > 0
    assert not set(train.texts) & set(validation.texts)
    assert sorted([*train.texts, *validation.texts]) == sorted(texts)


def test_missing_labels_and_tasks_without_a_column(tmp_path):
    data = [
        {"text": "a", "mood": "up"},
        {"text": "b", "mood": None},
        {"text": "c", "mood": -1},
        {"text": " ", "mood": ""},
        {"text": "e"},
        {"text": "f", "mood": "down"},
    ]
    file = write(tmp_path / "t.jsonl", data)
    corpus = load_corpus(config(file, validation_file=file))
    assert corpus.classes == {"sentiment": ("down", "up")}
    examples = corpus.read("validation")
    assert examples.labels["sentiment"].tolist() == [1, MISSING, MISSING, MISSING, MISSING, 0]
    assert examples.labels.keys() == {"sentiment"}
    training = corpus.read("train")
    assert training.texts == ["a", "f"]
    assert training.labels["sentiment"].tolist() == [1, 0]
    assert {labels.dtype for labels in examples.labels.values()} == {np.dtype(np.int32)}
    assert examples.groups is None
    assert corpus.notes == (
        "train: 1 of 6 texts are empty",
        "train: 4 of 6 have no sentiment label",
        "validation: 1 of 6 texts are empty",
        "validation: 4 of 6 have no sentiment label",
        "train: 4 of 6 texts have no label and are left out",
    )


def test_a_limit_is_of_the_texts_with_a_label(tmp_path):
    data = rows(60, mood=["up", None, None])
    file = write(tmp_path / "t.jsonl", data)
    limited = load_corpus(config(file, validation_file=file, max_train_examples=5)).read("train")
    digests = {
        row["text"]: hashlib.sha256(f"{i}\n{row['text']}".encode()).digest()
        for i, row in enumerate(data)
        if row["mood"]
    }
    assert set(limited.texts) == set(sorted(digests, key=digests.__getitem__)[:5])


def kept_labels(file, *fractions, **settings):
    """{task: the texts that keep a label}, and the corpus's notes."""
    pairs = ("classifier=topic", "sentiment=mood")
    found = load_corpus(
        config(file, *pairs, validation_file=file, label_fraction=fractions, **settings)
    )
    examples = found.read("train")
    texts = np.array(examples.texts)
    assert examples.labelled().all()
    return {task: set(texts[examples.labels[task] >= 0]) for task in examples.labels}, found


def test_a_fraction_of_the_labels_is_chosen_by_their_hash_and_nested(tmp_path):
    data = rows(200, mood=["up", "down", None, "up"], topic=["x", None])
    file = write(tmp_path / "t.jsonl", data)
    whole, _ = kept_labels(file)
    assert [len(texts) for texts in whole.values()] == [100, 150]
    digests = {
        row["text"]: hashlib.sha256(f"{i}\nsentiment\n{row['text']}".encode()).digest()
        for i, row in enumerate(data)
        if row["mood"]
    }
    order = sorted(digests, key=digests.__getitem__)
    # 1e-9 and 0.001 of 150 are less than one label, 0.01 is one and a half.
    counts = {"1e-9": 1, "0.001": 1, "0.01": 2, "0.1": 15, "0.5": 75, "0.99": 148, "1": 150}
    for fraction, count in counts.items():
        kept, corpus = kept_labels(file, f"sentiment={fraction}")
        assert kept == {"classifier": whole["classifier"], "sentiment": set(order[:count])}
        assert f"train: {count} of 150 sentiment labels remain (--label-fraction)" in corpus.notes
        # What is chosen and tested on keeps all its labels.
        assert (corpus.read("validation").labels["sentiment"] >= 0).sum() == 150


def test_texts_that_keep_no_label_are_left_out_and_counted(tmp_path):
    file = write(tmp_path / "t.jsonl", rows(200, mood=["up"], topic=["x", None]))
    kept, corpus = kept_labels(file, "sentiment=0.1", "classifier=0.05", max_train_examples=100)
    topics = len(kept_labels(file, max_train_examples=100)[0]["classifier"])
    assert [len(texts) for texts in kept.values()] == [round(topics / 20), 10]
    left = len(kept["classifier"] | kept["sentiment"])
    assert len(corpus.read("train")) == left
    assert corpus.notes[-3:] == (
        f"train: {round(topics / 20)} of {topics} classifier labels remain (--label-fraction)",
        "train: 10 of 100 sentiment labels remain (--label-fraction)",
        f"train: {100 - left} of 100 texts have no label that remains and are left out",
    )


def test_a_limit_keeps_the_same_examples_in_their_order(tmp_path):
    file = write(tmp_path / "t.jsonl", rows(100, mood=["up", "down"]))
    files = {"validation_file": file, "test_file": file}
    whole = load_corpus(config(file, **files)).read("train")
    limits = {"max_train_examples": 7, "max_validation_examples": 5, "max_test_examples": 4}
    limited = load_corpus(config(file, **files, **limits))
    train = limited.read("train")
    positions = [whole.texts.index(text) for text in train.texts]
    assert positions == sorted(positions)
    assert len(set(positions)) == 7
    digests = [
        hashlib.sha256(f"{i}\n{text}".encode()).digest() for i, text in enumerate(whole.texts)
    ]
    assert {digests[i] for i in positions} == set(sorted(digests)[:7])
    np.testing.assert_array_equal(train.labels["sentiment"], whole.labels["sentiment"][positions])
    assert [len(limited.read(split)) for split in ("validation", "test")] == [5, 4]
    assert set(limited.read("test").texts) < set(train.texts)


def test_each_subset_is_a_draw_of_its_own(tmp_path):
    file = write(tmp_path / "t.jsonl", rows(200, mood=["up", "down"], topic=["x", None]))
    pairs, held_out = ("sentiment=mood", "classifier=topic"), {"validation_file": file}
    whole = load_corpus(config(file, *pairs, **held_out))

    def drawn(subset, **limits):
        data = config(file, *pairs, **held_out, train_subset=subset, **limits)
        corpus = load_corpus(data)
        places, labels = corpus.places("train"), corpus.read("train").labels
        # From the whole, and from the file by a reader that keeps no other text.
        for other in (whole.limited(data), load_corpus(data, Keeping(in_memory=0))):
            np.testing.assert_array_equal(other.places("train"), places)
            assert list(other.read("train").texts) == [f"text {i}" for i in places]
            for task, of_task in other.read("train").labels.items():
                np.testing.assert_array_equal(of_task, labels[task])
        return places.tolist(), {task: np.flatnonzero(has_label(of)) for task, of in labels.items()}

    sets = [set(drawn(subset, max_train_examples=50)[0]) for subset in range(8)]
    assert {len(each) for each in sets} == {50}
    # Two draws of a quarter have a sixteenth of 200 in common, about.
    common = [len(a & b) for a, b in itertools.combinations(sets, 2)]
    assert 8 < np.mean(common) < 17
    assert set(drawn(3, max_train_examples=9)[0]) < sets[3]
    keys = {i: hashlib.sha256(f"3\n{i}\n".encode()).digest() for i in range(200)}
    assert sets[3] == set(sorted(keys, key=keys.__getitem__)[:50])
    # The labels that --label-fraction keeps are drawn anew, too.
    (_, some), (_, others) = (drawn(i, label_fraction=("classifier=0.1",)) for i in (0, 1))
    assert len(some["classifier"]) == len(others["classifier"]) == 10
    assert set(some["classifier"]) != set(others["classifier"])
    with pytest.raises(UserError, match="--train-subset -1 must not be negative"):
        DataConfig(train_subset=-1)


def test_training_texts_that_stand_elsewhere_are_left_out_where_that_is_asked_for(tmp_path):
    data = rows(60, mood=["up", "down"])
    empty = [{"text": "", "mood": "up"}]
    file = write(tmp_path / "t.jsonl", data + empty)
    files = {
        "validation_file": write(tmp_path / "v.jsonl", data[:3] + empty),
        "test_file": write(tmp_path / "u.jsonl", data[2:7] + rows(70, mood=["up"])[60:]),
    }
    whole = load_corpus(config(file, **files))
    assert len(whole.read("train")) == 61
    limits = {"max_test_examples": 2, "max_train_examples": 30}
    for keeping in (None, Keeping(in_memory=0)):
        corpus = load_corpus(config(file, **files, **limits, drop_duplicates=True), keeping)
        assert not set(corpus.read("train").texts) & {row["text"] for row in data[:7]}
        assert len(corpus.read("train")) == 30
        assert "7 of 61 texts are in validation or test, too, and are left out" in corpus.notes[-1]


def test_the_test_split_is_not_parsed_before_it_is_asked_for(tmp_path):
    file = write(tmp_path / "t.jsonl", rows(40, mood=["up"]))
    (tmp_path / "test.jsonl").write_text("not JSON\n")
    corpus = load_corpus(config(file, test_file=str(tmp_path / "test.jsonl")))
    assert corpus.splits == ("train", "validation", "test")
    assert len(corpus.read("train")) + len(corpus.read("validation")) == 40
    assert len(corpus.notes) == 1
    with pytest.raises(UserError, match=r"test\.jsonl, line 1: malformed JSON"):
        corpus.read("test")


def test_test_texts_are_counted_by_class_without_their_texts(tmp_path):
    files = {
        name: write(tmp_path / f"{name}.jsonl", rows(count, mood=["up", "down", "down", "down"]))
        for name, count in (("train", 20), ("validation", 8), ("test", 40))
    }
    given = {"validation_file": files["validation"], "test_file": files["test"]}
    counts = load_corpus(config(files["train"], **given)).test_counts()
    # The classes are in the order of their names.
    assert counts == {"sentiment": [30, 10]}
    # Which ones a limit keeps depends on the texts: the shares are those of validation.
    limited = load_corpus(config(files["train"], **given, max_test_examples=20))
    assert limited.test_counts() == {"sentiment": [15, 5]}
    without = config(files["train"], validation_file=files["validation"])
    assert load_corpus(without).test_counts() == {"sentiment": [6, 2]}


def test_all_splits_are_checked_without_a_text_of_the_test_split(tmp_path):
    train = write(tmp_path / "t.jsonl", rows(40, mood=["up", "down"]))
    test = tmp_path / "u.jsonl"

    def check(*lines, **settings):
        test.write_text("\n".join(lines))
        corpus = load_corpus(config(train, test_file=str(test), **settings))
        found = [str(finding) for finding in corpus.check()]
        return corpus, found

    for line, words in (
        ("not JSON", "line 1: malformed JSON"),
        ('{"text": "a", "label": "up"}', "has no column 'mood'"),
        ('{"texts": "a", "mood": "up"}', "has no column 'text'"),
        ('{"text": 1, "mood": "up"}', "line 1: 'text' is a number"),
        ('{"text": "a", "mood": "up\\ud800"}', "line 1: 'mood' is no Unicode text"),
        ('{"text": "a", "mood": "radio"}', "line 1: sentiment label 'radio' is not among those"),
    ):
        with pytest.raises(UserError) as caught:
            check(line)
        assert str(caught.value).startswith(f"{test}")
        assert words in str(caught.value)

    # The same labels with other texts, those of training among them, are told of alike.
    one = [json.dumps({"text": f"text {i}", "mood": "up"}) for i in range(3)]
    other = [json.dumps({"text": f"else {i}", "mood": "up"}) for i in range(3)]
    corpus, found = check(*one)
    assert found == check(*other)[1]
    train_counts = np.bincount(corpus.read("train").labels["sentiment"])
    held_out = np.bincount(corpus.read("validation").labels["sentiment"], minlength=2)
    absent = "test has 1 of 2 classes, no text of down: macro-F1 is the mean over classes that"
    assert found[0] == (
        "sentiment: 2 classes, texts in train / validation / test: "
        f"down {train_counts[0]} / {held_out[0]} / 0; up {train_counts[1]} / {held_out[1]} / 3"
    )
    assert any(f"sentiment: {absent}" in each for each in found)
    # Which texts a limit keeps depends on the texts: it is told when they are read.
    limited, found = check(*one, max_test_examples=2)
    assert found[0].startswith("sentiment: 2 classes, texts in train / validation: ")
    assert not any(absent in each for each in found)
    said = [str(finding) for finding in limited.check_test(limited.read("test"))]
    assert said[0].startswith(f"sentiment: {absent}")
    assert said[1].startswith("warning: test: ")
    assert " of 2 texts are among those of " in said[1]


@pytest.mark.parametrize(
    ("settings", "aside"),
    [
        ({}, True),
        ({"max_train_examples": 20}, False),
        ({"label_fraction": ("sentiment=0.1",)}, False),
    ],
    ids=["set aside", "--max-train-examples", "--label-fraction"],
)
def test_a_class_that_is_left_without_a_training_text_is_told(tmp_path, settings, aside):
    data = rows(200, mood=["up", "down"])
    number = next(
        i
        for i in itertools.count()
        if (int(hashlib.sha256(f"radio {i}".encode()).hexdigest(), 16) % 10 == 0) == aside
    )
    data.append({"text": f"radio {number}", "mood": "radio"})
    corpus = load_corpus(config(write(tmp_path / "t.jsonl", data), **settings))
    said = [str(finding) for finding in corpus.check()]
    where = " (1 in validation)" if aside else ""
    assert f"warning: sentiment: no training text of radio{where}" in said
    # The text is no reason to lose the others' counts.
    assert sum(np.bincount(corpus.read("train").labels["sentiment"])) > 0


def test_the_same_file_in_all_splits_is_told(tmp_path):
    file = write(tmp_path / "t.jsonl", rows(40, mood=["up", "down"]))
    corpus = load_corpus(config(file, validation_file=file, test_file=file))
    of_validation = "warning: validation: 40 of 40 texts are among those of training"
    assert of_validation in [str(finding) for finding in corpus.check()]
    assert [str(finding) for finding in corpus.check_test(corpus.read("test"))] == [
        "warning: test: 40 of 40 texts are among those of training",
        "warning: test: 40 of 40 texts are among those of validation",
    ]


def test_how_a_file_was_read_is_among_the_notes(tmp_path):
    for name in ("t.tsv", "v.tsv", "u.tsv"):
        (tmp_path / name).write_text('mood\ttext\nup\t"a\ndown\tb\n')
    train, validation, test = (str(tmp_path / name) for name in ("t.tsv", "v.tsv", "u.tsv"))
    corpus = load_corpus(config(train, validation_file=validation, test_file=test))
    said = [*corpus.notes, *map(str, corpus.check())]
    assert [note.partition(": ")[0] for note in said if "read as unquoted TSV" in note] == [
        train,
        validation,
        test,
    ]


def test_the_fingerprint_follows_what_a_run_learns_and_chooses_from(tmp_path):
    train = write(tmp_path / "t.jsonl", rows(20, mood=["up"]))
    test = write(tmp_path / "u.jsonl", rows(3, mood=["up"]))
    moved = write(tmp_path / "moved.jsonl", rows(20, mood=["up"]))
    first = load_corpus(config(train, test_file=test)).fingerprint
    assert load_corpus(config(moved, test_file=test)).fingerprint == first
    assert load_corpus(config(train, validation_file=test)).fingerprint != first
    write(tmp_path / "u.jsonl", rows(4, mood=["up"]))
    assert load_corpus(config(train, test_file=test)).fingerprint == first
    write(tmp_path / "t.jsonl", rows(21, mood=["up"]))
    assert load_corpus(config(train, test_file=test)).fingerprint != first


def test_a_label_that_training_lacks_names_the_line(tmp_path):
    train = write(tmp_path / "t.jsonl", rows(20, mood=["up", "down"]))
    other = write(tmp_path / "v.jsonl", rows(3, mood=["up", "down", "sideways"]))
    corpus = load_corpus(config(train, validation_file=other))
    with pytest.raises(
        UserError,
        match=r"v\.jsonl, line 3: sentiment label 'sideways' is not among .* \(down, up\): correct",
    ):
        corpus.read("validation")


def test_no_label_at_all(tmp_path):
    train = write(tmp_path / "t.jsonl", rows(20, mood=["", None]))
    with pytest.raises(UserError, match="no row has a sentiment label in 'mood': name another col"):
        load_corpus(config(train)).read("train")


def test_a_split_that_is_not_there(tmp_path):
    corpus = load_corpus(config(write(tmp_path / "t.jsonl", rows(20, mood=["up"]))))
    with pytest.raises(UserError, match="has no test split: use one of train, validation"):
        corpus.read("test")


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (("mood",), "'mood' is not a pair: write task=column"),
        (("sentiment=",), "'sentiment=' names nothing: is a variable of the shell unset"),
        (("backbone=mood",), "'backbone' is taken by the model: call the task something else"),
        (("text=mood",), "'text' is taken by the model"),
        (("all=mood",), "'all' would make all_frozen ambiguous"),
        (("a/b=mood",), "'a/b' can't be the name of a task: use a letter, then"),
        (("*=mood",), r"'\*' can't be the name of a task"),
        (("=mood",), "'=mood' is not a pair"),
        (("sentiment=a", "sentiment=b"), "names the task 'sentiment' twice"),
        ((), "--label-columns is empty"),
    ],
)
def test_wrong_label_columns(pairs, words):
    with pytest.raises(UserError, match=words):
        load_corpus(DataConfig(label_columns=pairs))


def test_settings_that_make_no_sense():
    with pytest.raises(UserError, match="--max-train-examples 0 must be at least 1"):
        load_corpus(DataConfig(max_train_examples=0))
    with pytest.raises(UserError, match="--test-file needs --train-file"):
        load_corpus(DataConfig(test_file="t.csv"))
