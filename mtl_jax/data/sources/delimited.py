"""The rows of CSV and TSV files, whichever way a TSV file is quoted, read block by block.

Two kinds of TSV are in use. In one, as GLUE's, a tab always ends a field and quotation marks are
part of the text. The other is that of ``csv.writer`` and pandas: a field with a tab, a line end or
a mark in it is quoted, and marks inside are doubled. The file tells which one it is: a TSV file is
read once to find that out, and again for its rows.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO

MARK = '"'
Opened = Callable[[], TextIO]
"""Opens the file at its beginning; line ends are left as they are."""

_ROWS, _CHARACTERS = 4096, 2**19


class MalformedError(Exception):
    """A line that can't be read.

    Attributes:
        line: Its number, from 1.
        problem: What is wrong with it, and what to do.
    """

    def __init__(self, line: int, problem: str):
        super().__init__(problem)
        self.line, self.problem = line, problem


@dataclasses.dataclass(frozen=True)
class Block:
    """Some rows, one after the other.

    Attributes:
        rows: The fields of each.
        firsts: The line, from 1, that each begins on.
        lines: The lines of each row that runs over several, without their ends, by its index.
    """

    rows: list[list[str]]
    firsts: Sequence[int]
    lines: dict[int, list[str]]


@dataclasses.dataclass(frozen=True)
class Sheet:
    """What a file holds.

    Attributes:
        header: The names of its columns; None where it is empty.
        blocks: The other rows, each as long as the header; blank lines are left out.
        notes: What to know of how it was read.
    """

    header: list[str] | None
    blocks: Iterator[Block]
    notes: tuple[str, ...] = ()


def read_csv(opened: Opened) -> Sheet:
    """Reads fields with commas between them, quoted or not.

    Raises:
        MalformedError: A line has more or fewer fields than the header, or is quoted wrongly;
            of lines after the first block it is raised where ``blocks`` come to them.
    """
    return _sheet(_quoted(opened, ","))


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
    """The lines of a file, of which those without a mark are taken many at a time.

    Attributes:
        given: How many ``some`` has given.
    """

    def __init__(self, file: TextIO):
        self._file = file
        self._chunk, self._at, self._apart = "", 0, False
        self.given = 0

    @property
    def ended(self) -> bool:
        """Whether all that has been read has been taken."""
        return self._at == len(self._chunk)

    def read(self) -> bool:
        """Reads on, up to the end of a line; whether there is more."""
        chunk = self._file.read(_CHARACTERS)
        chunk += self._file.readline()
        self._chunk, self._at = chunk, 0
        # Where many have marks there is little between them, and where some end in a carriage
        # return alone, each is looked at.
        many = 4 * chunk.count(MARK) > chunk.count("\n")
        self._apart = many or chunk.count("\r") != chunk.count("\r\n")
        return bool(chunk)

    def plain(self) -> list[str]:
        """The lines up to one with a mark, without their ends; none where each is looked at."""
        mark = -1 if self._apart else self._chunk.find(MARK, self._at)
        end = len(self._chunk) if mark < 0 else self._chunk.rfind("\n", self._at, mark) + 1
        if self._apart or end <= self._at:
            return []
        text = self._chunk[self._at : end].replace("\r\n", "\n")
        self._at = end
        return text.removesuffix("\n").split("\n")

    def some(self) -> Iterator[list[str]]:
        """One after the other, or, where each is looked at, all that have been read."""
        while not self.ended or self.read():
            if self._apart:
                lines = io.StringIO(self._chunk[self._at :], newline="").readlines()
                self._at = len(self._chunk)
            else:
                end = self._chunk.find("\n", self._at) + 1 or len(self._chunk)
                lines = [self._chunk[self._at : end]]
                self._at = end
            self.given += len(lines)
            yield lines


def _quoted(opened: Opened, delimiter: str, *, every_line: bool = False) -> Iterator[Block]:
    """As ``csv.reader`` reads it, which is asked for the rows with marks alone.

    Args:
        opened: Opens the file.
        delimiter: Between fields.
        every_line: Whether the lines of all rows are given, not only of those over several.
    """
    csv.field_size_limit(2**31 - 1)  # 128 KiB by default, less than some texts
    columns, number = None, 1
    with opened() as file:
        lines = _Lines(file)
        passed: list[str] = []

        def pass_on() -> Iterator[str]:
            for some in lines.some():
                passed.extend(some)
                yield from some

        # Strict, since a stray mark would else swallow the lines that follow it in silence.
        reader = csv.reader(pass_on(), delimiter=delimiter, strict=True)
        done = kept = 0
        while done < lines.given or not lines.ended or lines.read():
            rows: list[list[str]] = []
            firsts: list[int] = []
            of_rows: dict[int, list[str]] = {}
            problem = None
            while (done < lines.given or not lines.ended) and len(rows) < _ROWS and not problem:
                if done == lines.given and not every_line and (plain := lines.plain()):
                    rows += [line.split(delimiter) for line in plain if line]
                    there = range(number, number + len(plain))
                    firsts += there if all(plain) else itertools.compress(there, plain)
                    number += len(plain)
                    continue
                del passed[: done - kept]
                kept = done
                try:
                    for row in reader:
                        now = reader.line_num
                        if row:
                            if every_line or now - done > 1:
                                own = passed[done - kept : now - kept]
                                of_rows[len(rows)] = [line.rstrip("\r\n") for line in own]
                            rows.append(row)
                            firsts.append(number)
                        number += now - done
                        done = now
                        if done == lines.given or len(rows) >= _ROWS:
                            break
                except csv.Error as error:
                    problem = error
            block = Block(rows, _as_range(firsts), of_rows)
            columns = _checked(block, columns)
            if problem:
                raise MalformedError(
                    number,
                    f'malformed ({problem}): quote fields with " and double a " inside them',
                ) from problem
            if rows:
                yield block


def _as_range(numbers: list[int]) -> Sequence[int]:
    """The same, in little room where none is left out."""
    if numbers and numbers[-1] - numbers[0] == len(numbers) - 1:
        return range(numbers[0], numbers[-1] + 1)
    return numbers


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
