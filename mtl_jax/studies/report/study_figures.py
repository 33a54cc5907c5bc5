"""The figures of studies with several settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from mtl_jax.studies.report.axes import arm_label, cost_axis, draw_interval, name_lines, panel_row
from mtl_jax.studies.report.figures import Drawn
from mtl_jax.studies.report.palette import INK, Look, looks, styled
from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.comparisons import Number, having
from mtl_jax.studies.stats.intervals import mean_interval, paired_difference
from mtl_jax.studies.stats.results import (
    Result,
    arms_of,
    control_heads,
    numbers,
    per_seed,
    score_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = tuple[str, Sequence[str], Number]
"""A title, the arms that are drawn, and the number that is."""

# Between the arms at one value, in parts of the axis: so that their intervals stay apart.
_APART = 0.009


def heat_map(
    results: Sequence[Result],
    name: str,
    values: Mapping[Any, str],
    number: Number,
    reference: str,
    words: tuple[str, str],
) -> Drawn | None:
    """Mean scores by arm and value of a setting, and what they have over a reference arm.

    Args:
        results: Lines of ``results.jsonl``.
        name: Of the setting, whose values are the columns.
        values: What to call each of them.
        number: The score.
        reference: The arm that the right panel compares with, seed by seed.
        words: What the score is, and what the values are.
    """
    arms, controls = arms_of(results), control_heads(results)
    scores = np.full((len(arms), len(values)), np.nan)
    gains = scores.copy()
    for column, value in enumerate(values):
        here = having(results, **{name: value})
        base = per_seed(here, reference, number)
        for row, arm in enumerate(arms):
            found = per_seed(here, arm, number)
            if found:
                scores[row, column] = sum(found.values()) / len(found)
            difference = paired_difference(found, base)
            if difference and arm != reference:
                gains[row, column] = difference.interval.mean
    if np.isnan(scores).all():
        return None
    with styled():
        figure, panels = panel_row(2, 1.6 + 0.34 * len(arms))
        most = max(np.nanmax(np.abs(gains), initial=0.0), 1e-3)
        left, right = panels
        image = left.imshow(scores, aspect="auto", cmap="cividis")
        _write_cells(left, image, scores, formatting.fixed)
        image = right.imshow(gains, aspect="auto", cmap="PuOr", norm=Normalize(-most, most))
        _write_cells(right, image, gains, formatting.signed)
        for axes, title in ((left, words[0]), (right, f"minus {reference}")):
            axes.set(title=title, xlabel=words[1])
            axes.set_xticks(range(len(values)), list(values.values()))
            axes.set_yticks(range(len(arms)), [arm_label(arm, controls) for arm in arms])
            axes.grid(visible=False)
            axes.tick_params(length=0)
    return Drawn(
        "heat_map",
        figure,
        f"Left: {words[0]}, the mean over seeds, by arm and {words[1]}. Right: what it has over "
        f"{reference} with the same seed; violet is a gain, orange a loss.",
    )


def curves(
    file: str,
    results: Sequence[Result],
    name: str,
    values: Mapping[Any, str],
    panels: Sequence[Panel],
    words: tuple[str, str],
) -> Drawn | None:
    """A number over the values of a setting, a line for each arm.

    Args:
        file: What to call the picture.
        results: Lines of ``results.jsonl``.
        name: Of the setting; its values are positive numbers.
        values: What to call each of them.
        panels: What to draw, side by side.
        words: What the numbers are, and what the values are.
    """
    controls = control_heads(results)
    look = looks(arms_of(results), controls)
    span = math.log(max(values) / min(values)) or 1.0
    drawn: dict[str, Look] = {}
    with styled():
        figure, every_axes = panel_row(len(panels), 4.4)
        for axes, (title, arms, number) in zip(every_axes, panels, strict=True):
            for place, arm in enumerate(arms):
                shift = math.exp((place - (len(arms) - 1) / 2) * _APART * span)
                points = []
                for value in values:
                    here = having(results, **{name: value})
                    interval = mean_interval(per_seed(here, arm, number).values())
                    if interval:
                        draw_interval(axes, value * shift, interval, look[arm])
                        points.append((value * shift, interval.mean))
                if points:
                    axes.plot(*zip(*points, strict=True), color=look[arm].colour, lw=1.4)
                    drawn[arm] = look[arm]
            _value_axis(axes, values)
            axes.set(title=title, xlabel=words[1])
        every_axes[0].set_ylabel(words[0])
        if not drawn:
            return None
        handles = [
            Line2D([], [], **each.line, ms=5, lw=1.4, label=arm_label(arm, controls))
            for arm, each in drawn.items()
        ]
        name_lines(figure, handles, 4)
    return Drawn(
        file,
        figure,
        f"{words[0][:1].upper()}{words[0][1:]} by {words[1]}: means over seeds with their 95 % "
        "intervals, drawn side by side where they belong to the same value.",
    )


def cost_scatter(
    results: Sequence[Result], name: str, values: Mapping[Any, str], number: Number, split: str
) -> Drawn | None:
    """A score over training FLOPs: a colour for each value of a setting, a marker for each arm."""
    palette = looks([f"value {place}" for place in range(len(values))])
    colours = dict(zip(values, (each.colour for each in palette.values()), strict=True))
    controls = control_heads(results)
    look, met = looks(arms_of(results), controls), {}
    with styled():
        figure, (axes,) = panel_row(1, 4.8)
        for value in values:
            here = having(results, **{name: value})
            line = []
            for arm in arms_of(here):
                flops = mean_interval(numbers(here, arm, "train_flops").values())
                interval = mean_interval(per_seed(here, arm, number).values())
                if interval and flops and flops.mean > 0:
                    mark = Look(colours[value], look[arm].marker, look[arm].hollow)
                    draw_interval(axes, flops.mean / 1e12, interval, mark)
                    line.append((flops.mean / 1e12, interval.mean))
                    met[arm] = look[arm].marker
            if line:
                axes.plot(*zip(*line, strict=True), color=colours[value], lw=1, alpha=0.5)
        if not met:
            return None
        cost_axis(axes)
        axes.margins(x=0.1, y=0.1)
        axes.set(
            title=f"What a larger backbone and more training buy ({split} split)",
            xlabel="training FLOPs of one run, in units of 10¹² (log scale)",
            ylabel=f"{score_name(results)}, mean over tasks",
        )
        handles = [
            Line2D([], [], color=colours[value], lw=2.5, label=label)
            for value, label in values.items()
        ]
        handles += [
            Line2D([], [], color=INK, marker=marker, ls="", label=arm_label(arm, controls))
            for arm, marker in met.items()
        ]
        name_lines(figure, handles, 3)
    return Drawn(
        "quality_against_cost",
        figure,
        f"{formatting.capital(score_name(results))} on the {split} split, the mean over tasks, "
        "against the counted training FLOPs; means over seeds with their 95 % intervals. Lines "
        "join the arms of one backbone.",
    )


def _value_axis(axes: Axes, values: Mapping[Any, str]) -> None:
    """The values of a setting along the bottom, on a log scale, by their names."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(values), list(values.values()))


def _write_cells(axes: Axes, image: Any, cells: np.ndarray, write: Callable[[float], str]) -> None:
    """Writes each number into its cell, in ink or in white, whichever can be read there."""
    for (row, column), value in np.ndenumerate(cells):
        if math.isnan(value):
            continue
        red, green, blue, _ = image.cmap(image.norm(value))
        # Relative luminance without gamma, ITU-R BT.709: enough to choose one of two.
        light = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45
        colour = INK if light else "white"
        axes.text(column, row, write(float(value)), ha="center", va="center", color=colour)
