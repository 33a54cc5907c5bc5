"""A scenario as a setting: a name, a file of rules, or the rules themselves."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

Rules = Sequence[Sequence[str]]
"""``(pattern, label)`` pairs; the first that matches a parameter says its label."""


def scenario_text(scenario: Any) -> Any:
    """Writes a list of ``(pattern, label)`` rules as the JSON that the command line takes.

    Args:
        scenario: A name, a file, a list of rules, or anything that ``scenario_rules`` refuses.

    Returns:
        The JSON of a list, the text of a path; anything else as it is.
    """
    if isinstance(scenario, os.PathLike):
        return os.fspath(scenario)
    if not isinstance(scenario, list | tuple):
        return scenario
    try:
        return json.dumps(scenario)
    except (TypeError, ValueError):
        return scenario


def is_inline(scenario: str) -> bool:
    """Whether ``scenario`` is a list of rules, and no name."""
    return scenario.lstrip().startswith("[")
