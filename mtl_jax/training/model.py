"""The model of a research script: an encoder shared by one head per task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.config.model import Dtype
from mtl_jax.config.tasks import Task, tasks_in_words
from mtl_jax.core.errors import UserError, require_type
from mtl_jax.core.type_checks import refuse_type
from mtl_jax.freezing.partition import Params
from mtl_jax.models.encoder import Encoder, Tokens, as_tokens
from mtl_jax.models.multitask import Head
from mtl_jax.models.precision import default_dtype
from mtl_jax.training.evaluator import ModelSpec, of_tasks
from mtl_jax.training.extensions import make_head
from mtl_jax.training.program import stream


class MultiTaskModel:
    """An encoder with one head per task, as a pure function of its parameters.

        model = mtl.MultiTaskModel(encoder, data.tasks, heads={"stars": MyHead()})
        logits = model(model.params, input_ids, attention_mask)["stars"]

    Attributes:
        encoder: The encoder.
        tasks: The tasks, in the order of the heads.
        heads: For some tasks a Flax module that is used instead of a Dense layer.
        dtype: Precision of the encoder's matrix products.
    """

    def __init__(
        self,
        encoder: Encoder,
        tasks: Sequence[Task],
        heads: Mapping[str, nn.Module | Callable[[int], nn.Module]] | None = None,
        *,
        dtype: Dtype | None = None,
    ):
        """Defines the model; parameters are created when they are first used.

        Args:
            encoder: From ``load_encoder``.
            tasks: The tasks with their classes, as ``load_data`` returns them.
            heads: For some tasks a Flax module that maps pooled vectors, float32 [..., hidden], to
                logits, float32 [..., classes], or [..., 1] for a regression, or what makes one for
                a number of classes; by default a Dense layer.
            dtype: ``float32``, or ``bfloat16`` for the operands of the encoder's matrix products;
                by default bfloat16 on TPUs and on GPUs from Ampere on.

        Raises:
            UserError: There is no task, a task has no classes, or a head is for an unknown task or
                makes other logits than its task has.
        """
        require_type(encoder, Encoder, "encoder", "give what load_encoder returns")
        remedy = "give the tasks of load_data, data.tasks"
        require_type(tasks, Sequence, "tasks", remedy)
        for task in tasks:
            require_type(task, Task, f"the task {task!r}", remedy)
        refuse_type("dtype", dtype, Dtype | None)
        self.encoder, self.tasks = encoder, tuple(tasks)
        self.dtype: Dtype = dtype or default_dtype()
        names = [task.name for task in self.tasks]
        if not names or len(set(names)) < len(names):
            raise UserError("a model needs tasks of different names")
        if bare := [task.name for task in self.tasks if not task.outputs]:
            raise UserError(f"the task {bare[0]!r} has no classes: take the tasks of load_data")
        if strange := [name for name in heads or {} if name not in names]:
            raise UserError(f"heads names the task {strange[0]!r}: use {' or '.join(names)}")
        outputs = {task.name: task.outputs for task in self.tasks}
        self.heads: dict[str, nn.Module] = {
            name: make_head(
                head, outputs[name], encoder.config.hidden_size, f"the head of {name}"
            ).module
            for name, head in (heads or {}).items()
        }

    def __repr__(self) -> str:
        return f"<MultiTaskModel of {self.encoder!r}; {tasks_in_words(self.tasks)}>"

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
        """The Flax module; its parameters are ``backbone`` and one subtree per task."""
        return self.spec(max_length=self.encoder.config.max_length).model()

    @property
    def params(self) -> Params:
        """The parameters of the pre-trained encoder with newly initialised heads: ``init(0)``."""
        return self.init(0)

    def init(self, seed: int) -> Params:
        """Returns the parameters of the pre-trained encoder and of heads initialised with a seed.

        A training run with the same seed begins with the same heads.
        """
        module: Any = self.module
        heads = module.init_heads(stream(seed, "heads"))
        return {"backbone": self.encoder.params, **jax.tree.map(np.array, heads)}

    def refuse_other_params(self, params: Params) -> None:
        """Refuses parameters without one of the model's parts.

        Raises:
            UserError: A part is not there; which shapes it has is for Flax to tell.
        """
        require_type(params, Mapping, "params", "give all parameters, such as those of model.init")
        needed = ["backbone", *(task.name for task in self.tasks)]
        if missing := [name for name in needed if name not in params]:
            raise UserError(
                f"params has no {missing[0]!r}: give all parameters of the model, "
                f"{', '.join(needed)}, such as those of model.init or TrainStep.params"
            )

    def __call__(
        self,
        params: Params,
        input_ids: Tokens,
        attention_mask: Tokens | None = None,
        token_type_ids: Tokens | None = None,
    ) -> dict[str, jax.Array]:
        """Computes the logits of token ids, without dropout; a pure function of ``params``.

        Args:
            params: All parameters.
            input_ids: int [batch, length].
            attention_mask: int [batch, length], 1 at tokens, 0 at padding; by default all 1.
            token_type_ids: int [batch, length], for pairs of texts; by default all 0.

        Returns:
            For each task float32 [batch, classes], or [batch, 1] for a regression.

        Raises:
            UserError: As of ``as_tokens``; or ``params`` are not all parameters.
        """
        self.refuse_other_params(params)
        config = self.encoder.config
        ids, mask, types = as_tokens(config, input_ids, attention_mask, token_type_ids)
        batch = {
            "input_ids": ids,
            "segment_ids": (mask > 0).astype(jnp.int32),
            "position_ids": jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape),
            self.tasks[0].name: jnp.full((len(ids), 1), -1),
        }
        if token_type_ids is not None:
            batch["token_type_ids"] = types
        logits = cast("dict[str, jax.Array]", self.module.apply({"params": params}, batch))
        return {task: of_task[:, 0] for task, of_task in logits.items()}
