"""Metrics of a split from predicted classes, by scikit-learn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, f1_score

Metrics = dict[str, Any]

# The precision of a class that is never predicted; scikit-learn's annotations know only "warn".
_UNDEFINED: Any = 0


def task_metrics(labels: np.ndarray, predicted: np.ndarray, classes: int) -> Metrics:
    """Accuracy and macro-F1 over the examples that have a label.

    Macro-F1 is the mean over the classes that occur or are predicted, as scikit-learn's
    ``f1_score(labels, predicted, average="macro")`` is: one that does neither does not count.

    Args:
        labels: int [n], negative where missing.
        predicted: int [n].
        classes: Number of classes.

    Returns:
        ``{"accuracy", "macro_f1", "examples"}``; the first two are None without labels.
    """
    present = labels >= 0
    if not present.any():
        return {"accuracy": None, "macro_f1": None, "examples": 0}
    true, guess = labels[present], predicted[present]
    counts = np.bincount(true, minlength=classes) + np.bincount(guess, minlength=classes)
    there = np.flatnonzero(counts)
    return {
        "accuracy": float(accuracy_score(true, guess)),
        "macro_f1": float(
            f1_score(true, guess, labels=there, average="macro", zero_division=_UNDEFINED)
        ),
        "examples": int(present.sum()),
    }


def split_metrics(
    labels: Mapping[str, np.ndarray],
    predicted: Mapping[str, np.ndarray],
    classes: Mapping[str, Sequence[str]],
    groups: np.ndarray | None,
) -> Metrics:
    """Metrics of each task, and its weighted F1 within each group.

    A task that the group decides has none of these: each has one class of it.

    Args:
        labels: Per task int [n], negative where missing.
        predicted: Per task int [n].
        classes: Per task the names of its classes.
        groups: str [n], the source of each example, or None.
    """
    result = {
        task: task_metrics(labels[task], predicted[task], len(names))
        for task, names in classes.items()
    }
    for task in classes:
        of_task = _by_group(labels[task], predicted[task], groups)
        result[task]["weighted_f1_by_source"] = of_task
    return result


def _by_group(
    labels: np.ndarray, predicted: np.ndarray, groups: np.ndarray | None
) -> dict[str, float]:
    by_group, decided = {}, True
    for group in () if groups is None else sorted(set(groups.tolist())):
        chosen = (groups == group) & (labels >= 0)
        if chosen.any():
            true, guess = labels[chosen], predicted[chosen]
            decided = decided and len(np.unique(true)) == 1
            by_group[group] = float(
                f1_score(true, guess, average="weighted", zero_division=_UNDEFINED)
            )
    return {} if decided else by_group


def mean_macro_f1(metrics: Metrics, tasks: Iterable[str] | None = None) -> float:
    """What checkpoints are chosen by: macro-F1, its mean over the tasks that have labels.

    Args:
        metrics: Of a split.
        tasks: Of which tasks; by default all.
    """
    values = [metrics[task]["macro_f1"] for task in tasks or metrics if metrics[task]["examples"]]
    return float(np.mean(values)) if values else 0.0
