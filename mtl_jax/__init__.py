"""mtl_jax: what to freeze when text tasks share a pre-trained encoder.

    import mtl_jax as mtl

    result = mtl.train(mtl.TrainConfig(workdir="runs/first", scenario="backbone_frozen"))

Everything the command line does is a few calls; ``docs/library.md`` shows a training loop of your
own. Modules are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl_jax import studies as studies
    from mtl_jax.config.data import DataConfig as DataConfig
    from mtl_jax.config.tasks import Task as Task
    from mtl_jax.config.train import TrainConfig as TrainConfig
    from mtl_jax.core.errors import UserError as UserError
    from mtl_jax.freezing.lora import merge_lora as merge_lora
    from mtl_jax.freezing.partition import Partition as Partition
    from mtl_jax.freezing.phase import Phase as Phase
    from mtl_jax.freezing.recipes import RecipeContext as RecipeContext
    from mtl_jax.models.encoder import Encoder as Encoder
    from mtl_jax.models.encoder import load_encoder as load_encoder
    from mtl_jax.models.encoder_config import EncoderConfig as EncoderConfig
    from mtl_jax.models.encoder_module import EncoderModule as EncoderModule
    from mtl_jax.models.pretrained import load_backbone as load_backbone
    from mtl_jax.runs.loop import train as train
    from mtl_jax.tools.ensemble import Ensemble as Ensemble
    from mtl_jax.tools.export.command import export as export
    from mtl_jax.tools.predict import Predictor as Predictor
    from mtl_jax.tools.text_encoder import load_text_encoder as load_text_encoder
    from mtl_jax.training.data import Data as Data
    from mtl_jax.training.data import load_data as load_data
    from mtl_jax.training.exported import load_exported as load_exported
    from mtl_jax.training.model import MultiTaskModel as MultiTaskModel
    from mtl_jax.training.optimizer import make_optimizer as make_optimizer
    from mtl_jax.training.train_step import TrainStep as TrainStep
    from mtl_jax.training.train_step import evaluate as evaluate

__version__ = "0.1.0"

# Where each name is defined; it is imported when it is first used.
_HOMES = {
    "EncoderConfig": "models.encoder_config",
    "EncoderModule": "models.encoder_module",
    "Data": "training.data",
    "DataConfig": "config.data",
    "Encoder": "models.encoder",
    "MultiTaskModel": "training.model",
    "Partition": "freezing.partition",
    "Phase": "freezing.phase",
    "Ensemble": "tools.ensemble",
    "Predictor": "tools.predict",
    "RecipeContext": "freezing.recipes",
    "Task": "config.tasks",
    "TrainConfig": "config.train",
    "TrainStep": "training.train_step",
    "UserError": "core.errors",
    "evaluate": "training.train_step",
    "export": "tools.export.command",
    "load_backbone": "models.pretrained",
    "load_data": "training.data",
    "load_encoder": "models.encoder",
    "load_exported": "training.exported",
    "load_text_encoder": "tools.text_encoder",
    "make_optimizer": "training.optimizer",
    "merge_lora": "freezing.lora",
    "train": "runs.loop",
}
_PACKAGES = ("studies",)
__all__ = [  # noqa: RUF022  (as a script uses them)
    "load_encoder",
    "Encoder",
    "load_data",
    "Data",
    "DataConfig",
    "Task",
    "MultiTaskModel",
    "Partition",
    "make_optimizer",
    "TrainStep",
    "evaluate",
    "merge_lora",
    "train",
    "TrainConfig",
    "Phase",
    "RecipeContext",
    "Predictor",
    "load_text_encoder",
    "Ensemble",
    "export",
    "load_exported",
    "UserError",
    "EncoderModule",
    "EncoderConfig",
    "load_backbone",
    "studies",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
