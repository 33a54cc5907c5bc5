"""Losses as ``(sum, count)``, divided once, after every device has added its share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def masked_cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy over the examples that have a label.

    Args:
        logits: float32 [..., classes].
        labels: int32 [...]; a negative label is a missing one.

    Returns:
        Sum of the losses in nats and number of labels, float32 scalars.
    """
    present = labels >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(present, labels, 0))
    return jnp.where(present, losses, 0.0).sum(), present.sum().astype(jnp.float32)


def distillation(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """What holds predictions where they were: KL(before || now), summed over texts, in nats.

    Source: the knowledge distillation loss of Li & Hoiem 2016, "Learning without Forgetting"
    (arXiv:1606.09282), equation 2, at temperature 1 and less the entropy of the targets,
    which is constant.

    Args:
        logits: float32 [..., classes].
        targets: Probabilities before, float32 [..., classes]; all 0 where there is no text.
    """
    return (jax.scipy.special.xlogy(targets, targets) - targets * jax.nn.log_softmax(logits)).sum()
