"""Which run of a study leaves the model to use, and whose checkpoints stay for that."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.core.errors import UserError
from mtl_jax.runs.workdir import Workdir
from mtl_jax.studies.settings import Arm, arm_folder
from mtl_jax.studies.stats.recommendation import recommend
from mtl_jax.studies.stats.results import Result, by_setting, quality, untrained_heads


def best_run(results: Sequence[Result]) -> Result | None:
    """The run with the best validation score, of the recommended arm in a study without settings.

    Of a study with several settings any arm's, in any of them. A run with a head that never
    trained is none.

    Args:
        results: Lines of ``results.jsonl``.

    Returns:
        Its line; None where no arm can be recommended.
    """
    if len(by_setting(results)) == 1:
        advice = recommend(results)
        results = [r for r in results if advice and r["arm"] == advice.chosen.arm]
    return max(filter(_is_model, results), key=_score, default=None)


def run_folder(study: Path, result: Mapping[str, Any]) -> Path:
    """The folder of a run, of which ``result`` has ``arm``, ``seed`` and ``setting``."""
    setting = result.get("setting") or {}
    return Path(arm_folder(str(study), result["arm"], result["seed"], setting))


def has_model(folder: Path) -> bool:
    """Whether a run's folder still has its checkpoints."""
    return Workdir(folder).checkpoints.is_dir()


def keep_better(arm: Arm, arms: Sequence[Arm]) -> None:
    """Removes the checkpoints of an arm that is done, or of those that it is better than.

    Until all are done nobody knows which arm will be recommended: of each arm one run keeps its
    checkpoints, that with the best validation score, and of a study with settings one run of all.

    Args:
        arm: The arm.
        arms: All of the study.
    """
    rivals = [each for each in arms if each.setting or each.name == arm.name]
    known = {_place(each): _kept_score(each) for each in rivals}
    scores = {place: score for place, score in known.items() if score is not None}
    best = max(scores, key=lambda place: scores[place], default=None)
    for place in {_place(arm), *scores} - {best}:
        _remove(place)


def keep_only_best(arms: Sequence[Arm], results: Sequence[Result], study: Path) -> None:
    """Removes the checkpoints of all arms but the one whose model is to be used.

    Args:
        arms: All of the study, which are done.
        results: Their lines of ``results.jsonl``.
        study: The folder of the study.
    """
    best = best_run(results)
    kept = best and run_folder(study, best)
    for arm in arms:
        if _place(arm) != kept and has_model(_place(arm)):
            _remove(_place(arm))


def _place(arm: Arm) -> Path:
    return Path(arm.config.workdir)


def _kept_score(arm: Arm) -> float | None:
    """The validation score of a run that is done and has its checkpoints; None of any other."""
    place = _place(arm)
    if not has_model(place):
        return None
    with contextlib.suppress(UserError):
        result = Workdir(place).result()
        if result is not None and _is_model({**result, "arm": arm.name}):
            return _score(result)
    return None


def _remove(place: Path) -> None:
    # Another process that works at the study may remove them at this moment.
    try:
        Workdir(place).remove_checkpoints()
    except UserError:
        if has_model(place):
            raise


def _is_model(result: Mapping[str, Any]) -> bool:
    """Whether a run with this result, and ``arm``, leaves a model: every head was trained."""
    return quality(result.get("validation")) is not None and not untrained_heads(result)


def _score(result: Mapping[str, Any]) -> float:
    return quality(result.get("validation")) or 0.0
