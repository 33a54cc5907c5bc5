"""The report of a sweep of heads: which setting, how sure, and how it compares."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.studies.report.axes import panel_row
from mtl_jax.studies.report.document import (
    Block,
    Cell,
    Code,
    Document,
    Facts,
    Heading,
    Paragraph,
    Picture,
    Row,
    Table,
)
from mtl_jax.studies.report.figures import png
from mtl_jax.studies.report.palette import styled
from mtl_jax.studies.report.search_report import search_blocks
from mtl_jax.studies.stats.intervals import Interval, mean_interval
from mtl_jax.studies.stats.results import lookup, measures, quality, tasks_of

Line = Mapping[str, Any]
Setting = tuple[tuple[str, float], ...]

_LEARNING_RATE = "head_learning_rate"


def by_setting(lines: Sequence[Line]) -> dict[Setting, list[float] | None]:
    """Per setting each seed's validation score; None where a seed has diverged."""
    scores: dict[Setting, list[float] | None] = {}
    for line in lines:
        setting = tuple(line["setting"].items())
        known = scores.setdefault(setting, [])
        if line["score"] is None:
            scores[setting] = None
        elif known is not None:
            known.append(line["score"])
    return scores


def trial_scores(lines: Sequence[Line]) -> list[float]:
    """The validation score that each setting was judged by: its mean over seeds.

    A setting that diverged with any seed was tried and found nothing: it scores 0, the
    least that macro-F1 can be, or where R2 is below 0 as the worst of the others.
    """
    means = [sum(values) / len(values) if values else None for values in by_setting(lines).values()]
    least = min([0.0, *(mean for mean in means if mean is not None)])
    return [least if mean is None else mean for mean in means]


def setting_table(lines: Sequence[Line], most: int | None = None) -> Table:
    """The settings by their mean validation score, the best first.

    Args:
        lines: Lines of ``results.jsonl``.
        most: Rows to show at most.
    """
    scores = by_setting(lines)
    chosen = tuple(next(line for line in lines if line["chosen"])["setting"].items())
    varied = [
        name for i, (name, _) in enumerate(chosen) if len({setting[i] for setting in scores}) > 1
    ]

    def mean(setting: Setting) -> float:
        values = scores[setting]
        return sum(values) / len(values) if values else -math.inf

    rows = []
    for setting in sorted(scores, key=mean, reverse=True)[:most]:
        named = [f"{name} {value:g}" for name, value in setting if name in varied]
        interval = mean_interval(scores[setting] or [])
        rows.append(
            Row(
                (Cell(", ".join(named) or "the one setting"), _cell(interval)),
                "chosen" if setting == chosen else "",
            )
        )
    note = f"The first {most} of {len(scores)} settings." if most and most < len(scores) else ""
    columns = ("setting", "mean macro-F1 on validation")
    return Table("Settings, the best first", columns, tuple(rows), note)


def _cell(interval: Interval | None) -> Cell:
    if interval is None:
        return Cell("diverged")
    half = interval.half_width
    return Cell(f"{interval.mean:.3f}", "" if half is None else f"± {half:.3f}")


def score_plot(lines: Sequence[Line]) -> bytes:
    """Validation score over the learning rate, a line for each combination of the others.

    Returns:
        A PNG; bars are the smallest and the largest of the seeds.
    """
    groups: dict[Setting, list[tuple[float, list[float]]]] = {}
    for setting, scores in by_setting(lines).items():
        others = tuple(pair for pair in setting if pair[0] != _LEARNING_RATE)
        if scores:
            groups.setdefault(others, []).append((dict(setting)[_LEARNING_RATE], scores))
    varied = {
        pair for others in groups for pair in others if not all(pair in other for other in groups)
    }
    with styled():
        figure, (axes,) = panel_row(1, 4.2)
        for others, points in groups.items():
            points.sort()
            means = [sum(scores) / len(scores) for _, scores in points]
            below = [mean - min(scores) for mean, (_, scores) in zip(means, points, strict=True)]
            above = [max(scores) - mean for mean, (_, scores) in zip(means, points, strict=True)]
            label = ", ".join(
                f"{name} {value:g}" for name, value in others if (name, value) in varied
            )
            rates = [rate for rate, _ in points]
            axes.errorbar(
                rates, means, yerr=[below, above], label=label or None, marker="o", capsize=3
            )
        if all(rate > 0 for points in groups.values() for rate, _ in points):
            axes.set_xscale("log")
        axes.set_xlabel("learning rate of the heads")
        axes.set_ylabel("mean macro-F1 on validation")
        if varied:
            axes.legend()
    return png(figure)


def document(lines: Sequence[Line], context: Mapping[str, Any]) -> Document:
    """The whole report.

    Args:
        lines: Lines of ``results.jsonl``.
        context: From ``environment.circumstances``, and ``data``.
    """
    chosen = [line for line in lines if line["chosen"]]
    seeds = {line["seed"] for line in lines}
    setting = ", ".join(f"`{name}` {value:g}" for name, value in chosen[0]["setting"].items())
    facts = [("runs", Cell(str(len(lines)), f"{len(seeds)} seeds"))]
    diverged = sum(line["validation"] is None for line in lines)
    if diverged:
        facts.append(("diverged", Cell(str(diverged))))
    test = _test(chosen, facts)
    blocks: list[Block] = [
        Paragraph(f"Chosen on validation: {setting}.", "lead"),
        Picture(
            "heads.png",
            functools.partial(score_plot, lines),
            "Mean macro-F1 on validation of the epoch that is kept: the mean over seeds, from the "
            "smallest to the largest.",
        ),
        Facts(tuple(facts)),
        Heading("Results"),
        *test,
        setting_table(lines),
        *search_blocks(trial_scores(lines)),
        Heading("How this was made"),
        Code(context["command"]),
        Paragraph(
            f"{context['started']}, {context['seconds']:.0f} s on {context['machine']}, "
            f"{context['memory']}. " + ". ".join(context["data"])
        ),
    ]
    return Document(
        "Heads on a frozen backbone",
        "Every choice is made on validation; test is read once, for the chosen setting.",
        tuple(blocks),
    )


def _test(chosen: Sequence[Line], facts: list[tuple[str, Cell]]) -> list[Block]:
    """What the chosen setting reaches on test; adds that to the facts."""
    tested = [line for line in chosen if line["test"]]
    if not tested:
        return []
    scores = [quality(line["test"]) for line in tested]
    facts.append(
        ("mean macro-F1 on test", _cell(mean_interval([s for s in scores if s is not None])))
    )
    rows = []
    for task in tasks_of(tested):
        cells = [
            _cell(mean_interval([v for v in values if v is not None]))
            for name, _ in measures(tested, task)
            for values in [[lookup(line["test"], task, name) for line in tested]]
        ]
        rows.append(Row((Cell(task), *cells)))
    named = [[name for _, name in measures(tested, task)] for task in tasks_of(tested)]
    columns = ("task", *(" / ".join(dict.fromkeys(names)) for names in zip(*named, strict=True)))
    return [Table("The chosen setting on test", columns, tuple(rows))]
