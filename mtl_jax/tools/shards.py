"""How the texts of an epoch would be dealt to many processes: a dry run, without their devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from mtl_jax.config.train import Settings
from mtl_jax.core.distributed import part
from mtl_jax.data.batches import Order
from mtl_jax.training.inputs import Inputs


@dataclasses.dataclass(frozen=True)
class Shards:
    """What the processes have of one epoch.

    Attributes:
        epoch: Which, from 0.
        steps: Batches, the same for every process.
        texts: int [processes], how many texts each has.
        tokens: int [processes], how many tokens these have.
        repeated: Texts that come more than once.
        lost: Texts that do not come at all.
        most_apart: The largest difference, after any step, of how many texts two processes have
            had so far.
    """

    epoch: int
    steps: int
    texts: np.ndarray
    tokens: np.ndarray
    repeated: int
    lost: int
    most_apart: int

    def __str__(self) -> str:
        ranges = [f"{each.min():,} to {each.max():,}" for each in (self.texts, self.tokens)]
        return (
            f"epoch {self.epoch + 1}: {len(self.texts)} processes, {self.steps:,} batches each; "
            f"{ranges[0]} texts and {ranges[1]} tokens each; {self.repeated} repeated, "
            f"{self.lost} lost; at most {self.most_apart} texts apart at any step"
        )


def deal(
    settings: Settings, inputs: Inputs, processes: int, devices: int, seed: int, epochs: int
) -> Iterator[Shards]:
    """Deals the training texts as training does.

    Args:
        settings: Those of the run.
        inputs: Its data.
        processes: How many.
        devices: Of each.
        seed: Of the order.
        epochs: How many; in a mixture of data sets an epoch does not have every text once, and
            ``repeated`` and ``lost`` say how far.
    """
    lengths = inputs.training().texts.tokens.lengths
    plan = inputs.plan(settings.batch_size, processes * devices)
    order = Order(plan, seed)
    for epoch in range(epochs):
        met = np.zeros(len(lengths), np.int64)
        texts, tokens = np.zeros(processes, np.int64), np.zeros(processes, np.int64)
        most_apart = 0
        each = part(plan.layout.rows, 0, processes).stop
        for placement in order.placements(epoch):
            np.add.at(met, placement.texts, 1)
            process = placement.rows // each
            np.add.at(texts, process, 1)
            np.add.at(tokens, process, lengths[placement.texts])
            most_apart = max(most_apart, int(np.ptp(texts)))
        repeated, lost = int((met > 1).sum()), int((met == 0).sum())
        yield Shards(epoch, plan.steps, texts, tokens, repeated, lost, most_apart)
