"""Numbers over seeds as cells of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments import wording
from experiments.document import Cell
from experiments.statistics import mean_interval, paired_difference

if TYPE_CHECKING:
    from collections.abc import Mapping


def mean_cell(values: Mapping[int, float], *, sign: bool = False) -> Cell:
    """A mean over seeds with half of its interval.

    Args:
        values: One per seed.
        sign: Whether a positive one has its sign, too.
    """
    interval = mean_interval(values.values())
    if interval is None:
        return Cell(wording.MISSING)
    text = wording.signed(interval.mean) if sign else wording.fixed(interval.mean)
    return Cell(text, wording.plus_minus(interval))


def difference_cell(arm: Mapping[int, float], reference: Mapping[int, float]) -> Cell:
    """A mean paired difference over seeds with its interval."""
    difference = paired_difference(arm, reference)
    if difference is None:
        return Cell(wording.MISSING)
    return Cell(wording.signed(difference.interval.mean), wording.limits(difference.interval))


def seconds_cell(values: Mapping[int, float]) -> Cell:
    """A mean time over seeds."""
    interval = mean_interval(values.values())
    return Cell(wording.fixed(interval.mean, 1) if interval else wording.MISSING)
