"""What several runs predict together: the mean of their probabilities, or of their values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtl_jax.core.errors import UserError
from mtl_jax.runs.predictions import Predictions, TaskPredictions


def averaged(runs: Sequence[Predictions]) -> Predictions:
    """The predictions of an ensemble, from those of its members on the same texts.

    Of a task with classes the probabilities are averaged, of a regression the values.

    Source: Lakshminarayanan et al. 2017, "Simple and Scalable Predictive Uncertainty Estimation
    using Deep Ensembles" (arXiv:1612.01474), section 2.4.

    Args:
        runs: Of each member, one at least; ``read_predictions`` reads them.

    Raises:
        UserError: They are of other texts or tasks, or their probabilities are rounded.
    """
    first = runs[0]
    if any(run.rounded for run in runs):
        raise UserError(
            "predictions with rounded probabilities can't be averaged: use those that the runs "
            "have left"
        )
    for run in runs[1:]:
        alike = np.array_equal(run.examples, first.examples)
        if not alike or run.tasks.keys() != first.tasks.keys():
            raise UserError("the runs of an ensemble need the same tasks and the same texts")
    tasks = {name: _averaged([run.tasks[name] for run in runs], name) for name in first.tasks}
    return Predictions(first.examples, first.data_sets, first.groups, tasks)


def _averaged(runs: Sequence[TaskPredictions], name: str) -> TaskPredictions:
    first = runs[0]
    if any(run.classes != first.classes or run.kind != first.kind for run in runs):
        raise UserError(f"the runs of an ensemble have other classes of {name}: use the same data")
    if first.probabilities is None:
        predicted = np.mean([run.predicted for run in runs], axis=0)
        return TaskPredictions(first.kind, first.classes, first.gold, predicted, None)
    found = [run.probabilities for run in runs if run.probabilities is not None]
    mean: np.ndarray = np.asarray(np.mean(found, axis=0, dtype=np.float64), np.float32)
    if first.kind == "multi_label":
        predicted = (mean >= 0.5).astype(np.int8)
    else:
        predicted = mean.argmax(-1).astype(np.int32)
    return TaskPredictions(first.kind, first.classes, first.gold, predicted, mean)
