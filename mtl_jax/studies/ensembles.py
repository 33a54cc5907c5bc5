"""Ensembles of the seeds of an arm, from what a study has kept of their predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl_jax.core.errors import UserError
from mtl_jax.core.paths import expanded
from mtl_jax.studies.arm_predictions import predictions_of, predictions_path
from mtl_jax.studies.settings import arm_folder
from mtl_jax.studies.stats.results import Result, read_results, results_file

if TYPE_CHECKING:
    from mtl_jax.runs.predictions import Predictions

FEWEST_MEMBERS = 2
FOLDER = "ensembles"


def ensemble(
    folder: str | Path,
    arm: str,
    split: str = "test",
    seeds: Sequence[int] | None = None,
    setting: Mapping[str, Any] | None = None,
) -> Predictions:
    """What the seeds of an arm predict together, without training or a model.

        found = mtl.studies.ensemble("runs/quality", "none_frozen")
        found.metrics()["sentiment"]["macro_f1"]

    Args:
        folder: Of the study, or what ``judge --keep`` has left of one.
        arm: The arm.
        split: ``validation`` or ``test``.
        seeds: Which of them; by default all that are done.
        setting: In which setting; None of a study without.

    Raises:
        UserError: The arm has no such run, or its predictions were not kept or can't be averaged.
    """
    from mtl_jax.runs.ensembles import averaged
    from mtl_jax.runs.predictions import read_predictions

    folder = expanded(folder)
    if seeds is None and (path := kept_ensemble(folder, arm, split, setting)).exists():
        return read_predictions(path)
    lines = members(read_results(results_file(folder)), arm, seeds, setting)
    if not lines:
        raise UserError(f"{folder} has no result of {arm} with these seeds: name another arm")
    found = []
    for line in lines:
        if (predictions := predictions_of(folder, line, split)) is None:
            raise UserError(
                f"{folder} has no predictions of {arm}, seed {line['seed']}, on {split}: run it "
                "again, or leave that seed out"
            )
        found.append(predictions)
    return averaged(found)


def kept_ensemble(
    folder: Path, arm: str, split: str, setting: Mapping[str, Any] | None = None
) -> Path:
    """Where ``keep_ensembles`` leaves the predictions of an ensemble."""
    name = Path(arm_folder(str(folder), arm, 0, setting or {})).name.rpartition("-seed")[0]
    return folder / FOLDER / name / f"predictions-{split}.parquet"


def keep_ensembles(folder: Path, place: Path, splits: Sequence[str], digits: int) -> None:
    """Leaves in another folder what the seeds of each arm predict together.

    The rounded probabilities that are kept there do not tell it to the last digit.

    Args:
        folder: Of the study.
        place: The other folder.
        splits: Which splits.
        digits: Significant digits of the probabilities; labels are those of all digits.

    Raises:
        UserError: Something can't be read or written.
    """
    from mtl_jax.runs.predictions import copy_rounded, copy_with

    results = read_results(results_file(folder))
    alike = {(line["arm"], str(line.get("setting"))): line.get("setting") for line in results}
    for (arm, _), setting in alike.items():
        lines = members(results, arm, None, setting)
        for split in splits:
            paths = [predictions_path(folder, line, split) for line in lines]
            if len(paths) < FEWEST_MEMBERS or not all(path.exists() for path in paths):
                continue
            copy = kept_ensemble(place, arm, split, setting)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy_with(paths[0], copy, ensemble(folder, arm, split, setting=setting))
            copy_rounded(copy, copy, digits)


def members(
    results: Sequence[Result],
    arm: str,
    seeds: Sequence[int] | None = None,
    setting: Mapping[str, Any] | None = None,
) -> list[Result]:
    """The lines of an arm, one for each seed, in the order of these; see ``ensemble``."""
    found = {
        line["seed"]: line
        for line in results
        if line["arm"] == arm and (line.get("setting") or None) == (setting or None)
    }
    return [found[seed] for seed in sorted(found) if seeds is None or seed in seeds]
