"""What a training step does, and what it changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from mtl_jax.freezing.partition import Params
from mtl_jax.models.multitask import MultiTaskModule
from mtl_jax.training.micro_batches import WHOLE, MicroBatches
from mtl_jax.training.optimizer import AdamW, AdamWNumbers, swapped
from mtl_jax.training.weighting.base import State, Weighting
from mtl_jax.training.weighting.methods.fixed import FIXED


class TrainState(flax.struct.PyTreeNode):
    """What a step changes. The frozen leaves are not in it.

    Attributes:
        step: Steps done, int32 scalar.
        trainable: The trainable partition of the parameters.
        opt_state: Its optimizer state.
        rng: Key that dropout's keys are folded from.
        weighting: What the method of weighting carries; see ``Weighting.init``.
    """

    step: jax.Array
    trainable: Params
    opt_state: optax.OptState
    rng: jax.Array
    weighting: State = ()

    def swapped(self) -> TrainState:
        """The state with the average in the place of what trains, as it is kept; and back."""
        trainable, opt_state = swapped(self.trainable, self.opt_state)
        return self.replace(trainable=trainable, opt_state=opt_state)


def stream(seed: int, use: Literal["heads", "dropout", "lora"]) -> jax.Array:
    """The key of one of a run's uses of chance, independent of the others."""
    return jax.random.fold_in(jax.random.key(seed), ("heads", "dropout", "lora").index(use))


class Numbers(NamedTuple):
    """The numbers of a run that a compiled step is given, and not made for.

    Attributes:
        task_weights: As of ``Program``, float32 [T].
        hold_weight: As of ``Program``, float32.
        optimizer: What ``AdamW`` is given; None for another optimizer.
    """

    task_weights: Any
    hold_weight: Any
    optimizer: AdamWNumbers | None

    @classmethod
    def of(
        cls, task_weights: Sequence[float], hold_weight: float, optimizer: AdamWNumbers | None
    ) -> Numbers:
        """These numbers, on the host."""
        return cls(np.asarray(task_weights, np.float32), np.float32(hold_weight), optimizer)


@dataclasses.dataclass(frozen=True)
class Template:
    """What the steps are compiled for: a program but for its numbers. Hashable.

    Attributes:
        model: The model.
        optimizer: Over the trainable partition.
        frozen_depth: Where the frozen bottom of the backbone ends.
        weighting: What else weighs the losses against each other.
        parts: The micro-batches that a batch is computed in.
        gathered: Where parameters are to be when they are used, if each device keeps a part of
            them only.
        r_drop: Weight of the divergence between two passes of each text, see ``train_step``; with
            0 there is one pass.
    """

    model: MultiTaskModule
    optimizer: AdamW | optax.GradientTransformation
    frozen_depth: int
    weighting: Weighting = FIXED
    parts: MicroBatches = WHOLE
    gathered: NamedSharding | None = None
    r_drop: float = 0.0

    def program(self, numbers: Numbers) -> Program:
        """The program with these numbers, which may be traced."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(Template)}
        if isinstance(self.optimizer, AdamW):
            own["optimizer"] = self.optimizer.with_numbers(numbers.optimizer)
        return Program(
            **own, task_weights=tuple(numbers.task_weights), hold_weight=numbers.hold_weight
        )


@dataclasses.dataclass(frozen=True)
class Program(Template):
    """What a step does: a template with its numbers.

    Attributes:
        optimizer: With its numbers, too.
        task_weights: In the order of the model's tasks.
        hold_weight: Of the term that holds the predictions of frozen heads that batches have
            a ``target_`` of; 0 where they have none.
    """

    optimizer: optax.GradientTransformation
    task_weights: tuple[Any, ...] = ()
    hold_weight: Any = 0.0

    def init(self, trainable: Params, seed: int) -> TrainState:
        """The state before the first step."""
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            trainable=trainable,
            opt_state=self.optimizer.init(trainable),
            rng=jax.random.key_data(stream(seed, "dropout")),
            weighting=self.weighting.init(len(self.model.tasks)),
        )
