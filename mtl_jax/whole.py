"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path, suffix: str = "") -> Iterator[Path]:
    """Writes a file so that it has its name when it is whole, or keeps what it was.

    Args:
        path: The file; what is there is replaced.
        suffix: Of the name that it has until then, ``.NAME.PID`` and this, beside it. A process
            that is killed leaves that.

    Yields:
        Where to write.

    Raises:
        OSError: It can't be written; nothing is left.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}{suffix}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
