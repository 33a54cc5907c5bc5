"""What looks wrong in texts and labels, from them alone."""

import numpy as np
import pytest

from mtl_jax.data.checks import View, check
from mtl_jax.data.repeated_texts import repeated, seen_before
from mtl_jax.data.table import hashes_of


def view(labels, texts=None, task="topic"):
    return View({task: np.asarray(labels)}, None if texts is None else hashes_of(texts))


def told(names, train, validation=None, test=None, texts=None):
    """What is said of one task, but for its counts."""
    others = {"validation": view(train if validation is None else validation)}
    if test is not None:
        others["test"] = view(test)
    count, *rest = map(str, check({"topic": names}, view(train, texts), others))
    assert count.startswith(f"topic: {len(names)} class")
    # Whatever a name holds, a finding is one line that can be printed.
    assert all(each.isprintable() for each in (count, *rest))
    return [each for each in rest if "validation split is small" not in each]


def counts(names, **labels):
    (first, *_) = check(
        {"topic": names},
        view(labels.pop("train")),
        {split: view(of_split) for split, of_split in labels.items()},
    )
    assert first.severity == "note"
    return str(first)


def test_classes_are_counted_in_every_split():
    said = counts(("film", "tv"), train=[0, 0, 1, -1] * 600, validation=[0, 1, 1], test=[1, -1, -1])
    assert said == (
        "topic: 2 classes, texts in train / validation / test: film 1,200 / 1 / 0; tv 600 / 2 / 1"
    )
    assert counts(("a",), train=[0], validation=[0]) == (
        "topic: 1 class, texts in train / validation: a 1 / 1"
    )


def test_of_many_classes_the_commonest_are_counted():
    names = tuple(f"c{i}" for i in range(40))
    train = [39] * 5 + [7] * 4 + list(range(40))
    said = counts(names, train=train, validation=[39])
    assert said.startswith(
        "topic: 40 classes, texts in train / validation: c39 6 / 1; c7 5 / 0; c0"
    )
    assert said.endswith("; c10 1 / 0; ... and 28 more")


@pytest.mark.parametrize(
    "name",
    [
        "nan",
        "NaN",
        "None",
        "null",
        "NULL",
        "NA",
        "N/A",
        "n/a",
        "<NA>",
        "-100",
        "NaT",
        "\\N",
        "#N/A N/A",
        "-1.#IND",
    ],
)
def test_names_that_spell_missing(name):
    (said,) = told((name, "film"), [0, 1, 1, 0])
    assert said.startswith("warning: topic: ")
    assert said.endswith('(2) is a class and spells "missing": leave empty if missing')
    assert name.strip("\\") in said


@pytest.mark.parametrize("name", ["unknown", "?", "nano", "other", "0", "-10", "no", "nil"])
def test_names_that_do_not_spell_missing(name):
    assert told((name, "film"), [0, 1, 1, 0]) == []


def test_several_names_that_spell_missing_are_one_line():
    names = ("-100", "NaN", "None", "film", "nan")
    (said,) = told(names, [0, 1, 1, 2, 3, 4, 3])
    assert said == (
        "warning: topic: '-100' (1), NaN (2), None (1), nan (1) are classes and spell "
        '"missing": leave empty if missing'
    )


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("FILM", "Film", "film", "phone"), "FILM = Film = film: "),
        (("False", "True", "true", "x"), "True = true: "),
        (("film", "film\u200b", "x"), r"film = 'film\u200b': "),
        (("film", "film\u00ad", "x"), r"film = 'film\xad': "),
        (("very good", "very  good", "x"), "very good = 'very  good': "),
        (("very good", "verygood", "x"), "very good = verygood: "),
        (("very good", "very\u00a0good", "x"), r"very good = 'very\xa0good': "),
        (("caf\u00e9", "cafe\u0301", "x"), r"'caf\xe9' = 'cafe\u0301': "),
        (("STRASSE", "stra\u00dfe", "x"), "STRASSE = 'straße': "),
        (("A", "\uff21", "x"), "A = 'Ａ': "),
        (("\u2764", "\u2764\ufe0f", "x"), r"'❤' = '❤️': "),
        (("1", "01", "1e0", "2.5"), "'1' = '01' = '1e0': "),
        (("2.50", "2.5", "x"), "'2.50' = '2.5': "),
        (("a", "A", "b", "B"), "a = A, b = B: "),
    ],
)
def test_names_that_look_alike(names, words):
    said = told(names, [*range(len(names))])
    assert said == [
        "warning: topic: classes are equal but for case, space, invisible characters, Unicode form "
        f"or the way a number is written: {words}write each one way"
    ]


@pytest.mark.parametrize("names", [("film", "films"), ("1", "10", "-1.5"), ("e", "é"), ("+", "-")])
def test_names_that_differ(names):
    assert told(names, [*range(len(names))]) == []


@pytest.mark.parametrize("name", ["[/b]", "a\nb", "\x1b[31m", "x" * 9000, "\ud83d", "\0", "a; b 3"])
def test_whatever_a_name_holds(name):
    said = counts((name, "b"), train=[0, 1], validation=[0])
    assert said.isprintable()
    assert len(said) < 200
    (said,) = told((name, "b"), [0, 1], validation=[1])
    assert len(said) < 300


def test_one_class():
    assert told(("film",), [0, 0]) == [
        "warning: topic: one class only, film: there is nothing to tell apart"
    ]


def test_about_as_many_classes_as_texts():
    numbers = tuple(f"{i / 8}" for i in range(12))
    (said,) = told(numbers, range(12))
    assert said == (
        "warning: topic: 12 classes for 12 labelled training texts: the labels look like numbers, "
        "not classes: put them in a few classes, or name another column with --label-columns, or "
        "train a regression with --task-kinds topic=regression"
    )
    (said,) = told(tuple(f"id {i}x" for i in range(12)), [*range(12), *range(11)])
    assert "12 classes for 23 labelled training texts: is it a column of ids?" in said
    # Half of the texts, or few labels, prove nothing.
    assert told(tuple(f"id {i}x" for i in range(12)), [*range(12)] * 2) == []
    assert told(tuple(f"id {i}x" for i in range(9)), range(9)) == []
    # Scores that come again and again are no classes either, though a scale of stars is.
    (said,) = told(tuple(f"{i / 2}" for i in range(10)), [*range(10)] * 9)
    assert "10 classes for 90 labelled training texts: the labels look like numbers" in said
    assert told(tuple(f"{i / 2}" for i in range(9)), [*range(9)] * 9) == []
    assert told(tuple(str(i) for i in range(20)), [*range(20)] * 9) == []
    # So many digits as an identity of 128 bits has, and more than a decimal context keeps.
    assert told(tuple(f"{i}{'0' * 40}" for i in range(1, 11)), [*range(10)] * 9) == []


def test_classes_without_a_text():
    names = ("film", "phone", "radio", "tv")
    assert told(names, [0, 1, 0, 1], validation=[0, 1, 2, 0], test=[0, -1]) == [
        "warning: topic: no training text of radio (1 in validation)",
        "warning: topic: no training text of tv",
        "warning: topic: validation has 3 of 4 classes, no text of tv: macro-F1 is the mean over "
        "classes that occur or are predicted",
        "topic: test has 1 of 4 classes, no text of phone, radio, tv: macro-F1 is the mean over "
        "classes that occur or are predicted",
    ]
    # Without a label of the task there is nothing to say of its classes.
    assert told(names, [0, 1, 2, 3], validation=[-1, -1], test=[-1]) == [
        "warning: topic: no text of validation has a label: nothing is measured of it or chosen "
        "by it",
        "warning: topic: no text of test has a label: nothing is measured of it",
    ]
    many = tuple(f"c{i}" for i in range(30))
    said = told(many, [0] * 9, validation=[*range(30)])
    assert [each for each in said if "more" in each] == [
        "warning: topic: no training text of 24 more classes"
    ]
    assert len(said) == 6


def test_imbalance():
    assert told(("a", "b"), [0] * 29 + [1] * 10) == []
    assert told(("a", "b", "c"), [0] * 30 + [1] * 10 + [-1] * 9, validation=[0, 1, 2])[1:] == [
        "topic: imbalanced classes: 75 % of the training texts are a, 25 % b (3.0 to 1): look at "
        "macro-F1, not at accuracy alone"
    ]


def test_a_validation_split_too_small_to_choose_on():
    labels = {"topic": np.zeros(278, int), "mood": np.arange(278) % 3 - 1}
    classes = {"topic": ("a", "b"), "mood": ("x", "y")}

    def small(count):
        part = View({task: of_task[:count] for task, of_task in labels.items()})
        found = map(str, check(classes, View(labels), {"validation": part}))
        return [each for each in found if "small" in each]

    # 0.5 / sqrt(278) is 0.02999, 0.5 / sqrt(185) 0.0368.
    (said,) = small(278)
    assert said == (
        "warning: the validation split is small: the standard error of an accuracy measured on it "
        "is up to 0.037 on 185 mood labels; with 278 labels it would be 0.03"
    )
    (said,) = small(277)
    assert "0.030 on 277 topic labels and 0.037 on 184 mood labels;" in said
    (said,) = small(2)
    assert "0.354 on 2 topic labels and 0.500 on 1 mood label;" in said


def test_texts_in_several_splits():
    texts = ["a", " b ", "c", ""]
    train, asked = hashes_of(texts), hashes_of(["b\n", "a", "d", "", "b"])
    (said,) = seen_before("validation", asked, {"train": train})
    assert str(said) == "warning: validation: 3 of 5 texts are among those of training"
    other = hashes_of(["d", "A", ""])
    assert seen_before("test", other, {"train": train, "validation": hashes_of(["e"])}) == []
    few = hashes_of([*(f"text {i}" for i in range(100)), "a"])
    known = {"train": train, "validation": hashes_of(["text 1", "text 2"])}
    assert [str(finding) for finding in seen_before("test", few, known)] == [
        "test: 1 of 101 texts are among those of training",
        "warning: test: 2 of 101 texts are among those of validation",
    ]
    labels = View({"topic": np.zeros(5, int)}, asked)
    found = check({"topic": ("x", "y")}, view([0, 0, 1, 1], texts), {"validation": labels})
    assert said in found


def test_one_text_with_several_labels():
    texts = ["a", "a ", "b", "b", "c", "c", "", ""]
    assert told(("x", "y"), [0, 1, 0, 0, 1, -1, 0, 1], texts=texts) == [
        "warning: train: 1 of 3 distinct texts occur with different topic labels"
    ]
    assert told(("x", "y"), [0, 0, 1, 1, 0, 0, 0, 1], texts=texts) == []
    # Their standard deviation is 1.2.
    numbers = np.array([1.0, 4.0, 2.0, 3.0, 5.0, np.nan, 3.0, 3.0])
    found = check({"stars": ()}, View({"stars": numbers}, hashes_of(texts)), {})
    words = "1 of 3 distinct texts occur with stars values more than a standard deviation apart"
    assert str(found[-1]) == f"warning: train: {words}"


def test_of_many_texts_none_is_missed_that_is_there_twice():
    count = 2**20
    # All of these are different.
    hashes = np.random.default_rng(0).integers(0, 2**64, count, np.uint64)
    hashes[1::4] = hashes[::4]
    labels = np.zeros(count, np.int32)
    labels[1::8] = 1
    (note,) = repeated("train", hashes)
    assert f"{count // 4:,} of {count:,} texts repeat" in note.text
    (found,) = seen_before("test", hashes[:1001], {"train": hashes[1:]})
    assert "1,001 of 1,001 texts" in found.text
    train = View({"a": labels}, hashes)
    said = [finding.text for finding in check({"a": ("x", "y")}, train, {})]
    distinct = count - count // 4
    assert f"train: {count // 8:,} of {distinct:,} distinct texts occur" in " ".join(said)
