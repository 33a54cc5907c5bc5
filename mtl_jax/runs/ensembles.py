"""What several runs predict together: the mean of their probabilities, or of their values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtl_jax.core.errors import UserError
from mtl_jax.runs.predictions import Predictions, TaskPredictions
from mtl_jax.training.kinds.registry import KINDS


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
    for name, task in first.tasks.items():
        if any(_known(run.tasks[name]) != _known(task) for run in runs):
            raise UserError(
                f"the runs of an ensemble have other classes of {name}: use the same data"
            )
    tasks = {name: averaged_task([run.tasks[name] for run in runs]) for name in first.tasks}
    return Predictions(first.examples, first.data_sets, first.groups, tasks)


def _known(task: TaskPredictions) -> tuple[Any, ...]:
    return task.kind, task.classes


def averaged_task(runs: Sequence[TaskPredictions]) -> TaskPredictions:
    """What several runs predict together for one task, of the same texts and classes.

    Args:
        runs: Of each member, one at least.
    """
    first = runs[0]
    if first.probabilities is None:
        predicted = np.mean([run.predicted for run in runs], axis=0)
        return dataclasses.replace(first, predicted=predicted)
    mean = mean_probabilities([run.probabilities for run in runs])
    kind = KINDS[first.kind]
    predicted = kind.predicted(kind.logits(mean)).astype(first.predicted.dtype)
    mean = mean.astype(first.probabilities.dtype)
    return dataclasses.replace(first, predicted=predicted, probabilities=mean)


def mean_probabilities(members: Sequence[np.ndarray | None]) -> np.ndarray:
    """The mean of the probabilities of several runs, float64 [n, classes].

    Args:
        members: Those of each, float [n, classes].
    """
    found = [each for each in members if each is not None]
    return np.asarray(np.mean(found, axis=0, dtype=np.float64))
