"""Small results that are computed once and kept: JSON, by a digest of all that they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from typing import Any

from mtl_jax.core.atomic_write import atomic_write
from mtl_jax.core.downloads import cache_dir


def fact(depends_on: Any, compute: Callable[[], Any]) -> Any:
    """What ``compute`` gives, or has given another process.

    A file that is damaged is recreated; a cache that can't be written costs the computation.

    Args:
        depends_on: JSON that names everything that the result depends on.
        compute: Gives JSON.
    """
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    file = cache_dir() / "facts" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        signed = json.loads(file.read_text(encoding="utf-8"))
        if signed["sha256"] == _digest(signed["value"]):
            return signed["value"]
    value = compute()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as draft:
            draft.write_text(json.dumps({"sha256": _digest(value), "value": value}))
    return value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
