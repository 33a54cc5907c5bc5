"""The precision of a run that does not state it: what it was begun with, else the device's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from mtl_jax.config.model import Dtype
from mtl_jax.config.train import Settings
from mtl_jax.core import distributed
from mtl_jax.core.errors import UserError
from mtl_jax.models.precision import default_dtype
from mtl_jax.runs.workdir import Workdir

_Settings = TypeVar("_Settings", bound=Settings)


def with_dtype(settings: _Settings, folders: Sequence[str]) -> _Settings:
    """Settings with a ``dtype``; of several processes all have the first one's.

    Args:
        settings: Of a run or a study.
        folders: Where it may have been begun: the first of these that has keeps its precision,
            whatever device goes on with it.
    """
    if settings.dtype is not None:
        return settings
    found = distributed.call_on_main(lambda: _recorded(folders) or default_dtype())
    return dataclasses.replace(settings, dtype=found)


def _recorded(folders: Sequence[str]) -> Dtype | None:
    for name in folders:
        folder = Workdir(name)
        try:
            record: Any = folder.config() if folder.exists else {}
            if (found := record["settings"]["dtype"]) in ("float32", "bfloat16"):
                return found
        except (UserError, LookupError, TypeError):
            # What is wrong with the folder is told when it is claimed.
            continue
    return None
