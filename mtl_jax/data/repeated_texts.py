"""Texts that occur twice: within a split, in several of them, or with other labels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from mtl_jax.data.findings import Finding, by_share
from mtl_jax.data.kinds import KINDS, has_label, kind_of
from mtl_jax.data.table import EMPTY

T = TypeVar("T")
# Texts whose hashes are compared at a time: 2 to this power, about.
_AT_A_TIME = 20


def seen_before(split: str, hashes: np.ndarray, known: Mapping[str, np.ndarray]) -> list[Finding]:
    """Says how many texts of a split are among those of others, where some are.

    Args:
        split: The split.
        hashes: ``hashes_of`` its texts, uint64 [n].
        known: The same of each other split.
    """
    findings = []
    for other, of_other in known.items():

        def among(mine: np.ndarray, theirs: np.ndarray, of_other: np.ndarray = of_other) -> int:
            return _among(hashes[mine], np.sort(of_other[theirs]))

        count = sum(_part_by_part(among, hashes, of_other))
        if count:
            name = "training" if other == "train" else other
            words = f"{split}: {count:,} of {len(hashes):,} texts are among those of {name}"
            findings.append(by_share(count, len(hashes), words))
    return findings


def _among(some: np.ndarray, known: np.ndarray) -> int:
    """How many of some numbers are among known ones, which ascend."""
    if not len(known):
        return 0
    some = np.sort(some)  # neighbours are looked up soonest one after the other
    places = np.minimum(np.searchsorted(known, some), len(known) - 1)
    return int((known[places] == some).sum())


def repeated(split: str, hashes: np.ndarray) -> list[Finding]:
    """Says how many texts of a split are there before in it, where some are.

    Args:
        split: The split.
        hashes: ``hashes_of`` its texts, uint64 [n].
    """

    def repeats(there: np.ndarray) -> int:
        alike = np.sort(hashes[there])
        return int((alike[1:] == alike[:-1]).sum())

    count = sum(_part_by_part(repeats, hashes))
    if not count:
        return []
    return [Finding("note", f"{split}: {count:,} of {len(hashes):,} texts repeat another one")]


def contradictions(known: np.ndarray, labels: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    """Says how many texts to train on occur with labels that differ, where some do.

    Classes differ wherever they are not the same; numbers, which raters seldom agree on, where they
    are further apart than the standard deviation of all.

    Args:
        known: ``hashes_of`` the texts, uint64 [n].
        labels: Per task those of the texts, as ``kinds`` tells.
    """
    for task, of_task in labels.items():
        labelled, has_classes = has_label(of_task), KINDS[kind_of(of_task)].has_classes
        far = 0.0 if has_classes or not labelled.any() else float(of_task[labelled].std())

        def count(
            there: np.ndarray,
            labelled: np.ndarray = labelled,
            of_task: np.ndarray = of_task,
            far: float = far,
        ) -> tuple[int, int]:
            there &= labelled
            order = np.argsort(hashes := known[there])
            starts = np.flatnonzero(np.diff(hashes[order], prepend=EMPTY))
            if not len(starts):
                return 0, 0
            ordered = of_task[there][order]
            of_text = [f.reduceat(ordered, starts) for f in (np.minimum, np.maximum)]
            torn = (of_text[1] - of_text[0] > far).reshape(len(starts), -1).any(1).sum()
            return int(torn), len(starts)

        torn, distinct = map(sum, zip(*_part_by_part(count, known), strict=True))
        if torn:
            apart = f"{task} values more than a standard deviation apart"
            what = f"different {task} labels" if has_classes else apart
            words = f"train: {torn:,} of {distinct:,} distinct texts occur with {what}"
            yield by_share(torn, distinct, words)


def _part_by_part(find: Callable[..., T], *hashes: np.ndarray) -> list[T]:
    """What is found in some texts at a time.

    Equal ones are so at the same time, and not many at once: what is worked out of them needs
    little memory.

    Args:
        find: Is given which of the texts, of those that are not empty, bool [n] for each of the
            ``hashes``.
        hashes: uint64 [n] each.
    """
    bits = min((max(map(len, hashes)) >> _AT_A_TIME).bit_length(), 16)
    high = 3 if sys.byteorder == "little" else 0

    def of_part(part: int) -> T:
        there = [of != EMPTY for of in hashes]
        if bits:
            for mask, of in zip(there, hashes, strict=True):
                mask &= of.view(np.uint16)[high::4] >> (16 - bits) == part
        return find(*there)

    # One after the other: threads would each keep memory of their own.
    return [of_part(part) for part in range(2**bits)]
