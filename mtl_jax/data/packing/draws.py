"""The lengths that a random draw of texts may have, known before it is drawn."""

from __future__ import annotations

import math

import numpy as np

# That a draw's k-th longest text is longer; of draws a few in a hundred have such a text for some
# k: see ``PackingPlan.has_room``.
_CHANCE = 0.001


def room_of_draws(lengths: np.ndarray, count: int) -> np.ndarray:
    """Tokens that hardly any draw of ``count`` texts goes beyond, so that draws share a layout.

    Where n places from 0 to 1 are drawn, the k-th lowest has the distribution Beta(k, n - k + 1),
    of mean k / (n + 1). Of n texts drawn from N without replacement, the k-th longest is about as
    many parts of N from the longest of all, and its distance from the mean is smaller by
    sqrt(1 - n / N): its quantile of 0.001 is what has room.

    Args:
        lengths: int [N], tokens of the texts that are drawn from.
        count: n, at most N.

    Returns:
        int [n], descending: for the k-th longest of the draw. Of all N, their own lengths.
    """
    from scipy.stats import beta

    descending, total = np.sort(lengths)[::-1], len(lengths)
    order = np.arange(1, count + 1)
    mean = order / (count + 1)
    far = (mean - beta.ppf(_CHANCE, order, count + 1 - order)) * math.sqrt(1 - count / total)
    return descending[np.floor((mean - far) * total + 1e-6).astype(np.int64)]
