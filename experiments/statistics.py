"""Intervals and paired comparisons over seeds.

The unit is the seed: it draws the heads, the order of the data and dropout. An interval
here says how far the mean would move with other seeds. It says nothing of other test
examples or other data.

The mean of one arm has Student's t interval, which reads as "± so much" and does not need
many seeds. What is claimed rests on differences of arms, paired by seed; these have
bootstrap intervals and permutation tests, which need no normal distribution of the seeds.
Where several are made, ``experiments.resampling.family_p`` tests them together.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import scipy.stats

from experiments.resampling import bootstrap_limits, family_p

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

LEVEL = 0.05
"""the p-value, after correction, from which on a difference is taken for real"""

MARGIN = 0.01
"""macro-F1, in [0, 1], below which an effect is too small to matter"""


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

    def within(self, margin: float) -> bool | None:
        """Whether both limits are at most ``margin`` off 0; None without limits."""
        if self.low is None or self.high is None:
            return None
        return -margin <= self.low and self.high <= margin


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """Arm minus reference over the seeds that both have."""

    interval: Interval
    p_value: float
    """two-sided, of the hypothesis that the mean difference is 0; of this comparison alone"""
    by_seed: Mapping[int, float]
    """what the mean is taken over"""


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
    shared = sorted(arm.keys() & reference.keys())
    return of_differences({seed: arm[seed] - reference[seed] for seed in shared}, confidence)


def of_differences(
    by_seed: Mapping[int, float], confidence: float = 0.95
) -> PairedDifference | None:
    """The same from the differences themselves; None without any."""
    (p_value,) = family_p([by_seed])
    if p_value is None:
        return None
    mean = math.fsum(by_seed.values()) / len(by_seed)
    low, high = bootstrap_limits(by_seed.values(), confidence) or (None, None)
    return PairedDifference(Interval(mean, low, high, len(by_seed)), p_value, by_seed)
