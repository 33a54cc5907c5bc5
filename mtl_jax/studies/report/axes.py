"""Pieces that several figures are drawn from."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from mtl_jax.studies.report.palette import INK, SOFT, Look
from mtl_jax.studies.stats.results import Result, quality, untrained

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

    from mtl_jax.studies.stats.intervals import Interval

WIDTH = 8.6
"""inches, of every figure"""
LONGEST_LABEL = 28
"""characters of an arm's name that a figure has room for"""

# Where a name may stand beside its point, in points, the preferred place first.
_PLACES = tuple(
    (side * right, up)
    for up, right in ((-3.5, 9), (8, 5), (-15, 5), (19, 3), (-26, 3))
    for side in (1, -1)
)
# From farther away a line leads to the point.
_BESIDE = _PLACES[:4]


def arm_label(arm: str, controls: Collection[str]) -> str:
    """An arm's name, marked where it is one of the controls; see ``results.control_heads``.

    The middle of a long one, such as the path of a file or a list of rules, is left out.
    """
    name = arm
    if len(arm) > LONGEST_LABEL:
        # What tells files apart stands at their end.
        head = LONGEST_LABEL // 3
        name = f"{arm[:head]}…{arm[head + 1 - LONGEST_LABEL :]}"
    return f"{name} (control)" if arm in controls else name


def panel_row(count: int, height: float, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure of ``height`` inches with ``count`` axes side by side."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, count, sharey=sharey, squeeze=False)[0])


def draw_interval(
    axes: Axes, at: float, interval: Interval, look: Look, across: bool = False
) -> None:
    """A mean with its limits at a place, upright or, with ``across``, lying."""
    half = interval.half_width
    place = (interval.mean, at) if across else (at, interval.mean)
    axes.errorbar(
        *place,
        xerr=half if across else None,
        yerr=None if across else half,
        **look.line,
        ms=7,
        mec=look.colour if look.hollow else "white",
        mew=1.4 if look.hollow else 0.8,
        elinewidth=1.4,
        capsize=3,
        zorder=3,
    )


def arm_axis(axes: Axes, arms: Sequence[str]) -> None:
    """Names the arms down the side, the first on top."""
    axes.set_yticks(range(len(arms)), arms)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def cost_axis(axes: Axes) -> None:
    """A logarithmic cost along the bottom, written out.

    Args:
        axes: What is drawn in it has been already.
    """
    axes.set_xscale("log")
    low, high = axes.dataLim.intervalx
    # Equal costs may differ in their last digit, which would be all that there is to see.
    if 0 < low <= high < low * (1 + 1e-9):
        axes.set_xlim(low / 2, high * 2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def reference_lines(axes: Axes, results: Sequence[Result]) -> None:
    """Dashed lines for the probe and for chance; one far below the points is noted in words.

    Stretching the axis down to chance would press all the arms into one line.
    """
    low, high = axes.get_ylim()
    height = high - low
    notes = []
    for name, key in (("20-NN probe, no training", "probe"), ("majority class", "chance")):
        known = [value for each in untrained(results, key) if (value := quality(each)) is not None]
        if not known:
            continue
        value = statistics.fmean(known)
        if value < low - 0.6 * height:
            notes.append(f"{name} {value:.3f}")
            continue
        axes.axhline(value, color=SOFT, ls="--", lw=1, zorder=1)
        _note(axes, f"{name}: {value:.3f}", value)
        low, high = min(low, value - 0.05 * height), max(high, value + 0.07 * height)
    if notes:
        low -= 0.06 * height
        _note(axes, f"below this range: {'; '.join(notes)}", low)
    axes.set_ylim(low, high)


def name_points(
    figure: Figure,
    axes: Axes,
    points: Mapping[str, tuple[float, Interval]],
    controls: Collection[str],
) -> None:
    """Writes each arm's name beside its point, at the first place that is still free.

    Args:
        figure: Drawn already, but for the names: its layout decides what is free.
        axes: Where the points are.
        points: Per arm its x and the interval drawn there.
        controls: The arms that are marked as such.
    """
    figure.draw_without_rendering()
    taken = [_extent(axes, x, interval) for x, interval in points.values()]
    for arm, (x, interval) in points.items():
        mean = (x, interval.mean)
        place = _PLACES[0]
        text = axes.annotate(
            arm_label(arm, controls), mean, place, textcoords="offset points", color=INK, zorder=4
        )
        for place in _PLACES:
            text.set_position(place)
            text.set_horizontalalignment("left" if place[0] > 0 else "right")
            box = text.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(text.get_window_extent())
        if place not in _BESIDE:
            line = {"arrowstyle": "-", "color": SOFT, "lw": 0.7, "shrinkA": 0, "shrinkB": 5}
            axes.annotate("", mean, place, textcoords="offset points", arrowprops=line)


def name_lines(figure: Figure, lines: Sequence[Line2D], columns: int) -> None:
    """A legend below the axes of lines with the names that they have as labels."""
    names = [str(line.get_label()) for line in lines]
    for line in lines:
        # Matplotlib leaves out what has a label that begins with an underscore.
        line.set_label("line")
    place, columns = "outside lower center", min(columns, len(lines))
    legend = figure.legend(handles=lines, loc=place, ncols=columns)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


def _note(axes: Axes, text: str, height: float) -> None:
    axes.annotate(
        text,
        (0.995, height),
        (0, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
        color=SOFT,
    )


def _extent(axes: Axes, x: float, interval: Interval) -> Bbox:
    """The pixels that a marker with its interval covers."""
    half = interval.half_width or 0.0
    across, low = axes.transData.transform((x, interval.mean - half))
    _, high = axes.transData.transform((x, interval.mean + half))
    _, middle = axes.transData.transform((x, interval.mean))
    return Bbox.from_extents(across - 5, min(low, middle - 5), across + 5, max(high, middle + 5))
