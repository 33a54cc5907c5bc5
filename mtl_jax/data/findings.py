"""What a check of the data says."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that a user should know of the data."""

    severity: Literal["note", "warning"]
    """a warning is of what can hardly be meant"""
    text: str
    """one line"""

    def __str__(self) -> str:
        return f"warning: {self.text}" if self.severity == "warning" else self.text
