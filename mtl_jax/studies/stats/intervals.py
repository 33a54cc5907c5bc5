"""Intervals and paired comparisons over seeds.

The unit is the seed: it draws the heads, the order of the data and dropout. An interval
here says how far the mean would move with other seeds. It says nothing of other test
examples or other data.

The mean of one arm has Student's t interval, which reads as "± so much" and does not need
many seeds. What is claimed rests on differences of arms, paired by seed; these have
bootstrap intervals and sign-flip tests, which need no normal distribution of the seeds.
Where several are made, ``mtl_jax.studies.stats.resampling.family_p`` tests them together.

Those need six seeds. From three on there is the paired t-test, which takes the differences
for normally distributed; ``holm`` corrects it for several.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import scipy.stats

from mtl_jax.studies.stats.resampling import bootstrap_limits, family_p

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

LEVEL = 0.05
"""the p-value, after correction, from which on a difference is taken for real"""

FEWEST_FOR_T = 3
"""seeds from which on there is a paired t-test"""

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

    @property
    def t_p(self) -> float | None:
        """The same of the paired t-test; see ``paired_t_p``."""
        return paired_t_p(self.by_seed.values())


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


def paired_t_p(differences: Collection[float]) -> float | None:
    """Two-sided p-value of the paired t-test, ``t_{n-1} = sqrt(n) mean / s``.

    Source: Student, "The Probable Error of a Mean", Biometrika 6(1), 1908.

    Args:
        differences: One per seed, taken to be normally distributed.

    Returns:
        None of fewer than three; without any spread 0, or 1 where they are 0.
    """
    if len(differences) < FEWEST_FOR_T:
        return None
    # Rounding alone is no spread, and no difference.
    if max(differences) - min(differences) < 1e-12:
        return 0.0 if abs(max(differences)) > 1e-12 else 1.0
    found: Any = scipy.stats.ttest_1samp(list(differences), 0.0)
    return float(found.pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Corrects p-values for their number, whatever their dependence.

    Of m in ascending order the i-th is ``max_{j<=i} min(1, (m - j + 1) p_j)``.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal
    of Statistics 6(2), 1979.

    Args:
        p_values: None is a comparison that was not made.
    """
    made = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    found: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(made):
        found[place] = largest = max(largest, min(1.0, (len(made) - rank) * p))
    return found


def paired_difference(
    arm: Mapping[int, float], reference: Mapping[int, float], confidence: float = 0.95
) -> PairedDifference | None:
    """Mean difference over shared seeds, its bootstrap limits and its permutation p-value.

    Pairing by seed removes what the seed does to both arms alike: they start from the
    same heads and read the data in the same order. ``mtl_jax.studies.stats.resampling`` has the
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
