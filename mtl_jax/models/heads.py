"""The heads that come with the package."""

from __future__ import annotations

import flax.linen as nn
import jax

from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.layers import exact_dense


class MlpHead(nn.Module):
    """Dense layers with GELU between them, in the place of one.

    Attributes:
        config: The backbone's, for the scale of the initial kernels.
        hidden: Units of each hidden layer.
        classes: Units of the last one.
    """

    config: EncoderConfig
    hidden: tuple[int, ...]
    classes: int

    @nn.compact
    def __call__(self, vectors: jax.Array) -> jax.Array:
        """Pooled vectors, float32 [..., hidden], to logits, float32 [..., classes]."""
        for i, units in enumerate(self.hidden):
            layer = exact_dense(self.config, units, name=f"hidden_{i}")
            vectors = nn.gelu(layer(vectors), approximate=False)
        return exact_dense(self.config, self.classes, name="output")(vectors)
