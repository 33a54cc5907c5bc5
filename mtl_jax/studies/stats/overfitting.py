"""Numbers of one run that say how far it overfits, means over its tasks."""

from __future__ import annotations

from mtl_jax.studies.stats.results import Result, gap, lookup, mean_of_known, tasks_of


def validation_losses(line: Result, task: str) -> list[float]:
    """The loss of a task at each measurement on validation, in nats."""
    found = (lookup(each, "validation", task, "loss") for each in line.get("curve") or ())
    return [loss for loss in found if loss is not None]


def loss_past_its_minimum(line: Result) -> float | None:
    """The validation loss at the end, above its minimum, in nats; None without two measurements."""
    found = (validation_losses(line, task) for task in tasks_of([line]))
    return mean_of_known(losses[-1] - min(losses) for losses in found if len(losses) > 1)


def mean_gap(line: Result, split: str) -> float | None:
    """The score on the training examples minus that on ``split``."""
    return mean_of_known(gap(line, task, split) for task in tasks_of([line]))


def calibration_error(line: Result, split: str) -> float | None:
    """The expected calibration error on ``split``."""
    return mean_of_known(lookup(line, split, task, "ece") for task in tasks_of([line]))
