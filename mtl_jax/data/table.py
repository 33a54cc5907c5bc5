"""The rows of one split of a source, read once: labels as numbers, texts as they are wanted."""

from __future__ import annotations

import array
import dataclasses
import gc
import hashlib
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mtl_jax.data.columns import Column, GatherNames, Numbers, restored
from mtl_jax.data.kinds import LabelKind
from mtl_jax.data.pairs import Pair
from mtl_jax.data.sources.base import Rows, Stream
from mtl_jax.data.texts import Keeper

_CHUNK = 2**16


def hashes_of(texts: Iterable[str]) -> np.ndarray:
    """What equal texts have in common, uint64 [n]; space around them does not count.

    The first 64 bits of the SHA-256: of 10 million texts two different ones are taken for the
    same with a probability of 3 in a million.
    """
    found = array.array("Q")
    texts = iter(texts)
    while chunk := list(itertools.islice(texts, _CHUNK)):
        found.frombytes(_first_bits(digests_of(map(str.strip, chunk))).tobytes())
    return np.frombuffer(found, np.uint64)


@dataclasses.dataclass(frozen=True)
class Places:
    """Where each row is, as a source counts; only where the count jumps is kept.

    Attributes:
        rows: int64 [k], ascending: the rows at which it does, the first one among them.
        values: int64 [k]: where these are; the rows that follow are one further each.
    """

    rows: np.ndarray
    values: np.ndarray

    def __getitem__(self, row: int) -> int:
        at = int(np.searchsorted(self.rows, row, side="right")) - 1
        return int(self.values[at]) + row - int(self.rows[at])


@dataclasses.dataclass(frozen=True)
class Table:
    """The n rows of a file, or of a split of a data set.

    Attributes:
        labels: Per task that has a column the label of each row.
        groups: Where each row comes from, if the source says so.
        hashes: ``hashes_of`` the texts.
        odd: int64, the rows whose texts have NUL characters.
        halved: int64, the rows whose pairs lack one of their texts.
        aside: bool [n], those set aside for validation; none where nothing was to be.
        texts: Those of the rows that are not set aside, and those that are.
        places: Where each row is.
        name_place: Names that in an error.
        notes: What to know of how they were read.
    """

    labels: dict[str, Column | Numbers]
    groups: Column | None
    hashes: np.ndarray
    odd: np.ndarray
    halved: np.ndarray
    aside: np.ndarray
    texts: tuple[Sequence[str], Sequence[str]]
    places: Places
    name_place: Callable[[int], str]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.hashes)

    def place(self, row: int) -> str:
        """Names a row in an error."""
        return self.name_place(self.places[row])

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays by name, and a record for JSON, from which ``stored_table`` makes it again.

        The texts are not in them.
        """
        labels = {task: column.stored() for task, column in self.labels.items()}
        arrays = {f"labels {task}": array for task, (array, _) in labels.items()}
        if self.groups is not None:
            arrays["groups"] = self.groups.codes
        arrays |= {"hashes": self.hashes, "odd": self.odd, "halved": self.halved}
        arrays |= {"aside": self.aside, "jumps": self.places.rows, "places": self.places.values}
        return arrays, {
            "names": {task: names for task, (_, names) in labels.items()},
            "groups": None if self.groups is None else list(self.groups.names),
            "notes": list(self.notes),
        }


def stored_table(
    arrays: Mapping[str, np.ndarray],
    record: Mapping[str, Any],
    texts: tuple[Sequence[str], Sequence[str]],
    name_place: Callable[[int], str],
) -> Table:
    """Returns the table of which ``Table.stored`` has given the arrays and the record.

    Args:
        arrays: By name.
        record: The record.
        texts: Those that are not set aside, and those that are.
        name_place: As of ``Table``.

    Raises:
        KeyError: There is less in them.
    """
    groups = record["groups"]
    return Table(
        labels={
            task: restored(arrays[f"labels {task}"], names)
            for task, names in record["names"].items()
        },
        groups=None if groups is None else Column(arrays["groups"], groups),
        hashes=arrays["hashes"],
        odd=arrays["odd"],
        halved=arrays["halved"],
        aside=arrays["aside"],
        texts=texts,
        places=Places(arrays["jumps"], arrays["places"]),
        name_place=name_place,
        notes=tuple(record["notes"]),
    )


def read_table(
    opened: Callable[[], Stream],
    kinds: Mapping[str, LabelKind],
    keepers: Callable[[], tuple[Keeper, Keeper]],
    *,
    set_aside: bool = False,
) -> Table:
    """Reads all rows, texts one block at a time.

    About a tenth of the texts can be set aside, by their SHA-256, so that identical texts land on
    the same side: at least one and not all of them. Where there is one distinct text, none is.

    Args:
        opened: Begins to read; called again in the rare case that of the SHA-256 of all texts none,
            or each one, is a multiple of 10.
        kinds: The kind of each task that has labels.
        keepers: Makes what keeps the texts: those that stay, and those that are set aside.
        set_aside: Whether any are.
    """
    first = _Reading(kinds, keepers(), _tenth if set_aside else None)
    table = first.table(opened())
    if set_aside and not 0 < table.aside.sum() < len(table) and first.lowest != first.highest:
        lowest = first.lowest
        again = _Reading(kinds, keepers(), lambda digests: _first_bits(digests) == lowest)
        table = again.table(opened())
    return table


class _Reading:
    """A pass over the rows.

    Attributes:
        lowest: The smallest of the first 64 bits of the texts' digests, where some are set aside.
        highest: The largest.
    """

    def __init__(
        self,
        kinds: Mapping[str, LabelKind],
        keepers: tuple[Keeper, Keeper],
        choose: Callable[[np.ndarray], np.ndarray] | None,
    ):
        self._keepers, self._choose = keepers, choose
        self._labels = {task: kind.gather() for task, kind in kinds.items()}
        self._beside = {task for task, kind in kinds.items() if kind.beside}
        self._groups = GatherNames()
        self._hashes, self._aside = array.array("Q"), bytearray()
        self._odd, self._halved = array.array("q"), array.array("q")
        self._jumps = array.array("q")
        self._next = -1
        self.lowest, self.highest = 2**64 - 1, 0

    def table(self, stream: Stream) -> Table:
        """Reads them."""
        grouped = False
        for rows in _uncollected(stream.rows):
            count, start = len(rows.texts), len(self._hashes)
            labelled = np.zeros(count, bool)
            for task, gathering in self._labels.items():
                there = gathering.add(rows.labels[task])
                # A text is trained on for a label, whatever distribution stands beside it.
                if task not in self._beside:
                    labelled |= there
            if rows.groups is not None:
                grouped = True
                self._groups.add(rows.groups)
            if "\0" in "".join(rows.texts):
                self._odd.extend(start + i for i, text in enumerate(rows.texts) if "\0" in text)
            if isinstance(rows.texts[0], Pair):
                there = (i for i, t in enumerate(rows.texts) if isinstance(t, Pair) and t.halved)
                self._halved.extend(start + i for i in there)
            self._locate(start, rows.places)
            digests = digests_of(rows.texts) if rows.digests is None else rows.digests
            self._keep(rows.texts, digests, labelled)
        jumps = np.frombuffer(self._jumps, np.int64)
        places = Places(jumps[::2], jumps[1::2])
        stays, aside = self._keepers
        return Table(
            labels={task: of_task.column() for task, of_task in self._labels.items()},
            groups=self._groups.column() if grouped else None,
            hashes=np.frombuffer(self._hashes, np.uint64),
            odd=np.frombuffer(self._odd, np.int64),
            halved=np.frombuffer(self._halved, np.int64),
            aside=np.frombuffer(self._aside, bool),
            texts=(stays.texts(), aside.texts()),
            places=places,
            name_place=stream.place,
            notes=tuple(stream.notes),
        )

    def _locate(self, start: int, places: Sequence[int]) -> None:
        if isinstance(places, range) and places.step == 1:
            if places.start != self._next:
                self._jumps.extend((start, places.start))
            self._next = places.stop
            return
        each = np.asarray(places, np.int64)
        jumps = np.flatnonzero(np.diff(each, prepend=self._next - 1) != 1)
        for jump in jumps.tolist():
            self._jumps.extend((start + jump, int(each[jump])))
        self._next = int(each[-1]) + 1

    def _keep(self, texts: list[str], digests: np.ndarray, labelled: np.ndarray) -> None:
        stays, aside = self._keepers
        hashes, chosen = _first_bits(digests), np.zeros(len(texts), bool)
        if self._choose is not None:
            chosen = self._choose(digests)
            self.lowest = min(self.lowest, int(hashes.min()))
            self.highest = max(self.highest, int(hashes.max()))
        stripped = list(map(str.strip, texts))
        changed = np.fromiter(map(operator.is_not, texts, stripped), bool, len(texts))
        if changed.any():
            of_changed = digests_of([stripped[i] for i in np.flatnonzero(changed).tolist()])
            hashes[changed] = _first_bits(of_changed)
        self._hashes.frombytes(hashes.tobytes())
        self._aside += chosen.tobytes()
        if not chosen.any():
            stays.add(texts, labelled)
            return
        stays.add(list(itertools.compress(texts, (~chosen).tolist())), labelled[~chosen])
        aside.add(list(itertools.compress(texts, chosen.tolist())), labelled[chosen])


def _uncollected(rows: Iterator[Rows]) -> Iterator[Rows]:
    """The same, without Python's search for cycles, of which millions of short rows have none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield from rows
    finally:
        if enabled:
            gc.enable()


def digests_of(texts: Iterable[str]) -> np.ndarray:
    """The SHA-256 of each, uint8 [k, 32]."""
    sha256 = hashlib.sha256
    joined = b"".join([sha256(text.encode()).digest() for text in texts])
    return np.frombuffer(joined, np.uint8).reshape(-1, 32)


def _first_bits(digests: np.ndarray) -> np.ndarray:
    """The first 64, uint64 [k], in the order of the digests."""
    return np.ascontiguousarray(digests[:, :8]).view(">u8")[:, 0].astype(np.uint64)


def _tenth(digests: np.ndarray) -> np.ndarray:
    """Which are multiples of 10, bool [k], as big-endian numbers.

    256 leaves the rest 1 by 5, so that the sum of the bytes leaves that of the number.
    """
    return (digests.sum(1, dtype=np.int64) % 5 == 0) & (digests[:, -1] % 2 == 0)


EMPTY = hashes_of([""])[0]
"""What ``hashes_of`` makes of a text of space alone."""
