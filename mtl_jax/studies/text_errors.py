"""Gives the scores of a study's results what each text contributes to them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtl_jax.data.kinds import has_label
from mtl_jax.studies.arm_predictions import ArmPredictions, predictions_path
from mtl_jax.studies.stats.measured import Measured, contributions
from mtl_jax.studies.stats.results import SPLITS, Result
from mtl_jax.training.kinds.registry import KINDS
from mtl_jax.training.prediction_counts import (
    calibration_error_without_each,
    class_scores_without_each,
)

if TYPE_CHECKING:
    from mtl_jax.runs.predictions import Predictions, TaskPredictions
    from mtl_jax.studies.stats.measured import Parts

_BY_SOURCE = "weighted_f1_by_source"


def with_text_errors(
    folder: Path, results: Sequence[Result], kept: ArmPredictions | None = None
) -> list[Result]:
    """The same lines, whose scores are ``Measured`` where the predictions of all arms are there.

    So each interval and test that is made of them is over seeds and texts. On a split of which one
    arm has left no predictions the scores stay plain, and what is made of them is over seeds alone:
    the error of a difference can't be told from the texts of one side.

    Args:
        folder: Of the study, with ``arms/<arm>/predictions-<split>.parquet``.
        results: Lines of its ``results.jsonl``. No file is read before a score's error is asked
            for.
        kept: The predictions, where some have been read already.
    """
    kept = kept or ArmPredictions(folder)
    found = [dict(line) for line in results]
    for split in SPLITS:
        lines = [line for line in found if line.get(split)]
        if all(predictions_path(folder, line, split).exists() for line in lines):
            tasks = shared_tasks([line[split] for line in lines])
            for line in lines:
                identity = {name: line[name] for name in ("arm", "seed", "setting") if name in line}
                read = functools.partial(_read, kept, identity, split)
                line[split] = _measured(line[split], _Texts(split, read, tasks))
    return found


def with_texts(found: Predictions, split: str, tasks: Sequence[str]) -> dict[str, Any]:
    """The metrics of predictions on a split, whose scores are ``Measured``.

    Args:
        found: The predictions, such as those of an ensemble.
        split: Which split.
        tasks: Those that all have that these are compared with; see ``shared_tasks``.
    """
    return _measured(found.metrics(), _Texts(split, lambda: found, tasks))


def shared_tasks(metrics: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The tasks that all of these have: by their labels texts are told to be the same."""
    return tuple(
        task for task in (metrics[0] if metrics else ()) if all(task in each for each in metrics)
    )


def _read(kept: ArmPredictions, line: Result, split: str) -> Predictions:
    found = kept.of(line, split)
    if found is None:
        raise ValueError("there was a file")
    return found


def _measured(metrics: Mapping[str, Any], texts: _Texts) -> dict[str, Any]:
    """The metrics of a split, with numbers that know their texts."""
    found: dict[str, Any] = {}
    for task, of_task in metrics.items():
        found[task] = {
            name: Measured(value, functools.partial(texts.parts, task, name))
            if isinstance(value, float) and name in _KNOWN
            else value
            for name, value in of_task.items()
        }
        if by_source := of_task.get(_BY_SOURCE):
            found[task][_BY_SOURCE] = {
                source: Measured(value, functools.partial(texts.parts, task, "weighted_f1", source))
                for source, value in by_source.items()
            }
    return found


# Of all kinds of tasks; the error of another one, as of a correlation, is over seeds alone.
_KNOWN = frozenset(
    (
        *("accuracy", "macro_f1", "micro_f1", "subset_accuracy", "hamming_loss"),
        *("r2", "rmse", "mae", "ece"),
    )
)


class _Texts:
    """What an arm has predicted of a split, read when it is asked for."""

    def __init__(self, split: str, read: Callable[[], Predictions], tasks: Sequence[str]):
        self._split, self._opened, self._shared = split, read, tasks

    @functools.cached_property
    def _read(self) -> Predictions:
        return self._opened()

    @functools.cached_property
    def _key(self) -> str:
        """What tells these texts from others: arms with the same ones are paired by text."""
        read, digest = self._read, hashlib.sha256(self._split.encode())
        digest.update(read.examples.tobytes())
        # An arm may have a task of its own beside those that it is compared by.
        names = self._shared or tuple(read.tasks)
        for each in (read.data_sets, *(read.tasks[name].gold for name in names)):
            digest.update(b"" if each is None else np.ascontiguousarray(each).tobytes())
        return digest.hexdigest()

    def parts(self, task: str, metric: str, source: str | None = None) -> Parts:
        """What each text contributes to a metric; see ``Measured``."""
        of_task = self._read.tasks[task]
        there = has_label(of_task.gold)
        if source is not None and self._read.groups is not None:
            there = there & (self._read.groups == source)
        found = np.zeros(len(there))
        if there.sum() > 1 and (left_out := _left_out(metric, of_task, there)) is not None:
            found[there] = contributions(left_out)
        return {self._key: found}


def _left_out(metric: str, found: TaskPredictions, there: np.ndarray) -> np.ndarray | None:
    """A metric of some texts with each of them left out; None where that is not known."""
    kind, gold = KINDS[found.kind], found.gold[there]
    if metric != "ece":
        return kind.left_out(metric, gold, found.predicted[there], len(found.classes))
    sure = None
    if found.probabilities is not None:
        sure = kind.confidences(gold, found.probabilities[there])
    return None if sure is None else calibration_error_without_each(*sure)


def class_scores(found: TaskPredictions) -> dict[str, dict[str, float]]:
    """Of each class ``precision``, ``recall`` and ``f1`` that know their texts, and ``support``.

    Args:
        found: What a run has predicted; those of the same texts are paired by text.

    Returns:
        Nothing of a regression, or where no text has a label.
    """
    there = has_label(found.gold)
    gold, predicted = found.gold[there], found.predicted[there]
    if len(gold) == 0:
        return {}
    scores = KINDS[found.kind].per_class(gold, predicted, found.classes)
    for number, (name, of_class) in enumerate(scores.items()):
        true, guess = (
            each[:, number] > 0 if each.ndim == 2 else each == number for each in (gold, predicted)
        )
        if len(gold) < 2:
            continue
        without = class_scores_without_each(true, guess)
        scores[name] = of_class | {
            score: Measured(of_class[score], functools.partial(_of_labelled, values))
            for score, values in without.items()
        }
    return scores


def _of_labelled(left_out: np.ndarray) -> Parts:
    return {"labelled": contributions(left_out)}
