"""Several texts in one fixed-size row, so that one shape serves a whole run without padding.

A row is cut into blocks, a few long ones and many short ones. A text lies in one block, and
attention, whose cost grows with the square of what it spans, is computed block by block.

Longest-processing-time assignment (Graham 1969, doi:10.1137/0117039) balances the tokens
over the batches of an epoch, so that every batch has the same number of texts (but for one)
and nearly the same number of tokens; best-fit decreasing (Johnson 1973, *Near-optimal bin
packing algorithms*) then finds each text a block.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Iterator

import numpy as np

# Neighbours in order of length that may take each other's place from epoch to epoch; the
# price is that each counts as long as the longest of them.
_EXCHANGED = 4

# Block lengths that are tried for the short blocks; the best of more would differ little.
_TRIED = 24

# A FLOP of attention's small products costs as much time as this many of the products with
# weights (measured on a CPU with heads of 32; it only decides how rows are cut).
_ATTENTION_FLOP = 3

# Texts in a row, about: pooling costs texts x tokens of a row.
_ROW_TEXTS = 64

# Batches, and texts of a batch, that are looked at to choose the blocks.
_SAMPLED = 64

Blocks = tuple[tuple[int, int], ...]
"""``(count, length)`` of each kind of block in a row, the longest first."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shape of a batch: ``rows`` x ``length`` tokens, at most ``slots`` texts in a row.

    Attributes:
        rows: Rows.
        blocks: How each row is cut, from its start: ``(count, length)`` of equal blocks.
        slots: Texts in a row at most.
    """

    rows: int
    blocks: Blocks
    slots: int

    @property
    def length(self) -> int:
        """Tokens in a row."""
        return sum(count * length for count, length in self.blocks)


@dataclasses.dataclass(frozen=True)
class Placement:
    """One batch of k texts.

    Attributes:
        texts: int [k], which texts.
        rows: int [k], the row of each.
        starts: int [k], where in its row each begins.
    """

    texts: np.ndarray
    rows: np.ndarray
    starts: np.ndarray


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


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def best_fit(lengths: np.ndarray, capacities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Puts each item into the bin that it leaves the least room in, batch by batch.

    Args:
        lengths: int [batches, n], each row in descending order.
        capacities: int [bins], the same for every batch.

    Returns:
        int [batches, n] the bin of each item, -1 where none has room, and int [batches, n]
        what was in that bin before.
    """
    batches, count = lengths.shape
    every = np.arange(batches)
    room = np.tile(capacities, (batches, 1))
    bins, starts = np.full((batches, count), -1), np.zeros((batches, count), np.int64)
    for item in range(count):
        left = room - lengths[:, item, None]
        chosen = np.where(left >= 0, left, np.iinfo(left.dtype).max).argmin(1)
        fits = left[every, chosen] >= 0
        bins[fits, item] = chosen[fits]
        starts[:, item] = capacities[chosen] - room[every, chosen]
        room[every[fits], chosen[fits]] -= lengths[fits, item]
    return bins, starts


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
            devices: Each has equally many rows.
            hidden_size: Of the backbone, to weigh attention's cost, quadratic in the length
                of a block, against the padding of short blocks.
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
        padded = np.zeros((self.steps, max(map(len, self._members))), np.int64)
        for step, members in enumerate(self._members):
            padded[step, : len(members)] = descending[members]
        rows = devices * max(round(padded.shape[1] / (devices * _ROW_TEXTS)), 1)
        blocks = _cheapest(padded, rows, hidden_size)
        bins, starts = best_fit(padded, _capacities(blocks, rows))
        per_row = sum(count for count, _ in blocks)
        offsets = np.append(0, np.cumsum(np.repeat(*np.transpose(blocks)[::-1])))[:-1]
        sizes = [len(members) for members in self._members]
        self._rows = [of[:size] // per_row for of, size in zip(bins, sizes, strict=True)]
        starts += offsets[bins % per_row]
        self._starts = [of[:size] for of, size in zip(starts, sizes, strict=True)]
        slots = max(int(np.bincount(of_batch).max()) for of_batch in self._rows)
        self.layout = Layout(rows, blocks, slots)

    def epoch(self, order: np.ndarray, batches: np.ndarray) -> list[Placement]:
        """Places the texts of one epoch.

        Args:
            order: A random permutation of the texts, int [n]: decides which of the texts of
                about equal length go where.
            batches: A random permutation of the batches, int [steps].
        """
        texts = order[np.argsort(-self._class[order], kind="stable")]
        return [Placement(texts[self._members[i]], self._rows[i], self._starts[i]) for i in batches]


def _cheapest(lengths: np.ndarray, rows: int, hidden_size: int) -> Blocks:
    """The blocks of a row that hold every batch at little cost.

    Args:
        lengths: int [batches, n], each row in descending order.
        rows: Rows in a batch.
        hidden_size: Of the backbone.
    """
    longest = _round_up(int(lengths.max()), 8)
    # A few batches, and of a large batch one text in several, have about the same blocks.
    every = max(len(lengths) // _SAMPLED, 1)
    thinned = max(lengths.shape[1] // _SAMPLED, 1)
    sample, sampled_rows = lengths[::every, thinned // 2 :: thinned], max(rows // thinned, 1)
    best, least = ((1, longest),), math.inf
    for tried in _first_tries(sample, sampled_rows, longest):
        blocks = _grown(tried, sample, sampled_rows, hidden_size, least)
        if blocks:
            best, least = blocks, _cost(blocks, hidden_size)
    times = thinned * sampled_rows / rows
    best = tuple((max(round(count * times), 1), length) for count, length in best)
    return _grown(best, lengths, rows, hidden_size, math.inf) or best


def _first_tries(lengths: np.ndarray, rows: int, longest: int) -> Iterator[Blocks]:
    tokens = -(-int(lengths.sum(1).max()) // rows)
    most = max(tokens // longest, 1)
    yield ((most, longest),)
    step = 8 * max(longest // (8 * _TRIED), 1)
    for short in range(longest - step, 0, -step):
        for long in sorted({round(most ** (i / _TRIED)) for i in range(_TRIED)}):
            yield ((long, longest), (max((tokens - long * longest) // short, 1), short))


def _grown(
    blocks: Blocks, lengths: np.ndarray, rows: int, hidden_size: int, budget: float
) -> Blocks | None:
    """``blocks`` and as many more as every batch needs; None where these cost ``budget``."""
    # Costs rise with every block that is added: most tries end before they fit.
    while _cost(blocks, hidden_size) < budget:
        bins, _ = best_fit(lengths, _capacities(blocks, rows))
        homeless = np.where(bins < 0, lengths, 0)
        if not homeless.any():
            return blocks
        kind = max(i for i, (_, size) in enumerate(blocks) if size >= homeless.max())
        more = max(int(homeless.sum(1).max()) // (blocks[kind][1] * rows), 1)
        blocks = tuple((count + more * (i == kind), size) for i, (count, size) in enumerate(blocks))
    return None


def _capacities(blocks: Blocks, rows: int) -> np.ndarray:
    return np.tile(np.repeat(*np.transpose(blocks)[::-1]), rows)


def evaluation_plan(lengths: np.ndarray, layout: Layout) -> list[Placement]:
    """Places texts in as few batches of a given shape as their tokens need, in any order.

    Args:
        lengths: int [n], each at most ``layout.length``.
        layout: The shape of every batch; its rows are of one block.
    """
    ranks = np.argsort(-lengths, kind="stable")
    descending = lengths[ranks]
    needed = max(
        _round_up(int(lengths.sum()), layout.length) // layout.length,
        _round_up(len(lengths), layout.slots) // layout.slots,
    )
    while True:
        row = balance(descending, needed, layout.slots)
        if not len(lengths) or np.bincount(row, descending).max() <= layout.length:
            break
        needed += _round_up(needed, 100) // 100
    placements = []
    for first in range(0, needed, layout.rows):
        members = np.flatnonzero((row >= first) & (row < first + layout.rows))
        rows = row[members] - first
        placements.append(Placement(ranks[members], rows, _ends(descending[members], rows)))
    return placements


def _ends(lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Where the texts before each one in its row end."""
    order = np.argsort(rows, kind="stable")
    ends = np.cumsum(lengths[order])
    before = ends - lengths[order]
    first = np.flatnonzero(np.diff(rows[order], prepend=-1))
    before -= np.repeat(before[first], np.diff(np.append(first, len(rows))))
    starts = np.empty_like(before)
    starts[order] = before
    return starts


def _cost(blocks: Blocks, hidden_size: int) -> float:
    # A layer costs 24 h^2 FLOPs a token in its products with weights and 4 h n in attention
    # over a block of n tokens.
    return sum(
        count * length * (6 * hidden_size + _ATTENTION_FLOP * length) for count, length in blocks
    )
