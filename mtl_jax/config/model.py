"""The settings of the model and of how it is computed. Nothing here imports jax."""

from __future__ import annotations

import dataclasses
import os
from typing import Literal

from mtl_jax.config.checks import at_least_0, flag
from mtl_jax.config.data import refuse_blank
from mtl_jax.config.extensions import as_pairs, as_paths
from mtl_jax.core.converted import ByTask, CodeByName, Converted, PathText, default
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

    backbone: Converted[PathText, str] = default(DEFAULT_BACKBONE)
    """pre-trained checkpoint: a folder, or a name on the Hugging Face hub"""
    pooling: Pooling | None = None
    """how the token vectors of a text become one vector; by default as the checkpoint declares, \
otherwise mean"""
    heads: Converted[CodeByName, tuple[str, ...]] = default(())
    """task=module:name pairs: a Flax module to use as the head of a task instead of a dense \
layer, or a function from the number of classes to such a module"""
    mlp_heads: Converted[ByTask | int, tuple[str, ...]] = default(())
    """units of the hidden layers of the heads, with GELU, such as 256 or 256,64; for all tasks, \
or task=units pairs"""
    dtype: Dtype | None = None
    """precision of the encoder's matrix products; everything else is float32. By default that of \
the folder's earlier calls, or else bfloat16 on TPUs and on GPUs from Ampere on, and float32 \
elsewhere; CPUs with AVX512-BF16 or AMX are faster with bfloat16, too. With float32, GPUs compute \
them in TF32 and TPUs in bfloat16, unless JAX_DEFAULT_MATMUL_PRECISION=highest is set"""
    parallel: Parallel = "auto"
    """jit on one device, or mesh (jit over a mesh) or pmap over all devices; auto: jit if there \
is one device, mesh if there are several"""
    shard: Literal["fsdp"] | None = None
    """fsdp: each device stores a part of every parameter and of its optimizer moments, for \
encoders that do not fit on one device"""
    attention_dropout: float | None = None
    """dropout of the attention weights; by default as in the checkpoint. 0 allows cuDNN's fused \
attention in training"""
    attention_dropout_on: Dropped = "weights"
    """what that dropout drops: attention weights, or components of the attention output before \
its projection, which allows cuDNN's fused attention in training"""
    head_dropout: float | None = None
    """dropout of the heads' input; by default as in the checkpoint, or 0 if only heads are \
trained"""
    fused_attention: bool = True
    """on GPUs in bfloat16, use cuDNN's fused attention wherever attention weights have no \
dropout"""
    remat: bool = False
    """recompute a layer's activations in the backward pass: less memory, more time"""
    scan_layers: bool = False
    """compile the layers as one scan, for deep models that take long to compile; steps become \
slower"""
    prefix_cache: bool = True
    """compute the outputs of the frozen lower layers once and cache them"""
    cache_size: float = 20.0
    """maximum size of this cache on disk, in GiB; the least recently used files are removed. \
inf: no limit"""
    cache_folder: Converted[PathText | None, str | None] = default(None)
    """folder of this cache; by default `activations` in the cache folder of mtl_jax"""

    def __post_init__(self) -> None:
        for name in ("backbone", "cache_folder"):
            if isinstance(value := getattr(self, name), os.PathLike):
                object.__setattr__(self, name, value := os.fspath(value))
            if value is not None:
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
