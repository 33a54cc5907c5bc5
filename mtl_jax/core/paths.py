"""Paths as a user writes them."""

from __future__ import annotations

import os
from pathlib import Path

from mtl_jax.core.errors import UserError


def expanded(path: str | os.PathLike[str]) -> Path:
    """Returns a path whose leading ``~`` or ``~user`` is that home folder.

    Only one that is written so: ``./~`` is a folder of that name, of which pathlib keeps no more
    than the ``~``. What is returned has no ``~`` in front, and may be given here again.

    Args:
        path: As the user has written it.

    Raises:
        UserError: There is no such home folder, or the path can't be one.
    """
    words = os.fspath(path)
    if "\0" in words:
        raise UserError(f"the path {words!r} has a NUL character in it: correct it")
    if not words.startswith("~"):
        found = Path(words)
        return found.absolute() if found.parts[:1] and found.parts[0].startswith("~") else found
    try:
        return Path(words).expanduser()
    except RuntimeError as error:
        name = Path(words).parts[0]
        reason = "HOME is not set" if name == "~" else f"there is no user {name[1:]!r}"
        raise UserError(
            f"{words}: {name} stands for no folder, for {reason}: write the whole path, or "
            f"./{name} for a folder of that name"
        ) from error
