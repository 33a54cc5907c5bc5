"""Intervals and tests by resampling the seeds, which assume no shape of their distribution.

Every draw is seeded, so that a report that is made again says the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import scipy.stats

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import numpy.typing as npt

# Sign flips are enumerated while there are no more of them, which holds up to 13 seeds.
_RESAMPLES = 9_999

# A mean of equal scores that is taken in two orders leaves such a difference; it is none.
_ROUNDING = 1e-12
# Statistics are at most the root of the number of seeds, and equal ones round apart by less.
_TIE = 1e-9


def bootstrap_limits(
    values: Collection[float], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Limits of the mean by the expanded percentile bootstrap.

    The percentile method takes quantiles of the means of resamples. With ``n`` values it is
    too narrow by about ``sqrt((n - 1) / n)``, and by the normal quantile it stands for in
    the place of Student's; so the quantiles are taken farther out, at
    ``Φ(-sqrt(n / (n - 1)) t_{n-1})`` to each side, which for values that are symmetric
    about their mean gives nearly the t interval.

    No resample lies outside the range of the values, and that of ``n`` values covers the
    median in ``1 - 2/2^n`` of all samples: 75, 87.5 and 94 % for 3, 4 and 5. So there are no
    limits of fewer values than the coverage takes, six for 95 %.

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
        None for fewer than ``seeds_needed(1 - confidence)`` values.
    """
    n = len(values)
    if n < seeds_needed(1 - confidence):
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


def family_p(differences: Sequence[Mapping[int, float] | None]) -> list[float | None]:
    """Two-sided p-values of a family of paired comparisons, corrected for their number.

    If the arms of a comparison did not differ, each seed's difference could as well have had
    the other sign. The statistic of comparison j is ``T_j(s) = |Σ_i s_i d_ij| / sqrt(Σ_i d_ij²)``,
    with ``d_ij`` its difference at seed i and ``s_i`` that seed's sign; flips do not change the
    denominator, which puts comparisons of unlike size on one scale. A seed flips in all
    comparisons at once, as it has drawn the heads and the order of the data for all of them.
    The p-value is the share of sign patterns whose largest statistic of the family is at least
    the one that was found, ``p_j = |{s : max_k T_k(s) >= T_j(1)}| / |{s}|``: exact up to 13
    seeds, from 9,999 random patterns and the one found beyond.

    So the chance of any false claim in the family is bounded. The smallest p-value is 2/2^n
    with n seeds, however many comparisons there are; a correction of the p-values one by one,
    such as Holm's, would multiply it by their number. Of a family of one it is Fisher's test.

    Source: Westfall & Young, "Resampling-Based Multiple Testing", 1993, the single-step maxT
    procedure; the flips: Fisher, "The Design of Experiments", 1935, section 21.

    Args:
        differences: Per comparison the arm minus its reference, by seed. A seed that one
            lacks adds nothing to it. None, or no seed, is a comparison that was not made.

    Returns:
        One per comparison; None where it was not made. 1 where all differences are 0.
    """
    made = [each for each in differences if each]
    seeds = sorted({seed for each in made for seed in each})
    table = np.array([[each.get(seed, 0.0) for seed in seeds] for each in made], np.float64)
    table = table.reshape(len(made), len(seeds))
    table[np.abs(table) < _ROUNDING] = 0
    length = np.linalg.norm(table, axis=1, keepdims=True)
    table /= np.where(length > 0, length, 1)
    largest = np.abs(_signs(len(seeds)) @ table.T).max(axis=1, initial=0)
    found = np.abs(table.sum(axis=1))
    p_values = iter(np.mean(largest[:, None] >= found - _TIE, axis=0).tolist())
    return [next(p_values) if each else None for each in differences]


def best_of_others(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """Per seed the arm with the best mean over the other seeds, so that its own luck has no part.

    Args:
        scores: float64 [..., arms, seeds]; NaN where an arm lacks a seed.

    Returns:
        [..., seeds]: the first of the best arms; -1 where no arm has another seed.
    """
    others = 1.0 - np.eye(scores.shape[-1])
    counts = ~np.isnan(scores) @ others
    sums = np.nan_to_num(scores) @ others
    means = np.where(counts > 0, sums / np.maximum(counts, 1), -np.inf)
    # Means that are equal but for their rounding are equal.
    best = np.argmax(np.where(counts > 0, np.round(means, 12), -np.inf), axis=-2)
    return np.where((counts > 0).any(-2), best, -1)


def chosen_p(choosing: npt.NDArray[np.float64], compared: npt.NDArray[np.float64]) -> float:
    """Two-sided p-value of a mean whose arm is chosen, for each seed, by ``best_of_others``.

    A seed helps to choose the arm of all others, so that what was chosen depends on each other
    and is not exchangeable: to flip the chosen differences alone finds too much, at a level
    of 0.05 in 7 % of studies of six seeds where there is nothing, and in 14 % of those of
    eight. Here the choice is a part of the statistic: where a seed flips, all of its
    differences do, those that choose and those that are compared, and the choice is made
    again. If no arm differed from the reference, each pattern would be as likely, and
    ``p = |{s : |T(s)| >= |T(1)|}| / |{s}|`` is exact.

    Args:
        choosing: Arms minus their reference, by which is chosen: float64 [arms, seeds], NaN
            where an arm lacks a seed.
        compared: The differences that are compared, likewise.
    """
    signs = _signs(choosing.shape[1])[:, None, :]
    chosen = best_of_others(signs * choosing)
    taken = np.take_along_axis(signs * compared, np.maximum(chosen, 0)[:, None, :], axis=1)
    sums = np.abs(np.nansum(np.where(chosen[:, None, :] >= 0, taken, np.nan), axis=(1, 2)))
    return float(np.mean(sums >= sums[0] - _ROUNDING))


def _signs(seeds: int) -> npt.NDArray[np.float64]:
    """Sign patterns of so many seeds, float64 [patterns, seeds]; the first has no flip."""
    if 2**seeds <= _RESAMPLES:
        return 1.0 - 2.0 * (np.arange(2**seeds)[:, None] >> np.arange(seeds) & 1)
    drawn = np.random.default_rng(0).choice((-1.0, 1.0), (_RESAMPLES, seeds))
    # The pattern that was found is as likely as any, so that no p-value is 0.
    return np.vstack((np.ones(seeds), drawn))


def smallest_p(seeds: int) -> float:
    """The smallest p-value that ``family_p`` can give, in a family of any size.

    Both the pattern found and its mirror image are as far from 0 as any can be: two of 2^n.
    Of patterns that are drawn, the one found alone has to be.
    """
    return min(1.0, 2.0 ** (1 - seeds)) if 2**seeds <= _RESAMPLES else 1 / (_RESAMPLES + 1)


def seeds_needed(level: float) -> int:
    """Seeds n from which on a p-value can be at or below a level: ``2 / 2^n <= level``.

    Args:
        level: Of the test, in (0, 1); at least 1/4096, as more seeds are not enumerated.
    """
    return math.ceil(1 - math.log2(level))


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
