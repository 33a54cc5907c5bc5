"""Trees of arrays in safetensors files, by the names of their leaves."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError

from mtl_jax.core.errors import first_line, system_number
from mtl_jax.freezing import partition


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their place in it, ``/`` between the names of nested ones."""
    return {
        "/".join(_name(key) for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``named`` for nested dicts."""
    return unflatten_dict(dict(leaves), sep="/")


def digest(tree: Any) -> str:
    """SHA-256 over the names, types, shapes and bytes of a tree's leaves."""
    return partition.digest(named(tree))


def write(file: Path, tree: Any) -> None:
    """Writes the leaves of a tree of numpy arrays.

    Raises:
        OSError: It can't be written.
    """
    leaves = {name: np.asarray(leaf, order="C") for name, leaf in named(tree).items()}
    # Safetensors replaces the file by one that its owner alone may read. It gets the permissions
    # of a new file back, so that colleagues can read a run.
    file.touch()
    mode = stat.S_IMODE(file.stat().st_mode)
    try:
        safetensors.numpy.save_file(leaves, file)
    except SafetensorError as error:
        if number := system_number(error):
            raise OSError(number, os.strerror(number), str(file)) from error
        raise OSError(first_line(error)) from error
    # Not every file system knows permissions.
    with contextlib.suppress(OSError):
        file.chmod(mode)


def read(file: Path) -> dict[str, np.ndarray]:
    """The leaves in a file, by name.

    Raises:
        OSError: It can't be opened.
        ValueError: It holds no arrays, or not all of them.
    """
    # What keeps anyone from reading it is told by the system alone.
    file.open("rb").close()
    try:
        return safetensors.numpy.load_file(file)
    except SafetensorError as error:
        raise ValueError(first_line(error)) from error
