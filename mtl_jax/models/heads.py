"""The heads that come with the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def dense_layers(params: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The Dense layers of a head, from the first to the last.

    Args:
        params: Its parameters: those of one Dense layer, or of an ``MlpHead``.
    """
    if "kernel" in params:
        return [params]
    return [*(params[f"hidden_{i}"] for i in range(len(params) - 1)), params["output"]]
