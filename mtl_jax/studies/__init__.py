"""Studies of many runs: settings, runner, statistics and report.

A study of one's own is a file with its arms:

    ARMS = {"frozen": {"scenario": "backbone_frozen"}, "full": {"scenario": "none_frozen"}}
    main = mtl.studies.study(ARMS, "What does full fine-tuning bring?")

and what ``main`` leaves is read again by ``read_results`` and ``read_predictions``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl_jax.runs.predictions import Predictions as Predictions
    from mtl_jax.runs.predictions import read_predictions as read_predictions
    from mtl_jax.studies.arm_predictions import recompute as recompute
    from mtl_jax.studies.ensembles import ensemble as ensemble
    from mtl_jax.studies.own import study as study
    from mtl_jax.studies.settings import StudySettings as StudySettings
    from mtl_jax.studies.stats.results import read_results as read_results

# Where each name is defined.
_HOMES = {
    "Predictions": "runs.predictions",
    "StudySettings": "studies.settings",
    "ensemble": "studies.ensembles",
    "read_predictions": "runs.predictions",
    "read_results": "studies.stats.results",
    "recompute": "studies.arm_predictions",
    "study": "studies.own",
}
__all__ = [
    "Predictions",
    "StudySettings",
    "ensemble",
    "read_predictions",
    "read_results",
    "recompute",
    "study",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"mtl_jax.{_HOMES[name]}"), name)
