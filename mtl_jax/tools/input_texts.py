"""Texts that a user gives to a command: lines of standard input, or the rows of a file."""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from mtl_jax.core.console import in_bytes, say
from mtl_jax.core.errors import UserError, cannot_read, shortened
from mtl_jax.data.pairs import Pair
from mtl_jax.data.sources import files
from mtl_jax.data.sources.base import Fields, Rows, Stream

# Of what is no text, such as /dev/zero, a line may have no end.
_LONGEST_LINE = 2**28


def read_lines(stream: IO[bytes], origin: str = "standard input") -> Iterator[str]:
    """Lines of UTF-8 text without their ends, and without the byte order mark of the first.

    Args:
        stream: Where they come from.
        origin: What to call it in an error.

    Raises:
        UserError: It can't be read, or a line is not UTF-8 or has no end.
    """
    number = 0
    try:
        for line in iter(lambda: stream.readline(_LONGEST_LINE), b""):
            number += 1
            if len(line) == _LONGEST_LINE:
                raise UserError(
                    f"{origin}, line {number}: longer than {in_bytes(_LONGEST_LINE)}: give it "
                    "lines of text"
                )
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{origin}, line {number}: not valid UTF-8 ({error.reason}): convert it"
        ) from error
    except OSError as error:
        raise UserError(
            f"{origin} can't be read ({error.strerror}): give it lines of text"
        ) from error


def read_pairs(lines: Iterable[str], columns: Sequence[str]) -> Iterator[Pair]:
    """Pairs of texts, each a line of JSON: a list of two, or an object with the two columns.

    Args:
        lines: The lines.
        columns: The names of the columns.

    Raises:
        UserError: A line is neither.
    """
    for number, line in enumerate(lines, start=1):
        found: Any = None
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(line)
        if isinstance(found, dict):
            found = [found.get(column) for column in columns]
        if not (isinstance(found, list) and [type(each) for each in found] == [str, str]):
            first, second = columns
            raise UserError(
                f"line {number}, {shortened(line, 60)!r}, is not a pair of texts, which the model "
                f'was trained on: write ["a", "b"] or {{"{first}": "a", "{second}": "b"}}, or '
                "read a file with --input FILE --text-columns"
            )
        yield Pair(*found)


def read_texts(
    path: Path, text_columns: Sequence[str] | None, otherwise: Sequence[str]
) -> Iterator[str]:
    """The texts of a file.

    Args:
        path: A ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` or ``.parquet`` file with a column of
            texts, or two of pairs; of a file with another ending, and without ``text_columns``,
            each line is a text, or of pairs one of JSON.
        text_columns: The column, or the two.
        otherwise: The same where that is None.

    Raises:
        UserError: The file can't be read, lacks the column, or is damaged; what is no table is
            damaged where it is read.
    """
    columns = text_columns or otherwise
    if text_columns is None and path.suffix.lower() not in files.ENDINGS:
        try:
            stream = path.open("rb")
        except OSError as error:
            raise cannot_read(path, error) from error
        lines = read_lines(stream, str(path))
        return _closing(stream, read_pairs(lines, columns) if len(columns) == 2 else lines)
    if path.suffix.lower() not in files.ENDINGS:
        flag = "--text-column" if len(columns) == 1 else "--text-columns"
        raise UserError(
            f"{path} is no table, of which {flag} names a column: leave {flag} out to read a text "
            f"from each line, or name a file that ends in {', '.join(files.ENDINGS)}"
        )
    stream = files.stream_table(path, Fields.of(columns, {}, {}))
    # A file without the column is refused here, whoever asks for its texts.
    first = next(stream.rows)
    return _texts_of(first, stream)


def _texts_of(first: Rows, stream: Stream) -> Iterator[str]:
    yield from first.texts
    for rows in stream.rows:
        yield from rows.texts
    for note in stream.notes:
        say(note)


def _closing(stream: IO[bytes], lines: Iterator[str]) -> Iterator[str]:
    with stream:
        yield from lines


# Names of columns that many files have.
_USUAL = {"id", "text", "sentence", "title", "body", "content", "comment", "review", "message"}
_USUAL |= {"tweet", "document", "label", "category", "class", "topic", "sentiment", "rating"}


def looks_like_header(line: str, columns: Iterable[str]) -> bool:
    """Whether a line names the columns of a table, or holds an object of JSON Lines.

    Args:
        line: The first one of what is taken for lines of text.
        columns: Names that a column is known to have.
    """
    line, known = line.removeprefix("\ufeff").strip(), {name.lower() for name in columns}
    if line.startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            names = json.loads(line)
            return isinstance(names, dict) and bool({*map(str.lower, names)} & (known | _USUAL))
        return False
    for delimiter in ("\t", ",", ";"):
        fields = [field.strip().strip('"').strip().lower() for field in line.split(delimiter)]
        if known & {*fields}:
            return True
        if len(fields) > 1 and all(re.fullmatch(r"\w+", field) for field in fields):
            return bool(_USUAL & {*fields})
    return False
