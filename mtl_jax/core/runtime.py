"""What a process of our own sets before the first array: memory and compiled code."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from mtl_jax.core import compile_cache
from mtl_jax.core.downloads import cache_dir
from mtl_jax.core.errors import UserError, first_line

# mallopt's parameters, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


@contextlib.contextmanager
def without(*packages: str) -> Iterator[None]:
    """Has imports find none of ``packages``, but for those that have been imported already.

    Some libraries import PyTorch, seconds and hundreds of megabytes, wherever it is installed,
    though nothing here needs what they do with it.
    """
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # pyright: ignore[reportArgumentType, reportCallIssue]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def keep_freed_memory() -> None:
    """Lets glibc reuse what a step has freed; elsewhere nothing happens.

    XLA allocates a step's temporary arrays anew for each step. By default glibc gives such
    large blocks back to the kernel at once, and every page of the next step's has to be
    faulted in and zeroed again: a fifth of the time of a step on a CPU.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            mallopt(parameter, value)


def collect_less_often() -> None:
    """Has Python look for cyclic garbage less often.

    The trace of a program is many small objects that stay. By default the collector goes through
    them again and again: some 8 % of the processor time of a short run.
    """
    gc.set_threshold(20_000, 20, 20)


def _jax() -> ModuleType:
    """JAX, set to what programs here and in libraries are written for."""
    try:
        import jax
    except ValueError as error:
        raise UserError(
            f"JAX can't be started as the environment says ({first_line(error)}): correct that "
            "variable, or unset it"
        ) from error
    # Some set it to "raise" for code of their own.
    jax.config.update("jax_numpy_rank_promotion", "allow")
    return jax


def keep_compiled() -> Path:
    """Turns JAX's persistent compilation cache on; its own settings come first.

    Small programs are kept, too: a run has some fifty, each of which takes ten times as long to
    compile as to read.

    Returns:
        The folder: ``$JAX_COMPILATION_CACHE_DIR``, else ``xla`` in ``cache_dir()``.

    Raises:
        UserError: JAX is set by the environment to what it does not know.
    """
    jax = _jax()
    compile_cache.mend()
    if folder := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(folder)
    folder = cache_dir() / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # A folder that can't be written costs the compilation again, and nothing else.
    warnings.filterwarnings("once", message=".*persistent compilation cache.*")
    return folder
