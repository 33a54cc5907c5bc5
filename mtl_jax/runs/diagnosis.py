"""What predictions show beside a split's metrics: scores by class, confusions, the worst mistakes.

All of it is computed from labels, predictions and probabilities, by scikit-learn, so that it comes
out the same from a run that has just ended and from the predictions that it has left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from sklearn.metrics import (
    confusion_matrix,
    multilabel_confusion_matrix,
    precision_recall_curve,
)

from mtl_jax.data.kinds import has_label
from mtl_jax.runs.ensembles import averaged_task
from mtl_jax.runs.predictions import TaskPredictions
from mtl_jax.training.kinds.multi_label import THRESHOLD
from mtl_jax.training.kinds.registry import KINDS


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A text that several runs, or one, get wrong.

    Attributes:
        place: Of the text, from 0.
        label: What it is, for a reader.
        predicted: What it is taken for.
        size: How wrong that is: the probability of the wrong answer, or of a regression the error,
            prediction minus label.
        runs: How many of the runs get it wrong; of a regression all.
    """

    place: int
    label: str
    predicted: str
    size: float
    runs: int


def labelled(found: TaskPredictions) -> np.ndarray:
    """Returns int [m]: the places of the texts that have a label."""
    return np.flatnonzero(has_label(found.gold))


def only_labelled(found: TaskPredictions) -> TaskPredictions:
    """The predictions of the texts that have a label."""
    there, probabilities = labelled(found), found.probabilities
    return dataclasses.replace(
        found,
        gold=found.gold[there],
        predicted=found.predicted[there],
        probabilities=None if probabilities is None else probabilities[there],
    )


def per_class(found: TaskPredictions) -> dict[str, dict[str, float]]:
    """Of each class ``precision``, ``recall``, ``f1`` and ``support``; see ``TaskKind``."""
    asked = only_labelled(found)
    if not len(asked.gold):
        return {}
    return KINDS[asked.kind].per_class(asked.gold, asked.predicted, asked.classes)


def _columns(marks: np.ndarray) -> np.ndarray:
    """Marks with a column that nothing has, where there is only one."""
    return np.pad(marks, ((0, 0), (0, 1))) if marks.shape[1] == 1 else marks


def confusion(found: TaskPredictions) -> np.ndarray:
    """How often each class is taken for which, int [K, K]: rows are labels, columns predictions.

    Of a ``multi_label`` task int [K, 2, 2]: of each class the same of whether a text has it.
    """
    asked = only_labelled(found)
    count = len(asked.classes)
    if asked.kind == "multi_label":
        return multilabel_confusion_matrix(_columns(asked.gold), _columns(asked.predicted))[:count]
    if not len(asked.gold):
        return np.zeros((count, count), int)
    return confusion_matrix(asked.gold, asked.predicted, labels=range(count))


def best_thresholds(found: TaskPredictions) -> np.ndarray:
    """Per class of a ``multi_label`` task the threshold with the best F1, float [K].

    ``THRESHOLD`` where no text has the class. To be found on validation: on the texts that it is
    then measured on it would flatter.
    """
    asked = only_labelled(found)
    best = np.full(len(asked.classes), THRESHOLD)
    for i, (labels, values) in enumerate(zip(asked.gold.T, _of_classes(asked).T, strict=True)):
        if labels.any():
            precision, recall, thresholds = precision_recall_curve(labels, values)
            f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
            best[i] = thresholds[int(np.argmax(f1[:-1]))]
    return best


def with_thresholds(found: TaskPredictions, thresholds: np.ndarray) -> TaskPredictions:
    """A ``multi_label`` task's predictions with a threshold of its own for each class."""
    marks = (_of_classes(found) >= thresholds).astype(np.int8)
    return dataclasses.replace(found, predicted=marks)


def together(runs: Sequence[TaskPredictions]) -> TaskPredictions:
    """What several runs predict together of the same texts: the mean of what each does.

    Raises:
        ValueError: They have other texts.
    """
    first = runs[0]
    if any(not np.array_equal(first.gold, run.gold, equal_nan=True) for run in runs):
        raise ValueError("the runs have predicted other texts")
    return first if len(runs) == 1 else averaged_task(runs)


def mistakes(runs: Sequence[TaskPredictions], most: int) -> list[Mistake]:
    """The texts that the runs together get wrong and are surest of, the surest first.

    Of a regression the largest errors; of a ``multi_label`` task a text may come once for each of
    its classes. What counts are the means over the runs, see ``together``.

    Args:
        runs: Of the same texts.
        most: How many.
    """
    whole = together(runs)
    if whole.kind == "regression":
        return _largest_errors(whole, most, len(runs))
    there, probabilities = labelled(whole), _of_classes(whole)
    if whole.kind == "single_label":
        wrong = there[whole.predicted[there] != whole.gold[there]]
        sizes = probabilities[wrong, whole.predicted[wrong]]
        order = np.argsort(-sizes, kind="stable")[:most]
        return [
            Mistake(
                int(place),
                whole.classes[whole.gold[place]],
                whole.classes[whole.predicted[place]],
                float(probabilities[place, whole.predicted[place]]),
                sum(int(run.predicted[place] != run.gold[place]) for run in runs),
            )
            for place in wrong[order]
        ]
    rows, columns = np.nonzero(whole.predicted[there] != whole.gold[there])
    rows = there[rows]
    sizes = np.where(
        whole.predicted[rows, columns] > 0,
        probabilities[rows, columns],
        1 - probabilities[rows, columns],
    )
    found = []
    for i in np.argsort(-sizes, kind="stable")[:most]:
        row, column = int(rows[i]), int(columns[i])
        labels = [whole.classes[k] for k in np.flatnonzero(whole.gold[row])]
        name = whole.classes[column]
        found.append(
            Mistake(
                row,
                ", ".join(labels) or "none",
                name if whole.predicted[row, column] else f"not {name}",
                float(sizes[i]),
                sum(int(run.predicted[row, column] != run.gold[row, column]) for run in runs),
            )
        )
    return found


def _largest_errors(found: TaskPredictions, most: int, runs: int) -> list[Mistake]:
    there = labelled(found)
    errors = found.predicted[there] - found.gold[there]
    order = np.argsort(-np.abs(errors), kind="stable")[:most]
    return [
        Mistake(
            int(there[i]),
            f"{found.gold[there[i]]:.4g}",
            f"{found.predicted[there[i]]:.4g}",
            float(errors[i]),
            runs,
        )
        for i in order
    ]


def residuals(found: TaskPredictions) -> dict[str, float]:
    """Of a regression's errors, prediction minus label: mean, deviation and quantiles.

    Empty where no text has a label, or a prediction is not finite.
    """
    asked = only_labelled(found)
    errors = np.asarray(asked.predicted, np.float64) - asked.gold
    if not len(errors) or not np.isfinite(errors).all():
        return {}
    parts = (0.05, 0.25, 0.5, 0.75, 0.95)
    quantiles = {f"{100 * part:g} %": float(np.quantile(errors, part)) for part in parts}
    return {"mean": float(errors.mean()), "deviation": float(errors.std()), **quantiles}


def _of_classes(found: TaskPredictions) -> np.ndarray:
    if found.probabilities is None:
        raise ValueError(f"a {found.kind} has no probabilities")
    return found.probabilities
