"""Settings as earlier versions named and recorded them, by the names that they have now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What took the place of a setting: each has its value.
_RENAMED = {"max_evaluation_examples": ("max_validation_examples", "max_test_examples")}

FLAGS = {
    "classifier-weight": "--task-weights classifier=NUMBER",
    "sentiment-weight": "--task-weights sentiment=NUMBER",
    "max-evaluation-examples": "--max-validation-examples or --max-test-examples",
}
"""What took the place of a flag."""


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run's ``config.json``, those of its data among them, by present names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = renamed(value) if name == "data" and isinstance(value, Mapping) else value
        found |= dict.fromkeys(_RENAMED.get(name, (name,)), inner)
    return found


# What a phase records since heads that train alone have values of their own.
_LATER = ("weight_decay", "head_dropout", "class_weights")


def lacks_settings(phases: Any) -> bool:
    """Whether the phases in a ``config.json`` are of a version that did not record all of them."""
    if not isinstance(phases, list) or not phases:
        return False
    return not any(name in each for each in phases for name in _LATER)


def as_recorded(phases: Any, earlier: Any) -> Any:
    """The record of phases, without what that of a run of an earlier version does not say.

    Args:
        phases: As they are recorded now.
        earlier: As ``config.json`` has them.
    """
    if not isinstance(phases, list) or not lacks_settings(earlier):
        return phases
    return [{name: v for name, v in each.items() if name not in _LATER} for each in phases]
