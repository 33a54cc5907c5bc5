"""CSV, TSV, JSON Lines and Parquet files as a source of examples, read as a stream."""

from __future__ import annotations

import codecs
import collections
import csv
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn, TextIO

from mtl_jax.core.atomic_write import other_kind
from mtl_jax.core.errors import UserError, reason
from mtl_jax.core.names import quoted
from mtl_jax.data.columns import Label
from mtl_jax.data.kinds import LabelKind, type_in_words
from mtl_jax.data.sources import arrow_csv
from mtl_jax.data.sources.base import Fields, Rows, Source, Stream
from mtl_jax.data.sources.delimited import Columns, MalformedError, Sheet, read_csv, read_tsv
from mtl_jax.data.sources.parsing_process import pays, read_in_process
from mtl_jax.data.sources.values import Labels, UnusableError, label_of, text_of

_DELIMITED = (".csv", ".tsv")
_JSON = (".jsonl", ".json")
_PARQUET = ".parquet"
ENDINGS = (*_DELIMITED, *_JSON, _PARQUET)
"""of the names of files that ``stream_table`` reads"""
_ROWS, _BYTES = 4096, 2**20
# Texts of a Parquet file are compressed, to a third about.
_UNPACKED = 3
# What packed files begin with, and what to do.
_PACKED = {
    b"\x1f\x8b": "this is compressed by gzip: unpack it first",
    b"PK\x03\x04": "this is a zip file or a workbook: unpack it first, or save it as CSV",
}
# Rows that may have taken in others, of which as many are told as matter.
_MOST_SUSPECTS, _MOST_WARNINGS = 1000, 5


def open_files(paths: dict[str, Path], fields: Fields) -> Source:
    """Opens the files of a data set.

    Every file must be there; it is parsed only when its split is read. The fingerprint
    leaves the test file out: nothing that is trained or chosen depends on it.

    Args:
        paths: Per split its file: one to train on, maybe one to validate and one to test on.
        fields: The columns that are read.

    Raises:
        UserError: A file is not there or is of another kind.
    """
    for path in paths.values():
        _check_kind(path)
        with _open(path):
            pass

    def fingerprint() -> str:
        lines = [f"{split}:{_digest(path)}\n" for split, path in paths.items() if split != "test"]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def of_split(split: str) -> Fields:
        return fields if split == "train" else fields.hard

    return Source(
        name=str(paths["train"]),
        fingerprint=fingerprint,
        splits=tuple(paths),
        classes={},
        notes=(),
        stream=lambda split: _soonest(paths[split], of_split(split)),
        digest=lambda split: _digest_of_rows(paths[split], of_split(split)),
        size=lambda split: _size(paths[split]),
    )


def _soonest(path: Path, fields: Fields) -> Stream:
    stream = stream_table(path, fields)
    if not pays(path.stat().st_size):
        return stream
    return read_in_process(stream, stream_table, path, fields)


def stream_table(path: Path, fields: Fields) -> Stream:
    """Reads one file from its first row to its last.

    Args:
        path: A ``.csv`` or ``.tsv`` file with a header row, or a ``.jsonl`` or ``.json``
            file with one object per line; UTF-8, with or without a byte order mark. Or a
            ``.parquet`` file.
        fields: The columns that are read.

    Raises:
        UserError: The file cannot be read, lacks a column, or has a malformed line: here, or
            where the rows come to it.
    """
    _check_kind(path)
    for task, column in fields.labels.items():
        if column in fields.texts:
            raise UserError(
                f"{fields.text_flag} {column} is the label column of {task}, too: name another one"
            )
    table = _Table(path, fields)
    if _ending(path) == _PARQUET:
        from mtl_jax.data.sources import parquet

        with _open(path):
            rows = parquet.read_rows(path, fields)
        return Stream(_some(path, rows), lambda row: f"{path}, row {row}")
    notes: list[str] = []
    rows = table.json_rows() if _ending(path) in _JSON else table.delimited_rows(notes)
    return Stream(_some(path, table.decoded(rows)), lambda line: f"{path}, line {line}", notes)


def _some(path: Path, rows: Iterator[Rows]) -> Iterator[Rows]:
    """The same; refuses a file without any."""
    there = False
    for each in rows:
        there = True
        yield each
    if not there:
        raise UserError(f"{path} has no rows: name a file that has some")


@dataclasses.dataclass(frozen=True)
class _Table:
    """A file, and the columns that are wanted of it."""

    path: Path
    fields: Fields

    def decoded(self, rows: Iterator[Rows]) -> Iterator[Rows]:
        """The same; says where a file can't be read."""
        try:
            yield from rows
        except MalformedError as error:
            _fail(self.path, error.line, error.problem)
        except UnicodeDecodeError as error:
            line = _undecodable_line(self.path)
            _fail(self.path, line, f"invalid UTF-8 ({error.reason}): save the file as UTF-8")
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def delimited_rows(self, notes: list[str]) -> Iterator[Rows]:
        """The rows of a CSV or TSV file.

        Args:
            notes: What to know of how they were read is added to these.
        """
        commas = _ending(self.path) == ".csv"
        try:
            sheet = self._csv() if commas else read_tsv(self._opened)
        except MalformedError as error:
            # Of fields with another delimiter, only some lines can't be read.
            with self._opened() as file:
                header = next(csv.reader([file.readline()], delimiter="," if commas else "\t"), [])
            if remedy := self.fields.other_delimiter(header):
                raise MalformedError(1, remedy) from error
            raise
        notes += [f"{self.path}: {note}" for note in sheet.notes]
        if sheet.header is None:
            return
        self.fields.check(self.path, sheet.header)
        columns, kinds = self.fields.labels, self.fields.kinds
        of_texts = [sheet.header.index(column) for column in self.fields.texts]
        places = {task: sheet.header.index(column) for task, column in columns.items()}
        names = {task: Labels(column, kinds[task]) for task, column in columns.items()}
        suspects = _Suspects(len(sheet.header), places)
        for block in sheet.blocks:
            if commas:
                suspects.look(block)
            labels = {
                task: self._labels(names[task], block.cells(place), block.firsts)
                for task, place in places.items()
            }
            texts = [block.texts(place) for place in of_texts]
            yield Rows(self.fields.joined(texts), labels, block.firsts)
        notes += suspects.warnings(self.path, kinds, names)

    def _opened(self) -> TextIO:
        return _open_text(self.path, newline="")

    def _csv(self) -> Sheet:
        if self.path.stat().st_size < arrow_csv.LARGE:
            return read_csv(self._opened)
        return arrow_csv.read_csv(self.path, self._opened, self.fields.columns)

    def _labels(
        self, names: Labels, cells: Sequence[object], lines: Sequence[int]
    ) -> Sequence[Label]:
        try:
            return names.of(cells)
        except UnusableError as error:
            _fail(self.path, lines[error.index], str(error))

    def json_rows(self) -> Iterator[Rows]:
        """The rows of a JSON Lines file."""
        # A label may be left out of some rows, so that only all rows tell the columns.
        fields, seen = self.fields, dict[str, None]()
        of_texts = {*fields.texts}
        texts, labels, places = self._none()
        for line, row in self._objects():
            seen.update(dict.fromkeys(row))
            if not row.keys() >= of_texts:
                self._check_all(seen, line)
            try:
                for column, of_column in zip(fields.texts, texts, strict=True):
                    of_column.append(text_of(column, row.get(column)))
                for task, column in fields.labels.items():
                    labels[task].append(label_of(column, row.get(column), fields.kinds[task]))
            except UnusableError as error:
                _fail(self.path, line, str(error))
            places.append(line)
            if len(places) == _ROWS:
                yield Rows(fields.joined(texts), labels, places)
                texts, labels, places = self._none()
        if seen:
            self.fields.check(self.path, sorted(seen))
        if places:
            yield Rows(fields.joined(texts), labels, places)

    def _none(self) -> tuple[list[list[str]], dict[str, list[Label]], list[int]]:
        """Room for the texts of each column, the labels of each task, and the places."""
        return [[] for _ in self.fields.texts], {task: [] for task in self.fields.labels}, []

    def _check_all(self, seen: dict[str, None], after: int) -> None:
        """Refuses a column that no row has, when one lacks a text: the rest is looked at, too."""
        for line, row in self._objects():
            if line > after:
                seen.update(dict.fromkeys(row))
        self.fields.check(self.path, sorted(seen))

    def _objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        wanted = self.fields.columns

        def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            row = dict(pairs)
            if len(row) < len(pairs):
                counts = collections.Counter(name for name, _ in pairs)
                if twice := [column for column in wanted if counts[column] > 1]:
                    raise ValueError(f"{quoted(twice[0])} is there twice")
            return row

        with _open_text(self.path, newline="\n") as file:
            for line, content in enumerate(file, start=1):
                if not content.strip():
                    continue
                try:
                    row = json.loads(
                        content, parse_constant=_refuse_constant, object_pairs_hook=once
                    )
                except (ValueError, RecursionError) as error:
                    problem = f"malformed JSON ({error}): write one JSON object per line"
                    _fail(self.path, line, problem)
                if not isinstance(row, dict):
                    found = type_in_words(row)
                    problem = f"{found} and not an object: write one JSON object per line"
                    _fail(self.path, line, problem)
                yield line, row


class _Suspects:
    """Rows over several lines that end in labels, as if each line were a row of its own."""

    def __init__(self, columns: int, places: dict[str, int]):
        self._columns, self._places = columns, places
        self._found: list[tuple[int, int, list[dict[str, str]]]] = []

    def look(self, block: Columns) -> None:
        """Keeps those of a block in which at least two lines have a field for each column."""
        for index, lines in block.lines.items():
            fields = [line.split(",") for line in lines]
            alike = [
                {task: each[place].strip() for task, place in self._places.items()}
                for each in fields
                if len(each) == self._columns and all(each[p] for p in self._places.values())
            ]
            if len(alike) > 1 and len(self._found) < _MOST_SUSPECTS:
                self._found.append((block.firsts[index], len(lines), alike))

    def warnings(
        self, path: Path, kinds: Mapping[str, LabelKind], names: Mapping[str, Labels]
    ) -> list[str]:
        """Warns of those whose lines end in labels that there are, ``names`` by task."""
        known = {task: {*of_task.values()} - {None} for task, of_task in names.items()}

        def is_label(task: str, cell: str) -> bool:
            try:
                return label_of(task, cell, kinds[task]) in known[task]
            except UnusableError:
                return False

        warnings = []
        for line, lines, labels in self._found:
            alike = sum(all(is_label(task, cell) for task, cell in of.items()) for of in labels)
            if alike > 1:
                warnings.append(
                    f"warning: {path}, line {line}: a quoted field takes in the lines up to "
                    f"{line + lines - 1}, of which {alike} look like rows of their "
                    'own: where a text begins with a ", quote it and double that'
                )
        return warnings[:_MOST_WARNINGS]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value, null is")


def _open_text(path: Path, newline: str) -> TextIO:
    with _open(path) as file:
        start = file.read(4)
    if start in _PACKED or start[:2] in _PACKED:
        _fail(path, 1, _PACKED[start if start in _PACKED else start[:2]])
    start = start[:2]
    if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in start:
        _fail(path, 1, "this looks like UTF-16: save the file as UTF-8")
    return path.open(encoding="utf-8-sig", newline=newline)


def _undecodable_line(path: Path) -> int:
    """The first line that is no UTF-8, from 1."""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    with path.open("rb") as file:
        while True:
            block = file.read(_BYTES)
            try:
                line += decoder.decode(block, final=not block).count("\n")
            except UnicodeDecodeError as error:
                return line + error.object.count(b"\n", 0, error.start)
            if not block:
                return line


def _open(path: Path) -> BufferedReader:
    try:
        # Whoever opens a pipe waits for someone to write to it.
        if (kind := other_kind(path)) == "a folder":
            raise UserError(f"{path} is a folder: name a file")
        if kind:
            raise UserError(
                f"{path} is {kind} and no regular file: write its contents to a file and name that"
            )
        return path.open("rb")
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}: correct its name") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _digest(path: Path) -> str:
    try:
        with _open(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _digest_of_rows(path: Path, fields: Fields) -> str:
    words = json.dumps([_digest(path), _ending(path), fields.record()])
    return hashlib.sha256(words.encode()).hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size * (_UNPACKED if _ending(path) == _PARQUET else 1)


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot read {path} ({reason(error)}): name a readable file")


def _check_kind(path: Path) -> None:
    if _ending(path) not in ENDINGS:
        raise UserError(
            f"{path} is of an unknown kind: name a file that ends in {', '.join(ENDINGS)}"
        )


def _ending(path: Path) -> str:
    return path.suffix.lower()


def _fail(path: Path, line: int, problem: str) -> NoReturn:
    raise UserError(f"{path}, line {line}: {problem}")
