"""The pre-trained encoder beside the checkpoints of a run, which lack what it never trains.

It stands once in the run's folder, under its digest. Runs of one study share its bytes: their
files are hard links to one in the study's folder, where the file system has these.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from mtl_jax.core.atomic_write import atomic_write
from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError, cannot_read, cannot_write
from mtl_jax.freezing.partition import Params
from mtl_jax.runs.checkpoints import arrays
from mtl_jax.runs.workdir import shared_folder


def keep(folder: Path, params: Params, digest: str) -> None:
    """Leaves a file of the encoder in a folder of a run, unless it is there and whole.

    Args:
        folder: The folder, which need not be there.
        params: The encoder's parameters, numpy arrays.
        digest: Theirs.

    Raises:
        UserError: It can't be written.
    """
    file = _file(folder, digest)
    if file.exists():
        if _is_whole(file, digest):
            return
        say(f"warning: {file} was damaged: it is recreated")
    try:
        folder.mkdir(exist_ok=True)
        if (shared := shared_folder(folder.parent)) is None:
            _write(file, params)
            return
        source = _file(shared, digest)
        if not _is_whole(source, digest):
            _write(source, params)
        with atomic_write(file) as draft:
            try:
                os.link(source, draft)
            except OSError:
                shutil.copyfile(source, draft)
    except OSError as error:
        raise cannot_write(folder, error) from error


def read(folder: Path, digest: str) -> dict[str, np.ndarray]:
    """The encoder's leaves, by path.

    Raises:
        UserError: The file is not there, damaged, or can't be read.
    """
    file = _file(folder, digest)
    try:
        leaves = arrays.read(file)
    except (FileNotFoundError, ValueError):
        leaves = None
    except OSError as error:
        raise cannot_read(file, error) from error
    if leaves is None or arrays.digest(leaves) != digest:
        raise UserError(
            f"{file} is missing or damaged, without which no checkpoint is whole: run train again "
            "on its --workdir, which recreates it"
        )
    return leaves


def _file(folder: Path, digest: str) -> Path:
    return folder / f"{digest}.safetensors"


# The files that this process has read whole and found right, by what the system says of them.
_known: set[tuple[int, int, int, int, str]] = set()


def _is_whole(file: Path, digest: str) -> bool:
    try:
        found = file.stat()
        # Runs of one study have the same one: each name of it leads to the same file.
        known = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, digest
        if known not in _known:
            if arrays.digest(arrays.read(file)) != digest:
                return False
            _known.add(known)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return False
    except OSError as error:
        # That it can't be read does not say that it is damaged.
        raise cannot_read(file, error) from error
    return True


def _write(file: Path, params: Params) -> None:
    with atomic_write(file) as draft:
        arrays.write(draft, params)
