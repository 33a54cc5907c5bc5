"""Files of one array each: memory-mapped, and checked against their digest once per process."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import DTypeLike

from mtl_jax.core.atomic_write import atomic_write

Write = Callable[[int, np.ndarray], None]
"""``write(start, rows)`` puts rows at ``start`` of the first axis."""

Fill = Callable[[Write], float]
"""Is given a ``Write``, writes every row, and returns the seconds that making them costs."""

_BLOCK = 2**22
_DIGEST_SIZE = hashlib.sha256().digest_size
_SECONDS = struct.Struct("<d")

# A new file's time of change lies so far back that no later change can have the same,
# however coarse the clock of the file system.
_BACKDATED_NS = 10 * 10**9
# The files that this process has read whole and found right: device, inode, size, time of
# change. To read them again at each opening would cost as much as the states save.
_known: set[tuple[int, int, int, int]] = set()


def array_bytes(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    """Bytes of an array."""
    return int(np.prod(shape)) * np.dtype(dtype).itemsize


def file_bytes(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    """Bytes of an array's file: the array, the seconds that it cost, the SHA-256 of both."""
    return array_bytes(shape, dtype) + _SECONDS.size + _DIGEST_SIZE


def write_array(
    path: Path, shape: tuple[int, ...], dtype: DTypeLike, fill: Fill
) -> tuple[np.ndarray, float]:
    """Makes a file, which appears when it is whole.

    Args:
        path: The file. It is written as ``.NAME.PID.part`` beside it.
        shape: The array's shape.
        dtype: Its type.
        fill: Makes its rows.

    Returns:
        The array, mapped from the file, and the seconds.

    Raises:
        OSError: It can't be written; nothing is left.
    """
    row_size = array_bytes(shape[1:], dtype)
    with atomic_write(path, ".part") as draft, draft.open("w+b") as file:

        def write(start: int, rows: np.ndarray) -> None:
            # Written, not mapped: a disk that fills is then an error, not a signal.
            file.seek(start * row_size)
            file.write(np.ascontiguousarray(rows, dtype).view(np.uint8).data)

        seconds = fill(write)
        file.seek(shape[0] * row_size)
        file.write(_SECONDS.pack(seconds))
        digest = _digest(file, file.tell())
        file.write(digest)
        file.flush()
        now = time.time_ns()
        os.utime(file.fileno(), ns=(now, now - _BACKDATED_NS))
        _known.add(_identity(file))
        # Before it has its name, by which another process may remove it.
        array = np.memmap(file, dtype, "r", shape=shape)
    return array, seconds


def read_array(
    path: Path, shape: tuple[int, ...] | None, dtype: DTypeLike
) -> tuple[np.ndarray, float] | None:
    """The array in a file, mapped, and the seconds that it cost.

    Without a shape it is a vector, as long as the file has it.

    None where the file is not intact, or can't be read at all.
    To open it counts as use: it sets the time of the last access.
    """
    try:
        with path.open("rb") as file:
            if shape is None:
                beside = file_bytes((0,), dtype)
                shape = ((_identity(file)[2] - beside) // np.dtype(dtype).itemsize,)
            size = array_bytes(shape, dtype)
            if not _intact(file, size + _SECONDS.size):
                return None
            file.seek(size)
            (seconds,) = _SECONDS.unpack(file.read(_SECONDS.size))
            # The time of change stays, by which the file is known.
            with contextlib.suppress(OSError):
                os.utime(file.fileno(), ns=(time.time_ns(), os.fstat(file.fileno()).st_mtime_ns))
            return np.memmap(file, dtype, "r", shape=shape), seconds
    except OSError:
        return None


def _identity(file: IO[bytes]) -> tuple[int, int, int, int]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _intact(file: IO[bytes], size: int) -> bool:
    identity = _identity(file)
    if identity[2] != size + _DIGEST_SIZE:
        return False
    if identity not in _known:
        if _digest(file, size) != file.read(_DIGEST_SIZE):
            return False
        _known.add(identity)
    return True


def _digest(file: IO[bytes], size: int) -> bytes:
    hasher = hashlib.sha256()
    file.seek(0)
    while size > 0 and (block := file.read(min(size, _BLOCK))):
        hasher.update(block)
        size -= len(block)
    return hasher.digest()
