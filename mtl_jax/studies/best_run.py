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


class BestModels:
    """The checkpoints that stay while a study is trained.

    Until all arms are done nobody knows which will be recommended: of each arm one run keeps its
    checkpoints, that with the best validation score, and of a study with settings one run of all.
    Several processes may keep one each.
    """

    def __init__(self, arms: Sequence[Arm]):
        self._arms = arms
        self._scores: dict[str, dict[Path, float]] = {}
        self._outdone: set[Path] = set()

    def outdone(self, workdir: str, score: float) -> bool:
        """Whether a run that keeps its checkpoints is better than the one in this folder.

        Then the latter need not save its own: it is passed over from here on.
        """
        place = Path(workdir)
        rivals = self._rivals(next(arm for arm in self._arms if _place(arm) == place))
        better = any(rivals[each] > score for each in rivals if each != place and has_model(each))
        if better:
            self._outdone.add(place)
        return better

    def keep_better(self, arm: Arm) -> None:
        """Removes the checkpoints of an arm that is done, or of the one that it is better than."""
        rivals, place = self._rivals(arm), _place(arm)
        if place not in self._outdone and (score := _kept_score(arm)) is not None:
            rivals[place] = score
        there = [each for each in rivals if has_model(each)]
        best = max(there, key=lambda each: rivals[each], default=None)
        for each in {place, *there} - {best}:
            _remove(each)
            rivals.pop(each, None)

    def _rivals(self, arm: Arm) -> dict[Path, float]:
        """The runs of which one keeps its checkpoints, those that a call before has left, too."""
        group = "" if arm.setting else arm.name
        if group not in self._scores:
            own = [each for each in self._arms if group in ("", each.name)]
            known = {_place(each): _kept_score(each) for each in own}
            self._scores[group] = {p: score for p, score in known.items() if score is not None}
        return self._scores[group]


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
