"""Ensembles of the seeds of an arm, from what a study has kept of their predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl_jax.core.errors import UserError
from mtl_jax.core.paths import expanded
from mtl_jax.studies.kept_predictions import predictions_of
from mtl_jax.studies.stats.results import Result, read_results, results_file

if TYPE_CHECKING:
    from mtl_jax.runs.predictions import Predictions


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

    folder = expanded(folder)
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
