"""Metrics of a split from predicted classes, by scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, f1_score

from mtl_jax.config import TASKS

Metrics = dict[str, Any]

# A class without a single example or prediction; scikit-learn's annotations know only "warn".
_UNDEFINED: Any = 0


def task_metrics(labels: np.ndarray, predicted: np.ndarray, classes: int) -> Metrics:
    """Accuracy and macro-F1 over the examples that have a label.

    Args:
        labels: int [n], negative where missing.
        predicted: int [n].
        classes: Number of classes; macro-F1 is the mean over all of them, and counts 0 for
            one that is neither there nor predicted.

    Returns:
        ``{"accuracy", "macro_f1", "examples"}``; the first two are None without labels.
    """
    present = labels >= 0
    if not present.any():
        return {"accuracy": None, "macro_f1": None, "examples": 0}
    true, guess = labels[present], predicted[present]
    return {
        "accuracy": float(accuracy_score(true, guess)),
        "macro_f1": float(
            f1_score(true, guess, labels=range(classes), average="macro", zero_division=_UNDEFINED)
        ),
        "examples": int(present.sum()),
    }


def split_metrics(
    labels: Mapping[str, np.ndarray],
    predicted: Mapping[str, np.ndarray],
    classes: Mapping[str, Sequence[str]],
    groups: np.ndarray | None,
) -> Metrics:
    """Metrics of both tasks, and the weighted F1 of ``sentiment`` within each group.

    Args:
        labels: Per task int [n], negative where missing.
        predicted: Per task int [n].
        classes: Per task the names of its classes.
        groups: str [n], the source of each example, or None.
    """
    result = {
        task: task_metrics(labels[task], predicted[task], len(classes[task])) for task in TASKS
    }
    by_source = {}
    for group in () if groups is None else sorted(set(groups.tolist())):
        chosen = (groups == group) & (labels["sentiment"] >= 0)
        if chosen.any():
            true, guess = labels["sentiment"][chosen], predicted["sentiment"][chosen]
            by_source[group] = float(
                f1_score(true, guess, average="weighted", zero_division=_UNDEFINED)
            )
    result["sentiment"]["weighted_f1_by_source"] = by_source
    return result


def mean_macro_f1(metrics: Metrics, tasks: Sequence[str] = TASKS) -> float:
    """What checkpoints are chosen by: macro-F1, its mean over the tasks that have labels.

    Args:
        metrics: Of a split.
        tasks: Of which tasks.
    """
    values = [metrics[task]["macro_f1"] for task in tasks if metrics[task]["examples"]]
    return float(np.mean(values)) if values else 0.0
