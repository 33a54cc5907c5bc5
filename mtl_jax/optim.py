"""AdamW per optimizer group, warm-up and linear decay, clipping over the trainable part."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtl_jax.freeze import Freeze


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """What the update depends on, beside the gradient.

    Attributes:
        learning_rates: ``(group, peak learning rate)``; ``backbone`` also serves
            ``backbone/layer_5`` unless that has a rate of its own.
        total_steps: Steps after which the learning rate reaches 0.
        warmup_steps: Steps in which it rises.
        weight_decay: AdamW's.
        clip_norm: Largest global norm of the trainable part's gradient.
    """

    learning_rates: tuple[tuple[str, float], ...]
    total_steps: int
    warmup_steps: int
    weight_decay: float
    clip_norm: float


def warmup_linear(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Rises linearly to ``peak`` in ``warmup_steps``, then falls linearly to 0 at the end.

    The first step already has a rate above 0, so that no step is spent on nothing.
    """

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        rise = (jnp.asarray(count) + 1) / (warmup_steps + 1)
        fall = (total_steps - jnp.asarray(count)) / max(total_steps - warmup_steps, 1)
        return peak * jnp.clip(jnp.minimum(rise, fall), 0.0, 1.0)

    return schedule


def decayed(params: Any) -> Any:
    """True at the leaves that weight decay applies to: all but biases and layer norms."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key not in ("bias", "scale"), params)


def make_optimizer(freeze: Freeze, config: OptimizerConfig) -> optax.GradientTransformation:
    """The optimizer over the trainable partition of ``freeze``.

    AdamW: Loshchilov & Hutter 2019 (arXiv:1711.05101). The norm that is clipped is taken
    over the tree that the optimizer is given, and that tree holds no frozen leaf.
    """
    groups: Mapping[str, optax.GradientTransformation] = {
        group: optax.adamw(
            warmup_linear(peak, config.warmup_steps, config.total_steps),
            weight_decay=config.weight_decay,
            mask=decayed,
        )
        for group, peak in config.learning_rates
    }
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), freeze.multi_transform(groups))
