"""mtl_jax: what to freeze when text tasks share a pre-trained BERT."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl_jax.config.train import BertConfig as BertConfig
    from mtl_jax.config.train import DataConfig as DataConfig
    from mtl_jax.config.train import TrainConfig as TrainConfig
    from mtl_jax.core.errors import UserError as UserError
    from mtl_jax.models.bert import BertEncoder as BertEncoder
    from mtl_jax.models.pretrained import load_backbone as load_backbone

__version__ = "0.1.0"

# Looked up when first used, so that importing the package, as the command line's --help
# does, does not import jax.
_HOMES = {
    "BertConfig": "config.train",
    "BertEncoder": "models.bert",
    "DataConfig": "config.train",
    "TrainConfig": "config.train",
    "UserError": "core.errors",
    "load_backbone": "models.pretrained",
}
__all__ = ["BertConfig", "BertEncoder", "DataConfig", "TrainConfig", "UserError", "load_backbone"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
