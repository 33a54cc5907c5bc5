import contextlib
import csv
import dataclasses
import io
import json
import os
import re
import socket
from typing import Any, Literal

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from mtl_jax.config.train import DataConfig
from mtl_jax.core.errors import UserError
from mtl_jax.data.corpus import load_corpus
from mtl_jax.data.sources.base import Fields
from mtl_jax.data.sources.files import stream_table

FIELDS = Fields.of(("text",), {"sentiment": "mood"}, {})
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def table(tmp_path, name, contents):
    path = tmp_path / name
    path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    return read(stream_table(path, FIELDS))


@dataclasses.dataclass
class Found:
    texts: list
    labels: dict
    place: Any
    notes: tuple


def read(stream):
    """All that a stream gives."""
    texts, places, labels = [], [], {}
    for rows in stream.rows:
        assert len(rows.texts) == len(rows.places)
        texts += rows.texts
        places += rows.places
        for task, of_task in rows.labels.items():
            assert len(of_task) == len(rows.texts)
            labels.setdefault(task, []).extend(of_task)
    return Found(texts, labels, lambda i: stream.place(places[i]), tuple(stream.notes))


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


def written(*rows, quoting: Literal[0, 1, 2] = csv.QUOTE_MINIMAL):
    """As ``csv.writer`` writes them, and so pandas' ``to_csv(sep="\\t")``."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter="\t", quoting=quoting).writerows([("mood", "text"), *rows])
    return buffer.getvalue()


def joined(*rows):
    """As GLUE's files are."""
    return "".join("\t".join(row) + "\n" for row in [("mood", "text"), *rows])


MARKED = [
    '"it was great',
    'great"',
    '"great film"',
    'the "great" film',
    '"a" and "b"',
    '"great" film',
    '"',
    '""',
    'she said ""no""',
    "plain",
    "",
]


@pytest.mark.parametrize("text", MARKED)
@pytest.mark.parametrize("more", [[], MARKED[:4], MARKED])
def test_unquoted_tsv_keeps_its_marks(tmp_path, text, more):
    rows = [("up", "an ordinary one"), ("down", text), *[("up", each) for each in more], ("", "x")]
    found = table(tmp_path, "t.tsv", joined(*rows))
    if (text, more) == ('""', []):
        # With nothing else to go by it is how an empty text is quoted.
        rows[1] = ("down", "")
    assert found.texts == [text for _, text in rows]
    assert found.labels["sentiment"] == [label or None for label, _ in rows]
    opens = [i for i, (_, text) in enumerate(rows) if text.startswith('"')]
    assert list(found.notes) == [
        f"{tmp_path / 't.tsv'}: read as unquoted TSV: quotation marks are part of the text, as on "
        f"line {i + 2}"
        for i in opens[:1]
    ]


QUOTED = [*MARKED, "a\ttab", "two\nlines", '"two\nlines"', 'a\tb\n\nc "d"\r\ne', "carriage\rreturn"]


@pytest.mark.parametrize("text", QUOTED)
@pytest.mark.parametrize("more", [[], QUOTED[:4], QUOTED[9:], QUOTED])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_quoted_tsv_loses_its_marks(tmp_path, text, more, quoting):
    texts = ["an ordinary one", text, *more, "x"]
    found = table(tmp_path, "t.tsv", written(*[("up", text) for text in texts], quoting=quoting))
    assert found.texts == texts
    assert found.labels["sentiment"] == ["up"] * len(texts)
    long = sum("\n" in text or "\r" in text for text in texts)
    notes = [f"read as quoted TSV: {long} of {len(texts)} rows run over several lines, as lines "]
    assert [note.partition(": ")[2][: len(notes[0])] for note in found.notes] == notes[: bool(long)]


@given(rows=st.lists(st.tuples(st.just("up"), TEXTS), min_size=1))
@example(rows=[("up", "\n\t")])
@example(rows=[("up", "a\n\tb\nc")])
def test_tsv_round_trip(tmp_path_factory, rows):
    """What pandas writes is read as it was, but for a text of lines that could be rows.

    Such a text is refused, or its lines are rows, and that is told.
    """
    texts = [text for _, text in rows]
    folder, contents = tmp_path_factory.mktemp("tsv"), written(*rows)
    could_be_rows = any(re.search(r"[\r\n].*\t|\t.*[\r\n]", text, re.DOTALL) for text in texts)
    with contextlib.suppress(UserError) if could_be_rows else contextlib.nullcontext():
        found = table(folder, "t.tsv", contents)
        told = any("read as unquoted TSV: quotation marks are part" in note for note in found.notes)
        assert found.texts == texts or (could_be_rows and told)


@given(texts=st.lists(st.text('"ab \\', min_size=1, max_size=6), min_size=1))
def test_unquoted_tsv_loses_no_line(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("tsv")
    found = table(folder, "t.tsv", joined(*[("up", text) for text in texts]))
    assert len(found.texts) == len(texts)
    csvs = {text for text in texts if '"' in text and not _as_csv_writes(text)}
    if csvs:
        assert found.texts == texts


def _as_csv_writes(text):
    return text == '""' or written(("up", text[1:-1].replace('""', '"'))).endswith(f"\t{text}\r\n")


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        # A line too long, and a mark that takes in others.
        (
            joined(("up", '"a'), ("up", "b"), ("up", 'c"'), ("up", "d", "e")),
            "line 5: 3 fields and not the header's 2: quote a field that holds the delimiter, or "
            "complete the line",
        ),
        (
            joined(("up", '"a'), ("up", "b", "e"), ("up", "c"), ("up", 'd"')),
            "line 2: a field that begins with a quotation mark runs to line 5, over 3 lines that "
            "look like rows: quote fields with",
        ),
        (
            '"mood"\t"text"\nup\t"a\ndown\tb"\n',
            "line 2: a field that begins with a quotation mark runs to line 3, over 2 lines that",
        ),
        ('"mood"\t"text"\n"up"\t"a "b" c"\n', "line 2: malformed ("),
        (joined(("up", "a"), ("up", "b", "c")), "line 3: 3 fields and not the header's 2: quote"),
        (
            joined(("up", 'so "a"'), ("up", '"b\nc"')),
            "line 2: a quotation mark in a field that is not quoted, though on line 3 a quoted",
        ),
        (
            joined(("up", '"b\nc"'), ("up",)),
            "line 3: 1 fields and not the header's 2: quote a field that holds the delimiter, or "
            "complete the line; read as quoted, line 4: 1 fields and not",
        ),
    ],
)
def test_tsv_that_is_neither_names_the_line(tmp_path, contents, words):
    with pytest.raises(UserError) as caught:
        table(tmp_path, "t.tsv", contents)
    assert words in str(caught.value)


def test_a_mark_that_takes_in_rows_of_a_csv_is_told(tmp_path):
    rows = ['up,"it was great', "down,not bad", 'up,i love that film"', "down,dull"]
    found = table(tmp_path, "t.csv", "\n".join(["mood,text", *rows]) + "\n")
    assert len(found.texts) == 2
    assert found.notes == (
        f"warning: {tmp_path / 't.csv'}, line 2: a quoted field takes in the lines up to 4, of "
        'which 3 look like rows of their own: where a text begins with a ", quote it and double '
        "that",
    )
    prose = ['up,"one, two', 'three, four"', "down,dull", "up,x"]
    assert table(tmp_path, "t.csv", "\n".join(["mood,text", *prose])).notes == ()


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
            r"line 1: malformed JSON \(NaN is not a JSON value, null is",
        ),
        ("t.jsonl", '{"text": "a", "mood": [1]}', r"line 1: 'mood' is a list, and a single_label"),
        ("t.jsonl", '{"text": 3, "mood": 1}', r"line 1: 'text' is a number and not a string: put"),
        (
            "t.jsonl",
            '{"text": "a", "mood": 1}\n{"mood": 1}',
            r"line 2: 'text' is null or absent and",
        ),
        ("t.jsonl", '{"text": "a", "label": 1}', r"no column 'mood'; it has 'label', 'text'"),
        ("t.jsonl", '{"text": "\\ud800", "mood": 1}', r"line 1: 'text' is no Unicode text"),
        (
            "t.jsonl",
            '{"text": "a", "mood": 1}\n{"text": "b", "mood": "up\\ud83d"}',
            r"line 2: 'mood' is no Unicode text \(surrogates not allowed\): correct it",
        ),
        (
            "t.jsonl",
            '{"text": "a", "mood": 1}\n{"text": "b", "mood": 1, "mood": 2}',
            r"line 2: malformed JSON \('mood' is there twice\)",
        ),
        ("t.tsv", "text\tmood\n", r"t\.tsv has no rows"),
        ("t.tsv", "", r"t\.tsv has no rows"),
        ("t.csv", "text,mood\na,b\n".encode("utf-16"), r"line 1: this looks like UTF-16"),
        ("t.csv", "text,mood\na,b\n".encode("utf-16-be"), r"line 1: this looks like UTF-16: save"),
        ("t.csv", ",".join(map(str, range(9999))), r"'19' and 9,979 more: name the columns"),
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
    with pytest.raises(UserError, match=r"d\.csv is a folder: name a file"):
        load_corpus(DataConfig(train_file=str(tmp_path / "d.csv")))


def test_one_column_for_two_purposes(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text,mood\na\0b,up\nc,down\nd,up\n")
    both = ("classifier=mood", "sentiment=mood")
    notes = load_corpus(DataConfig(train_file=str(path), label_columns=both)).notes
    assert "warning: classifier and sentiment have the same label column, mood" in notes
    assert any("texts have NUL characters, which the tokenizer may drop" in note for note in notes)
    own = DataConfig(train_file=str(path), text_column="mood", label_columns=both)
    with pytest.raises(UserError, match="--text-column mood is the label column of classifier"):
        load_corpus(own)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, split):
    files = {name: tmp_path / f"{name}.csv" for name in ("train", "validation", "test")}
    for path in files.values():
        path.write_text("text,mood\na,up\n")

    def refusal():
        named = {name: str(path) for name, path in files.items()}
        with pytest.raises(UserError) as caught:
            load_corpus(
                DataConfig(
                    train_file=named["train"],
                    validation_file=named["validation"],
                    test_file=named["test"],
                )
            )
        return str(caught.value)

    files[split].unlink()
    os.mkfifo(files[split])
    assert refusal().startswith(f"{files[split]} is a pipe and no regular file: write")
    files[split].unlink()
    with socket.socket(socket.AF_UNIX) as server:
        # The path of a socket may have about 100 bytes, and that of a temporary folder more.
        folder = os.open(tmp_path, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{folder}/{files[split].name}")
        os.close(folder)
        assert " is a socket and no regular file" in refusal()
    files[split].unlink()
    files[split].symlink_to(os.devnull)
    assert " is a device and no regular file" in refusal()
    files[split].unlink()
    files[split].symlink_to(files[split].name)
    assert refusal().startswith("cannot read ")


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_unusual_contents_are_kept(tmp_path, name):
    """Bytes of 0, fields of a megabyte, blank lines, columns of one name that nobody asks for."""
    texts = ["a\0b", "x" * 2**20, "\u2028 \x0b \x85"]
    if name == "t.jsonl":
        lines = [json.dumps({"text": text, "mood": "u\0p", "id": 1}) for text in texts]
    else:
        comma = "\t" if name == "t.tsv" else ","
        lines = [comma.join(row) for row in [("id", "text", "id", "mood")]]
        lines += [comma.join(("1", text, "2", "u\0p")) for text in texts]
    found = table(tmp_path, name, "\ufeff" + "\r\n\r\n".join(lines) + "\r\n\r\n")
    assert found.texts == texts
    assert found.labels["sentiment"] == ["u\0p"] * 3
    first = 1 if name == "t.jsonl" else 3
    assert [found.place(i).rsplit(" ")[-1] for i in range(3)] == [
        str(first + 2 * i) for i in range(3)
    ]


@pytest.mark.parametrize(
    ("name", "contents", "words"),
    [
        ("t.csv", "text;mood\na;b\n", "semicolons between them: save it as .csv with commas, or"),
        (
            "t.csv",
            'Text;Mood\n"a;\nb";c\n',
            "line 1: its fields have semicolons between them: save",
        ),
        ("t.csv", "text;mood\na, b;c\n", "line 1: its fields have semicolons between them: save"),
        ("t.csv", "text\tmood\na\tb\n", "its fields have tabs between them: save it as"),
        ("t.tsv", '"text","mood"\na,b\n', "its fields have commas between them: save it as"),
        ("t.csv", "text, Mood\na, b\n", "--label-columns; did you mean ' Mood'?"),
        ("t.csv", b"\x1f\x8b\x08\x00", "line 1: this is compressed by gzip: unpack it first"),
        ("t.jsonl", b"PK\x03\x04", "line 1: this is a zip file or a workbook: unpack it first"),
    ],
)
def test_a_table_of_another_kind_is_told_apart(tmp_path, name, contents, words):
    with pytest.raises(UserError) as caught:
        table(tmp_path, name, contents)
    assert words in str(caught.value)
