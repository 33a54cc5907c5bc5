"""The rows of a large CSV file, read by pyarrow as ``csv.reader`` reads them, and sooner.

pyarrow takes more for CSV than ``csv.reader`` does, and names no line where it refuses one. It is
given blocks of whole rows of which it has been seen that a quotation mark stands only where a
quoted field begins or ends, or doubled inside one: both read these alike. From the first other
block on, ``csv.reader`` reads the file.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from mtl_jax.data.columns import Column
from mtl_jax.data.sources import delimited
from mtl_jax.data.sources.delimited import Columns, Opened, Sheet

if TYPE_CHECKING:
    import pyarrow as pa

LARGE = 2**22
"""Bytes from which on a file is read sooner so, the import of pyarrow included."""

_BYTES = 2**20
# A row that is longer, or a mark without its other one, is left to ``csv.reader``.
_LONGEST = 2**26
_MARK, _COMMA, _NEW_LINE, _RETURN = b'",\n\r'


@dataclasses.dataclass(frozen=True)
class _Parsed:
    """``Columns`` as pyarrow has them, by place: those that are wanted."""

    firsts: Sequence[int]
    lines: dict[int, list[str]]
    columns: dict[int, pa.ChunkedArray]

    def texts(self, place: int) -> list[str]:
        """See ``Columns``."""
        return self.columns[place].to_pylist()

    def cells(self, place: int) -> Column:
        """See ``Columns``."""
        encoded = self.columns[place].combine_chunks().dictionary_encode()
        return Column(encoded.indices.to_numpy(), encoded.dictionary.to_pylist())


@dataclasses.dataclass(frozen=True)
class _Content:
    """Whole rows, as bytes.

    Attributes:
        content: They end in a line end.
        starts: int64 [r], where each row begins, blank lines included.
        ends: int64 [r], the line end after each.
        places: int64 [l], all line ends, those inside quoted fields included.
    """

    content: bytes
    starts: np.ndarray
    ends: np.ndarray
    places: np.ndarray

    def located(self, before: int) -> tuple[Sequence[int], dict[int, list[str]]]:
        """``firsts`` and ``lines`` of ``Columns``; of so many lines before."""
        codes = np.frombuffer(self.content, np.uint8)
        length = self.ends - self.starts
        blank = (length == 0) | ((length == 1) & (codes[self.starts] == _RETURN))
        if len(self.ends) == len(self.places) and not blank.any():
            return range(before + 1, before + 1 + len(self.ends)), {}
        starts, ends = self.starts[~blank], self.ends[~blank]
        first = np.searchsorted(self.places, starts)
        several = np.flatnonzero(np.searchsorted(self.places, ends) > first)
        lines = {}
        for row in several.tolist():
            text = self.content[starts[row] : ends[row]].decode()
            lines[row] = [line.rstrip("\r") for line in text.split("\n")]
        return (before + 1 + first).tolist(), lines


def read_csv(path: Path, opened: Opened, wanted: Sequence[str], size: int = _BYTES) -> Sheet:
    """As ``delimited.read_csv``, of a file of any size.

    Args:
        path: The file.
        opened: Opens it.
        wanted: The names of the columns that will be asked for.
        size: Bytes that are read at a time.
    """
    taken: list[str] = []

    def lines(file: Iterator[str]) -> Iterator[str]:
        for line in file:
            taken.append(line)
            yield line

    try:
        with opened() as file:
            header = next(filter(None, csv.reader(lines(file), strict=True)), None)
    except (csv.Error, UnicodeDecodeError):
        header = None
    if header is None:
        return delimited.read_csv(opened)
    start = len("".join(taken).encode())
    places = [place for place, name in enumerate(header) if name in wanted]
    return Sheet(header, _blocks(path, start, len(taken), len(header), places, size))


def _blocks(
    path: Path, start: int, before: int, width: int, places: Sequence[int], size: int
) -> Iterator[Columns]:
    """The rows after the header.

    Args:
        path: The file.
        start: The bytes up to there, without a byte order mark.
        before: The lines up to there.
        width: The fields of the header.
        places: Those that are wanted.
        size: Bytes that are read at a time.
    """
    with path.open("rb") as file:
        if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            start += len(codecs.BOM_UTF8)
        file.seek(start)
        for rows in _whole_rows(file, size):
            block = None if rows is None else _parsed(rows, before, width, places)
            if rows is None or block is None:
                break
            if block.firsts:
                yield block
            start += len(rows.content)
            before += len(rows.places)
        else:
            return

    def rest() -> io.TextIOWrapper:
        file = path.open("rb")
        file.seek(start)
        return io.TextIOWrapper(file, "utf-8", newline="")

    yield from delimited.rest_of_csv(rest, before, width)


def _whole_rows(file: BinaryIO, at_a_time: int) -> Iterator[_Content | None]:
    """What is left of a file, block by block; None, at last, where that is doubtful."""
    waiting = b""
    while True:
        read = file.read(at_a_time)
        content = waiting + read
        if not content:
            return
        if not read and not content.endswith(b"\n"):
            content += b"\n"
        codes = np.frombuffer(content, np.uint8)
        places = np.flatnonzero(codes == _NEW_LINE)
        marks = np.flatnonzero(codes == _MARK)
        # A row ends where as many marks have closed as have opened.
        ends = places[np.searchsorted(marks, places) % 2 == 0] if len(marks) else places
        size = int(ends[-1]) + 1 if len(ends) else 0
        waiting = content[size:]
        if (not read and waiting) or len(waiting) > _LONGEST:
            yield None
            return
        if not size:
            continue
        whole = content[:size]
        if not _is_plain(whole, codes, marks[: np.searchsorted(marks, size)]):
            yield None
            return
        starts = np.concatenate([[0], ends[:-1] + 1])
        yield _Content(whole, starts, ends, places[: np.searchsorted(places, size)])


def _is_plain(content: bytes, codes: np.ndarray, marks: np.ndarray) -> bool:
    """Whether pyarrow and ``csv.reader`` read whole rows alike.

    Args:
        content: The rows.
        codes: uint8, the same, and maybe more.
        marks: int64, where quotation marks are.
    """
    if b"\r" in content and content.count(b"\r") != content.count(b"\r\n"):
        return False
    try:
        _ = content.isascii() or content.decode()
    except UnicodeDecodeError:
        return False
    # Of doubled ones the first closes and the second opens again.
    opening, closing = marks[::2], marks[1::2]
    before, after = codes[opening - 1], codes[closing + 1]
    begins = (opening == 0) | (before == _COMMA) | (before == _NEW_LINE) | (before == _MARK)
    ends = (after == _COMMA) | (after == _NEW_LINE) | (after == _RETURN) | (after == _MARK)
    return bool(begins.all() and ends.all())


def _parsed(rows: _Content, before: int, width: int, places: Sequence[int]) -> _Parsed | None:
    """The columns at some places; None where a row has another number of fields."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    names = [str(place) for place in range(width)]
    wanted = [names[place] for place in places]
    try:
        table = arrow.read_csv(
            pa.BufferReader(rows.content),
            arrow.ReadOptions(
                use_threads=False, block_size=len(rows.content) + 1, column_names=names
            ),
            arrow.ParseOptions(newlines_in_values=True),
            arrow.ConvertOptions(
                # Of the whole block it is known that it is UTF-8.
                check_utf8=False,
                column_types=dict.fromkeys(wanted, pa.string()),
                include_columns=wanted,
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    firsts, lines = rows.located(before)
    if len(firsts) != table.num_rows:
        return None
    columns = {place: table.column(str(place)) for place in places}
    return _Parsed(firsts, lines, columns)
