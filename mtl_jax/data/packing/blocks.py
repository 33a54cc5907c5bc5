"""How the rows of a batch are cut into blocks, for texts of given lengths.

A text lies in one block, and attention, whose cost grows with the square of what it spans,
is computed block by block: a few long blocks and many short ones cost the least.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from mtl_jax.data.packing.bins import best_fit

# Block lengths that are tried for the short blocks; the best of more would differ little.
_TRIED = 24

# A FLOP of attention's small products costs as much time as this many of the products with
# weights (measured on a CPU with heads of 32; it only decides how rows are cut).
_ATTENTION_FLOP = 3

# Batches, and texts of a batch, that are looked at to choose the blocks.
_SAMPLED = 64

Blocks = tuple[tuple[int, int], ...]
"""``(count, length)`` of each kind of block in a row, the longest first."""


def block_lengths(blocks: Blocks, rows: int) -> np.ndarray:
    """Int [rows * blocks of a row], the length of each block, row by row."""
    return np.tile(np.repeat(*np.transpose(blocks)[::-1]), rows)


def row_length(blocks: Blocks) -> int:
    """Tokens in a row."""
    return sum(count * length for count, length in blocks)


def cheapest_blocks(lengths: np.ndarray, rows: int, hidden_size: int) -> Blocks:
    """The blocks of a row that hold every batch at little cost.

    Args:
        lengths: int [batches, n], each row in descending order.
        rows: Rows in a batch.
        hidden_size: Of the backbone.
    """
    longest = -(-int(lengths.max()) // 8) * 8
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
        bins, _ = best_fit(lengths, block_lengths(blocks, rows))
        homeless = np.where(bins < 0, lengths, 0)
        if not homeless.any():
            return blocks
        kind = max(i for i, (_, size) in enumerate(blocks) if size >= homeless.max())
        more = max(int(homeless.sum(1).max()) // (blocks[kind][1] * rows), 1)
        blocks = tuple((count + more * (i == kind), size) for i, (count, size) in enumerate(blocks))
    return None


def _cost(blocks: Blocks, hidden_size: int) -> float:
    # A layer costs 24 h^2 FLOPs a token in its products with weights and 4 h n in attention
    # over a block of n tokens.
    return sum(
        count * length * (6 * hidden_size + _ATTENTION_FLOP * length) for count, length in blocks
    )
