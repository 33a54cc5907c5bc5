"""What tuning for a given budget can be expected to find, from the trials that were run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def expected_validation(scores: Sequence[float]) -> np.ndarray:
    """The expected best of n validation scores, for n = 1 ... N: float64 [N].

    With the scores in ascending order, v_1 ... v_N, it is the sum over i of
    v_i ((i / N)^n - ((i - 1) / N)^n): the mean of the maximum of n draws, with replacement, from
    the scores (Dodge et al. 2019, *Show Your Work: Improved Reporting of Experimental Results*,
    arXiv:1909.03004, equations 6 and 7). It holds for settings drawn at random and independently;
    of a sampler that learns from its trials it describes the trials, not what others would find.

    Args:
        scores: Of N trials, in any order; the higher the better.
    """
    ascending = np.sort(np.asarray(scores, np.float64))
    count = len(ascending)
    draws = np.arange(1, count + 1)[:, None]
    share = (np.arange(count + 1) / max(count, 1)) ** draws
    return np.diff(share, axis=1) @ ascending
