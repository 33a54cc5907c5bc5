"""The rows of CSV and TSV files, whichever way a TSV file is quoted.

Two kinds of TSV are in use. In one, as GLUE's, a tab always ends a field and quotation marks are
part of the text. The other is that of ``csv.writer`` and pandas: a field with a tab, a line end or
a mark in it is quoted, and marks inside are doubled. The file tells which one it is.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re

MARK = '"'


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
class Row:
    """The fields of a row, and the lines, from 1, that it begins and ends on."""

    first: int
    last: int
    fields: list[str]


@dataclasses.dataclass(frozen=True)
class Sheet:
    """What a file holds.

    Attributes:
        header: The names of its columns; None where it is empty.
        rows: The others, each as long as the header; blank lines are left out.
        notes: What to know of how it was read.
    """

    header: list[str] | None
    rows: list[Row]
    notes: tuple[str, ...] = ()


def lines_of(contents: str) -> list[str]:
    """Its lines, without their ends: line feeds, carriage returns or both."""
    return re.split("\r\n|\n|\r", contents)


def read_csv(contents: str) -> Sheet:
    """Reads fields with commas between them, quoted or not.

    Raises:
        MalformedError: A line has more or fewer fields than the header, or is quoted wrongly.
    """
    return _sheet(_quoted(contents, ","))


def read_tsv(contents: str) -> Sheet:
    """Reads fields with tabs between them.

    Where each line has the header's number of fields, a line is a row. Marks are those of
    quoting then where the header has quoted fields, or where each field with a mark in it is
    what ``csv.writer`` makes of a field that needs quoting; else they are part of the text.
    Where a line has another number of fields, quoted ones run over lines, or hold tabs.

    Raises:
        MalformedError: Neither reading fits, or a mark at the beginning of a text would swallow
            lines that are rows of their own.
    """
    try:
        plain = _plain(contents)
    except MalformedError as error:
        if MARK not in contents:
            raise
        return _over_lines(contents, error)
    marked = [field for row in plain for field in row.fields if MARK in field]
    if not marked:
        return _sheet(plain)
    if any(map(_is_quoted, plain[0].fields)) or all(map(_needs_quotes, marked)):
        rows = _quoted(contents, "\t")
        _refuse_swallowed(rows, lines_of(contents))
        return _sheet(rows)
    opening = [row for row in plain if any(field.startswith(MARK) for field in row.fields)]
    if not opening:
        return _sheet(plain)
    note = "read as unquoted TSV: quotation marks are part of the text, as on line"
    return _sheet(plain, f"{note} {opening[0].first}")


def _over_lines(contents: str, plain: MalformedError) -> Sheet:
    """A TSV file in which not each line is a row.

    Args:
        contents: Of the file.
        plain: Why not.
    """
    try:
        rows = _quoted(contents, "\t")
    except MalformedError as error:
        if (error.line, error.problem) == (plain.line, plain.problem):
            raise
        raise MalformedError(
            plain.line, f"{plain.problem}; read as quoted, line {error.line}: {error.problem}"
        ) from error
    lines = lines_of(contents)
    _refuse_swallowed(rows, lines)
    long = [row for row in rows if row.last > row.first]
    if not long:
        return _sheet(rows)
    if not any(map(_is_quoted, lines[rows[0].first - 1].split("\t"))):
        for row in rows:
            marks = "\n".join(lines[row.first - 1 : row.last]).count(MARK)
            if marks < _written(row.fields).count(MARK):
                raise MalformedError(
                    row.first,
                    "a quotation mark in a field that is not quoted, though on line "
                    f'{long[0].first} a quoted field runs over lines: quote fields with " and '
                    'double a " inside them, or write the file as .jsonl',
                )
    return _sheet(
        rows,
        f"read as quoted TSV: {len(long)} of {len(rows) - 1} rows run over several lines, as "
        f"lines {long[0].first} to {long[0].last}",
    )


def _refuse_swallowed(rows: list[Row], lines: list[str]) -> None:
    """Refuses a row over lines that look like rows: of a genuine one at most one has all tabs."""
    tabs = len(rows[0].fields) - 1
    for row in rows:
        whole = sum(line.count("\t") == tabs for line in lines[row.first - 1 : row.last])
        if row.last > row.first and whole > 1:
            raise MalformedError(
                row.first,
                f"a field that begins with a quotation mark runs to line {row.last}, over "
                f'{whole} lines that look like rows: quote fields with " and double a " inside '
                "them, or no field and give each line as many as the header has, or write .jsonl",
            )


def _sheet(rows: list[Row], *notes: str) -> Sheet:
    return Sheet(rows[0].fields if rows else None, rows[1:], notes)


def _plain(contents: str) -> list[Row]:
    """Each line a row; fields with tabs between them, as they stand."""
    rows: list[Row] = []
    for number, line in enumerate(lines_of(contents), start=1):
        if line:
            rows.append(Row(number, number, line.split("\t")))
            _check_length(rows)
    return rows


def _quoted(contents: str, delimiter: str) -> list[Row]:
    """As ``csv.reader`` reads it."""
    # Strict, since a stray mark would else swallow the lines that follow it in silence.
    reader = csv.reader(io.StringIO(contents, newline=""), delimiter=delimiter, strict=True)
    csv.field_size_limit(2**31 - 1)  # 128 KiB by default, less than some texts
    rows: list[Row] = []
    start = 1
    try:
        for fields in reader:
            first, start = start, reader.line_num + 1
            if fields:
                rows.append(Row(first, reader.line_num, fields))
                _check_length(rows)
    except csv.Error as error:
        raise MalformedError(
            start, f'malformed ({error}): quote fields with " and double a " inside them'
        ) from error
    return rows


def _check_length(rows: list[Row]) -> None:
    """Holds the last row against the header."""
    row, columns = rows[-1], len(rows[0].fields)
    if len(row.fields) != columns:
        raise MalformedError(
            row.first,
            f"{len(row.fields)} fields and not the header's {columns}: quote a field that holds "
            "the delimiter, or complete the line",
        )


def _is_quoted(field: str) -> bool:
    """Whether it has a mark at both ends, and only doubled ones between."""
    inside = field[1:-1].replace(MARK * 2, "")
    return len(field) > 1 and field[0] == field[-1] == MARK and MARK not in inside


def _needs_quotes(field: str) -> bool:
    """Whether it is what a writer makes of a field with a mark in it, or of an empty one."""
    return _is_quoted(field) and (MARK in field[1:-1] or len(field) == 2)


def _written(fields: list[str]) -> str:
    line = io.StringIO()
    csv.writer(line, delimiter="\t").writerow(fields)
    return line.getvalue()
