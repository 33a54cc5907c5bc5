"""Large arrays by key, in checked, memory-mapped files within a budget."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from mtl_jax.core.console import in_bytes, say
from mtl_jax.core.errors import UserError
from mtl_jax.core.file_lock import exclusive
from mtl_jax.training.cache.array_file import Fill, Write, file_bytes, read_array, write_array

GIB = 2**30
# Of the files of arrays, and of those of vectors.
_STATES, _TOKENS = _SUFFIXES = (".states", ".tokens")
_REMEDY = "lower --max-length, or use --no-prefix-cache"


class ArrayStore:
    """Arrays that can be computed again, kept for as long as there is room.

    A file is the array's bytes, the seconds that they cost and the SHA-256 of both, and appears
    when it is whole; its name is the key, which has to name everything that the array depends
    on. A file that is cut short or has other bytes is noticed when a process first opens it,
    and made again.

    Attributes:
        size: Bytes that all files in ``folder`` may take together, whichever version of this
            project made them; the least recently used make room for new ones.
        folder: Where the files are. Processes may share it.
        seconds: Per key what making it took, here or in the process that left its file, as far
            as it has been found or made here.
    """

    def __init__(self, size: int, folder: Path):
        self.size, self.folder = size, folder
        self.seconds: dict[str, float] = {}
        self._users: weakref.WeakKeyDictionary[object, set[str]] = weakref.WeakKeyDictionary()

    def find(self, key: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray | None:
        """The array of that key; None where it is not there, or is damaged."""
        if (found := read_array(self._path(key), shape, dtype)) is None:
            return None
        array, self.seconds[key] = found
        return array

    def make(self, key: str, shape: tuple[int, ...], dtype: DTypeLike, fill: Fill) -> np.ndarray:
        """The array of a key that was not found, made by ``fill``, or meanwhile by another process.

        Args:
            key: Names the content; hexadecimal.
            shape: Its shape.
            dtype: Its type.
            fill: Makes its rows.

        Raises:
            UserError: There is no room for it beside what is in use, or it can't be written.
        """
        path = self._path(key)
        with self._alone(path), self._trouble_told():
            # Another process may have made it while this one waited.
            if (array := self.find(key, shape, dtype)) is not None:
                return array
            if path.exists():
                say(f"{path} is damaged: computing it again")
                path.unlink()
            self._clear_leftovers(path)
            self._make_room(file_bytes(shape, dtype))
            array, self.seconds[key] = write_array(path, shape, dtype, fill)
            return array

    def vector(self, key: str, dtype: DTypeLike, produce: Callable[[], np.ndarray]) -> np.ndarray:
        """A vector whose length is known when it is made, here or by another process.

        It is not worth an error: where there is no room for it, or nothing can be written, what
        ``produce`` gives is given, and not kept.
        """
        path, made = self._path(key, _TOKENS), None
        try:
            with self._alone(path), self._trouble_told():
                if (found := read_array(path, None, dtype)) is not None:
                    return found[0]
                if path.exists():
                    say(f"{path} is damaged: computing it again")
                    path.unlink()
                made = produce()
                size = file_bytes(made.shape, dtype)
                if self.refusals(size):
                    return made
                self._clear_leftovers(path)
                self._make_room(size)

                def fill(write: Write) -> float:
                    write(0, made)
                    return 0.0

                return write_array(path, made.shape, dtype, fill)[0]
        except UserError:
            # What making it raises is no matter of the store.
            if made is None:
                made = produce()
            return made

    def use(self, key: str, user: object) -> None:
        """Keeps a file from making room for others, until ``release`` or the end of ``user``."""
        self._users.setdefault(user, set()).add(key)

    def release(self, user: object) -> None:
        """Lets what a user has in use make room for others."""
        self._users.pop(user, None)

    def refusals(self, size: int) -> list[str]:
        """Why there can't be files of ``size`` bytes more, each with a remedy."""
        reasons, in_use = [], {self._path(key) for key in self._used()}
        files = self._files()
        used = sum(size for _, size, path in files if path in in_use)
        if size + used > self.size:
            beside = f" and {in_bytes(used)} that this run uses already" if used else ""
            reasons.append(
                f"activations of {in_bytes(size)}{beside} exceed --cache-size "
                f"({in_bytes(self.size)}): raise it, {_REMEDY}"
            )
        room = self._free() + sum(size for _, size, path in files if path not in in_use)
        if size > room:
            reasons.append(
                f"{self.folder} has {in_bytes(room)} free, activations need "
                f"{in_bytes(size)}: make room, name another --cache-folder, {_REMEDY}"
            )
        return reasons

    def _used(self) -> set[str]:
        return set().union(*self._users.values())

    def _path(self, key: str, suffix: str = _STATES) -> Path:
        return self.folder / f"{key}{suffix}"

    def _files(self) -> list[tuple[int, int, Path]]:
        """When each file was last used, its bytes, its path; in the order of their use."""
        files = []
        for file in itertools.chain(*(self.folder.glob(f"*{suffix}") for suffix in _SUFFIXES)):
            # Another process may be making room, too.
            with contextlib.suppress(FileNotFoundError):
                found = file.stat()
                files.append((found.st_atime_ns, found.st_size, file))
        return sorted(files)

    def _unfinished(self) -> int:
        """Bytes of the files that are being written."""
        size = 0
        for part in self._parts():
            with contextlib.suppress(FileNotFoundError):
                size += part.stat().st_size
        return size

    def _parts(self) -> list[Path]:
        return [part for suffix in _SUFFIXES for part in self.folder.glob(f".*{suffix}.*.part")]

    def _free(self) -> int:
        folders = (self.folder, *self.folder.absolute().parents)
        return shutil.disk_usage(next(folder for folder in folders if folder.is_dir())).free

    @contextlib.contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Holds the lock of a file; says so where another process has to be waited for."""
        with contextlib.ExitStack() as stack:
            if not stack.enter_context(exclusive(path, self._trouble, wait=False)):
                say(f"waiting for another process that computes {path}")
                stack.enter_context(exclusive(path, self._trouble))
            yield

    def _clear_leftovers(self, own: Path) -> None:
        """Removes what killed processes left of any file, under the lock of that file."""
        for leftover in self._parts():
            # As ``write_array`` names it: .NAME.PID.part.
            path = leftover.with_name(leftover.name[1:].rsplit(".", 2)[0])
            # What belongs to another user is left to that user's processes.
            with contextlib.suppress(UserError), contextlib.ExitStack() as stack:
                if path == own or stack.enter_context(exclusive(path, self._trouble, wait=False)):
                    for part in self.folder.glob(f".{path.name}.*.part"):
                        part.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Removes the least recently used files until one of ``size`` bytes fits.

        A file that another process has mapped may go: its bytes stay until they are unmapped.
        Those of this run would only have to be made again.
        """
        for refusal in self.refusals(size):
            raise UserError(refusal)
        files, used = self._files(), {self._path(key) for key in self._used()}
        # What other processes are writing has no name of its own yet, but takes its room.
        taken = sum(size for _, size, _ in files) + self._unfinished()
        for _, its_size, path in [file for file in files if file[-1] not in used]:
            if taken + size <= self.size and self._free() >= size:
                break
            path.unlink(missing_ok=True)
            taken -= its_size

    def _trouble(self, folder: Path, error: OSError) -> UserError:
        return UserError(
            f"activations can't be kept in {folder} ({error.strerror}): make room or "
            "access, name another --cache-folder, or use --no-prefix-cache"
        )

    @contextlib.contextmanager
    def _trouble_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._trouble(self.folder, error) from error
