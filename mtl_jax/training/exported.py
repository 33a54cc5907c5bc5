"""A model from folders that ``export`` wrote, or that PyTorch saved of them after training."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import jax
import numpy as np

from mtl_jax.config.tasks import Kind, Task
from mtl_jax.core.errors import UserError
from mtl_jax.core.paths import expanded
from mtl_jax.freezing.partition import Params
from mtl_jax.models.encoder import load_encoder
from mtl_jax.models.exported import read_head
from mtl_jax.models.heads import MlpHead
from mtl_jax.models.pretrained import read_tensors
from mtl_jax.training.model import MultiTaskModel


def load_exported(*folders: str | Path) -> tuple[MultiTaskModel, Params]:
    """Loads the encoder and the heads of folders that ``export --format huggingface`` wrote.

        model, params = mtl.load_exported("exported/topic")
        logits = model(params, input_ids, attention_mask)["topic"]
        state = step.init(seed=0, params=params)  # continues training in a TrainStep

    The values are those of the files, bit for bit. No code in the folders is executed.

    Args:
        *folders: One per task; all have the same encoder.

    Returns:
        The model, and its parameters in float32.

    Raises:
        UserError: A folder is not such an export, two are for the same task, or their encoders
            differ.
    """
    if not folders:
        raise UserError("load_exported needs a folder: name one that export wrote")
    paths = [expanded(folder) for folder in folders]
    encoders = [load_encoder(path) for path in paths]
    for path, encoder in zip(paths[1:], encoders[1:], strict=True):
        same = encoder.pooling == encoders[0].pooling
        if not same or not _equal(encoder.params, encoders[0].params):
            raise UserError(
                f"the encoders in {paths[0]} and {path} differ, and a model has one: load each by "
                "itself"
            )
    heads = [read_head(path, read_tensors(path)) for path in paths]
    tasks = [Task(head.task, cast("Kind", head.kind), classes=head.classes) for head in heads]
    params: Params = {"backbone": encoders[0].params}
    deep = {
        head.task: MlpHead(encoders[0].config, head.hidden, task.outputs)
        for head, task in zip(heads, tasks, strict=True)
        if head.hidden
    }
    model = MultiTaskModel(encoders[0], tasks, deep)
    return model, params | {head.task: head.params for head in heads}


def _equal(left: Params, right: Params) -> bool:
    if jax.tree.structure(left) != jax.tree.structure(right):
        return False
    return all(map(np.array_equal, jax.tree.leaves(left), jax.tree.leaves(right)))
