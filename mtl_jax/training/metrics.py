"""Metrics of a split from predictions, by scikit-learn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mtl_jax.config.tasks import SCORES
from mtl_jax.data.kinds import has_label
from mtl_jax.training.kinds.base import Metrics, TaskKind
from mtl_jax.training.kinds.registry import KINDS, kind_of


def split_metrics(
    labels: Mapping[str, np.ndarray],
    predicted: Mapping[str, np.ndarray],
    classes: Mapping[str, Sequence[str]],
    groups: np.ndarray | None,
    probabilities: Mapping[str, np.ndarray] | None = None,
) -> Metrics:
    """Metrics of each task, and where it has classes its weighted F1 within each group.

    A task that the group decides has none of these: each has one class of it. With probabilities a
    task that has classes has ``per_class`` and ``ece``, too.

    Args:
        labels: Per task those of n texts; the array tells the kind, see ``data.kinds``.
        predicted: Per task the predictions.
        classes: Per task the names of its classes.
        groups: str [n], the source of each example, or None.
        probabilities: Of each task that has classes, float32 [n, classes].
    """
    result = {}
    for task, names in classes.items():
        kind = kind_of(labels[task])
        result[task] = kind.metrics(labels[task], predicted[task], len(names))
        if kind.name != "regression":
            of_task = _by_group(kind, labels[task], predicted[task], groups)
            result[task]["weighted_f1_by_source"] = of_task
        if probabilities is not None and task in probabilities:
            there = has_label(labels[task])
            true, guess, sure = (
                each[there] for each in (labels[task], predicted[task], probabilities[task])
            )
            result[task]["per_class"] = kind.per_class(true, guess, names) if len(true) else {}
            result[task]["ece"] = kind.calibration_error(true, sure) if len(true) else None
    return result


def _by_group(
    kind: TaskKind, labels: np.ndarray, predicted: np.ndarray, groups: np.ndarray | None
) -> dict[str, float]:
    by_group: dict[str, float] = {}
    decided = True
    for group in () if groups is None else sorted(set(groups.tolist())):
        chosen = (groups == group) & has_label(labels)
        if chosen.any():
            true, guess = labels[chosen], predicted[chosen]
            decided = decided and len(np.unique(true, axis=0)) == 1
            value = kind.weighted_f1(true, guess)
            by_group |= {} if value is None else {group: value}
    return {} if decided else by_group


def of_metrics(metrics: Mapping[str, object]) -> TaskKind:
    """The kind of a task from its metrics: a record has nothing else."""
    if "r2" in metrics and "macro_f1" not in metrics:
        return KINDS["regression"]
    return KINDS["multi_label" if "micro_f1" in metrics else "single_label"]


def score(metrics: Mapping[str, object]) -> float | None:
    """What a task is judged by, higher is better; None where it is not defined.

    Args:
        metrics: Those of the task on a split.
    """
    value = metrics[of_metrics(metrics).score]
    return None if value is None else float(value)  # pyright: ignore[reportArgumentType]


def mean_score(metrics: Metrics, tasks: Iterable[str] | None = None) -> float:
    """What checkpoints are chosen by: the mean over the tasks that have labels of their scores.

    That is macro-F1, and R2 of a regression; both are 1 at best.

    Args:
        metrics: Of a split.
        tasks: Of which tasks; by default all.
    """
    found = [score(metrics[task]) for task in tasks or metrics if metrics[task]["examples"]]
    values = [value for value in found if value is not None]
    return float(np.mean(values)) if values else 0.0


def score_name(metrics: Mapping[str, Mapping[str, object]]) -> str:
    """What the scores of these tasks are called, for a reader: ``macro-F1`` where all are that."""
    names = {of_metrics(of_task).score for of_task in metrics.values()}
    if names == {SCORES["regression"]}:
        return "R2"
    return "macro-F1" if len(names) == 1 else "score"
