"""Intervals and paired comparisons over seeds.

The unit is the seed: it draws the heads, the order of the data and dropout. An interval
here says how far the mean would move with other seeds. It says nothing of other test
examples or other data.

The mean of one arm has Student's t interval, which reads as "± so much" and does not need
many seeds. What is claimed rests on differences of arms, paired by seed; these have
bootstrap intervals and permutation tests, which need no normal distribution of the seeds.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import scipy.stats

from experiments.resampling import bootstrap_limits, sign_flip_p

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

LEVEL = 0.05
"""the p-value, after correction, from which on a difference is taken for real"""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over ``n`` seeds and its confidence limits; None where they are too few."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half_width(self) -> float | None:
        """Distance from the mean to a limit of a t interval, which is symmetric."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def excludes(self, value: float) -> bool | None:
        """Whether ``value`` lies outside the limits; None without limits."""
        if self.low is None or self.high is None:
            return None
        return value < self.low or value > self.high


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """Arm minus reference over the seeds that both have."""

    interval: Interval
    p_value: float
    """Two-sided, of the hypothesis that the mean difference is 0."""


def t_factor(n: int, confidence: float = 0.95) -> float:
    """Standard errors between a mean of ``n`` values and its confidence limit."""
    return float(scipy.stats.t.ppf((1 + confidence) / 2, n - 1))


def mean_interval(values: Collection[float], confidence: float = 0.95) -> Interval | None:
    """Mean and Student-t confidence interval, ``mean ± t_{n-1} s / sqrt(n)``.

    Source: Student, "The Probable Error of a Mean", Biometrika 6(1), 1908.

    Args:
        values: One value per seed.
        confidence: Coverage of the interval, in (0, 1).

    Returns:
        None without values; an interval without limits for one value.
    """
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, None, 1)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    half = t_factor(n, confidence) * error
    return Interval(mean, mean - half, mean + half, n)


def paired_difference(
    arm: Mapping[int, float], reference: Mapping[int, float], confidence: float = 0.95
) -> PairedDifference | None:
    """Mean difference over shared seeds, its bootstrap limits and its permutation p-value.

    Pairing by seed removes what the seed does to both arms alike: they start from the
    same heads and read the data in the same order. ``experiments.resampling`` has the
    sources of both.

    Args:
        arm: Value per seed.
        reference: Value per seed; seeds that only one of the two has are left out.
        confidence: Coverage of the interval, in (0, 1).

    Returns:
        None where no seed is shared.
    """
    differences = [arm[seed] - reference[seed] for seed in sorted(arm.keys() & reference.keys())]
    p_value = sign_flip_p(differences)
    if p_value is None:
        return None
    mean = math.fsum(differences) / len(differences)
    low, high = bootstrap_limits(differences, confidence) or (None, None)
    return PairedDifference(Interval(mean, low, high, len(differences)), p_value)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction over a family of comparisons.

    The i-th smallest of m p-values becomes ``max_{j<=i} min(1, (m - j + 1) p_(j))``, which
    bounds the chance of any false claim in the family and assumes nothing of how the
    comparisons depend on each other (all arms here share one reference).

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian
    Journal of Statistics 6(2), 1979.

    Args:
        p_values: One per comparison; None is a comparison that was not made and does not
            count in the family.
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[index] = largest
    return corrected
