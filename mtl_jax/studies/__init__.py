"""Studies of many runs: settings, runner, statistics and report."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl_jax.studies.own import study as study
    from mtl_jax.studies.settings import StudySettings as StudySettings
    from mtl_jax.studies.stats.results import read_results as read_results

_HOMES = {"StudySettings": "settings", "read_results": "stats.results", "study": "own"}
__all__ = ["StudySettings", "read_results", "study"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
