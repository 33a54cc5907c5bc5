"""Parquet files, whole and damaged."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from mtl_jax.cli.commands import run
from mtl_jax.config.train import DataConfig
from mtl_jax.core.errors import UserError
from mtl_jax.data.corpus import load_corpus
from mtl_jax.data.sources.files import stream_table
from tests.data.sources.test_files import FIELDS, read

TEXTS = ["a, b", "", "two\nlines", "\u2028 é"]


def write(path, **columns):
    parquet.write_table(pa.table(columns), path)
    return path


def labels(tmp_path, mood):
    path = write(tmp_path / "t.parquet", text=TEXTS[: len(mood)], mood=mood)
    return read(stream_table(path, FIELDS)).labels["sentiment"]


def test_texts_labels_and_rows(tmp_path):
    path = write(tmp_path / "t.PARQUET", id=[1, 2, 3, 4], text=TEXTS, mood=["up", None, "", "-1"])
    found = read(stream_table(path, FIELDS))
    assert found.texts == TEXTS
    assert found.labels == {"sentiment": ["up", None, None, None]}
    assert [found.place(i) for i in (0, 3)] == [f"{path}, row 1", f"{path}, row 4"]
    assert found.notes == ()


@pytest.mark.parametrize(
    ("mood", "expected"),
    [
        (pa.array([1, 2, None]), ["1", "2", None]),
        (pa.array([1, -1, 0], pa.int8()), ["1", None, "0"]),
        (pa.array([1.0, 2.5, None]), ["1", "2.5", None]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array(["up", "up", " down "]).dictionary_encode(), ["up", "up", "down"]),
        (pa.array(["1.0", "x", None], pa.large_string()), ["1", "x", None]),
        (pa.nulls(2), [None, None]),
    ],
    ids=["whole", "-1", "float", "boolean", "dictionary", "large", "null"],
)
def test_labels_of_any_type_are_as_in_other_files(tmp_path, mood, expected):
    assert labels(tmp_path, mood) == expected


def test_rows_of_many_groups_are_read_in_order(tmp_path):
    count = 10_000
    texts = [f"text {i}" for i in range(count)]
    table = pa.table({"text": texts, "mood": [f"m{i % 7}" for i in range(count)]})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=999)
    found = read(stream_table(tmp_path / "t.parquet", FIELDS))
    assert found.texts == texts
    assert found.labels["sentiment"] == table["mood"].to_pylist()
    assert found.place(count - 1).endswith(f"row {count}")


def test_a_parquet_file_is_the_same_data_as_a_csv_file(tmp_path):
    texts = [f"text {i}" for i in range(200)]
    moods = ["up" if i % 3 else "down" for i in range(200)]
    write(tmp_path / "t.parquet", text=texts, mood=moods)
    rows = [f"{text},{mood}\n" for text, mood in zip(texts, moods, strict=True)]
    (tmp_path / "t.csv").write_text("text,mood\n" + "".join(rows))
    found = [
        load_corpus(DataConfig(train_file=str(tmp_path / name), label_columns=("mood=mood",)))
        for name in ("t.parquet", "t.csv")
    ]
    assert found[0].classes == found[1].classes
    for split in ("train", "validation"):
        one, other = (corpus.read(split) for corpus in found)
        assert one.texts == other.texts
        np.testing.assert_array_equal(one.labels["mood"], other.labels["mood"])


def damaged(tmp_path, place):
    """A file of pages that are not compressed, with some bytes of a page overwritten."""
    path = tmp_path / "t.parquet"
    table = pa.table({"text": [f"text {i}" for i in range(9000)], "mood": ["up"] * 9000})
    parquet.write_table(table, path, compression="gzip", use_dictionary=False)
    contents = bytearray(path.read_bytes())
    contents[place : place + 64] = b"\xff" * 64
    path.write_bytes(contents)
    return path


def cut(tmp_path):
    path = write(tmp_path / "t.parquet", text=TEXTS, mood=["up"] * 4)
    path.write_bytes(path.read_bytes()[:-7])
    return path


def named(name, contents):
    def make(tmp_path):
        path = tmp_path / name
        path.write_bytes(contents)
        return path

    return make


def columns(**values):
    return lambda tmp_path: write(tmp_path / "t.parquet", **values)


def twice(tmp_path):
    names = ["text", "mood", "mood"]
    table = pa.Table.from_arrays([pa.array(["a"])] * 3, names=names)
    parquet.write_table(table, tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (columns(text=["a"], label=["up"]), "has no column 'mood'; it has 'text', 'label': name"),
        (columns(mood=["up"], body=["a"]), "has no column 'text'; it has 'mood', 'body': name"),
        (twice, "has 2 columns 'mood': rename all but one"),
        (columns(text=[1], mood=["up"]), "column 'text' holds int64 and can't be a text: name"),
        (columns(text=["a"], mood=[[1]]), "column 'mood' holds list<"),
        (columns(text=["a", None], mood=[1, 2]), "row 2: 'text' is null and not a string: put"),
        (columns(text=pa.array([], pa.string()), mood=pa.array([], pa.string())), "has no rows"),
        (cut, "is not a complete Parquet file ("),
        (named("t.parquet", b""), "is not a complete Parquet file ("),
        (named("t.parquet", b"text,mood\na,up\n"), "is not a complete Parquet file ("),
        (lambda tmp_path: damaged(tmp_path, 300), "row 1 or after: the file is damaged ("),
        (named("t.jsonl", b'{"text": "a", "mood": "up"}\n{"text": "b"'), "line 2: malformed JSON"),
        (named("t.jsonl", b'{"text": "a", "mood": {"x": 1}}\n'), "line 1: 'mood' is an object: a"),
        (named("t.jsonl", b'{"text": "a", "mood": "\xff"}\n'), "line 1: invalid UTF-8 ("),
    ],
    ids=[
        *("no label", "no text", "twice", "text is a number", "label is a list", "null text"),
        *(
            "no rows",
            "cut",
            "empty",
            "csv",
            "damaged page",
            "json cut",
            "json object",
            "json bytes",
        ),
    ],
)
def test_malformed_files_end_in_one_line_and_status_2(make, words, tmp_path, capsys):
    path = make(tmp_path)
    assert run(["check", f"--train-file={path}", "--label-columns", "mood=mood"]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"error: {path}")
    assert words in line
    assert captured.out == ""


def test_json_lines_may_lack_the_text_of_one_row_but_not_of_all(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [{"mood": 1}, {"text": "a", "mood": 1}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="line 1: 'text' is null or absent and not a string"):
        read(stream_table(path, FIELDS))
    path.write_text(json.dumps({"mood": 1}) + "\n" + json.dumps({"body": "a"}) + "\n")
    with pytest.raises(UserError, match="has no column 'text'; it has 'body', 'mood'"):
        read(stream_table(path, FIELDS))
