"""The model of a run as one function of weights and token ids, for a program to be made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mtl_jax.runs.run_config import model_spec
from mtl_jax.tools.export.trained_run import TrainedRun

Forward = Callable[..., dict[str, jax.Array]]
"""Weights by their paths, ``input_ids``, ``attention_mask`` and, where a run tells pairs apart by
them, ``token_type_ids``, int32 [batch, length], to float32 [batch, outputs] for each task: its
logits, of a regression its value."""


def weights_of(run: TrainedRun) -> dict[str, np.ndarray]:
    """All parameters by their paths."""
    params = {"backbone": run.backbone, **{head.name: head.params for head in run.heads}}
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}


def forward(run: TrainedRun, where: str, trust: Sequence[str]) -> Forward:
    """The compiled function, which computes as the run did.

    Args:
        run: The run.
        where: Its folder, for an error.
        trust: The modules of a user's own code that may be imported.

    Raises:
        UserError: The run names code that is not trusted.
    """
    spec = model_spec(dict(run.record), where, trust, max_length=run.max_length)
    asked = {head.name for head in run.heads}
    classes = tuple(each for each in spec.classes if each[0] in asked)
    # Fused attention is a call of one platform's own library.
    module = dataclasses.replace(spec, classes=classes, fused_attention=False).model()

    def of_text(
        weights: Any, ids: jax.Array, mask: jax.Array, *types: jax.Array
    ) -> dict[str, jax.Array]:
        params = {path: array.astype(jnp.float32) for path, array in weights.items()}
        batch = {
            "input_ids": ids[None],
            "segment_ids": (mask > 0).astype(jnp.int32)[None],
            "position_ids": jnp.arange(ids.shape[0])[None],
            classes[0][0]: jnp.full((1, 1), -1),
        }
        if types:
            batch["token_type_ids"] = types[0][None]
        logits: Any = module.apply({"params": unflatten_dict(params, sep="/")}, batch)
        return {
            head.name: logits[head.name][0, 0] * head.scale[0] + head.scale[1] for head in run.heads
        }

    # The model cuts its rows by their number, which a symbol is not: it sees one at a time.
    return jax.jit(jax.vmap(of_text, (None, 0, 0, *([0] if run.token_types else []))))
