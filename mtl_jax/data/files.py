"""CSV, TSV and JSON Lines files as a source of examples."""

from __future__ import annotations

import collections
import csv
import hashlib
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mtl_jax.data.table import Source, Table
from mtl_jax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON = (".jsonl", ".json")
ENDINGS = (*_DELIMITERS, *_JSON)
"""of the names of files that ``read_table`` reads"""

_WHOLE = re.compile(r"(-?(?:0|[1-9]\d{0,15}))\.0+", re.ASCII)


def open_files(paths: dict[str, Path], text_column: str, columns: dict[str, str]) -> Source:
    """Opens the files of a data set.

    Every file must be there; it is parsed only when its split is read. The fingerprint
    leaves the test file out: nothing that is trained or chosen depends on it.

    Args:
        paths: Per split its file: one to train on, maybe one to validate and one to test on.
        text_column: The column that holds the text.
        columns: The label column of each task that has one.

    Raises:
        UserError: A file is not there or is of another kind.
    """
    whole = hashlib.sha256()
    for split, path in paths.items():
        _check_kind(path)
        contents = _bytes(path)
        if split != "test":
            whole.update(f"{split}:{hashlib.sha256(contents).hexdigest()}\n".encode())
    return Source(
        name=str(paths["train"]),
        fingerprint=whole.hexdigest(),
        splits=tuple(paths),
        classes={},
        notes=(),
        read=lambda split: read_table(paths[split], text_column, columns),
    )


def read_table(path: Path, text_column: str, columns: dict[str, str]) -> Table:
    """Reads one file.

    Args:
        path: A ``.csv`` or ``.tsv`` file with a header row, or a ``.jsonl`` or ``.json``
            file with one object per line; UTF-8, with or without a byte order mark.
        text_column: The column that holds the text.
        columns: The label column of each task that has one.

    Raises:
        UserError: The file cannot be read, lacks a column, or has a malformed line.
    """
    _check_kind(path)
    wanted = (text_column, *columns.values())
    rows = list(_json_rows(path, wanted) if _is_json(path) else _csv_rows(path, wanted))
    if not rows:
        raise UserError(f"{path} has no rows: name a file that has some")
    lines = [line for line, _ in rows]
    texts = []
    for line, row in rows:
        text = row.get(text_column)
        if not isinstance(text, str):
            _fail(
                path, line, f"{text_column!r} is {_kind(text)} and not a string: put a text there"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            _fail(path, line, f"{text_column!r} is no Unicode text ({error.reason}): correct it")
        texts.append(text)
    return Table(
        texts=texts,
        labels={
            task: [_label(path, line, column, row.get(column)) for line, row in rows]
            for task, column in columns.items()
        },
        groups=None,
        place=lambda i: f"{path}, line {lines[i]}",
    )


def _csv_rows(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the line each row begins on, and the row."""
    # Strict, since a stray quote would else swallow the lines that follow it in silence.
    reader = csv.reader(
        io.StringIO(_decode(path), newline=""), delimiter=_DELIMITERS[_ending(path)], strict=True
    )
    csv.field_size_limit(2**31 - 1)  # 128 KiB by default, less than some texts
    header: list[str] | None = None
    start = 1
    try:
        for fields in reader:
            line, start = start, reader.line_num + 1
            if not fields:
                continue
            if header is None:
                header = fields
                _check_columns(path, wanted, header)
            elif len(fields) != len(header):
                _fail(
                    path,
                    line,
                    f"{len(fields)} fields and not the header's {len(header)}: quote a field that "
                    "holds the delimiter, or complete the line",
                )
            else:
                yield line, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        _fail(path, start, f'malformed ({error}): quote fields with " and double a " inside them')


def _json_rows(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    rows: list[tuple[int, dict[str, Any]]] = []
    seen: set[str] = set()
    for line, content in enumerate(_decode(path).split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            _fail(path, line, f"malformed JSON ({error}): write one JSON object per line")
        if not isinstance(row, dict):
            _fail(path, line, f"{_kind(row)} and not an object: write one JSON object per line")
        seen.update(row)
        rows.append((line, row))
    if rows:
        # A label may be left out of some rows, so that only all rows tell the columns.
        _check_columns(path, wanted, sorted(seen))
    yield from rows


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _label(path: Path, line: int, column: str, value: object) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    if value is not None and not isinstance(value, str | int | float):
        _fail(
            path, line, f"{column!r} is {_kind(value)}: a label is a string, a number or a boolean"
        )
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    label = "" if value is None else str(value).strip()
    # A column of whole numbers with gaps is written as floats, in text files as well.
    if whole := _WHOLE.fullmatch(label):
        label = str(int(whole[1]))
    return None if label in ("", "-1") else label


def _check_columns(path: Path, wanted: tuple[str, ...], there: list[str]) -> None:
    counts = collections.Counter(there)
    for column in wanted:
        if counts[column] == 0:
            raise UserError(
                f"{path} has no column {column!r}; it has {', '.join(map(repr, there))}: "
                "name the columns with --text-column and --label-columns"
            )
        if counts[column] > 1:
            raise UserError(f"{path} has {counts[column]} columns {column!r}: rename all but one")


def _decode(path: Path) -> str:
    contents = _bytes(path)
    try:
        return contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec counts from behind a byte order mark.
        body = contents.removeprefix(b"\xef\xbb\xbf")
        line = body.count(b"\n", 0, error.start) + 1
        _fail(path, line, f"invalid UTF-8 ({error.reason}): save the file as UTF-8")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}: correct its name") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): name a readable file") from error


def _check_kind(path: Path) -> None:
    if _ending(path) not in (*_DELIMITERS, *_JSON):
        raise UserError(
            f"{path} is of an unknown kind: name a file that ends in "
            f"{', '.join((*_DELIMITERS, *_JSON))}"
        )


def _is_json(path: Path) -> bool:
    return _ending(path) in _JSON


def _ending(path: Path) -> str:
    return path.suffix.lower()


def _kind(value: object) -> str:
    kinds = {type(None): "null or absent", bool: "a boolean", list: "a list", dict: "an object"}
    return kinds.get(type(value), "a string" if isinstance(value, str) else "a number")


def _fail(path: Path, line: int, problem: str) -> NoReturn:
    raise UserError(f"{path}, line {line}: {problem}")
