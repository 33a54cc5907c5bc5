"""What a word names: a study that comes with the package, a module, or a file of one's own."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from mtl_jax.core.command_line import one_line
from mtl_jax.core.errors import UserError, refuse_undecodable
from mtl_jax.core.paths import expanded
from mtl_jax.studies import builtin
from mtl_jax.studies.command import StudyCommand

JUDGE, STATUS = "judge", "status"
"""What stands in the place of a study's name where one is judged again, or looked at."""

_MAIN = "main(argv), which returns the exit status"


@dataclasses.dataclass(frozen=True)
class FoundStudy:
    """A study that a word names.

    Attributes:
        word: What names it, in any process that runs in the same folder.
        name: The same for names of jobs and folders.
        main: Flags to the exit status.
        file: Where it is, if the word is a path.
    """

    word: str
    name: str
    main: Callable[[Sequence[str]], Any]
    file: Path | None = None

    @property
    def has_parts(self) -> bool:
        """Whether several processes can share it."""
        return isinstance(self.main, StudyCommand) and self.main.has_parts

    def run(self, argv: Sequence[str]) -> int:
        """Runs it on its flags; returns the exit status."""
        called = f"mtl-jax study {shlex.quote(self.word)}"
        main = self.main.called_as(called) if isinstance(self.main, StudyCommand) else self.main
        with _process_called(called, argv):
            status = main(argv)
        return status if isinstance(status, int) else 0


def built_in() -> tuple[str, ...]:
    """The names of the studies that come with the package."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(builtin.__path__)))


def questions() -> dict[str, str]:
    """What each of them asks, in one line."""
    modules = {name: importlib.import_module(f"{builtin.__name__}.{name}") for name in built_in()}
    return {name: (module.__doc__ or "").partition("\n")[0] for name, module in modules.items()}


def find_study(word: str) -> FoundStudy:
    """The study that a word names; one that is no built-in one is imported, and so runs code.

    Args:
        word: A built-in name, the import path of a module, or the path of a ``.py`` file; of the
            latter two ``main`` is called.

    Raises:
        UserError: There is no such study, it can't be imported, or it has no ``main``.
    """
    refuse_undecodable(word)
    name = word.replace("-", "_")
    if name in built_in():
        module = importlib.import_module(f"{builtin.__name__}.{name}")
        return FoundStudy(name, name, module.main)
    if word.endswith(".py") or os.sep in word:
        path = expanded(word).absolute()
        main = _main_of(_imported_file(path, word), word)
        return FoundStudy(word, re.sub(r"[^\w.-]+", "_", path.stem), main, path)
    return FoundStudy(word, word.rpartition(".")[2], _main_of(_imported(word), word))


def _imported_file(path: Path, word: str) -> ModuleType:
    if not path.is_file() or path.suffix != ".py":
        what = "no .py file" if path.exists() else "not there"
        raise UserError(f"study {word} is {what}: correct the path")
    # The name it has as a module, so that what it defines can be imported by that name.
    name = path.stem if path.stem not in sys.modules else f"study_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"study {word} can't be imported: give its file another name")
    _look_first_in(path.parent)
    module = importlib.util.module_from_spec(spec)
    # Types that are named in strings are looked up there.
    sys.modules[name] = module
    try:
        with _told(word):
            spec.loader.exec_module(module)
    except UserError:
        del sys.modules[name]
        raise
    return module


def _imported(word: str) -> ModuleType:
    _look_first_in(Path.cwd())
    with _told(word):
        known = _is_there(word)
    if not known:
        known_words = (*built_in(), JUDGE, STATUS)
        close = difflib.get_close_matches(word.replace("-", "_"), known_words, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            f"unknown study {word!r}: {hint}use {', '.join(built_in())}, a module that can be "
            f"imported from here, or the path of a .py file; {JUDGE} and {STATUS} are for a study "
            "that there is"
        )
    with _told(word):
        module = importlib.import_module(word)
        if hasattr(module, "__path__") and not hasattr(module, "main"):
            # As python -m does with a package.
            inner = f"{word}.__main__"
            module = importlib.import_module(inner) if _is_there(inner) else module
        return module


def _is_there(name: str) -> bool:
    """Whether there is a module; the packages that it is in are imported."""
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        return False
    for end in range(1, len(parts) + 1):
        upto = ".".join(parts[:end])
        try:
            if importlib.util.find_spec(upto) is None:
                return False
        except ModuleNotFoundError as error:
            # What stands before the dot is no package.
            if error.name == upto:
                return False
            raise
    return True


@contextlib.contextmanager
def _told(word: str) -> Iterator[None]:
    """Tells in one line why a study can't be imported."""
    try:
        yield
    except UserError as error:
        raise UserError(f"study {word}: {error}") from error
    except (Exception, SystemExit) as error:
        ends = isinstance(error, SystemExit)
        reason = "it ends the process as it is imported" if ends else one_line(error)
        raise UserError(f"study {word} can't be imported ({reason}): correct it") from error


def _main_of(module: ModuleType, word: str) -> Callable[[Sequence[str]], Any]:
    main = getattr(module, "main", None)
    if not callable(main):
        raise UserError(f"study {word} has no main: give it a {_MAIN}")
    try:
        inspect.signature(main).bind([])
    except TypeError:
        raise UserError(f"study {word} has a main of other arguments: give it a {_MAIN}") from None
    return main


def _look_first_in(folder: Path) -> None:
    # As python FILE and python -m do, for as long as the process lives: a study imports as it runs.
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@contextlib.contextmanager
def _process_called(called: str, argv: Sequence[str]) -> Iterator[None]:
    """Has the process called so, for a study that reads its command line by itself."""
    before = sys.argv
    sys.argv = [called, *argv]
    try:
        yield
    finally:
        sys.argv = before
