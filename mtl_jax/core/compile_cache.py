"""JAX's persistent cache of compiled programs, made to survive entries that are not whole.

JAX writes an entry in place: a process that is killed meanwhile leaves a part of one, and another
process may read it half written. Whoever reads a damaged entry is warned and compiles, but never
replaces it, and so is everyone after.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtl_jax.core.errors import reason

# The end of the name of an entry's file, after its key.
_SUFFIX = "-cache"


def mend() -> None:
    """Has damaged entries compiled again and replaced, and whole ones appear in one move.

    It reaches into JAX, which has no hook for this; a release of JAX that looks otherwise inside
    keeps its own ways.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from jax._src import compilation_cache
        from jax._src.lru_cache import LRUCache

        if not hasattr(compilation_cache.get_executable_and_time, "__wrapped__"):
            found = compilation_cache.get_executable_and_time
            compilation_cache.get_executable_and_time = _or_removed(found)
            LRUCache.put = _in_one_move(LRUCache.put)  # pyright: ignore[reportAttributeAccessIssue]


def _or_removed(get: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    @functools.wraps(get)
    def found(cache_key: str, *args: Any, **options: Any) -> tuple[Any, Any]:
        try:
            return get(cache_key, *args, **options)
        except Exception:  # noqa: BLE001  (of zlib, of XLA: whatever the damage leads to)
            import jax

            folder: str = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
            entry = Path(folder) / f"{cache_key}{_SUFFIX}"
            with contextlib.suppress(OSError):
                entry.unlink()
                print(f"note: {entry} was damaged: it is compiled again", file=sys.stderr)
            return None, None

    return found


def _in_one_move(put: Callable[[Any, str, bytes], None]) -> Callable[[Any, str, bytes], None]:
    @functools.wraps(put)
    def stored(cache: Any, key: str, value: bytes) -> None:
        folder = Path(str(cache.path))
        # A bounded cache counts its bytes under a lock of its own; others are no folder.
        if cache.eviction_enabled or not folder.is_dir():
            put(cache, key, value)
            return
        entry = folder / f"{key}{_SUFFIX}"
        draft = folder / f".{key}.{os.getpid()}.{threading.get_ident()}"
        if not entry.exists():
            try:
                draft.write_bytes(value)
                draft.replace(entry)
            except OSError as error:
                # JAX would warn of each of some fifty programs.
                _tell_once(folder, reason(error))
            finally:
                draft.unlink(missing_ok=True)

    return stored


@functools.cache
def _tell_once(folder: Path, why: str) -> None:
    print(
        f"note: compiled programs can't be kept in {folder} ({why}): each run compiles them again "
        "until there is room",
        file=sys.stderr,
    )
