"""Intervals and paired comparisons over seeds and test texts.

The seed draws the heads, the order of the data, dropout and, where a study has fewer training texts
than there are, these. Where the predictions of all arms are known, an interval here says how far a
mean would move with other seeds and other test texts; else with other seeds alone. ``two_way`` has
the error, and the t interval that is made of it, from two seeds on for the mean of an arm and from
three on for a difference.

What is claimed rests on differences of arms, paired by seed and by text. Where several are made
they are tested together, by ``family_tests``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import scipy.special

from mtl_jax.studies.stats.measured import Measured
from mtl_jax.studies.stats.resampling import family_p, seeds_needed
from mtl_jax.studies.stats.two_way import CONFIDENCE, estimate

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

LEVEL = 0.05
"""the p-value, after correction, from which on a difference is taken for real"""

FEWEST_FOR_T = 3
"""seeds from which on a difference has an interval and a test"""

MARGIN = 0.01
"""macro-F1, in [0, 1], below which an effect is too small to matter"""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over ``n`` seeds and its confidence limits; None where they are too few.

    With ``over_texts`` the limits hold for other texts, too.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    over_texts: bool = False

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
    p_value: float | None
    """two-sided, of the hypothesis that the mean difference is 0; of this comparison alone. None
    of fewer than three seeds"""
    by_seed: Mapping[int, float]
    """what the mean is taken over"""

    @property
    def t_p(self) -> float | None:
        """The same by Student's t; see ``t_p``."""
        return t_p(self.by_seed.values())


def mean_interval(values: Collection[float], fewest: int = 2) -> Interval | None:
    """Mean and 95 % t interval over seeds and, of ``Measured`` values, over texts; see ``two_way``.

    Of plain numbers it is ``mean ± t_{n-1} s / sqrt(n)``.

    Source: Student, "The Probable Error of a Mean", Biometrika 6(1), 1908.

    Args:
        values: One value per seed.
        fewest: Values from which on there are limits, 2 at least.

    Returns:
        None without values; an interval without limits of too few.
    """
    n = len(values)
    if n == 0:
        return None
    found = estimate(values) if n >= fewest else None
    if found is None:
        return Interval(math.fsum(values) / n, None, None, n)
    return Interval(found.mean, *found.limits, n, found.over_texts is not None)


def text_interval(score: float) -> Interval:
    """A score with its 95 % limits over other texts, for the seeds that it is of.

    With contributions u of the texts its standard error is ``sqrt(Σ u²)``, see ``measured``; the
    limits are normal.

    Args:
        score: A score or a difference of scores; of a plain number there are no limits.
    """
    if not isinstance(score, Measured):
        return Interval(score, None, None, 1)
    error = math.sqrt(sum(float(each @ each) for each in score.parts.values()))
    half = -float(scipy.special.ndtri((1 - CONFIDENCE) / 2)) * error
    return Interval(float(score), float(score) - half, float(score) + half, 1, over_texts=True)


def t_p(differences: Collection[float]) -> float | None:
    """Two-sided p-value that a mean is 0 by Student's t, over seeds and texts; see ``two_way``.

    Args:
        differences: One per seed, taken to be normally distributed.

    Returns:
        None of fewer than three; without any spread 0, or 1 where they are 0.
    """
    found = estimate(differences) if len(differences) >= FEWEST_FOR_T else None
    return found.p_value if found else None


def covers_texts(values: Collection[float]) -> bool:
    """Whether an interval of these values would hold for other texts, too."""
    return len(values) > 0 and all(isinstance(value, Measured) for value in values)


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


def family_tests(differences: Sequence[PairedDifference]) -> list[float | None]:
    """The p-values of a family of comparisons, corrected for their number.

    By flips of signs with step-down maxT, which assume no shape of the seeds' distribution, where
    each comparison has the seeds to reach ``LEVEL`` by them; else by t with Holm's correction.
    Both are over seeds and texts; see ``family_p`` and ``two_way``.

    Args:
        differences: Those of the family.

    Returns:
        One per comparison; None of one of fewer than three seeds.
    """
    if flips_suffice(differences):
        return family_p([each.by_seed for each in differences])
    return holm([each.t_p for each in differences])


def flips_suffice(differences: Sequence[PairedDifference]) -> bool:
    """Whether each comparison has seeds enough for ``family_p`` to reach ``LEVEL``."""
    return all(each.interval.n >= seeds_needed(LEVEL) for each in differences)


def paired_difference(
    arm: Mapping[int, float], reference: Mapping[int, float]
) -> PairedDifference | None:
    """Mean difference over shared seeds and texts, its t limits and its p-value.

    Pairing removes what the seed does to both arms alike, as they start from the same heads and
    read the same data in the same order, and what is hard in a text for both.

    Args:
        arm: Value per seed.
        reference: Value per seed; seeds that only one of the two has are left out.

    Returns:
        None where no seed is shared.
    """
    shared = sorted(arm.keys() & reference.keys())
    return of_differences({seed: arm[seed] - reference[seed] for seed in shared})


def of_differences(by_seed: Mapping[int, float]) -> PairedDifference | None:
    """The same from the differences themselves; None without any."""
    interval = mean_interval(by_seed.values(), FEWEST_FOR_T)
    if interval is None:
        return None
    alone = PairedDifference(interval, None, by_seed)
    (p_value,) = family_tests([alone])
    return dataclasses.replace(alone, p_value=p_value)
