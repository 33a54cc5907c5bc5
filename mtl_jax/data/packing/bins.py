"""Items into bins: the two ways of packing that batches are made by."""

from __future__ import annotations

import numpy as np

# Bins, of all batches together, that are looked at in one go.
_AT_ONCE = 1 << 17


def balance(lengths: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Assigns items to bins of nearly equal total, longest first to the emptiest bin.

    Longest-processing-time assignment (Graham 1969, doi:10.1137/0117039). Of equally full bins
    the one with the fewest items is next, and of those the first.

    Args:
        lengths: int [n], in descending order.
        bins: Number of bins; the numbers of items in them differ by one at most.

    Returns:
        int64 [n] the bin of each item, and int64 [n] how many items it had before.
    """
    # The first bins that ask for more than this may have one item more, the others not.
    fewest, larger = divmod(len(lengths), bins)
    # A bin is one number, its total, count and index from the highest bits on, which orders
    # bins as those three do. They are kept in order.
    of_index, of_count = (bins - 1).bit_length(), (fewest + 1).bit_length()
    full = np.arange(bins, dtype=np.int64)
    chosen, before = np.empty(len(lengths), np.int64), np.empty(len(lengths), np.int64)
    edges = np.flatnonzero(np.diff(lengths)) + 1
    for item, end in zip([0, *edges.tolist()], [*edges.tolist(), len(lengths)], strict=True):
        while item < end:
            more = ((int(lengths[item]) << of_count) + 1) << of_index
            # These come before the first of them does with an item more, and so each has one.
            ready, full = np.split(full, [min(np.searchsorted(full, full[0] + more), end - item)])
            counts = ready >> of_index & (1 << of_count) - 1
            last = counts == fewest
            takes = (counts < fewest) | (last & (np.cumsum(last) <= larger))
            larger -= int((last & takes).sum())
            # Those that take none have all they may.
            ready, stop = ready[takes], item + int(takes.sum())
            chosen[item:stop] = ready & (1 << of_index) - 1
            before[item:stop] = counts[takes]
            full = _merged(ready + more, full)
            item = stop
    return chosen, before


def _merged(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Two sorted arrays as one."""
    if not len(one):
        return other
    # What comes after all of the first is as it should be.
    end = np.searchsorted(other, one[-1])
    # This sort takes two sorted parts in one pass.
    together = np.sort(np.concatenate([one, other[:end]]), kind="stable")
    return np.concatenate([together, other[end:]])


def best_fit(lengths: np.ndarray, capacities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Puts each item into the bin that it leaves the least room in, batch by batch.

    Best-fit decreasing (Johnson 1973, *Near-optimal bin packing algorithms*).

    Args:
        lengths: int [batches, n], each row in descending order.
        capacities: int [bins], the same for every batch.

    Returns:
        int [batches, n] the bin of each item, -1 where none has room, and int [batches, n]
        what was in that bin before.
    """
    bins = np.empty(lengths.shape, np.int64)
    starts = np.empty(lengths.shape, np.int64)
    # Some batches at a time: what is looked at stays in the processor's cache.
    some = max(_AT_ONCE // len(capacities), 1)
    for first in range(0, len(lengths), some):
        part = slice(first, first + some)
        bins[part], starts[part] = _best_fit(lengths[part], capacities)
    return bins, starts


def _best_fit(lengths: np.ndarray, capacities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    batches, count = lengths.shape
    every = np.arange(batches)
    # As unsigned numbers those below 0, of bins without room, are the largest.
    signed, unsigned = next(
        kinds
        for kinds in ((np.int16, np.uint16), (np.int32, np.uint32), (np.int64, np.uint64))
        if max(capacities.max(), lengths.max()) <= np.iinfo(kinds[0]).max
    )
    lengths = lengths.astype(signed)
    room = np.tile(capacities.astype(signed), (batches, 1))
    bins, starts = np.full((batches, count), -1), np.zeros((batches, count), np.int64)
    for item in range(count):
        left = room - lengths[:, item, None]
        chosen = left.view(unsigned).argmin(1)
        fits = left[every, chosen] >= 0
        bins[fits, item] = chosen[fits]
        starts[:, item] = capacities[chosen] - room[every, chosen]
        room[every[fits], chosen[fits]] -= lengths[fits, item]
    return bins, starts
