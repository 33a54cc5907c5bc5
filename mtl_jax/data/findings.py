"""What a check of the data says."""

from __future__ import annotations

import dataclasses
from typing import Literal

# Part of a split from which on what is found in some of its texts is no accident.
_MANY = 0.01


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that a user should know of the data."""

    severity: Literal["note", "warning"]
    """a warning is of what can hardly be meant"""
    text: str
    """one line"""

    def __str__(self) -> str:
        return f"warning: {self.text}" if self.severity == "warning" else self.text


def by_share(count: int, of: int, words: str) -> Finding:
    """Words on ``count`` of so many texts: a warning where they are too many for an accident."""
    return Finding("warning" if count >= _MANY * of else "note", words)
