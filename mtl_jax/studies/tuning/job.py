"""One arm that is to be tuned, as the ways to tune it take it."""

from __future__ import annotations

import dataclasses

from mtl_jax.config.train import TrainConfig
from mtl_jax.studies.budget import Budget
from mtl_jax.studies.tuning.record import TuningRecord
from mtl_jax.studies.tuning.space import Space
from mtl_jax.training.inputs import Inputs


@dataclasses.dataclass(frozen=True)
class TuningJob:
    """What is tried, within what, and where it is left.

    Attributes:
        config: The run, of the seed whose texts the trials have.
        inputs: Those of it.
        space: What is searched.
        budget: For this arm.
        record: Where the trials are left.
    """

    config: TrainConfig
    inputs: Inputs
    space: Space
    budget: Budget
    record: TuningRecord
