r"""A head and a loss of one's own: a hidden layer, and a loss that looks away from easy texts.

    cd experiments/examples
    mtl-jax train --workdir runs/own --train-file train.csv --label-columns topic=topic \
        --heads topic=own_parts:HiddenLayerHead --loss topic=own_parts:focal_loss
    mtl-jax predict --workdir runs/own --trust own_parts < texts.txt
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


class HiddenLayerHead(nn.Module):
    """Pooled vectors, float32 [..., hidden], to logits, float32 [..., classes]."""

    classes: int
    width: int = 64

    @nn.compact
    def __call__(self, vectors):
        return nn.Dense(self.classes)(nn.gelu(nn.Dense(self.width)(vectors)))


def focal_loss(logits, labels, gamma=2.0):
    """Lin et al. 2017, "Focal Loss for Dense Object Detection" (arXiv:1708.02002), equation 4.

    Returns the sum over the texts with a label, those whose label is not negative, and their
    number.
    """
    there = labels >= 0
    logs = jax.nn.log_softmax(logits)
    right = jnp.take_along_axis(logs, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
    losses = -((1 - jnp.exp(right)) ** gamma) * right
    return jnp.where(there, losses, 0.0).sum(), there.sum().astype(jnp.float32)
