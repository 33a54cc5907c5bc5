"""The labels of a column, gathered as they are read and kept in little memory."""

from __future__ import annotations

import array
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

Label = str | tuple[str, ...] | float | None
"""What a cell holds: a class, classes, or a value; None where the label is missing."""

_CHUNK = 2**16


class Column(Sequence[Label]):
    """The labels of a task, None where one is missing: each distinct one is kept once."""

    def __init__(self, codes: np.ndarray, names: Sequence[Label]):
        """Holds them.

        Args:
            codes: int32 [n]: the place in ``names`` of each.
            names: The distinct ones.
        """
        self.codes, self.names = codes, names

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, index: int) -> Label: ...

    @overload
    def __getitem__(self, index: slice) -> Column: ...

    def __getitem__(self, index: int | slice) -> Label | Column:
        if isinstance(index, slice):
            return Column(self.codes[index], self.names)
        return self.names[self.codes[index]]

    def __iter__(self) -> Iterator[Label]:
        for start in range(0, len(self), _CHUNK):
            yield from map(self.names.__getitem__, self.codes[start : start + _CHUNK].tolist())

    def occurring(self) -> list[Label]:
        """The distinct labels that a row has."""
        there = np.flatnonzero(np.bincount(self.codes, minlength=len(self.names)))
        return [self.names[code] for code in there.tolist()]

    def stored(self) -> tuple[np.ndarray, list[Label] | None]:
        """An array, and the distinct labels for JSON, of which ``restored`` makes it again."""
        return self.codes, list(self.names)


class Numbers(Sequence[Label]):
    """The values of a task, None where one is missing; hardly two are alike, so each is kept."""

    def __init__(self, values: np.ndarray):
        """Holds float64 [n], NaN where one is missing."""
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, index: int) -> Label: ...

    @overload
    def __getitem__(self, index: slice) -> Numbers: ...

    def __getitem__(self, index: int | slice) -> Label | Numbers:
        if isinstance(index, slice):
            return Numbers(self.values[index])
        return _there(float(self.values[index]))

    def __iter__(self) -> Iterator[Label]:
        for start in range(0, len(self), _CHUNK):
            yield from map(_there, self.values[start : start + _CHUNK].tolist())

    def stored(self) -> tuple[np.ndarray, None]:
        """See ``Column``."""
        return self.values, None


def _there(value: float) -> float | None:
    return None if value != value else value


def restored(array: np.ndarray, names: Sequence[Any] | None) -> Column | Numbers:
    """The column of which ``stored`` has given these; lists stand for tuples among the names."""
    if names is None:
        return Numbers(array)
    return Column(array, [tuple(name) if isinstance(name, list) else name for name in names])


class GatherNames:
    """A ``Column`` as it grows."""

    def __init__(self) -> None:
        self._codes: dict[Label, int] = {None: 0}
        self._found = array.array("i")

    def add(self, labels: Sequence[Label]) -> np.ndarray:
        """Takes k labels; returns which of them are there, bool [k]."""
        if isinstance(labels, Column):
            own = [self._codes.setdefault(name, len(self._codes)) for name in labels.names]
            codes = np.array(own, np.int32)[labels.codes]
            self._found.frombytes(codes.tobytes())
            return codes != 0
        for label in dict.fromkeys(labels):
            self._codes.setdefault(label, len(self._codes))
        codes = np.fromiter(map(self._codes.__getitem__, labels), np.int32, len(labels))
        self._found.frombytes(codes.tobytes())
        return codes != 0

    def column(self) -> Column:
        """What it has."""
        return Column(np.frombuffer(self._found, np.int32), list(self._codes))


class GatherNumbers:
    """``Numbers`` as they grow."""

    def __init__(self) -> None:
        self._found = array.array("d")

    def add(self, labels: Sequence[Label]) -> np.ndarray:
        """See ``GatherNames``."""
        if isinstance(labels, Column):
            values = np.array(labels.names, np.float64)[labels.codes]
        else:
            values = np.array(labels, np.float64)  # None becomes NaN
        self._found.frombytes(values.tobytes())
        return ~np.isnan(values)

    def column(self) -> Numbers:
        """See ``GatherNames``."""
        return Numbers(np.frombuffer(self._found, np.float64))


def gathered(labels: Sequence[Any]) -> Column:
    """The labels as a ``Column``, which they may be already."""
    if isinstance(labels, Column):
        return labels
    gathering = GatherNames()
    gathering.add(labels)
    return gathering.column()
