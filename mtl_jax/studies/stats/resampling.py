"""Tests by flipping the signs of seeds, which assume no shape of their distribution.

Every draw is seeded, so that a report that is recreated says the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mtl_jax.studies.stats.two_way import estimate, text_covariance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from mtl_jax.studies.stats.two_way import Estimate

    Floats = npt.NDArray[np.float64]

# Sign flips are enumerated while there are no more of them, which holds up to 13 seeds.
_RESAMPLES = 9_999

# A mean of equal scores that is taken in two orders leaves such a difference; it is none.
_ROUNDING = 1e-12
# Statistics are at most the root of the number of seeds, and equal ones round apart by less.
_TIE = 1e-9


def family_p(differences: Sequence[Mapping[int, float] | None]) -> list[float | None]:
    """Two-sided p-values of a family of paired comparisons, corrected for their number.

    If the arms of a comparison did not differ, each seed's difference could as well have had
    the other sign, and the draw of the texts that the seeds share would have moved its mean by
    a normal error of the variance and covariance that ``two_way`` estimates. So the mean m of
    the n differences d_i of a comparison is held against ``m(s) + τ``, with signs s and errors τ
    that are drawn for all comparisons at once, as their arms share seeds and texts. The statistic
    is ``t = m / SE`` with the error of ``two_way``, worked out again for each draw, and bounded:
    ``T = t / sqrt(1 + t² / (n - 1)) sqrt(n / (n - 1))``, which orders draws as t does. Where no
    texts are known that is ``|Σ_i d_i| / sqrt(Σ_i d_i²)``, and the test is Fisher's, exact up to 13
    seeds; of more, signs are drawn.

    The correction is the step-down maxT procedure: with the comparisons in descending order of
    what was found, ``p_j = max_{i<=j} P(max_{k>=i} T_k(s, τ) >= T_i)``. So the chance of any
    false claim in the family is bounded, and the smallest p-value is about 2/2^n with n seeds,
    however many comparisons there are; Holm's correction would multiply it by their number.

    Source: Westfall & Young, "Resampling-Based Multiple Testing", 1993, algorithm 4.1; the flips:
    Fisher, "The Design of Experiments", 1935, section 21.

    Args:
        differences: Per comparison the arm minus its reference, by seed, of two seeds at least. A
            seed that one lacks adds nothing to it. None, or no seed, is one that was not made.

    Returns:
        One per comparison; None where it was not made. 1 where all differences are 0.
    """
    made = [each for each in differences if each]
    if not made:
        return [None] * len(differences)
    found, drawn = _statistics(made)
    order = np.argsort(-found, kind="stable")
    # Column by column from the least: the largest of those that come no earlier in the order.
    largest = np.maximum.accumulate(drawn[:, order[::-1]], axis=1)[:, ::-1]
    stepped = np.mean(largest >= found[order] - _TIE, axis=0)
    p_values = np.empty(len(made))
    p_values[order] = np.maximum.accumulate(stepped)
    each_of = iter(p_values.tolist())
    return [next(each_of) if each else None for each in differences]


def _statistics(
    made: Sequence[Mapping[int, float]],
) -> tuple[Floats, Floats]:
    """What was found, float64 [family], and draws of it where nothing differs, [draws, family]."""
    seeds = sorted({seed for each in made for seed in each})
    table = np.array([[each.get(seed, 0.0) for seed in seeds] for each in made], np.float64)
    table[np.abs(table) < _ROUNDING] = 0
    count = np.array([len(each) for each in made], np.float64)
    squares, signs = (table**2).sum(axis=1), _signs(len(seeds))
    known = [found for each in made if (found := estimate(each.values())) is not None]
    texts = len(known) == len(made) and any(each.shared for each in known)
    shared = np.array([each.shared**2 for each in known]) if texts else np.zeros(len(made))
    if texts:
        # As many draws of texts for each pattern as make up what a p-value is told by.
        signs = np.tile(signs, (-(-_RESAMPLES // len(signs)), 1))

    def bounded(means: Floats, errors: Any) -> Floats:
        between = np.maximum(squares - count * means**2, 0) / (count * np.maximum(count - 1, 1))
        return _bounded(means + errors, between + shared, count)

    means = signs @ table.T / count
    found = bounded(means[:1], 0.0)
    drawn = bounded(means, _text_errors(known, len(signs)) if texts else 0.0)
    # What was found is as likely as any draw; where nothing is drawn it is among the patterns.
    return found[0], np.vstack((found, drawn)) if texts else drawn


def _bounded(
    means: Floats,
    variance: Floats,
    count: Floats,
) -> Floats:
    """``t / sqrt(1 + t² / (n - 1)) sqrt(n / (n - 1))`` of ``t = |mean| / sqrt(variance)``."""
    rest = np.maximum(count - 1, 1)
    length = np.sqrt((variance + means**2 / rest) * rest / count)
    return np.divide(np.abs(means), length, out=np.zeros_like(means), where=length > _ROUNDING)


def _text_errors(known: Sequence[Estimate], draws: int) -> Floats:
    """What other texts would do to the means of comparisons: [draws, comparisons].

    Normal, with the covariance of ``two_way``; and as this is estimated, too, t-distributed.
    """
    values, vectors = np.linalg.eigh(text_covariance(known))
    root = vectors * np.sqrt(np.maximum(values, 0))
    draw = np.random.default_rng(0)
    normal = draw.standard_normal((draws, len(known))) @ root.T
    freedom = min(each.text_freedom for each in known)
    if math.isinf(freedom):
        return normal
    return normal * np.sqrt(freedom / draw.chisquare(freedom, (draws, 1)))


def best_of_others(scores: Floats) -> npt.NDArray[np.intp]:
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


def chosen_p(choosing: Floats, compared: Floats) -> float:
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


def _signs(seeds: int) -> Floats:
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


def expected_best(scores: Sequence[float]) -> Floats:
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
