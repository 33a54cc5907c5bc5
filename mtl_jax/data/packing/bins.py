"""Items into bins: the two ways of packing that batches are made by."""

from __future__ import annotations

import heapq

import numpy as np


def balance(lengths: np.ndarray, bins: int) -> np.ndarray:
    """Assigns items to bins of nearly equal total, longest first to the emptiest bin.

    Longest-processing-time assignment (Graham 1969, doi:10.1137/0117039).

    Args:
        lengths: int [n], in descending order.
        bins: Number of bins; the numbers of items in them differ by one at most.

    Returns:
        int [n], the bin of each item.
    """
    # The first bins that ask for more than this may have one item more, the others not.
    fewest, larger = divmod(len(lengths), bins)
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
