"""What a file or a TFDS data set gives, before its labels become numbers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mtl_jax.config.tasks import Kind
from mtl_jax.data.kinds import Label

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ALL_SINGLE_LABEL: Mapping[str, Kind] = {}
"""The kinds of tasks that are ``single_label``, as those that are left out are."""


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of one split, in their order in the source."""

    texts: list[str]
    """a ``Pair`` where a row has two"""
    labels: dict[str, list[Label]]
    """what each row's cell holds, None where it is missing, per task that has a column"""
    groups: list[str] | None
    """where each row comes from, if the source says so"""
    place: Callable[[int], str]
    """names a row, by its index, in an error"""
    notes: tuple[str, ...] = ()
    """what a reader of these rows should know, of how they were read"""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where tables come from."""

    name: str
    fingerprint: str
    """digest of the contents, wherever they lie"""
    splits: tuple[str, ...]
    """those there are, of train, validation and test"""
    classes: dict[str, tuple[str, ...]]
    """the classes of each task for which the source declares them"""
    notes: tuple[str, ...]
    """what a reader of the data should know"""
    read: Callable[[str], Table]
    """reads one of the splits, and nothing else"""
