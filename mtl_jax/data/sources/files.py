"""CSV, TSV and JSON Lines files as a source of examples."""

from __future__ import annotations

import codecs
import collections
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mtl_jax.config.tasks import Kind
from mtl_jax.core.atomic_write import other_kind
from mtl_jax.core.errors import UserError
from mtl_jax.data.kinds import KINDS, Label
from mtl_jax.data.names import listed, quoted
from mtl_jax.data.pairs import Pair
from mtl_jax.data.sources.base import ALL_SINGLE_LABEL, Source, Table
from mtl_jax.data.sources.delimited import MalformedError, lines_of, read_csv, read_tsv

_DELIMITED = (".csv", ".tsv")
_JSON = (".jsonl", ".json")
ENDINGS = (*_DELIMITED, *_JSON)
"""of the names of files that ``read_table`` reads"""


def open_files(
    paths: dict[str, Path],
    text_column: str,
    columns: dict[str, str],
    kinds: Mapping[str, Kind] = ALL_SINGLE_LABEL,
    pair_column: str | None = None,
) -> Source:
    """Opens the files of a data set.

    Every file must be there; it is parsed only when its split is read. The fingerprint
    leaves the test file out: nothing that is trained or chosen depends on it.

    Args:
        paths: Per split its file: one to train on, maybe one to validate and one to test on.
        text_column: The column that holds the text.
        columns: The label column of each task that has one.
        kinds: The kind of each task; ``single_label`` where it is left out.
        pair_column: The column of the second text, where each row has a pair.

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
        read=lambda split: read_table(paths[split], text_column, columns, kinds, pair_column),
    )


def read_table(
    path: Path,
    text_column: str,
    columns: dict[str, str],
    kinds: Mapping[str, Kind] = ALL_SINGLE_LABEL,
    pair_column: str | None = None,
) -> Table:
    """Reads one file.

    Args:
        path: A ``.csv`` or ``.tsv`` file with a header row, or a ``.jsonl`` or ``.json``
            file with one object per line; UTF-8, with or without a byte order mark.
        text_column: As of ``open_files``.
        columns: As of ``open_files``.
        kinds: As of ``open_files``.
        pair_column: As of ``open_files``.

    Raises:
        UserError: The file cannot be read, lacks a column, or has a malformed line.
    """
    _check_kind(path)
    for task, column in columns.items():
        if column in (text_column, pair_column):
            flag = "--text-column" if pair_column is None else "--text-columns"
            raise UserError(f"{flag} {column} is the label column of {task}, too: name another one")
    of_text = [text_column, *([] if pair_column is None else [pair_column])]
    wanted = (*of_text, *columns.values())
    rows, notes = (_json_rows if _is_json(path) else _delimited_rows)(path, wanted)
    if not rows:
        raise UserError(f"{path} has no rows: name a file that has some")
    texts = []
    for row in rows:
        found = [_text(path, row.line, column, row.values.get(column)) for column in of_text]
        texts.append(Pair(*found) if pair_column is not None else found[0])
    of_tasks: dict[str, Kind] = {task: kinds.get(task, "single_label") for task in columns}
    labels = {
        task: [_label(path, row.line, column, row.values.get(column), kind) for row in rows]
        for (task, column), kind in zip(columns.items(), of_tasks.values(), strict=True)
    }
    return Table(
        texts=texts,
        labels=labels,
        groups=None,
        place=lambda i: f"{path}, line {rows[i].line}",
        notes=(
            *(f"{path}: {note}" for note in notes),
            *_swallowed(path, rows, columns, labels, of_tasks),
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Row:
    """Values by column, the line of the file that they begin on, and its lines if several."""

    line: int
    values: dict[str, Any]
    lines: Sequence[str] = ()


def _delimited_rows(path: Path, wanted: tuple[str, ...]) -> tuple[list[_Row], tuple[str, ...]]:
    contents = _decode(path)
    try:
        sheet = (read_tsv if _ending(path) == ".tsv" else read_csv)(contents)
    except MalformedError as error:
        _fail(path, error.line, error.problem)
    if sheet.header is None:
        return [], ()
    _check_columns(path, wanted, sheet.header)
    lines = lines_of(contents) if any(row.last > row.first for row in sheet.rows) else []
    return [
        _Row(
            row.first,
            dict(zip(sheet.header, row.fields, strict=True)),
            lines[row.first - 1 : row.last] if row.last > row.first else (),
        )
        for row in sheet.rows
    ], sheet.notes


def _swallowed(
    path: Path,
    rows: list[_Row],
    columns: dict[str, str],
    labels: dict[str, list[Label]],
    kinds: Mapping[str, Kind],
) -> list[str]:
    """Warns of rows over lines that end in a label, as if each were a row of its own.

    Args:
        path: The file.
        rows: Its rows.
        columns: Per task its label column.
        labels: Per task the label of each row.
        kinds: Per task its kind.
    """

    def is_known(task: str, cell: str) -> bool:
        try:
            return bool(cell) and KINDS[kinds[task]].read(cell) in known[task]
        except ValueError:
            return False

    if _ending(path) != ".csv":
        return []
    known = {task: set(of_task) for task, of_task in labels.items()}
    warnings = []
    for row in rows:
        names = list(row.values)
        fields = [line.split(",") for line in row.lines]
        alike = [
            len(each) == len(names)
            and all(is_known(task, each[names.index(own)]) for task, own in columns.items())
            for each in fields
        ]
        if sum(alike) > 1:
            warnings.append(
                f"warning: {path}, line {row.line}: a quoted field takes in the lines up to "
                f"{row.line + len(row.lines) - 1}, of which {sum(alike)} look like rows of their "
                'own: where a text begins with a ", quote it and double that'
            )
    return warnings[:5]


def _json_rows(path: Path, wanted: tuple[str, ...]) -> tuple[list[_Row], tuple[str, ...]]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            counts = collections.Counter(name for name, _ in pairs)
            if twice := [column for column in wanted if counts[column] > 1]:
                raise ValueError(f"{quoted(twice[0])} is there twice")
        return row

    rows: list[_Row] = []
    seen: set[str] = set()
    for line, content in enumerate(_decode(path).split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content, parse_constant=_refuse_constant, object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            _fail(path, line, f"malformed JSON ({error}): write one JSON object per line")
        if not isinstance(row, dict):
            _fail(path, line, f"{_kind(row)} and not an object: write one JSON object per line")
        seen.update(row)
        rows.append(_Row(line, row))
    if rows:
        # A label may be left out of some rows, so that only all rows tell the columns.
        _check_columns(path, wanted, sorted(seen))
    return rows, ()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _text(path: Path, line: int, column: str, value: object) -> str:
    if not isinstance(value, str):
        _fail(path, line, f"{column!r} is {_kind(value)} and not a string: put a text there")
    return _unicode(path, line, column, value)


def _label(path: Path, line: int, column: str, value: object, kind: Kind) -> Label:
    try:
        label = KINDS[kind].read(value)
    except ValueError as error:
        _fail(path, line, f"{column!r} is {error}")
    for name in label if isinstance(label, tuple) else (label,):
        if isinstance(name, str):
            _unicode(path, line, column, name)
    return label


def _unicode(path: Path, line: int, column: str, value: str) -> str:
    """The value, which must be one that UTF-8 can write: JSON can hold half of a character."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        _fail(path, line, f"{column!r} is no Unicode text ({error.reason}): correct it")
    return value


def _check_columns(path: Path, wanted: tuple[str, ...], there: list[str]) -> None:
    counts = collections.Counter(there)
    for column in wanted:
        if counts[column] == 0:
            raise UserError(
                f"{path} has no column {column!r}; it has {listed(list(map(quoted, there)), 20)}: "
                "name the columns with --text-column and --label-columns"
            )
        if counts[column] > 1:
            raise UserError(f"{path} has {counts[column]} columns {column!r}: rename all but one")


def _decode(path: Path) -> str:
    contents = _bytes(path)
    if contents.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in contents[:2]:
        _fail(path, 1, "this looks like UTF-16: save the file as UTF-8")
    try:
        return contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec counts from behind a byte order mark.
        body = contents.removeprefix(b"\xef\xbb\xbf")
        line = body.count(b"\n", 0, error.start) + 1
        _fail(path, line, f"invalid UTF-8 ({error.reason}): save the file as UTF-8")


def _bytes(path: Path) -> bytes:
    try:
        # Whoever opens a pipe waits for someone to write to it.
        if (kind := other_kind(path)) == "a folder":
            raise UserError(f"{path} is a folder: name a file")
        if kind:
            raise UserError(
                f"{path} is {kind} and no regular file: write what it gives to one and name that"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}: correct its name") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): name a readable file") from error


def _check_kind(path: Path) -> None:
    if _ending(path) not in (*_DELIMITED, *_JSON):
        raise UserError(
            f"{path} is of an unknown kind: name a file that ends in "
            f"{', '.join((*_DELIMITED, *_JSON))}"
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
