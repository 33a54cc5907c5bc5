"""Locks of files and folders that processes share, on one machine or, over a network, on several.

The file of a lock stays where it is: were it removed, one process could hold the lock of the file
that is gone, for which it has waited, and another that of the new one.

The package filelock has no lock that readers share, and can't tell a holder at work from one whose
machine is gone, which a run on a shared file system has to.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import platform
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from mtl_jax.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A file server lets go of the locks of a machine that is gone when its lease ends: NFS's has 90 s.
LEASE_SECONDS = 120.0
# When the waiting is told first, and how often from then on.
_FIRST_WORD_AFTER, _WORD_EVERY = 2.0, 15.0
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5

# What flock fails with where a file system has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def unwritable(folder: Path, error: OSError) -> UserError:
    """What to say where something fetched or prepared can't be kept in a folder of the cache."""
    return UserError(
        f"cannot write to {folder} ({error.strerror}): make room there or set MTL_JAX_CACHE "
        "to a folder that can be written"
    )


def without_locks(folder: Path, error: OSError) -> UserError | None:
    """What to say where the file system of a folder has no locks; None for any other error."""
    if error.errno not in _NO_LOCKS:
        return None
    return UserError(
        f"the file system of {folder} has no locks ({error.strerror}), which keep two processes "
        "from writing the same files: name a folder on another one, or have it mounted with locks "
        "(NFS with its lock service, Lustre with -o flock)"
    )


@contextlib.contextmanager
def exclusive(
    path: Path,
    trouble: Callable[[Path, OSError], UserError] = unwritable,
    *,
    wait: bool = True,
) -> Iterator[bool]:
    """Holds the lock of a path in a cache, so that one process at a time makes it.

    The system lets go of the lock when its process ends, in whatever way. The lock's file, beside
    the path, stays.

    Args:
        path: What is to be made; its folder is made where there is none.
        trouble: What to raise where the folder can't be written, from it and the reason.
        wait: Whether to wait for another process that holds the lock, and say so.

    Yields:
        Whether the lock is held; always, where it is waited for.

    Raises:
        UserError: The folder cannot be written, or has no locks.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = _opened(path.with_name(f".{path.name}.lock"))
            stack.callback(release, file)
            patience = math.inf if wait else 0.0
            held = _taken(file, fcntl.LOCK_EX, patience, f"another process that makes {path}")
        except OSError as error:
            raise without_locks(path.parent, error) or trouble(path.parent, error) from error
        yield held


def hold(lock: Path, *, shared: bool) -> IO[bytes] | None:
    """Takes the lock of a folder, for ``release``; None where another process has it.

    Another process on this machine has it for good reason. One on another machine may be gone
    with that: it is waited for until the file server would know, ``LEASE_SECONDS``, and told.

    Args:
        lock: The lock's file.
        shared: Whether others that share it may have it, too.

    Raises:
        OSError: The file can't be written, or has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with contextlib.ExitStack() as stack:
        file = _opened(lock)
        stack.callback(release, file)
        held = _taken(file, kind, 0.0, "")
        if not held and _holder(file) != machine():
            who = f"a process that works in {lock.parent}, on a machine that may be gone,"
            held = _taken(file, kind, LEASE_SECONDS, who)
        if not held:
            return None
        # With others that share it all of them have to be of one machine for it to be named.
        alone = not shared or _holder(file) in (b"", machine())
        _name_holder(file, machine() if alone else b"several machines")
        stack.pop_all()
        return file


def release(lock: IO[bytes]) -> None:
    """Lets go of a lock.

    A disk that fails meanwhile is told where something is written that matters: it must not hide
    what a run ends with.
    """
    with contextlib.suppress(OSError):
        lock.close()


def _opened(lock: Path) -> IO[bytes]:
    try:
        # On NFS a shared lock needs a file that can be read, an exclusive one a written one.
        return lock.open("a+b")
    except PermissionError:
        # Another user's: on other file systems it can be locked all the same.
        if not lock.is_file():
            raise
        return lock.open("rb")


def _taken(file: IO[bytes], kind: int, patience: float, who: str) -> bool:
    """Takes a lock, for which so many seconds are waited at most; whether it is held."""
    began = time.monotonic()
    word, pause = began + _FIRST_WORD_AFTER, _SHORTEST_PAUSE
    limit = "" if math.isinf(patience) else f" of at most {patience:.0f}"
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except OSError as error:
            # Some file systems say EACCES where another process holds it.
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
        else:
            return True
        now = time.monotonic()
        if now - began >= patience:
            return False
        if now >= word:
            print(f"waiting for {who} since {now - began:.0f} s{limit}", file=sys.stderr)
            word = now + _WORD_EVERY
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def machine() -> bytes:
    """What tells this machine, since it was started last, from others."""
    with contextlib.suppress(OSError):
        return _BOOT_ID.read_bytes().strip()
    return platform.node().encode()


def _holder(file: IO[bytes]) -> bytes:
    """On which machine the lock of a folder is, or was last, held; empty where none is named."""
    with contextlib.suppress(OSError):
        file.seek(0)
        return file.read()
    return b""


def _name_holder(file: IO[bytes], machine: bytes) -> None:
    # A disk that is full is told where something is written that matters.
    with contextlib.suppress(OSError):
        if _holder(file) != machine:
            file.truncate(0)
            file.write(machine)
            file.flush()
