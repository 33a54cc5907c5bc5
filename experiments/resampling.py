"""Intervals and tests by resampling the seeds, which assume no shape of their distribution.

Every draw is seeded, so that a report that is made again says the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import scipy.stats

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy.typing as npt

FEWEST_SEEDS = 3
"""with fewer, a resample has no more than three different means: no interval comes of it"""

# Sign flips are enumerated while there are no more of them, which holds up to 13 seeds.
_RESAMPLES = 9_999


def bootstrap_limits(
    values: Collection[float], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Limits of the mean by the expanded percentile bootstrap.

    The percentile method takes quantiles of the means of resamples. With ``n`` values it is
    too narrow by about ``sqrt((n - 1) / n)``, and by the normal quantile it stands for in
    the place of Student's; so the quantiles are taken farther out, at
    ``Φ(-sqrt(n / (n - 1)) t_{n-1})`` to each side, which for values that are symmetric
    about their mean gives nearly the t interval. With 3 or 4 values that is their range.

    BCa corrects bias and skewness as well, but estimates both from the ``n`` values
    themselves; with the few seeds of a study that adds more noise than it removes, and it
    covers the mean too seldom (Owen, "Better bootstrap t confidence intervals for the
    mean", 2025, arXiv:2508.10083, section 1).

    Source: Hesterberg, "What Teachers Should Know about the Bootstrap", 2014,
    arXiv:1411.5279, the expanded percentile interval.

    Args:
        values: One value per seed.
        confidence: Coverage of the interval, in (0, 1).

    Returns:
        None for fewer than ``FEWEST_SEEDS`` values.
    """
    n = len(values)
    if n < FEWEST_SEEDS:
        return None
    if min(values) == max(values):
        return min(values), max(values)
    t = scipy.stats.t.isf((1 - confidence) / 2, n - 1)
    tail = float(scipy.stats.norm.sf(math.sqrt(n / (n - 1)) * t))
    found = scipy.stats.bootstrap(
        (np.fromiter(values, float),),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=1 - 2 * tail,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def sign_flip_p(differences: Collection[float]) -> float | None:
    """Two-sided p-value of the paired permutation test of a mean difference of 0.

    If the two arms did not differ, each seed's difference could as well have had the other
    sign. The p-value is the share of all sign patterns whose mean is at least as far from 0
    as the one found: exact up to 13 seeds, from 9,999 random patterns beyond.

    Source: Fisher, "The Design of Experiments", 1935, section 21.

    Args:
        differences: Arm minus reference, one per seed.

    Returns:
        None without differences.
    """
    if len(differences) < 2:
        # A difference and its mirror image are equally far from 0; SciPy refuses a single one.
        return 1.0 if differences else None
    found = scipy.stats.permutation_test(
        (np.fromiter(differences, float),),
        np.mean,
        permutation_type="samples",
        n_resamples=_RESAMPLES,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def smallest_p(seeds: int) -> float:
    """The smallest p-value that ``sign_flip_p`` can give: two of the 2^n sign patterns.

    Both the pattern found and its mirror image are as far from 0 as any can be.
    """
    return min(1.0, 2.0 ** (1 - seeds))


def seeds_needed(comparisons: int, level: float) -> int:
    """Seeds from which on Holm's correction can leave a p-value at or below ``level``.

    The smallest of m p-values is multiplied by m, so that ``m 2 / 2^n <= level``.

    Args:
        comparisons: Size m of the family, at least 1.
        level: Of the test, in (0, 1).
    """
    return math.ceil(1 + math.log2(comparisons / level))


def expected_best(scores: Sequence[float]) -> npt.NDArray[np.float64]:
    """Expected validation performance of the best of n = 1 … N random trials.

    With the scores in ascending order, ``E[V*_n] = Σ_i v_(i) ((i/N)^n - ((i-1)/N)^n)``: the
    chance that the best of n draws, with replacement, from the N scores is the i-th. It
    answers what a search of n trials would have found, where the N trials are a random
    sample of the settings searched. As the largest score stands for all that lies above
    it, the curve falls short towards n = N (Tang et al., "Showing Your Work Doesn't Always
    Work", 2020, arXiv:2004.13705).

    Source: Dodge et al., "Show Your Work: Improved Reporting of Experimental Results",
    2019, arXiv:1909.03004, section 3.

    Args:
        scores: The validation score of each trial.

    Returns:
        float64 [N]; entry n - 1 is the expectation for n trials.
    """
    ordered = np.sort(np.asarray(scores, np.float64))
    total = len(ordered)
    trials = np.arange(1, total + 1)[:, None]
    below = (np.arange(total + 1) / max(total, 1)) ** trials
    return np.diff(below, axis=1) @ ordered
