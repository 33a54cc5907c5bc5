import io

import pytest

from mtl_jax.core.errors import UserError
from mtl_jax.tools import input_texts
from mtl_jax.tools.input_texts import looks_like_header, read_lines, read_texts


def test_lines_end_where_lines_end():
    stream = io.BytesIO("a\r\n\nb\u2028c\n".encode() + b"last")
    assert list(read_lines(stream)) == ["a", "", "b\u2028c", "last"]


def test_a_byte_order_mark_is_no_text_and_what_is_no_text_has_no_end(monkeypatch):
    assert list(read_lines(io.BytesIO("\ufeffa\n\ufeffb\n".encode()))) == ["a", "\ufeffb"]
    monkeypatch.setattr(input_texts, "_LONGEST_LINE", 2**10)
    with open("/dev/zero", "rb") as zeros, pytest.raises(UserError, match="line 1: longer"):  # noqa: PTH123
        next(read_lines(zeros))


def test_texts_come_from_tables_and_from_lines(tmp_path):
    (tmp_path / "t.csv").write_text('id,text\n1,"a, b"\n2,c\n')
    (tmp_path / "t.jsonl").write_text('{"body": "a"}\n{"body": "b"}\n')
    (tmp_path / "t.txt").write_text("id,text\na\n")
    assert list(read_texts(tmp_path / "t.csv", None, ("text",))) == ["a, b", "c"]
    assert list(read_texts(tmp_path / "t.csv", ("id",), ("text",))) == ["1", "2"]
    assert list(read_texts(tmp_path / "t.jsonl", ("body",), ("text",))) == ["a", "b"]
    assert list(read_texts(tmp_path / "t.txt", None, ("text",))) == ["id,text", "a"]
    # Nobody who has texts read has labels to name.
    with pytest.raises(
        UserError, match=r"no column 'text'.*: name the columns with --text-column$"
    ):
        read_texts(tmp_path / "t.jsonl", None, ("text",))
    with pytest.raises(UserError, match=r"t\.txt is no table.*: leave --text-column out to read a"):
        read_texts(tmp_path / "t.txt", ("text",), ("text",))
    with pytest.raises(UserError, match=r"gone\.txt is missing"):
        read_texts(tmp_path / "gone.txt", None, ("text",))


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        ("text,topic,mood", True),
        ('\ufeff"id","Text"', True),
        ("id\tbody", True),
        ("mood", True),
        ('{"text": "a", "topic": "b"}', True),
        ("review,rating", True),
        ("review;rating", True),
        ("the film was good, and long", False),
        ("yes,no", False),
        ("yes; no", False),
        ("a text", False),
        ("{a brace", False),
        ("[1]", False),
        ("", False),
    ],
)
def test_headers(line, is_one):
    assert looks_like_header(line, ["mood", "text"]) is is_one
