"""The settings of the model and of how it is computed. Nothing here imports jax."""

from __future__ import annotations

import dataclasses
from typing import Literal

from mtl_jax.config.checks import at_least_0, flag
from mtl_jax.config.data import refuse_blank
from mtl_jax.config.extensions import as_pairs, as_paths
from mtl_jax.core.errors import UserError

DEFAULT_BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"

Pooling = Literal["mean", "cls", "pooler"]
Dtype = Literal["float32", "bfloat16"]
Dropped = Literal["weights", "output"]
"""What attention's dropout drops: weights of tokens, or components of what these mix."""
Parallel = Literal["auto", "jit", "pmap", "mesh"]
Placement = Literal["auto", "jit", "pmap", "mesh", "fsdp"]
"""How one training is spread over devices: ``parallel``, or with ``shard`` its parameters too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The encoder, its heads, and what they are computed with."""

    backbone: str = DEFAULT_BACKBONE
    """checkpoint: a folder, or a name on the hub"""
    pooling: Pooling | None = None
    """how a sentence becomes one vector; by default what the checkpoint declares, else mean"""
    heads: tuple[str, ...] = ()
    """task=module:name pairs: a Flax module in the place of a task's Dense layer, or what makes \
one for a number of classes"""
    mlp_heads: tuple[str, ...] = ()
    """units of the hidden layers, such as 256 or 256,64: heads are multilayer perceptrons with \
GELU then; for all tasks, or task=units pairs"""
    dtype: Dtype | None = None
    """precision of the encoder's matrix products; all else is float32. By default what the folder \
was begun with, else bfloat16 on TPUs and on GPUs from Ampere on, and float32 elsewhere. With \
float32 GPUs compute them in TF32 and TPUs in bfloat16, unless \
JAX_DEFAULT_MATMUL_PRECISION=highest is set"""
    parallel: Parallel = "auto"
    """jit on one device, a jit mesh or pmap over all; auto: jit on one device, mesh on several"""
    shard: Literal["fsdp"] | None = None
    """fsdp: over a jit mesh each device keeps its part of every parameter and of its moments, for \
encoders that do not fit one device"""
    attention_dropout: float | None = None
    """dropout of the attention weights; by default the checkpoint's; 0 lets training use cuDNN's \
fused attention"""
    attention_dropout_on: Dropped = "weights"
    """what that dropout drops: attention weights, or in their place components of the output, \
what the weights have mixed, before its product, which lets training use cuDNN's fused attention"""
    head_dropout: float | None = None
    """dropout of the vectors that the heads read; by default the checkpoint's, and 0 where heads \
alone are trained, on vectors that never change"""
    fused_attention: bool = True
    """on GPUs in bfloat16, cuDNN's fused attention wherever attention weights have no dropout"""
    remat: bool = False
    """compute a layer's activations again in the backward pass: less memory, more time"""
    scan_layers: bool = False
    """run the layers as one scan, for deep models that take long to compile; steps take longer"""
    prefix_cache: bool = True
    """compute what the frozen bottom of the backbone makes of the texts once, and keep it"""
    cache_size: float = 20.0
    """GiB that such activations may take on disk; the least recently used make room; inf: no \
limit"""
    cache_folder: str | None = None
    """folder of their files; by default activations in the cache folder of mtl_jax"""

    def __post_init__(self) -> None:
        for name in ("backbone", "cache_folder"):
            if (value := getattr(self, name)) is not None:
                refuse_blank(name, [value])
        object.__setattr__(self, "heads", as_paths("heads", self.heads))
        object.__setattr__(self, "mlp_heads", as_pairs(self.mlp_heads))
        refuse_blank("mlp_heads", self.mlp_heads)
        at_least_0(self, "cache_size")
        if self.shard and self.parallel not in ("auto", "mesh"):
            raise UserError(
                f"--shard {self.shard} spreads over a mesh: leave --parallel {self.parallel} out"
            )
        for name in ("attention_dropout", "head_dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < 1:
                raise UserError(f"{flag(name)} {rate} must be at least 0 and below 1")
        if self.attention_dropout == 0 and self.attention_dropout_on == "output":
            raise UserError(
                "--attention-dropout-on output drops nothing with --attention-dropout 0: leave one "
                "of them out"
            )

    @property
    def placement(self) -> Placement:
        """How a run by itself is spread over the devices."""
        return self.shard or self.parallel
