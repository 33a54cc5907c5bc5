"""The rows of CSV and TSV files, whichever way a TSV file is quoted, read block by block.

``arrow_csv`` reads large CSV files sooner; what is doubtful in them is read here.

Two kinds of TSV are in use. In one, as GLUE's, a tab always ends a field and quotation marks are
part of the text. The other is that of ``csv.writer`` and pandas: a field with a tab, a line end or
a mark in it is quoted, and marks inside are doubled. The file tells which one it is: a TSV file is
read once to find that out, and again for its rows.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TextIO

MARK = '"'
Opened = Callable[[], TextIO]
"""Opens the file at its beginning; line ends are left as they are."""

_ROWS, _CHARACTERS = 4096, 2**20
_LINE_END = re.compile("\r\n|\n|\r")


class MalformedError(Exception):
    """A line that can't be read.

    Attributes:
        line: Its number, from 1.
        problem: What is wrong with it, and what to do.
    """

    def __init__(self, line: int, problem: str):
        super().__init__(problem)
        self.line, self.problem = line, problem


class Columns(Protocol):
    """Some rows, one after the other, of which columns are asked for."""

    @property
    def firsts(self) -> Sequence[int]:
        """The line, from 1, that each row begins on."""
        ...

    @property
    def lines(self) -> dict[int, list[str]]:
        """The lines of each row that runs over several, without their ends, by its index."""
        ...

    def texts(self, place: int) -> list[str]:
        """The fields of a column, by its place in the header."""
        ...

    def cells(self, place: int) -> Sequence[object]:
        """The same of a column in which many fields are alike: perhaps a ``Column``."""
        ...


@dataclasses.dataclass(frozen=True)
class Block:
    """``Columns`` by row.

    Attributes:
        rows: The fields of each.
        firsts: As of ``Columns``.
        lines: As of ``Columns``.
    """

    rows: list[list[str]]
    firsts: Sequence[int]
    lines: dict[int, list[str]]

    def texts(self, place: int) -> list[str]:
        """See ``Columns``."""
        return [row[place] for row in self.rows]

    def cells(self, place: int) -> Sequence[object]:
        """See ``Columns``."""
        return self.texts(place)


@dataclasses.dataclass(frozen=True)
class Sheet:
    """What a file holds.

    Attributes:
        header: The names of its columns; None where it is empty.
        blocks: The other rows, each as long as the header; blank lines are left out.
        notes: What to know of how it was read.
    """

    header: list[str] | None
    blocks: Iterator[Columns]
    notes: tuple[str, ...] = ()


def read_csv(opened: Opened) -> Sheet:
    """Reads fields with commas between them, quoted or not.

    Raises:
        MalformedError: A line has more or fewer fields than the header, or is quoted wrongly;
            of lines after the first block it is raised where ``blocks`` come to them.
    """
    return _sheet(_quoted(opened, ","))


def rest_of_csv(opened: Opened, before: int, columns: int) -> Iterator[Block]:
    """The rows of a CSV file from a line on.

    Args:
        opened: Opens the file at the beginning of this line.
        before: The number of lines before it.
        columns: The fields of the header.

    Raises:
        MalformedError: As of ``read_csv``.
    """
    return _quoted(opened, ",", before=before, columns=columns)


def read_tsv(opened: Opened) -> Sheet:
    """Reads fields with tabs between them.

    Where each line has the header's number of fields, a line is a row. Marks are those of
    quoting then where the header has quoted fields, or where each field with a mark in it is
    what ``csv.writer`` makes of a field that needs quoting; else they are part of the text.
    Where a line has another number of fields, quoted ones run over lines, or hold tabs.

    Raises:
        MalformedError: Neither reading fits, or a mark at the beginning of a text would swallow
            lines that are rows of their own.
    """
    marked, quoted, needed, opening, header = False, False, True, 0, True
    try:
        for block in _plain(opened):
            for row, line in zip(block.rows, block.firsts, strict=True):
                fields = [field for field in row if MARK in field]
                if header:
                    quoted, header = any(map(_is_quoted, fields)), False
                if fields:
                    marked = True
                    needed = needed and all(map(_needs_quotes, fields))
                    if not opening and any(field.startswith(MARK) for field in fields):
                        opening = line
    except MalformedError as error:
        if not _has_marks(opened):
            raise
        return _over_lines(opened, error)
    if not marked:
        return _sheet(_plain(opened))
    if quoted or needed:
        return _sheet(_not_swallowed(_quoted(opened, "\t")))
    if not opening:
        return _sheet(_plain(opened))
    note = "read as unquoted TSV: quotation marks are part of the text, as on line"
    return _sheet(_plain(opened), f"{note} {opening}")


def _has_marks(opened: Opened) -> bool:
    with opened() as file:
        return any(MARK in line for line in file)


def _over_lines(opened: Opened, plain: MalformedError) -> Sheet:
    """A TSV file in which not each line is a row.

    Args:
        opened: Opens it.
        plain: Why not.
    """
    swallowed: MalformedError | None = None
    long: list[tuple[int, int]] = []
    stray: int | None = None
    unquoted, tabs, rows = False, 0, 0
    try:
        for block in _quoted(opened, "\t", every_line=True):
            if not rows:
                first = block.lines[0][0].split("\t")
                unquoted, tabs = not any(map(_is_quoted, first)), len(block.rows[0]) - 1
            rows += len(block.rows)
            for index, lines in block.lines.items():
                line = block.firsts[index]
                if len(lines) > 1:
                    long.append((line, line + len(lines) - 1))
                swallowed = swallowed or _swallowed(line, lines, tabs)
                if unquoted and stray is None:
                    marks = sum(each.count(MARK) for each in lines)
                    if marks < _written(block.rows[index]).count(MARK):
                        stray = line
    except MalformedError as error:
        if (error.line, error.problem) == (plain.line, plain.problem):
            raise
        raise MalformedError(
            plain.line, f"{plain.problem}; read as quoted, line {error.line}: {error.problem}"
        ) from error
    if swallowed:
        raise swallowed
    if not long:
        return _sheet(_quoted(opened, "\t"))
    if stray is not None:
        raise MalformedError(
            stray,
            "a quotation mark in a field that is not quoted, though on line "
            f'{long[0][0]} a quoted field runs over lines: quote fields with " and '
            'double a " inside them, or write the file as .jsonl',
        )
    return _sheet(
        _quoted(opened, "\t"),
        f"read as quoted TSV: {len(long)} of {rows - 1} rows run over several lines, as "
        f"lines {long[0][0]} to {long[0][1]}",
    )


def _not_swallowed(blocks: Iterator[Block]) -> Iterator[Block]:
    """The same blocks; refuses a row over lines that look like rows."""
    tabs = -1
    for block in blocks:
        tabs = len(block.rows[0]) - 1 if tabs < 0 else tabs
        for index, lines in block.lines.items():
            if error := _swallowed(block.firsts[index], lines, tabs):
                raise error
        yield block


def _swallowed(first: int, lines: Sequence[str], tabs: int) -> MalformedError | None:
    """Why a row is refused: of a genuine one over lines at most one has all tabs."""
    whole = sum(line.count("\t") == tabs for line in lines)
    if len(lines) == 1 or whole < 2:
        return None
    return MalformedError(
        first,
        f"a field that begins with a quotation mark runs to line {first + len(lines) - 1}, over "
        f'{whole} lines that look like rows: quote fields with " and double a " inside '
        "them, or no field and give each line as many as the header has, or write .jsonl",
    )


def _sheet(blocks: Iterator[Block], *notes: str) -> Sheet:
    first = next(blocks, None)
    if first is None:
        return Sheet(None, iter(()), notes)
    lines = {index - 1: lines for index, lines in first.lines.items() if index}
    rest = Block(first.rows[1:], first.firsts[1:], lines)
    return Sheet(first.rows[0], itertools.chain([rest] if rest.rows else [], blocks), notes)


def _plain(opened: Opened) -> Iterator[Block]:
    """Each line a row; fields with tabs between them, as they stand."""
    columns, number = None, 1
    with opened() as file:
        while lines := list(itertools.islice(file, _ROWS)):
            whole = [line.rstrip("\r\n") for line in lines]
            firsts: Sequence[int] = range(number, number + len(lines))
            if not all(whole):
                firsts = [first for first, line in zip(firsts, whole, strict=True) if line]
            block = Block([line.split("\t") for line in whole if line], firsts, {})
            columns = _checked(block, columns)
            number += len(lines)
            if block.rows:
                yield block


class _Lines:
    """The lines of a file, of which those that may still be asked for are kept."""

    def __init__(self, file: TextIO, before: int):
        self._file, self._before = file, before
        self._kept: collections.deque[tuple[int, list[str]]] = collections.deque()

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(self._read())

    def _read(self) -> Iterator[list[str]]:
        number = 1 + self._before
        while lines := self._file.readlines(_CHARACTERS):
            self._kept.append((number, lines))
            number += len(lines)
            yield lines

    def between(self, first: int, count: int) -> list[str]:
        """So many lines from a number on, without their ends."""
        found = []
        for start, lines in self._kept:
            begin, end = max(first - start, 0), max(first + count - start, 0)
            found += [line.rstrip("\r\n") for line in lines[begin:end]]
        return found

    def forget(self, before: int) -> None:
        """Lets go of the lines before a number."""
        while self._kept and self._kept[0][0] + len(self._kept[0][1]) <= before:
            self._kept.popleft()


def _quoted(
    opened: Opened,
    delimiter: str,
    *,
    every_line: bool = False,
    before: int = 0,
    columns: int | None = None,
) -> Iterator[Block]:
    """As ``csv.reader`` reads it.

    Args:
        opened: Opens the file.
        delimiter: Between fields.
        every_line: Whether the lines of all rows are given, not only of those over several.
        before: The number of lines before those that ``opened`` gives.
        columns: The fields of the header, where that is before them.
    """
    csv.field_size_limit(2**31 - 1)  # 128 KiB by default, less than some texts
    with opened() as file:
        lines = _Lines(file, before)
        # Strict, since a stray mark would else swallow the lines that follow it in silence.
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            rows: list[list[str]] = []
            read, problem = reader.line_num, None
            try:
                # What was read before an error stays in the list.
                rows.extend(itertools.islice(reader, _ROWS))
            except csv.Error as error:
                problem = error
            if not rows and not problem:
                return
            first = before + read + 1
            if not problem and reader.line_num - read == len(rows):
                firsts, spans = range(first, first + len(rows)), None
            else:
                spans = [1 + sum(map(_line_ends, fields)) for fields in rows]
                firsts = [*itertools.accumulate(spans, initial=first)]
            block = _block(rows, firsts, spans, lines, every_line)
            columns = _checked(block, columns)
            if problem:
                raise MalformedError(
                    firsts[-1],
                    f'malformed ({problem}): quote fields with " and double a " inside them',
                ) from problem
            lines.forget(before + reader.line_num + 1)
            if block.rows:
                yield block


def _block(
    rows: list[list[str]],
    firsts: Sequence[int],
    spans: list[int] | None,
    lines: _Lines,
    every_line: bool,
) -> Block:
    """The rows that are no blank lines; ``spans`` has the lines of each where some have several."""
    there = [index for index, fields in enumerate(rows) if fields]
    of_rows: dict[int, list[str]] = {}
    if spans or every_line:
        of_rows = {
            new: lines.between(firsts[old], spans[old] if spans else 1)
            for new, old in enumerate(there)
            if every_line or (spans and spans[old] > 1)
        }
    if len(there) < len(rows):
        return Block([rows[i] for i in there], [firsts[i] for i in there], of_rows)
    return Block(rows, firsts[: len(rows)], of_rows)


def _line_ends(field: str) -> int:
    return len(_LINE_END.findall(field)) if "\n" in field or "\r" in field else 0


def _checked(block: Block, columns: int | None) -> int | None:
    """Holds rows against the header's number of fields, which it returns."""
    if columns is None and block.rows:
        columns = len(block.rows[0])
    if set(map(len, block.rows)) - {columns}:
        wrong = next(i for i, fields in enumerate(block.rows) if len(fields) != columns)
        raise MalformedError(
            block.firsts[wrong],
            f"{len(block.rows[wrong])} fields and not the header's {columns}: quote a field that "
            "holds the delimiter, or complete the line",
        )
    return columns


def _is_quoted(field: str) -> bool:
    """Whether it has a mark at both ends, and only doubled ones between."""
    inside = field[1:-1].replace(MARK * 2, "")
    return len(field) > 1 and field[0] == field[-1] == MARK and MARK not in inside


def _needs_quotes(field: str) -> bool:
    """Whether it is what a writer makes of a field with a mark in it, or of an empty one."""
    return _is_quoted(field) and (MARK in field[1:-1] or len(field) == 2)


def _written(fields: Iterable[str]) -> str:
    line = io.StringIO()
    csv.writer(line, delimiter="\t").writerow(fields)
    return line.getvalue()
