"""Large arrays by key: in memory within a budget, else in checked, memory-mapped files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import DTypeLike

from mtl_jax.assets import exclusive
from mtl_jax.console import say
from mtl_jax.errors import UserError

Write = Callable[[int, np.ndarray], None]
"""``write(start, rows)`` puts rows at ``start`` of the first axis."""

GIB = 2**30
_SUFFIX = ".states"
_BLOCK = 2**22
_DIGEST_SIZE = hashlib.sha256().digest_size


class Store:
    """Arrays that can be computed again, kept for as long as there is room.

    A file is the array's bytes followed by their SHA-256, and appears when it is whole; its
    name is the key, which has to name everything that the array depends on. A file that is
    cut short or has other bytes is noticed when it is opened, and made again.

    Attributes:
        memory: Bytes that all arrays in memory may take together.
        disk: Bytes that all files in ``folder`` may take together; the least recently used
            make room for new ones.
        folder: Where the files are. Processes may share it.
        seconds: Per key what making it took, as far as it was made here.
    """

    def __init__(self, memory: int, disk: int, folder: Path):
        self.memory, self.disk, self.folder = memory, disk, folder
        self.seconds: dict[str, float] = {}
        self._arrays: dict[str, np.ndarray] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._arrays or self._path(key).exists()

    def get(
        self, key: str, shape: tuple[int, ...], dtype: DTypeLike, fill: Callable[[Write], None]
    ) -> np.ndarray:
        """The array of that key, made by ``fill`` where it is not there.

        Args:
            key: Names the content; hexadecimal.
            shape: Its shape.
            dtype: Its type.
            fill: Is given a ``Write`` and writes every row.

        Raises:
            UserError: It fits neither the memory nor the disk, or can't be written.
        """
        if (array := self._arrays.pop(key, None)) is None:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            # A file that is there is used whatever the memory: ``in`` has told of it.
            if size > self.memory or self._path(key).exists():
                return self._from_disk(key, shape, dtype, fill)
            while self._in_memory() + size > self.memory:
                del self._arrays[next(iter(self._arrays))]
            array = np.empty(shape, dtype)
            kept = array

            def write(start: int, rows: np.ndarray) -> None:
                kept[start : start + len(rows)] = rows

            fill(write)
        # Last in the dictionary is last to be given up.
        self._arrays[key] = array
        return array

    def _in_memory(self) -> int:
        return sum(array.nbytes for array in self._arrays.values())

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _from_disk(
        self, key: str, shape: tuple[int, ...], dtype: DTypeLike, fill: Callable[[Write], None]
    ) -> np.ndarray:
        path = self._path(key)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with self._trouble_told():
            # First, so that no trouble with the lock is told with the remedy of another cache.
            self.folder.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.lock").write_bytes(b"")
        with exclusive(path), self._trouble_told():
            # Under the lock such a file can only be what a killed process left.
            for leftover in self.folder.glob(f".{path.name}.*.part"):
                leftover.unlink()
            if path.exists() and not _intact(path, size):
                say(f"{path} is damaged: computing it again")
                path.unlink()
            if not path.exists():
                self._make_room(path, size + _DIGEST_SIZE)
                _write_whole(path, np.dtype(dtype), shape, fill)
            os.utime(path)
            return np.memmap(path, dtype, "r", shape=shape)

    def _make_room(self, path: Path, size: int) -> None:
        """Removes the least recently used files until one of ``size`` bytes fits."""
        remedy = "lower --max-length, or use --no-prefix-cache"
        if size > self.disk:
            raise UserError(
                f"activations of {size / GIB:.2f} GiB exceed --cache-memory and --cache-disk "
                f"({self.disk / GIB:.2f} GiB): raise one of them, {remedy}"
            )
        files = []
        for file in self.folder.glob(f"*{_SUFFIX}"):
            # Another process may be making room, too.
            with contextlib.suppress(FileNotFoundError):
                found = file.stat()
                files.append((found.st_mtime_ns, found.st_size, file))
        taken = sum(used for _, used, _ in files)
        for _, used, file in sorted(files):
            if taken + size <= self.disk:
                break
            file.unlink(missing_ok=True)
            taken -= used
        if (free := shutil.disk_usage(self.folder).free) < size:
            raise UserError(
                f"{path.parent} has {free / GIB:.2f} GiB free, activations need "
                f"{size / GIB:.2f} GiB: make room, name another --cache-folder, {remedy}"
            )

    @contextlib.contextmanager
    def _trouble_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"activations can't be kept in {self.folder} ({error.strerror}): make room or "
                "access, name another --cache-folder, or use --no-prefix-cache"
            ) from error


def _write_whole(
    path: Path, dtype: np.dtype, shape: tuple[int, ...], fill: Callable[[Write], None]
) -> None:
    row_size = int(np.prod(shape[1:])) * dtype.itemsize
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w+b") as file:

            def write(start: int, rows: np.ndarray) -> None:
                # Written, not mapped: a disk that fills is then an error, not a signal.
                file.seek(start * row_size)
                file.write(np.ascontiguousarray(rows, dtype).view(np.uint8).data)

            fill(write)
            digest = _digest(file, shape[0] * row_size)
            file.seek(shape[0] * row_size)
            file.write(digest)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _digest(file: IO[bytes], size: int) -> bytes:
    hasher = hashlib.sha256()
    file.seek(0)
    while size > 0 and (block := file.read(min(size, _BLOCK))):
        hasher.update(block)
        size -= len(block)
    return hasher.digest()


def _intact(path: Path, size: int) -> bool:
    if path.stat().st_size != size + _DIGEST_SIZE:
        return False
    with path.open("rb") as file:
        return _digest(file, size) == file.read(_DIGEST_SIZE)
