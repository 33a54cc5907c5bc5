"""Numbers over seeds as cells of a table."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from mtl_jax.studies.report.document import Cell
from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.intervals import mean_interval, paired_difference
from mtl_jax.studies.stats.results import numbers

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mtl_jax.studies.stats.results import Result


def arm_cell(arm: str, controls: Collection[str] = ()) -> Cell:
    """An arm's name, marked where it is one of the controls; see ``arms.control_heads``."""
    return Cell(f"`{arm}`{' (control)' if arm in controls else ''}")


def mean_cell(values: Mapping[int, float], *, sign: bool = False) -> Cell:
    """A mean over seeds with half of its interval.

    Args:
        values: One per seed.
        sign: Whether a positive one has its sign, too.
    """
    interval = mean_interval(values.values())
    if interval is None:
        return Cell(formatting.MISSING)
    text = formatting.signed(interval.mean) if sign else formatting.fixed(interval.mean)
    return Cell(text, formatting.plus_minus(interval))


def difference_cell(arm: Mapping[int, float], reference: Mapping[int, float]) -> Cell:
    """A mean paired difference over seeds with its interval."""
    difference = paired_difference(arm, reference)
    if difference is None:
        return Cell(formatting.MISSING)
    return Cell(formatting.signed(difference.interval.mean), formatting.limits(difference.interval))


def seconds_cell(values: Mapping[int, float]) -> Cell:
    """The median of a time over seeds, with its range."""
    if not values:
        return Cell(formatting.MISSING)
    times = list(values.values())
    digits = formatting.decimals(times)
    return Cell(
        formatting.fixed(statistics.median(times), digits), formatting.spread(times, digits)
    )


def step_cell(results: Sequence[Result], arm: str) -> Cell:
    """The median step of an arm in milliseconds, over seeds, with the range of their steps."""
    medians = numbers(results, arm, "step_seconds_median")
    if not medians:
        return Cell(formatting.MISSING)
    ranges = [r["step_seconds_range"] for r in results if r["arm"] == arm]
    ends = [1000 * end for each in ranges for end in each or ()]
    middle = 1000 * statistics.median(medians.values())
    digits = formatting.decimals([middle])
    return Cell(formatting.fixed(middle, digits), formatting.spread(ends, digits))


def flops_cell(values: Mapping[int, float], reference: float | None = None) -> Cell:
    """The mean of counted FLOPs over seeds, with its ratio to a reference."""
    interval = mean_interval(values.values())
    if interval is None:
        return Cell(formatting.MISSING)
    ratio = formatting.ratio(interval.mean, reference)
    return Cell(formatting.flops(interval.mean), f"({ratio})" if ratio else "")
