"""The settings of the low-rank factors that the scenarios ``lora_r`` train. Imports no jax."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence
from typing import Any

from mtl_jax.core.converted import Converted, default
from mtl_jax.core.errors import UserError

# Hu et al. 2022 (arXiv:2106.09685), section 4.2 and table 9: in RoBERTa base factors beside the
# query's and the value's kernel, alpha as large as r, AdamW with a rate of 4e-4 or 5e-4.
TARGETS = ("query", "value")
LORA_LEARNING_RATE = 5e-4

# The kernels of a layer, by the names that users give them.
KERNELS = {
    "query": "attention/query",
    "key": "attention/key",
    "value": "attention/value",
    "output": "attention/output",
    "intermediate": "mlp/intermediate",
    "mlp_output": "mlp/output",
    # Of ModernBERT, whose intermediate layer has two halves.
    "gate": "mlp/gate",
}


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank factors beside the kernels of a backbone (Hu et al. 2022, arXiv:2106.09685).

    Attributes:
        rank: r, the columns of A and the rows of B.
        targets: Which kernels have them; see ``LoraSettings``.
        alpha: What A B is multiplied by is alpha / r; None for r.
        dropout: Of what A reads.
    """

    rank: int
    targets: tuple[str, ...] = TARGETS
    alpha: float | None = None
    dropout: float = 0.0

    @property
    def scale(self) -> float:
        """What A B is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def same_factors(self, other: Lora | None) -> bool:
        """Whether the factors of the other go on as these."""
        if other is None:
            return False
        one, two = ((each.rank, set(each.targets), each.scale) for each in (self, other))
        return one == two


def as_targets(targets: Any) -> Any:
    """Targets as a tuple, those of a list and one by itself alike; anything else as it is."""
    if isinstance(targets, str):
        return (targets,)
    return tuple(targets) if isinstance(targets, list) else targets


def lora_of(
    rank: int | None, targets: Any, alpha: float | None, dropout: float | None
) -> Lora | None:
    """The factors of a scenario with what is not None of the settings; None without a rank."""
    if rank is None:
        return None
    given = {"targets": as_targets(targets), "alpha": alpha, "dropout": dropout}
    return Lora(rank, **{name: value for name, value in given.items() if value is not None})


def refuse_lora(name: str, targets: Any, alpha: float | None, dropout: float | None) -> None:
    """Refuses settings that make no factors.

    Args:
        name: What the settings are called by, with ``{}`` in the place of the last part of it.
        targets: As of ``LoraSettings``.
        alpha: As of ``LoraSettings``.
        dropout: As of ``LoraSettings``.

    Raises:
        UserError: One is off its range.
    """
    flag = name.format("targets")
    if targets is not None and not targets:
        raise UserError(
            f"{flag} names nothing: give it kernels such as {' '.join(TARGETS)}, or leave it out"
        )
    for each in as_targets(targets) or ():
        if each not in KERNELS and "/" not in each:
            close = difflib.get_close_matches(each, KERNELS, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UserError(
                f"{flag} {each!r} is not a kernel of a layer: {hint}use {', '.join(KERNELS)}, or a "
                "pattern of paths such as layer_0/attention/*"
            )
    if alpha is not None and not 0 < alpha < math.inf:
        raise UserError(f"{name.format('alpha')} {alpha} must be a number above 0")
    if dropout is not None and not 0 <= dropout < 1:
        raise UserError(f"{name.format('dropout')} {dropout} must be at least 0 and below 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The factors that ``lora_r`` trains, and at what rate."""

    lora_targets: Converted[str | Sequence[str] | None, tuple[str, ...] | None] = default(None)
    """for lora_r: the kernels of each layer that get factors, by name (query, key, value, \
output, intermediate, mlp_output; ModernBERT also has gate) or as path patterns such as \
layer_5/attention/*; by default query value"""
    lora_alpha: float | None = None
    """for lora_r: the product of the factors is scaled by this / r; by default r"""
    lora_dropout: float | None = None
    """for lora_r: dropout of the factors' input; by default 0"""
    lora_learning_rate: float | None = None
    """for lora_r: peak learning rate of the factors; by default 0.0005"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "lora_targets", as_targets(self.lora_targets))
        refuse_lora("--lora-{}", self.lora_targets, self.lora_alpha, self.lora_dropout)
        rate = self.lora_learning_rate
        if rate is not None and not 0 <= rate < math.inf:
            raise UserError(f"--lora-learning-rate {rate} must be a number of 0 or more")
