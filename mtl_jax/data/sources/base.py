"""What a file or a TFDS data set gives, before its labels become numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some rows of a split, one after the other."""

    texts: list[str]
    """k texts"""
    labels: dict[str, list[str | None]]
    """the class name of each row, None where it is missing, per task that has a column"""
    places: Sequence[int]
    """where each is in the source, as ``Stream.place`` is told it"""
    groups: list[str] | None = None
    """where each row comes from, if the source says so"""


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
    fingerprint: str
    """digest of the contents, wherever they lie"""
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
