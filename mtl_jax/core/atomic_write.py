"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from mtl_jax.core.errors import NoFileError, UserError, cannot_write

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def other_kind(path: Path) -> str | None:
    """What a path leads to, in words, where that is there and is no file.

    A file can be replaced when another one is whole. A device, say, would be gone.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    return next((name for is_kind, name in _KINDS if is_kind(mode)), None)


def refuse_other_kind(path: Path) -> None:
    """Refuses what is no file, before anyone waits for what a pipe gives, or a device for ever.

    Raises:
        NoFileError: There is something else than a file.
    """
    if kind := other_kind(path):
        raise NoFileError(errno.EINVAL, f"it is {kind}", str(path))


def check_place(path: Path, file: str) -> None:
    """Refuses where ``atomic_write`` can't write, before there is anything to write.

    Args:
        path: The place.
        file: What to name instead, such as "a .npy file".

    Raises:
        UserError: It is something else than a file, or a link to itself, or is in a folder that
            can't be written.
    """
    kind = "a folder" if not path.name else other_kind(path)
    if kind:
        raise UserError(f"{path} is {kind}: name {file}")
    try:
        folder = _led_to(path).parent
    except OSError as error:
        raise cannot_write(path, error) from error
    if not folder.is_dir():
        raise UserError(f"{path} can't be written (there is no folder {folder}): make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{path} can't be written (no access to {folder}): name another file")


def check_folder(path: Path, flag: str) -> None:
    """Refuses, before anyone waits, what can't be a folder of files, there already or made then.

    Args:
        path: The folder.
        flag: That names it, for the error.

    Raises:
        UserError: There, or on the way, is something else, or no access.
    """
    there = next((each for each in (path, *path.parents) if os.path.lexists(each)), Path())
    if not there.is_dir():
        kind = "a file" if there.exists() else "a link that leads nowhere"
        way = "" if there == path else f": {there}"
        raise UserError(
            f"{flag} {path}{way} is {other_kind(there) or kind}: name a folder, which is made if "
            "missing"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {path} can't be written (no access to {there}): name another")


def _led_to(path: Path) -> Path:
    """Where a path leads, there or not; an OSError where links lead back to themselves."""
    place = Path(os.path.realpath(path))
    if place.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return place


def is_same_file(one: Path | int, other: Path | int) -> bool:
    """Whether two paths, or numbers of open files, lead to one regular file."""
    try:
        found, same = (os.fstat(x) if isinstance(x, int) else x.stat() for x in (one, other))
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and os.path.samestat(found, same)


@contextlib.contextmanager
def atomic_write(path: Path, suffix: str = "") -> Iterator[Path]:
    """Writes a file so that it has its name when it is whole, or keeps what it was.

    Args:
        path: The file; what is there is replaced. Where it is a symbolic link, the file that
            this leads to is.
        suffix: Of the name that it has until then, ``.NAME.PID`` and this, beside it. A process
            that is killed leaves that.

    Yields:
        Where to write.

    Raises:
        OSError: It can't be written; nothing is left.
        NoFileError: There is something else than a file, which stays.
    """
    refuse_other_kind(path)
    path = _led_to(path) if path.is_symlink() else path
    draft = path.with_name(f".{path.name}.{os.getpid()}{suffix}")
    try:
        with _named(path, draft):
            yield draft
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _named(path: Path, draft: Path) -> Iterator[None]:
    """Has an error name a file, where it names its draft, or none, as that of a write does."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(draft)):
            error.filename = str(path)
        raise


@contextlib.contextmanager
def first(path: Path) -> Iterator[Path]:
    """Writes a file, whole, where there is none: of many processes that do, one is the first.

    They may be on any machines that share the folder: a hard link makes a name only where there is
    none, on NFS, too. Where the file system has none, one of those at the same moment counts.

    Args:
        path: The file; what is there stays.

    Yields:
        Where to write, beside it.

    Raises:
        OSError: It can't be written; nothing is left.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with _named(path, draft):
            yield draft
            try:
                os.link(draft, path)
            except OSError:
                if not path.exists():
                    draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Makes a folder that has its name when it is whole, or is not there.

    Args:
        path: The folder; only an empty one may be there. Those above it are made.

    Yields:
        An empty folder beside it, to be filled: ``.NAME.PID``. A process that is killed leaves
        that.

    Raises:
        OSError: It can't be written, or something else than an empty folder is there; nothing is
            left.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        draft.rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
