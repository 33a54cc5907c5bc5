"""Labels of every kind: what a cell holds, and what a file is refused for, line by line."""

import json
from typing import Any

import numpy as np
import pytest

from mtl_jax.config.data import DataConfig
from mtl_jax.core.errors import UserError
from mtl_jax.data.corpus import load_corpus
from mtl_jax.data.kinds import KINDS, blank, has_label, kind_of

NAN = float("nan")


@pytest.mark.parametrize(
    ("kind", "cell", "label"),
    [
        ("single_label", " a ", "a"),
        ("single_label", 1.0, "1"),
        ("single_label", "1.0", "1"),
        ("single_label", True, "true"),
        ("single_label", "-1", None),
        ("single_label", None, None),
        ("multi_label", "a|b", ("a", "b")),
        ("multi_label", " b | a |b", ("b", "a")),
        ("multi_label", '["a", 2, 2.0, true]', ("a", "2", "true")),
        ("multi_label", ["a", "b|c"], ("a", "b|c")),
        ("multi_label", np.array([3, 1]), ("3", "1")),
        ("multi_label", "a", ("a",)),
        ("multi_label", 7, ("7",)),
        ("multi_label", "[]", ()),
        ("multi_label", [], ()),
        ("multi_label", "", None),
        ("multi_label", -1, None),
        ("regression", "-1", -1.0),
        ("regression", " 2.50 ", 2.5),
        ("regression", "1e-3", 0.001),
        ("regression", 4, 4.0),
        ("regression", np.float32(0.5), 0.5),
        ("regression", b"3", 3.0),
        ("regression", "", None),
        ("regression", None, None),
    ],
)
def test_what_a_cell_holds(kind, cell, label):
    assert KINDS[kind].read(cell) == label


def test_the_type_of_an_array_tells_its_kind_and_what_is_missing():
    def refuse(place, name):
        raise AssertionError(place, name)

    arrays: dict[Any, Any] = {
        "single_label": (["b", None], ("a", "b")),
        "multi_label": ([("b",), None], ("a", "b")),
        "regression": ([2.5, None], ()),
    }
    for kind, (labels, classes) in arrays.items():
        found = KINDS[kind].array(labels, classes, refuse)
        assert kind_of(found) == kind
        assert has_label(found).tolist() == [True, False]
        assert not has_label(blank(found, (2, 3))).any()
        assert blank(found, (2, 3)).shape == (2, 3, *found.shape[1:])
        assert not has_label(KINDS[kind].blank(4, 2)).any()


def corpus_of(folder, name, rows, kinds, **settings):
    """The corpus of a file: text, and a label column for each task."""
    path = folder / name
    path.write_text(rows)
    columns = tuple(f"{task}={task}" for task in kinds)
    of_kinds = tuple(f"{task}={kind}" for task, kind in kinds.items())
    return load_corpus(
        DataConfig(train_file=str(path), label_columns=columns, task_kinds=of_kinds, **settings)
    )


TEXTS = [f"text {i}" for i in range(12)]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_lists_and_values_are_read(tmp_path, ending):
    tags = [["a"], ["a", "b"], [], None] * 3
    stars = [1.5, None, -1, 3] * 3
    if ending == "csv":
        cells = ["" if t is None else "[]" if not t else "|".join(t) for t in tags]
        lines = [
            f"{text},{tag},{'' if star is None else star}"
            for text, tag, star in zip(TEXTS, cells, stars, strict=True)
        ]
        rows = "\n".join(["text,tags,stars", *lines]) + "\n"
    else:
        rows = "".join(
            json.dumps({"text": text, "tags": tag, "stars": star}) + "\n"
            for text, tag, star in zip(TEXTS, tags, stars, strict=True)
        )
    kinds = {"tags": "multi_label", "stars": "regression"}
    corpus = corpus_of(tmp_path, f"train.{ending}", rows, kinds)
    assert corpus.classes == {"tags": ("a", "b"), "stars": ()}
    examples, aside = (corpus.read(split) for split in ("train", "validation"))
    assert examples.rows is not None
    assert aside.rows is not None
    found = {row: i for i, row in enumerate(examples.rows.tolist())}
    marks = {0: [1, 0], 1: [1, 1], 2: [0, 0], 3: [-1, -1]}
    values = {0: 1.5, 1: NAN, 2: -1.0, 3: 3.0}
    for row, place in found.items():
        assert examples.texts[place] == TEXTS[row]
        assert examples.labels["tags"][place].tolist() == marks[row % 4]
        np.testing.assert_equal(examples.labels["stars"][place], values[row % 4])
    assert sorted([*found, *aside.rows.tolist()]) == list(range(12))


@pytest.mark.parametrize(
    ("kind", "cell", "words"),
    [
        ("multi_label", "\"['a', 'b']\"", "which is not a JSON list: write"),
        ("multi_label", '"[""a"", null]"', "a list with an empty class"),
        ("multi_label", '"[""a"", [1]]"', "a list that has a list: a label is a string"),
        ("multi_label", '"[""a"""', "which is not a JSON list"),
        ("multi_label", "a||b", "a list with an empty class"),
        ("regression", "NaN", "no finite number: leave it empty if missing"),
        ("regression", "-inf", "no finite number: leave it empty if missing"),
        ("regression", "1e40", "too large"),
        ("regression", '"3,5"', "needs a number: write it with a decimal point"),
        ("regression", '"-1.234,5"', "a decimal point, and without separators of thousands"),
        ("regression", "1_000", "a regression needs a number"),
        ("regression", "good", "'good', and a regression needs a number"),
        ("regression", "0x10", "a regression needs a number"),
    ],
)
def test_a_malformed_label_names_file_line_and_column(tmp_path, kind, cell, words):
    good = "a|b" if kind == "multi_label" else "2"
    rows = f"text,own\na,{good}\nb,{cell}\nc,{good}\n"
    with pytest.raises(UserError) as error:
        corpus_of(tmp_path, "train.csv", rows, {"own": kind}).check()
    assert str(error.value).startswith(f"{tmp_path / 'train.csv'}, line 3: 'own' is ")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (
            "single_label",
            ["a"],
            "'own' is a list, and a single_label task has one class: for several give",
        ),
        ("multi_label", {"a": 1}, "'own' is an object"),
        ("multi_label", ["a", {"b": 1}], "'own' is a list that has an object"),
        ("regression", [1.0], "'own' is a list, and a regression needs a number"),
        ("regression", True, "'own' is a boolean, and a regression needs a number"),
    ],
)
def test_a_json_value_of_another_kind_names_its_line(tmp_path, kind, value, words):
    rows = "".join(json.dumps({"text": text, "own": value}) + "\n" for text in "ab")
    with pytest.raises(UserError) as error:
        corpus_of(tmp_path, "train.jsonl", rows, {"own": kind}).check()
    assert f"train.jsonl, line 1: {words}" in str(error.value)


def test_lists_without_a_class_and_unknown_classes_are_refused(tmp_path):
    rows = "text,own\n" + "".join(f"{text},[]\n" for text in TEXTS)
    with pytest.raises(UserError, match="every list of own labels in 'own' is empty"):
        corpus_of(tmp_path, "train.csv", rows, {"own": "multi_label"}).check()
    other = tmp_path / "other.csv"
    other.write_text("text,own\nx,a\ny,a|z\n")
    rows = "text,own\n" + "".join(f"{text},a|b\n" for text in TEXTS)
    more = {"validation_file": str(other)}
    with pytest.raises(UserError, match=r"other\.csv, line 3: own label 'z' is not among"):
        corpus_of(tmp_path, "train.csv", rows, {"own": "multi_label"}, **more).check()


def told(folder, kind, cells):
    """What a check says of one task with these cells."""
    rows = "text,own\n" + "".join(f"text {i},{cell}\n" for i, cell in enumerate(cells))
    return [str(found) for found in corpus_of(folder, "train.csv", rows, {"own": kind}).check()]


@pytest.mark.parametrize(
    ("kind", "cells", "words"),
    [
        ("regression", ["1", "2", "3"] * 20, "3 values only, 1, 2, 3: are they classes?"),
        ("regression", ["5"] * 30, "one value only, 5: there is nothing to learn"),
        ("regression", ["-1", "2", "3", "4.5", "5"] * 20, "-1 (1"),
        ("regression", ["1.5", "2", "2.5", "3"] * 20 + ["900"], "the furthest 900"),
        ("regression", ["0.1", "0.2", "0.3", "0.4"] * 9, "standard error of an R2 measured"),
        ("single_label", [f"{i}.5" for i in range(40)], "--task-kinds own=regression"),
        ("multi_label", ["a", "b"] * 20, "no training text has more than one class"),
        ("multi_label", ["a|b", "a"] * 20, "every training text has a: nothing to tell apart"),
        ("multi_label", ["a;b", "a", "b", "c|a"] * 9, "classes have ';' in them, as 'a;b'"),
        ("multi_label", ["a|b", "[]", "b"] * 9, "have none"),
    ],
)
def test_what_looks_wrong_is_told(tmp_path, kind, cells, words):
    found = told(tmp_path, kind, cells)
    assert any(words in line for line in found), found


def test_fractions_keep_labels_of_every_kind(tmp_path):
    rows = "text,tags,stars\n" + "".join(f"{text},a|b,2.5\n" for text in TEXTS)
    kinds = {"tags": "multi_label", "stars": "regression"}
    fractions = {"label_fraction": ("tags=0.5", "stars=0.25")}
    whole = corpus_of(tmp_path, "train.csv", rows, kinds).read("train")
    part = corpus_of(tmp_path, "train.csv", rows, kinds, **fractions).read("train")
    kept = {task: int(has_label(labels).sum()) for task, labels in part.labels.items()}
    assert kept == {"tags": round(len(whole) / 2), "stars": round(len(whole) / 4)}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task_kinds": ("stars=number",)}, "--task-kinds stars is 'number': use one of single"),
        ({"task_kinds": ("stars=regresion",)}, "did you mean regression?"),
        ({"task_kinds": ("moon=regression",)}, "names the task 'moon', which has no column"),
        ({"task_kinds": ("regression",)}, "is not a pair: write task=kind"),
        ({"text_columns": ("a",)}, "a pair of texts has two columns, and 1 is named"),
        ({"text_columns": ("a", "a")}, "a pair of texts has two columns, and 1 is named"),
        ({"text_columns": ("a", "b", "c")}, "has two columns, and 3 are named"),
        ({"text_columns": ("stars=a", "b")}, "some are for all tasks and some for one"),
        ({"text_columns": ("a", "b"), "text_column": "c"}, "both say where the texts of stars"),
    ],
)
def test_a_malformed_setting_is_refused(settings, words):
    with pytest.raises(UserError) as error:
        _ = DataConfig(train_file="x.csv", label_columns=("stars=stars",), **settings).origins
    assert words in str(error.value)


@pytest.mark.parametrize(("kind", "cell"), [("single_label", 2), ("multi_label", [0, 2])])
def test_a_number_that_no_declared_class_has_is_refused(kind, cell):
    assert KINDS[kind].declared(1, ("down", "up")) in ("up", ("up",))
    with pytest.raises(ValueError, match="2, which none of 2 classes has, counted from 0: correct"):
        KINDS[kind].declared(cell, ("down", "up"))
