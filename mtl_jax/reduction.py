"""Sums over devices of trees with many small leaves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Below this a collective costs by its latency; copying so much costs less.
_SMALL_BYTES = 2**20


def summed(tree: Any, axis_name: str) -> Any:
    """``jax.lax.psum`` of a tree, its small leaves in one collective for each type.

    A BERT has some hundred gradients of a few kilobytes. Between processes on a CPU each
    collective waits for threads of the other side, and those hundred took longer than the
    rest of the 90 MB (buckets, as in Li et al. 2020, *PyTorch Distributed*, arXiv:2006.15704,
    section 3.2.1).

    Args:
        tree: Arrays of one device.
        axis_name: The ``pmap`` axis.

    Returns:
        The sums, on every device the same.
    """
    leaves, structure = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    small: dict[Any, list[int]] = {}
    for place, leaf in enumerate(leaves):
        if leaf.nbytes < _SMALL_BYTES:
            small.setdefault(leaf.dtype, []).append(place)
    together = {dtype: _joined([leaves[i] for i in places]) for dtype, places in small.items()}
    apart = {i: leaf for i, leaf in enumerate(leaves) if leaf.nbytes >= _SMALL_BYTES}
    together, apart = jax.lax.psum((together, apart), axis_name)
    for dtype, places in small.items():
        shapes = [leaves[i].shape for i in places]
        apart |= zip(places, _parted(together[dtype], shapes), strict=True)
    return jax.tree.unflatten(structure, [apart[i] for i in range(len(leaves))])


def _joined(leaves: list[jax.Array]) -> jax.Array:
    return jnp.concatenate([leaf.ravel() for leaf in leaves])


def _parted(joined: jax.Array, shapes: list[tuple[int, ...]]) -> list[jax.Array]:
    """The inverse of ``_joined``."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    parts = jnp.split(joined, ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
