"""One process at a time makes a file or folder that several share."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING

from mtl_jax.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def unwritable(folder: Path, error: OSError) -> UserError:
    """What to say where something fetched or prepared can't be kept in a folder of the cache."""
    return UserError(
        f"cannot write to {folder} ({error.strerror}): make room there or set MTL_JAX_CACHE "
        "to a folder that can be written"
    )


@contextlib.contextmanager
def exclusive(
    path: Path,
    trouble: Callable[[Path, OSError], UserError] = unwritable,
    *,
    wait: bool = True,
) -> Iterator[bool]:
    """Holds the lock of a path in a cache, so that one process at a time makes it.

    The system lets go of the lock when its process ends, in whatever way. The lock's file,
    beside the path, goes with it, unless the process is killed.

    Args:
        path: What is to be made; its folder is made where there is none.
        trouble: What to raise where the folder can't be written, from it and the reason.
        wait: Whether to wait for another process that holds the lock.

    Yields:
        Whether the lock is held; always, where it is waited for.

    Raises:
        UserError: The folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(lock, wait)
    except OSError as error:
        raise trouble(path.parent, error) from error
    if file is None:
        yield False
        return
    with file:
        try:
            yield True
        finally:
            # While it is held: whoever has waited for it sees that its file is gone.
            with contextlib.suppress(OSError):
                lock.unlink()


def _locked(lock: Path, wait: bool) -> IO[bytes] | None:
    while True:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(lock.open("wb"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                return None
            # Who held it may have removed its file, and another process hold a new one.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                    stack.pop_all()
                    return file
