"""Settings as earlier versions recorded them, by the names that they have now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What took the place of a setting: each has its value.
_RENAMED = {"max_evaluation_examples": ("max_validation_examples", "max_test_examples")}


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run's ``config.json``, those of its data among them, by present names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = renamed(value) if name == "data" and isinstance(value, Mapping) else value
        found |= dict.fromkeys(_RENAMED.get(name, (name,)), inner)
    return found
