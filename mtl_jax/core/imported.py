"""What a user names by its import path: heads, losses, schedules, metrics and callbacks.

A name is ``module:attribute``. Nothing is imported that the user has not named in this process,
by an argument, a flag, or as a module to trust.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mtl_jax.core.errors import UserError


def import_object(path: str, what: str) -> Any:
    """Imports what ``module:attribute`` names; the current folder counts as one of modules.

    Args:
        path: The name.
        what: What it is for, as the error begins, such as ``--heads stars``.

    Raises:
        UserError: There is no such module or attribute, or importing it fails.
    """
    module, colon, name = path.partition(":")
    if not (colon and module and name):
        raise UserError(f"{what} {path!r} is not an import path: write module:name")
    try:
        with _here():
            found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{what} {path}: module {module} can't be imported ({reason}): correct the name, or "
            "run the command from the folder that has it"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise UserError(f"{what} {path}: module {module} has no {name}: correct the name")
        found = getattr(found, part)
    return found


def import_function(path: str, what: str) -> Any:
    """As ``import_object``, of what can be called."""
    found = import_object(path, what)
    if not callable(found):
        raise UserError(f"{what} {path} is not a function: name one")
    return found


@contextlib.contextmanager
def _here() -> Iterator[None]:
    # A console command's path lacks the folder it is called in, which python -m has.
    here = str(Path.cwd())
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def import_path(value: Any, what: str) -> str:
    """Returns the import path of a class or function, so that another process finds it.

    Args:
        value: It, or its path already.
        what: What it is for, as the error begins.

    Raises:
        UserError: It can't be imported by a name.
    """
    if isinstance(value, str):
        return value
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or "<" in name:
        raise UserError(
            f"{what} {value!r} has no import path that another process could use: give a class or "
            "a function that a module defines, or its path, module:name"
        )
    if module == "__main__":
        raise UserError(
            f"{what} {name} is defined in the script that is running, which no other process can "
            "import: move it to a module of its own"
        )
    path = f"{module}:{name}"
    if import_object(path, what) is not value:
        raise UserError(f"{what} {path} imports something else: give what that name stands for")
    return path


def refuse_untrusted(paths: Collection[str], trust: Collection[str], where: str) -> None:
    """Refuses import paths that a folder or file names, unless the user trusts their modules.

    Args:
        paths: The import paths.
        trust: The modules that the user has named, or one; a package stands for its modules.
        where: What names them, for the error.

    Raises:
        UserError: There is one that is not trusted; nothing has been imported.
    """
    trust = (trust,) if isinstance(trust, str) else trust
    for path in paths:
        module = path.partition(":")[0]
        if not any(module == each or module.startswith(f"{each}.") for each in trust):
            raise UserError(
                f"{where} uses code of the module {module} ({path}), which runs when it is "
                f"imported: if you trust it, add --trust {module} (trust=({module!r},) in Python)"
            )
