"""Which versions of the packages are installed."""

import functools
import importlib.metadata


@functools.cache
def version(package: str) -> str:
    """The installed version of a package; its metadata is read once in a process."""
    return importlib.metadata.version(package)
