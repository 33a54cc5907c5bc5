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
    """epochs of a phase between two measurements on validation; by default 1, and more in a \
phase of more than 10 epochs, which is measured 10 times at most"""
    measure_train: bool = False
    """measure all training texts at the end; by default 500, evenly spaced"""
    checkpoint_minutes: float = 10.0
    """minutes between two checkpoints to go on from, which is what a kill loses at most; the end \
of a phase has one, too; 0: one at each measurement"""
    checkpoint_every: int = 0
    """steps between checkpoints beside those; 0: none"""
    keep_latest: int = 2
    """how many of the last checkpoints are kept, beside the best and what going on from each may \
need; where one is damaged, the one before it is used"""
    keep_every: int = 0
    """keep those at multiples of so many steps, too; 0: none"""

    def __post_init__(self) -> None:
        at_least_1(self, "measure_every", "keep_latest")
        at_least_0(self, "checkpoint_minutes", "checkpoint_every", "keep_every")
