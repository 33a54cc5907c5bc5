"""In which precision a device multiplies by default."""

from __future__ import annotations

from typing import Any

import jax

from mtl_jax.config.model import Dtype

# The compute capability of NVIDIA's Ampere, the first whose cards multiply in bfloat16.
_AMPERE = 8.0


def is_ampere(device: Any) -> bool:
    """Whether a JAX device is an NVIDIA card of that generation or a newer one."""
    # The cards of ROCm are a "gpu", too.
    is_cuda = "cuda" in device.client.platform_version
    return is_cuda and float(device.compute_capability) >= _AMPERE


def default_dtype(device: Any = None) -> Dtype:
    """Returns ``bfloat16`` where matrix units take it, else ``float32``.

    Args:
        device: A JAX device; by default the first of this process.
    """
    device = jax.local_devices()[0] if device is None else device
    has_units = device.platform == "tpu" or (device.platform == "gpu" and is_ampere(device))
    return "bfloat16" if has_units else "float32"
