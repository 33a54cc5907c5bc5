"""Which run of a study leaves the model to use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.runs.workdir import Workdir
from mtl_jax.studies.settings import arm_folder
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
        arms = [advice.chosen.arm] if advice else []
        results = [result for result in results if result["arm"] in arms]
    return max(filter(is_model, results), key=_score, default=None)


def is_model(result: Mapping[str, Any]) -> bool:
    """Whether a run with this result, and ``arm``, leaves a model: every head was trained."""
    return quality(result.get("validation")) is not None and not untrained_heads(result)


def better(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a result is better than another, by its validation score."""
    return _score(one) > _score(other)


def _score(result: Mapping[str, Any]) -> float:
    return quality(result.get("validation")) or 0.0


def run_folder(study: Path, result: Mapping[str, Any]) -> Path:
    """The folder of a run, of which ``result`` has ``arm``, ``seed`` and ``setting``."""
    setting = result.get("setting") or {}
    return Path(arm_folder(str(study), result["arm"], result["seed"], setting))


def has_model(folder: Path) -> bool:
    """Whether a run's folder still has its checkpoints."""
    return Workdir(folder).checkpoints.is_dir()
