"""Names that others have given, as a message shows them: in one line, short, nothing hidden."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Longer names are cut.
_MOST = 40
_PLAIN = re.compile(r"[^\W\d][\w &/+()'.-]*(?<! )", re.ASCII)


def shown(name: str) -> str:
    """A class or column as it is where that can't be misread, else quoted with escapes.

    Characters beyond ASCII that can't be seen, and line ends, are escaped.
    """
    if _PLAIN.fullmatch(name) and len(name) <= _MOST and "  " not in name:
        return name
    return quoted(name)


def quoted(name: str) -> str:
    """The same, quoted always."""
    return repr(name if len(name) <= _MOST else f"{name[: _MOST - 3]}...")


def listed(names: Sequence[str], most: int = 5, sep: str = ", ") -> str:
    """``a, b, c and 28 more``.

    Args:
        names: At least one, as they are to be shown.
        most: How many of them are.
        sep: What stands between two.
    """
    if len(names) <= most:
        return sep.join(names)
    return f"{sep.join(names[:most])} and {len(names) - most:,} more"
