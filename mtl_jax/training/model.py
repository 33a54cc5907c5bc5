"""The model of a research script: an encoder shared by one head per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mtl_jax.config.model import Dtype
from mtl_jax.config.tasks import Task
from mtl_jax.core.errors import UserError
from mtl_jax.freezing.partition import Params
from mtl_jax.models.encoder import Encoder
from mtl_jax.models.multitask import Head
from mtl_jax.models.precision import default_dtype
from mtl_jax.training.evaluator import ModelSpec, of_tasks
from mtl_jax.training.step import stream


class MultiTaskModel:
    """An encoder and a head for each task, as one pure function of its parameters.

        model = mtl.MultiTaskModel(encoder, data.tasks, heads={"stars": MyHead()})
        logits = model(model.params, input_ids, attention_mask)["stars"]

    Attributes:
        encoder: The encoder.
        tasks: The tasks, in the order of the heads.
        heads: By task the Flax modules that stand in the place of a Dense layer.
        dtype: Precision of the encoder's matrix products.
    """

    def __init__(
        self,
        encoder: Encoder,
        tasks: Sequence[Task],
        heads: Mapping[str, nn.Module] | None = None,
        *,
        dtype: Dtype | None = None,
    ):
        """Builds it; no parameter is made yet.

        Args:
            encoder: From ``load_encoder``.
            tasks: With their classes, as ``load_data`` gives them.
            heads: By task a Flax module from pooled vectors, float32 [..., hidden], to logits,
                float32 [..., classes], of a regression [..., 1]; by default a Dense layer.
            dtype: ``float32``, or ``bfloat16`` for the factors of the encoder's products; by
                default that on TPUs and on GPUs from Ampere on.

        Raises:
            UserError: There is no task, one without classes, or a head for none of them.
        """
        self.encoder, self.tasks = encoder, tuple(tasks)
        self.dtype: Dtype = dtype or default_dtype()
        self.heads = dict(heads or {})
        names = [task.name for task in self.tasks]
        if not names or len(set(names)) < len(names):
            raise UserError("a model needs tasks of different names")
        if bare := [task.name for task in self.tasks if not task.outputs]:
            raise UserError(f"the task {bare[0]!r} has no classes: take the tasks of load_data")
        if strange := [name for name in self.heads if name not in names]:
            raise UserError(f"heads names the task {strange[0]!r}: use {' or '.join(names)}")

    def spec(self, **how: Any) -> ModelSpec:
        """What it is built and compiled from; ``how`` is the rest of ``ModelSpec``."""
        return ModelSpec(
            bert=self.encoder.config,
            **of_tasks(self.tasks),
            pooling=self.encoder.pooling,
            dtype=self.dtype,
            heads=tuple((name, Head(module)) for name, module in self.heads.items()),
            **how,
        )

    @property
    def module(self) -> nn.Module:
        """The Flax module, whose tree is ``backbone`` and each task by its name."""
        return self.spec(max_length=self.encoder.config.max_length).model()

    @property
    def params(self) -> Params:
        """The pre-trained encoder with fresh heads: ``init(0)``."""
        return self.init(0)

    def init(self, seed: int) -> Params:
        """Returns the pre-trained encoder with fresh heads, those of a run with that seed."""
        module: Any = self.module
        heads = module.init_heads(stream(seed, "heads"))
        return {"backbone": self.encoder.params, **jax.tree.map(np.array, heads)}

    def __call__(
        self,
        params: Params,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
    ) -> dict[str, jax.Array]:
        """Computes the logits of token ids, without dropout; pure in ``params``.

        Args:
            params: All parameters.
            input_ids: int [batch, length].
            attention_mask: int [batch, length], 1 at tokens, 0 at padding; all 1 by default.
            token_type_ids: int [batch, length], of pairs of texts; all 0 by default.

        Returns:
            Per task float32 [batch, classes], of a regression [batch, 1].
        """
        ids = jnp.asarray(input_ids, jnp.int32)
        mask = jnp.ones_like(ids) if attention_mask is None else jnp.asarray(attention_mask)
        batch = {
            "input_ids": ids,
            "segment_ids": (mask > 0).astype(jnp.int32),
            "position_ids": jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape),
            self.tasks[0].name: jnp.full((len(ids), 1), -1),
        }
        if token_type_ids is not None:
            batch["token_type_ids"] = jnp.asarray(token_type_ids, jnp.int32)
        logits = cast("dict[str, jax.Array]", self.module.apply({"params": params}, batch))
        return {task: of_task[:, 0] for task, of_task in logits.items()}
