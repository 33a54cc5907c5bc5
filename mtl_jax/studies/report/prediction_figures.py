"""Figures of what runs predict: how sure they are, and how near values come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mtl_jax.runs import calibration
from mtl_jax.runs.diagnosis import only_labelled, together
from mtl_jax.runs.predictions import TaskPredictions
from mtl_jax.studies.report.axes import panel_row
from mtl_jax.studies.report.figures import Drawn
from mtl_jax.studies.report.palette import INK, SOFT, styled

_COLOUR = "#0072B2"
_MOST_POINTS = 2000


def reliability_plot(tasks: Mapping[str, Sequence[TaskPredictions]], split: str) -> Drawn:
    """What is right of the predictions of like confidence, a panel for each task.

    Args:
        tasks: Per task, none a regression, the predictions of each run.
        split: Which split they are of.
    """
    with styled():
        figure, panels = panel_row(len(tasks), 4.0)
        for axes, (task, runs) in zip(panels, tasks.items(), strict=True):
            axes.plot([0, 1], [0, 1], color=SOFT, ls="--", lw=1)
            pairs = [calibration.confidences(run) for run in runs]
            for pair in pairs if len(pairs) > 1 else ():
                bins = calibration.reliability(*pair)
                axes.plot(
                    [b.confidence for b in bins],
                    [b.accuracy for b in bins],
                    color=_COLOUR,
                    lw=0.8,
                    alpha=0.3,
                )
            confidence, right = (np.concatenate(each) for each in zip(*pairs, strict=True))
            bins = calibration.reliability(confidence, right)
            sizes = [12 + 180 * b.count / len(confidence) for b in bins]
            where = [b.confidence for b in bins], [b.accuracy for b in bins]
            axes.plot(*where, color=_COLOUR, lw=1.6)
            axes.scatter(*where, s=sizes, color=_COLOUR, zorder=3)
            errors = [calibration.calibration_error(run) or 0.0 for run in runs]
            error = sum(errors) / len(errors)
            axes.set(
                title=f"{task} (ECE {error:.3f})", xlabel="confidence", xlim=(0, 1), ylim=(0, 1.02)
            )
        panels[0].set_ylabel("part that is right")
    lines = " Thin lines are seeds." if any(len(runs) > 1 for runs in tasks.values()) else ""
    return Drawn(
        "reliability",
        figure,
        f"Predictions of the {split} split by their confidence: on the dashed line probabilities "
        "mean what they say, below it the predictions are too sure. The larger a point, the more "
        f"predictions it stands for.{lines}",
    )


def value_plot(tasks: Mapping[str, Sequence[TaskPredictions]], split: str) -> Drawn:
    """The predictions of regressions over their labels, a panel for each task.

    Args:
        tasks: Per task, each a regression, the predictions of each run.
        split: Which split they are of.
    """
    with styled():
        figure, panels = panel_row(len(tasks), 4.0, sharey=False)
        for axes, (task, runs) in zip(panels, tasks.items(), strict=True):
            whole = only_labelled(together(list(runs)))
            count = len(whole.gold)
            some = np.linspace(0, count - 1, min(count, _MOST_POINTS)).round().astype(int)
            ends = [float(whole.gold.min()), float(whole.gold.max())]
            axes.plot(ends, ends, color=INK, ls="--", lw=1)
            axes.scatter(
                whole.gold[some], whole.predicted[some], s=9, color=_COLOUR, alpha=0.4, lw=0
            )
            axes.set(title=task, xlabel="label")
        panels[0].set_ylabel("prediction")
    return Drawn(
        "values",
        figure,
        f"Predictions over labels of the {split} split; on the dashed line they are equal.",
    )
