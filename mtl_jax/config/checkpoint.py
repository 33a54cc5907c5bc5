"""The settings of when a run is measured and saved. Nothing here imports jax."""

from __future__ import annotations

import dataclasses

from mtl_jax.config.checks import at_least_0, at_least_1

# Measurements of a phase at most, where nothing says how often it is measured.
MEASUREMENTS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """When a run is measured and saved, and which checkpoints are kept."""

    measure_every: int | None = None
    """epochs between two measurements on validation; by default 1, or more in a phase of more \
than 10 epochs, which is measured at most 10 times"""
    measure_train: bool = False
    """measure all training texts at the end; by default 500, evenly spaced"""
    checkpoint_minutes: float = 10.0
    """minutes between two checkpoints, which is the most that a kill can lose; each phase also \
ends with a checkpoint. 0: save at every measurement"""
    checkpoint_every: int = 0
    """additional checkpoints every so many steps; 0: none"""
    keep_latest: int = 2
    """number of latest checkpoints to keep besides the best; if one is damaged, the one before \
it is used"""
    keep_every: int = 0
    """also keep the checkpoints at multiples of this many steps; 0: none"""
    keep_final_state: bool = True
    """let the checkpoint at the end have the last parameters and the state of the optimizer; \
otherwise it has the best parameters only"""

    def __post_init__(self) -> None:
        at_least_1(self, "measure_every", "keep_latest")
        at_least_0(self, "checkpoint_minutes", "checkpoint_every", "keep_every")
