"""What a file or a data set gives, before its labels become numbers."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Self

import numpy as np

from mtl_jax.config.tasks import Kind
from mtl_jax.core.errors import UserError
from mtl_jax.core.names import listed, quoted
from mtl_jax.data.columns import Label
from mtl_jax.data.kinds import LabelKind
from mtl_jax.data.pairs import Pair
from mtl_jax.data.soft_labels import MostProbable, is_soft, label_kinds


@dataclasses.dataclass(frozen=True)
class Fields:
    """What is read of each row.

    Attributes:
        texts: The column of the text, or the two of a pair.
        labels: The label column of each task that has one; of its distributions by ``soft_name``.
        kinds: How each of these is read.
    """

    texts: tuple[str, ...]
    labels: Mapping[str, str]
    kinds: Mapping[str, LabelKind]

    @classmethod
    def of(
        cls, texts: Sequence[str], columns: Mapping[str, str], kinds: Mapping[str, Kind]
    ) -> Self:
        """Those columns, by the kinds of tasks, ``single_label`` where one is left out."""
        return cls(tuple(texts), dict(columns), label_kinds(columns, kinds))

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, each once."""
        return tuple(dict.fromkeys((*self.texts, *self.labels.values())))

    @property
    def hard(self) -> Self:
        """The same without distributions, which only texts to train on need."""
        kept = {name: column for name, column in self.labels.items() if not is_soft(name)}
        return dataclasses.replace(
            self, labels=kept, kinds={name: self.kinds[name] for name in kept}
        )

    @property
    def label_flags(self) -> str:
        """The flags that name the columns of the labels."""
        return "--label-columns" + (" and --soft-labels" if any(map(is_soft, self.labels)) else "")

    @property
    def text_flag(self) -> str:
        """The flag that names the columns of the texts."""
        return "--text-column" if len(self.texts) == 1 else "--text-columns"

    def check(self, where: object, there: Sequence[str]) -> None:
        """Refuses a table that lacks a column, or has one twice.

        Args:
            where: What to call it in an error.
            there: The columns that it has.

        Raises:
            UserError: It does.
        """
        counts = collections.Counter(there)
        for column in self.columns:
            if counts[column] == 0:
                raise UserError(
                    f"{where} has no column {column!r}; it has "
                    f"{listed(list(map(quoted, there)), 20)}: {self._remedy(column, there)}"
                )
            if counts[column] > 1:
                raise UserError(
                    f"{where} has {counts[column]} columns {column!r}: rename all but one"
                )

    def _remedy(self, column: str, there: Sequence[str]) -> str:
        """What to do about a column that is not there."""
        if other := self.other_delimiter(there):
            return other
        labels = f" and {self.label_flags}" if self.labels else ""
        flags = f"name the columns with {self.text_flag}{labels}"
        alike = [name for name in there if name.strip().lower() == column.strip().lower()]
        return f"{flags}; did you mean {alike[0]!r}?" if alike else flags

    def other_delimiter(self, there: Sequence[str]) -> str | None:
        """What to do about a table whose delimiter is another one, None where that isn't so.

        Args:
            there: The columns that it has as it was read: one, where so.
        """
        wanted = {column.strip().lower() for column in self.columns}
        kinds = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}
        for delimiter, name in kinds.items() if len(there) == 1 else ():
            fields = {
                field.strip().strip('"').strip().lower() for field in there[0].split(delimiter)
            }
            if len(fields) > 1 and wanted & fields:
                return (
                    f"its fields have {name} between them: save it as .csv with commas, or as .tsv"
                )
        return None

    def joined(self, texts: Sequence[list[str]]) -> list[str]:
        """The texts of k rows, ``Pair`` where there are two columns, from k of each column."""
        return texts[0] if len(texts) == 1 else list(map(Pair, *texts))

    def record(self) -> list[object]:
        """The same as JSON, of which digests are made."""
        # What is read by its largest share is no copy of what is read as it stands.
        kinds = {
            task: "most_probable" if isinstance(kind, MostProbable) else kind.name
            for task, kind in self.kinds.items()
        }
        return [list(self.texts), dict(self.labels), kinds]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some rows of a split, one after the other."""

    texts: list[str]
    """k texts; each a ``Pair`` where a row has two"""
    labels: Mapping[str, Sequence[Label]]
    """what each row's cell holds, None where it is missing, per task that has a column"""
    places: Sequence[int]
    """where each is in the source, as ``Stream.place`` is told it"""
    groups: list[str] | None = None
    """where each row comes from, if the source says so"""
    digests: np.ndarray | None = None
    """uint8 [k, 32]: the SHA-256 of each text, where it has been worked out"""


@dataclasses.dataclass(frozen=True)
class Stream:
    """The rows of one split in their order in the source, to be read once."""

    rows: Iterator[Rows]
    """what comes next is read when it is asked for"""
    place: Callable[[int], str]
    """names a row in an error, from what ``Rows.places`` says of it"""
    notes: list[str] = dataclasses.field(default_factory=list)
    """what a reader should know of how the rows were read; whole when the last one has been"""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where rows come from."""

    name: str
    fingerprint: Callable[[], str]
    """digest of the contents, wherever they lie; it may read them all"""
    splits: tuple[str, ...]
    """those there are, of train, validation and test"""
    classes: dict[str, tuple[str, ...]]
    """the classes of each task for which the source declares them"""
    notes: tuple[str, ...]
    """what a reader of the data should know"""
    stream: Callable[[str], Stream]
    """reads one of the splits, and nothing else"""
    digest: Callable[[str], str]
    """of all that ``stream`` gives of a split"""
    size: Callable[[str], int]
    """bytes that the texts of a split take, about"""
