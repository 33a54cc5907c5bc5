"""What tuning has found for each arm, and what a smaller budget would have."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.core.json_files import read_lines
from mtl_jax.studies.report.axes import cost_axis, name_lines, panel_row
from mtl_jax.studies.report.document import Block, Cell, Row, Table
from mtl_jax.studies.report.figures import Drawn, picture
from mtl_jax.studies.report.palette import looks, styled
from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.resampling import expected_best
from mtl_jax.studies.stats.results import arm_order, setting_name

TRIALS = "tuning.jsonl"
"""A line for each trial: ``arm``, ``setting`` of a study that has some, ``rates`` and ``length``,
what was tried, ``validation``, its score or None where it diverged, and ``flops``."""
_TRIAL = {"type": "object", "required": ["arm", "rates", "validation", "flops"]}

Trial = Mapping[str, Any]


def tuning_blocks(folder: Path) -> list[Block]:
    """Expected validation performance over the budget, and what was chosen; nothing without tuning.

    Args:
        folder: Of the study.
    """
    searches: dict[tuple[str, str], list[Trial]] = {}
    for line in read_lines(folder / TRIALS, _TRIAL) if (folder / TRIALS).exists() else ():
        searches.setdefault((line["arm"], setting_name(line)), []).append(line)
    order = arm_order(arm for arm, _ in searches)
    found = dict(sorted(searches.items(), key=lambda item: order.index(item[0][0])))
    return [picture(_plot(found)), _table(found)] if found else []


def _scores(trials: Sequence[Trial]) -> list[float]:
    """What each trial found: one that diverged nothing, as the worst of the others, or 0."""
    known = [trial["validation"] for trial in trials if trial["validation"] is not None]
    least = min([0.0, *known])
    return [least if trial["validation"] is None else trial["validation"] for trial in trials]


def _plot(searches: Mapping[tuple[str, str], Sequence[Trial]]) -> Drawn:
    look = looks([arm for arm, _ in searches])
    with styled():
        figure, (axes,) = panel_row(1, 4.2)
        lines = []
        for (arm, setting), trials in searches.items():
            each = statistics.fmean(trial["flops"] for trial in trials)
            curve = expected_best(_scores(trials))
            costs = [each * (n + 1) / 1e12 for n in range(len(curve))]
            label = f"{arm}, {setting}" if setting else arm
            lines += axes.plot(
                costs, curve, color=look[arm].colour, marker=look[arm].marker, ms=4, label=label
            )
        cost_axis(axes)
        axes.set_xlabel("training FLOPs of the search, in units of 10¹² (log scale)")
        axes.set_ylabel("expected best score on validation")
        name_lines(figure, lines, 4)
    return Drawn(
        "tuning",
        figure,
        "The score on validation that the best of n trials can be expected to have, over what n "
        "trials cost: where a line is flat, a larger budget buys nothing; where it still rises, "
        "the arm may be better than it looks.",
    )


def _table(searches: Mapping[tuple[str, str], Sequence[Trial]]) -> Table:
    rows = []
    for (arm, setting), trials in searches.items():
        scores = _scores(trials)
        curve, best = expected_best(scores), trials[scores.index(max(scores))]
        tried = {**best["rates"], **(best.get("length") or {})}
        chosen = ", ".join(f"{name} {value:g}" for name, value in tried.items())
        cells = (
            chosen,
            formatting.fixed(max(scores)),
            formatting.fixed(float(curve[0])),
            formatting.fixed(float(curve[(len(curve) - 1) // 2])),
            f"{len(trials):,}",
            formatting.flops(sum(trial["flops"] for trial in trials)),
        )
        name = f"`{arm}`, {setting}" if setting else f"`{arm}`"
        rows.append(Row((Cell(name), *map(Cell, cells))))
    columns = (
        *("arm", "best trial", "its score", "expected of one trial", "of half the trials"),
        *("trials", "FLOPs"),
    )
    note = (
        "Every arm has the same budget; what it is trained with was chosen on validation. Expected "
        "scores: Dodge et al., Show Your Work, 2019, arXiv:1909.03004, for trials drawn at random; "
        "of a sampler that learns from its trials they describe these trials alone."
    )
    return Table("Tuning", columns, tuple(rows), note, textual=True)
