"""The user's weights, as they are."""

from __future__ import annotations

import dataclasses

from mtl_jax.training.weighting.base import Weighting


@dataclasses.dataclass(frozen=True)
class Fixed(Weighting):
    """The loss is the sum of the tasks' mean losses, each times its weight."""

    name = "fixed"


FIXED = Fixed()
