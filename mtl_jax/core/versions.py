"""Which versions of the packages are installed."""

import functools
import hashlib
import importlib.metadata
from pathlib import Path


@functools.cache
def version(package: str) -> str:
    """The installed version of a package; its metadata is read once in a process."""
    return importlib.metadata.version(package)


@functools.cache
def code_digest() -> str:
    """SHA-256 of this package's modules, for what is kept of what they compute."""
    root, hasher = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        hasher.update(f"{file.relative_to(root).as_posix()}\n".encode() + file.read_bytes())
    return hasher.hexdigest()
