import csv
import io
import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mtl_jax.config import DataConfig
from mtl_jax.data.examples import load_corpus
from mtl_jax.data.files import read_table
from mtl_jax.errors import UserError

COLUMNS = {"sentiment": "mood"}
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def table(tmp_path, name, contents):
    path = tmp_path / name
    path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    return read_table(path, "text", COLUMNS)


def test_csv_with_all_that_csv_allows(tmp_path):
    found = table(
        tmp_path,
        "t.CSV",
        '\ufefftext,mood,other\r\n"two\nlines, and ""quotes""",up,1\r\n\r\n,-1,2\r\nplain, down ,3',
    )
    assert found.texts == ['two\nlines, and "quotes"', "", "plain"]
    assert found.labels == {"sentiment": ["up", None, "down"]}
    assert [found.place(i).rsplit(", ")[-1] for i in range(3)] == ["line 2", "line 5", "line 6"]


def test_tsv(tmp_path):
    found = table(tmp_path, "t.tsv", "mood\ttext\nup\ta, b\n\tc\n")
    assert found.texts == ["a, b", "c"]
    assert found.labels == {"sentiment": ["up", None]}


def test_json_lines(tmp_path):
    lines = ['{"text": "a\u2028b", "mood": 2}', "", '{"text": "", "mood": true}', '{"text": "c"}']
    found = table(tmp_path, "t.json", "\ufeff" + "\r\n".join(lines))
    assert found.texts == ["a\u2028b", "", "c"]
    assert found.labels == {"sentiment": ["2", "true", None]}
    assert [found.place(i).rsplit(", ")[-1] for i in range(3)] == ["line 1", "line 3", "line 4"]


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("t.csv", "text,mood\na,1.0\nb,-1.0\nc,\nd,2\ne,2.50\nf,01.0\ng,-0.00\n"),
        (
            "t.jsonl",
            "".join(
                f'{{"text": "{text}", "mood": {mood}}}\n'
                for text, mood in zip(
                    "abcdefg", ("1.0", "-1.0", "null", "2", '"2.50"', '"01.0"', "-0.0"), strict=True
                )
            ),
        ),
    ],
)
def test_whole_numbers_written_as_floats_are_whole_numbers(tmp_path, name, contents):
    """As pandas writes a column of them that has gaps."""
    found = table(tmp_path, name, contents)
    assert found.labels == {"sentiment": ["1", None, None, "2", "2.50", "01.0", "0"]}


@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1))
def test_csv_round_trip(tmp_path_factory, rows):
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "mood"), *rows])
    found = table(tmp_path_factory.mktemp("csv"), "t.csv", buffer.getvalue())
    check_round_trip(found, rows)


@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1), escaped=st.booleans())
def test_json_round_trip(tmp_path_factory, rows, escaped):
    lines = [json.dumps({"text": t, "mood": m}, ensure_ascii=escaped) for t, m in rows]
    found = table(tmp_path_factory.mktemp("json"), "t.jsonl", "\n".join(lines))
    check_round_trip(found, rows)


def check_round_trip(found, rows):
    assert found.texts == [text for text, _ in rows]
    labels = [label.strip() for _, label in rows]
    assume(not any(label.endswith(".0") for label in labels))
    assert found.labels["sentiment"] == [x if x not in ("", "-1") else None for x in labels]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["b", "a", "B"], ("B", "a", "b")),
        (["10", "9", "-2"], ("-2", "9", "10")),
        (["2.5", "1e1", "2", "nan"], ("2", "2.5", "1e1", "nan")),
    ],
)
def test_classes_are_sorted_numbers_as_numbers(tmp_path, labels, classes):
    lines = [f"text {i},{label}" for i, label in enumerate(labels)]
    (tmp_path / "t.csv").write_text("\n".join(["text,mood", *lines]))
    corpus = load_corpus(
        DataConfig(train_file=str(tmp_path / "t.csv"), label_columns=("sentiment=mood",))
    )
    assert corpus.classes["sentiment"] == classes


@pytest.mark.parametrize(
    ("name", "contents", "words"),
    [
        (
            "t.txt",
            "text,mood\na,up\n",
            r"t\.txt is of an unknown kind: .* \.csv, \.tsv, \.jsonl, \.j",
        ),
        ("t.csv", "", r"t\.csv has no rows"),
        ("t.csv", "text,mood\n", r"t\.csv has no rows"),
        ("t.csv", "text,label\na,up\n", r"no column 'mood'; it has 'text', 'label': name the col"),
        ("t.csv", "text,mood,mood\na,b,c\n", r"has 2 columns 'mood': rename all but one"),
        ("t.csv", "text,mood\na,b\na,b,c\n", r"line 3: 3 fields and not the header's 2: quote"),
        ("t.csv", "text,mood\n\na\n", r"line 3: 1 fields and not the header's 2"),
        ("t.csv", 'text,mood\na,b\n"a,b\nc,d\n', r"line 3: malformed \(unexpected end of data\)"),
        ("t.csv", 'text,mood\n"a"b,c\n', r"line 2: malformed \(.*\): quote fields"),
        (
            "t.csv",
            b"text,mood\na,b\n\xff,b\n",
            r"line 3: invalid UTF-8 \(invalid start byte\): save",
        ),
        ("t.csv", b"\xef\xbb\xbftext,mood\n\xe9,b\n", r"line 2: invalid UTF-8"),
        ("t.jsonl", "\n", r"t\.jsonl has no rows"),
        (
            "t.jsonl",
            '{"text": "a", "mood": 1}\n{"text"\n',
            r"line 2: malformed JSON \(.*\): write one",
        ),
        ("t.jsonl", "[1]\n", r"line 1: a list and not an object: write one JSON object per line"),
        (
            "t.jsonl",
            '{"text": "a", "mood": NaN}',
            r"line 1: malformed JSON \(NaN is not a JSON val",
        ),
        ("t.jsonl", '{"text": "a", "mood": [1]}', r"line 1: 'mood' is a list: a label is a string"),
        ("t.jsonl", '{"text": 3, "mood": 1}', r"line 1: 'text' is a number and not a string: put"),
        (
            "t.jsonl",
            '{"text": "a", "mood": 1}\n{"mood": 1}',
            r"line 2: 'text' is null or absent and",
        ),
        ("t.jsonl", '{"text": "a", "label": 1}', r"no column 'mood'; it has 'label', 'text'"),
        ("t.jsonl", '{"text": "\\ud800", "mood": 1}', r"line 1: 'text' is no Unicode text"),
    ],
)
def test_mistakes_name_the_file_the_line_and_the_remedy(tmp_path, name, contents, words):
    with pytest.raises(UserError, match=words) as caught:
        table(tmp_path, name, contents)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert ": " in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*t\.csv: correct its name"):
        load_corpus(DataConfig(train_file=str(tmp_path / "t.csv")))
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*d\.csv \(Is a directory\)"):
        load_corpus(DataConfig(train_file=str(tmp_path / "d.csv")))
