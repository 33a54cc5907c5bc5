"""Several texts in one fixed-size row, so that one shape serves a whole run without padding.

Longest-processing-time assignment (Graham 1969, doi:10.1137/0117039) balances the tokens
twice: over the batches of an epoch, then over the rows of a batch. Every batch so has the
same number of texts (but for one) and nearly the same number of tokens.
"""

from __future__ import annotations

import dataclasses
import heapq

import numpy as np

# Neighbours in order of length that may take each other's place from epoch to epoch; the
# price is that each counts as long as the longest of them.
_EXCHANGED = 4

# Numbers of rows that are tried for a layout; the best of more would differ little.
_TRIED = 48


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shape of a batch: ``rows`` x ``length`` tokens, at most ``slots`` texts in a row."""

    rows: int
    length: int
    slots: int


@dataclasses.dataclass(frozen=True)
class Placement:
    """One batch: int [k] indices of its texts, and int [k] the row of each."""

    texts: np.ndarray
    rows: np.ndarray


def balance(lengths: np.ndarray, bins: int, slots: int | None = None) -> np.ndarray:
    """Assigns items to bins of nearly equal total, longest first to the emptiest bin.

    Args:
        lengths: int [n], in descending order.
        bins: Number of bins.
        slots: Most items in a bin, ``bins * slots >= n``; by default as even a number in
            each as can be, equal but for one.

    Returns:
        int [n], the bin of each item.
    """
    # The first bins that ask for more than this may have one item more, the others not.
    fewest, larger = divmod(len(lengths), bins) if slots is None else (slots, 0)
    heap = [(0, 0, index) for index in range(bins)]
    chosen = np.empty(len(lengths), np.int64)
    for item, length in enumerate(lengths.tolist()):
        while heap[0][1] >= fewest + (larger > 0):
            heapq.heappop(heap)
        total, count, index = heap[0]
        larger -= count == fewest
        chosen[item] = index
        heapq.heapreplace(heap, (total + length, count + 1, index))
    return chosen


def _totals(lengths: np.ndarray, groups: np.ndarray, size: int) -> tuple[int, int]:
    tokens = np.bincount(groups, weights=lengths, minlength=size)
    return int(tokens.max()), int(np.bincount(groups, minlength=size).max())


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class TrainPlan:
    """Where every text of an epoch goes. The layout depends on the lengths alone.

    Attributes:
        layout: The shape that every batch of every epoch has, whatever the seed.
        steps: Batches in an epoch.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, devices: int, hidden_size: int):
        """Plans batches of ``batch_size`` texts.

        Args:
            lengths: int [n], tokens of each text.
            batch_size: Texts in a batch; the batches of an epoch differ by at most one.
            devices: The number of rows is a multiple of this.
            hidden_size: Of the backbone, to weigh attention's cost, quadratic in the length
                of a row, against the padding of short rows.
        """
        count = len(lengths)
        ranks = np.argsort(-lengths, kind="stable")
        descending = lengths[ranks]
        descending = descending[np.arange(count) // _EXCHANGED * _EXCHANGED]
        self._class = np.empty(count, np.int64)
        self._class[ranks] = descending
        self.steps = _round_up(count, batch_size) // batch_size
        batch = balance(descending, self.steps)
        self._members = [np.flatnonzero(batch == step) for step in range(self.steps)]
        self._lengths = descending
        self.layout = min(
            (self._fit(rows, min(16, self.steps)) for rows in self._row_counts(devices)),
            key=lambda layout: _cost(layout, hidden_size),
        )
        self.layout = self._fit(self.layout.rows, self.steps)
        self._rows = [
            balance(descending[members], self.layout.rows, len(members))
            for members in self._members
        ]

    def _row_counts(self, devices: int) -> range:
        tokens = self._lengths.sum() / self.steps
        most = max(int(tokens / self._lengths.max()), 1)
        step = devices * max(most // (_TRIED * devices), 1)
        return range(devices, _round_up(most, devices) + 1, step)

    def _fit(self, rows: int, steps: int) -> Layout:
        length = slots = 0
        for members in self._members[:steps]:
            lengths = self._lengths[members]
            tokens, texts = _totals(lengths, balance(lengths, rows, len(lengths)), rows)
            length, slots = max(length, tokens), max(slots, texts)
        return Layout(rows, _round_up(length, 8), slots)

    def epoch(self, order: np.ndarray, batches: np.ndarray) -> list[Placement]:
        """Places the texts of one epoch.

        Args:
            order: A random permutation of the texts, int [n]: decides which of the texts of
                about equal length go where.
            batches: A random permutation of the batches, int [steps].
        """
        texts = order[np.argsort(-self._class[order], kind="stable")]
        return [Placement(texts[self._members[i]], self._rows[i]) for i in batches]


def evaluation_plan(lengths: np.ndarray, layout: Layout) -> list[Placement]:
    """Places texts in as few batches of a given shape as their tokens need, in any order.

    Args:
        lengths: int [n], each at most ``layout.length``.
        layout: The shape of every batch.
    """
    ranks = np.argsort(-lengths, kind="stable")
    descending = lengths[ranks]
    needed = max(
        _round_up(int(lengths.sum()), layout.length) // layout.length,
        _round_up(len(lengths), layout.slots) // layout.slots,
    )
    while True:
        row = balance(descending, needed, layout.slots)
        if not len(lengths) or _totals(descending, row, needed)[0] <= layout.length:
            break
        needed += _round_up(needed, 100) // 100
    placements = []
    for start in range(0, needed, layout.rows):
        members = np.flatnonzero((row >= start) & (row < start + layout.rows))
        placements.append(Placement(ranks[members], row[members] - start))
    return placements


def _cost(layout: Layout, hidden_size: int) -> float:
    # A layer costs 24 h^2 FLOPs a token in its products with weights and 4 h n in attention
    # over a row of n tokens.
    return layout.rows * layout.length * (6 * hidden_size + layout.length)
