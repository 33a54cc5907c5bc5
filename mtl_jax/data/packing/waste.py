"""Batches too small for their devices: a row is as long as the longest text, whatever is in it."""

from __future__ import annotations

import numpy as np

from mtl_jax.data.packing.plan import PackingPlan

# Above it more than a third of the time goes into padding.
MOST_PADDING = 0.35
# Texts, evenly chosen by length, that other sizes are tried on.
_SAMPLED = 20_000


def mending_batch_size(
    lengths: np.ndarray, batch_size: int, devices: int, hidden_size: int
) -> int | None:
    """The next size, of twice, four times ... as many texts, whose batches are not mostly padding.

    Args:
        lengths: int [n], tokens of each text.
        batch_size: The present one.
        devices: As of ``PackingPlan``.
        hidden_size: Likewise.

    Returns:
        None where no batch of these texts does it.
    """
    every = max(len(lengths) // _SAMPLED, 1)
    sample = np.sort(lengths)[every // 2 :: every]
    while (batch_size := 2 * batch_size) <= len(sample):
        if PackingPlan(sample, batch_size, devices, hidden_size).padding <= MOST_PADDING:
            return batch_size
    return None
