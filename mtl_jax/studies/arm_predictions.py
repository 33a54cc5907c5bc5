"""Computes the scores of a study's results again from what its runs have predicted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl_jax.core.paths import expanded
from mtl_jax.studies.best_run import run_folder
from mtl_jax.studies.stats.results import SPLITS, Result, read_results, results_file

if TYPE_CHECKING:
    from mtl_jax.runs.predictions import Predictions


def recompute(folder: str | Path) -> list[Result]:
    """The lines of a study's ``results.jsonl``, with every score computed again.

        lines = mtl.studies.recompute("runs/freezing")
        assert lines == mtl.studies.read_results("runs/freezing/results.jsonl")

    What an arm has predicted of a split stands in ``arms/<arm>/predictions-<split>.parquet``;
    where there is such a file, each metric of the split is computed from it, and equal to the last
    digit to what the line says. The loss and metrics of one's own are left as they are, and so is
    all of a split without predictions.

    Args:
        folder: Of the study, or what ``judge.keep`` has left of one.

    Raises:
        UserError: Something in it can't be read.
    """
    folder = expanded(folder)
    # One line at a time: of many runs all predictions may not fit in memory.
    lines = read_results(results_file(folder))
    return [recomputed(line, ArmPredictions(folder)) for line in lines]


class ArmPredictions:
    """What the runs of a study have predicted; each file is read once, when it is asked for.

    Args:
        folder: Of the study.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._read: dict[Path, Predictions | None] = {}

    def of(self, line: Mapping[str, Any], split: str) -> Predictions | None:
        """See ``predictions_of``."""
        path = predictions_path(self._folder, line, split)
        if path not in self._read:
            self._read[path] = predictions_of(self._folder, line, split)
        return self._read[path]


def recomputed(line: Result, kept: ArmPredictions) -> Result:
    """A line with every score computed again; see ``recompute``."""
    found = dict(line)
    for split in SPLITS:
        metrics = line.get(split)
        if metrics and (predictions := kept.of(line, split)):
            own = predictions.metrics()
            found[split] = {
                task: {**metrics.get(task, {}), **of_task} for task, of_task in own.items()
            }
    return found


def predictions_of(folder: Path, line: Mapping[str, Any], split: str) -> Predictions | None:
    """What the arm of a line has predicted of a split; None where that was not kept.

    Args:
        folder: Of the study.
        line: A line of its ``results.jsonl``.
        split: ``train``, ``validation`` or ``test``.

    Raises:
        UserError: The file can't be read.
    """
    from mtl_jax.runs.predictions import read_predictions

    path = predictions_path(folder, line, split)
    return read_predictions(path) if path.exists() else None


def predictions_path(folder: Path, line: Mapping[str, Any], split: str) -> Path:
    """Where they are, if they were kept; the arguments are those of ``predictions_of``."""
    return run_folder(folder, line) / f"predictions-{split}.parquet"
