"""The figures of the report. Each returns None where its numbers are missing."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mtl_jax.studies.report.axes import (
    arm_axis,
    arm_label,
    cost_axis,
    draw_interval,
    name_lines,
    name_points,
    panel_row,
    reference_lines,
)
from mtl_jax.studies.report.document import Picture
from mtl_jax.studies.report.palette import INK, SOFT, looks, styled
from mtl_jax.studies.report.tables import PUBLISHED, has_published
from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.intervals import Interval, mean_interval
from mtl_jax.studies.stats.results import (
    REFERENCE,
    Result,
    arms_of,
    control_heads,
    evaluation_split,
    gap,
    lookup,
    numbers,
    per_seed,
    qualities,
    score,
    score_name,
    sources_of,
    tasks_of,
    trained_arms,
    untrained,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A figure with its file name, without suffix, and the text beneath it."""

    name: str
    figure: Figure
    caption: str


Plot = Callable[[Sequence[Result]], Drawn | None]


def png(figure: Figure) -> bytes:
    """A figure as PNG, at twice the resolution of a plain screen."""
    file = io.BytesIO()
    with styled(), warnings.catch_warnings():
        # A box is drawn for a character that the font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="png")
    return file.getvalue()


def picture(drawn: Drawn) -> Picture:
    """A figure as a block of a document."""
    return Picture(f"{drawn.name}.png", lambda: png(drawn.figure), drawn.caption)


def quality_against_cost(results: Sequence[Result]) -> Drawn | None:
    """Mean macro-F1 over training FLOPs: a point per seed, a mean with its interval."""
    split = evaluation_split(results)
    runs: dict[str, list[tuple[float, float]]] = {}
    points: dict[str, tuple[float, Interval]] = {}
    unit, unit_name = _cost_unit(results)
    for arm in trained_arms(results):
        scores, flops = qualities(results, arm, split), numbers(results, arm, "train_flops")
        seeds = [seed for seed in scores if flops.get(seed, 0) > 0]
        interval = mean_interval([scores[seed] for seed in seeds])
        if interval:
            runs[arm] = [(flops[seed] / unit, scores[seed]) for seed in seeds]
            points[arm] = (sum(x for x, _ in runs[arm]) / len(seeds), interval)
    if not points:
        return None
    name = score_name(results)
    controls = control_heads(results)
    look = looks(arms_of(results), controls)
    with styled():
        figure, (axes,) = panel_row(1, 4.8)
        for arm, (x, interval) in points.items():
            axes.scatter(*zip(*runs[arm], strict=True), s=14, color=look[arm].colour, alpha=0.45)
            draw_interval(axes, x, interval, look[arm])
        cost_axis(axes)
        axes.margins(x=0.1, y=0.1)
        axes.set(
            title=f"What training buys ({split} split)",
            xlabel=f"training FLOPs of one run, {unit_name} (log scale)",
            ylabel=f"{name}, mean of the tasks",
        )
        reference_lines(axes, results)
        name_points(figure, axes, points, controls)
    caption = (
        f"{formatting.capital(name)} on the {split} split, the mean of the tasks, against the "
        f"counted training FLOPs, {unit_name}. Small points are seeds, large ones their mean with "
        "its 95 % interval."
    )
    if controls.keys() & points.keys():
        caption += " Hollow points are controls, with a head that never trained."
    if untrained(results, "probe"):
        caption += (
            " Dashed lines need no training: the nearest-neighbour probe on frozen features, and "
            "the majority class."
        )
    return Drawn("quality_against_cost", figure, caption)


def _cost_unit(results: Sequence[Result]) -> tuple[float, str]:
    """The FLOPs that costs are drawn in parts of, and what to call them."""
    reference = mean_interval(numbers(results, REFERENCE, "train_flops").values())
    return (reference.mean, f"{REFERENCE} = 1") if reference else (1e12, "in units of 10¹²")


def learning_curves(results: Sequence[Result]) -> Drawn | None:
    """Validation macro-F1 of each task over training FLOPs, mean and range over seeds."""
    unit, unit_name = _cost_unit(results)

    def flops(result: Result, point: Mapping[str, Any]) -> float | None:
        done = _flops_until(result, point)
        return done / unit if done else None

    curves = {task: _curves(results, task, flops, score) for task in tasks_of(results)}
    if not any(curves.values()):
        return None
    with styled():
        figure, panels = _draw_curves(results, curves)
        for axes in panels:
            cost_axis(axes)
            axes.set_xlabel(f"training FLOPs, {unit_name} (log scale)")
        panels[0].set_ylabel(score_name(results))
    return Drawn(
        "learning_curves",
        figure,
        f"{formatting.capital(score_name(results))} on the validation split as training goes on, a "
        f"marker per evaluation, over the training FLOPs so far ({unit_name}). Lines are means "
        "over seeds, bands run from the worst seed to the best.",
    )


def loss_curves(results: Sequence[Result]) -> Drawn | None:
    """Validation loss of each task over the part of the updates, mean and range over seeds."""

    def part(result: Result, point: Mapping[str, Any]) -> float | None:
        steps = [lookup(each, "step") or 0.0 for each in result["curve"]]
        return (lookup(point, "step") or 0.0) / max(steps) if max(steps) > 0 else None

    def loss(metrics: Any, task: str) -> float | None:
        return lookup(metrics, task, "loss")

    curves = {task: _curves(results, task, part, loss) for task in tasks_of(results)}
    if not any(curves.values()):
        return None
    with styled():
        figure, panels = _draw_curves(results, curves)
        for axes in panels:
            axes.set_xlabel("part of the run's updates")
        panels[0].set_ylabel("loss")
    return Drawn(
        "loss_curves",
        figure,
        "The loss on the validation split over the part of each run's updates that was done: "
        "where it rises again an arm fits its training examples at the cost of others.",
    )


_Curves = Mapping[str, Mapping[str, Sequence[tuple[float, float, float, float]]]]


def _draw_curves(results: Sequence[Result], curves: _Curves) -> tuple[Figure, list[Axes]]:
    """A panel for each task, with its arms' curves; as ``_curves`` gives them."""
    controls = control_heads(results)
    look = looks(arms_of(results), controls)
    figure, panels = panel_row(len(curves), 4.2, sharey=False)
    for axes, (task, of_task) in zip(panels, curves.items(), strict=True):
        for arm, points in of_task.items():
            places, means, lows, highs = zip(*points, strict=True)
            axes.fill_between(places, lows, highs, color=look[arm].colour, alpha=0.15, lw=0)
            axes.plot(places, means, **look[arm].line, ms=4.5, lw=1.6)
        axes.set_title(f"{task}, validation")
    handles = [
        Line2D([], [], **look[a].line, ms=5, lw=1.6, label=arm_label(a, controls))
        for a in trained_arms(results)
        if any(a in of_task for of_task in curves.values())
    ]
    name_lines(figure, handles, 4)
    return figure, panels


def gap_bars(results: Sequence[Result]) -> Drawn | None:
    """Macro-F1 on training examples minus that on the evaluation split, per arm and task."""
    split = evaluation_split(results)
    rows: dict[str, dict[str, Interval]] = {}
    for task in tasks_of(results):
        for arm in trained_arms(results):
            values = per_seed(results, arm, lambda result, t=task: gap(result, t, split))
            interval = mean_interval(values.values())
            if interval:
                rows.setdefault(task, {})[arm] = interval
    if not rows:
        return None
    arms = [arm for arm in trained_arms(results) if any(arm in found for found in rows.values())]
    controls = control_heads(results)
    look = looks(arms_of(results), controls)
    with styled():
        figure, panels = panel_row(len(rows), 1.3 + 0.36 * len(arms))
        for axes, (task, found) in zip(panels, rows.items(), strict=True):
            for arm, interval in found.items():
                axes.barh(
                    arms.index(arm),
                    interval.mean,
                    height=0.62,
                    color=look[arm].colour,
                    xerr=interval.half_width,
                    error_kw={"ecolor": INK, "elinewidth": 1.2, "capsize": 3},
                )
            axes.axvline(0, color=INK, lw=1)
            arm_axis(axes, [arm_label(arm, controls) for arm in arms])
            axes.set(
                title=f"{task}: train minus {split}",
                xlabel=f"{score_name(results, task)} difference",
            )
            axes.xaxis.set_major_locator(MaxNLocator(5))
    return Drawn(
        "gap",
        figure,
        f"How far the fit to the training examples runs ahead of the {split} split. Bars are "
        "means over seeds, lines 95 % intervals; 0 means no overfitting.",
    )


def by_source(results: Sequence[Result], task: str) -> Drawn | None:
    """Weighted F1 of a task per source, beside the published figures where they apply."""
    split = evaluation_split(results)
    sources = sources_of(results, split, task)
    if not sources:
        return None
    arms = trained_arms(results)
    controls = control_heads(results)
    look = looks(arms_of(results), controls)
    path = (split, task, "weighted_f1_by_source")
    published = PUBLISHED if has_published(sources) else {}
    lines = dict(zip(published, ("-", "--", ":"), strict=False))
    with styled():
        figure, panels = panel_row(len(sources), 1.7 + 0.34 * len(arms))
        for axes, source in zip(panels, sources, strict=True):
            for name, scores in published.items():
                axes.axvline(scores[source], color=SOFT, ls=lines[name], lw=1.3)
            for arm in arms:
                interval = mean_interval(numbers(results, arm, *path, source).values())
                if interval:
                    draw_interval(axes, arms.index(arm), interval, look[arm], across=True)
            arm_axis(axes, [arm_label(arm, controls) for arm in arms])
            axes.set_title(source.replace("_", " "))
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        figure.supxlabel(f"weighted F1, {task}, {split} split", fontsize=9.5)
        if published:
            handles = [
                Line2D([], [], color=SOFT, ls=lines[name], lw=1.3, label=name) for name in published
            ]
            figure.legend(
                handles=handles,
                loc="outside upper center",
                ncols=3,
                title="published (Hutto & Gilbert, 2014)",
                title_fontsize=9.5,
            )
    caption = f"Weighted F1 of {task} by source: means over seeds, 95 % intervals."
    if published:
        caption += " Upright lines are published figures, which were not measured on this split."
    return Drawn(f"by_source_{task}", figure, caption)


def _curves(
    results: Sequence[Result],
    task: str,
    place: Callable[[Result, Mapping[str, Any]], float | None],
    number: Callable[[Any, str], float | None],
) -> dict[str, list[tuple[float, float, float, float]]]:
    """Per arm: where each evaluation is drawn, and the mean, lowest and highest number there.

    Places may differ from seed to seed, so evaluations are matched by epoch and drawn at their
    mean.
    """
    curves = {}
    for arm in trained_arms(results):
        at: dict[float, list[tuple[float, float]]] = {}
        for result in results:
            for point in (result.get("curve") or []) if result["arm"] == arm else []:
                epoch, where = lookup(point, "epoch"), place(result, point)
                value = number(point.get("validation"), task)
                if epoch is not None and value is not None and where is not None:
                    at.setdefault(epoch, []).append((where, value))
        if at:
            curves[arm] = [_summary(at[epoch]) for epoch in sorted(at)]
    return curves


def _flops_until(result: Result, point: Mapping[str, Any]) -> float | None:
    """Training FLOPs up to a point of a run's curve; None where they were not counted."""
    done, total = lookup(point, "step"), 0
    if done is None or not (phases := result.get("flops_of_phases")):
        return None
    for phase in phases[: point.get("phase", len(phases))]:
        steps = min(phase["steps"], done)
        total += steps * phase["step"] + phase["prefix"]
        done -= steps
    return total


def _summary(points: Sequence[tuple[float, float]]) -> tuple[float, float, float, float]:
    places, scores = zip(*points, strict=True)
    return sum(places) / len(points), sum(scores) / len(points), min(scores), max(scores)
