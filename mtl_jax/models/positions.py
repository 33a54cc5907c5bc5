"""What attention knows of the places of tokens: relative positions, distances, rotations."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.models.encoder_config import RELATIVE_BUCKETS

# Of MPNet, as of T5 (Raffel et al. 2020, arXiv:1910.10683): beyond this all distances are one.
_FARTHEST = 128

Rotation = tuple[jax.Array, jax.Array]
"""Cosines and sines of the angles that positions turn queries and keys by: float32 [batch, length,
1, half of a head]."""


class Distances(NamedTuple):
    """What disentangled attention knows of the distance of two tokens.

    Attributes:
        table: A vector for each bucket of distances, float32 [2 * buckets, hidden].
        rows: For each kind of block the row of each distance of a query from a key, from that of
            the first token from the last one on, int32 [2 * length - 1].
    """

    table: jax.Array
    rows: tuple[Any, ...]


def places(length: int) -> Any:
    """0 ... length - 1; traced in a program that is exported for any length."""
    return np.arange(length) if isinstance(length, int) else jnp.arange(length)


def relative_buckets(length: int) -> Any:
    """The row of the table of relative positions for each two tokens, int32 [length, length].

    The distance of what comes later is told apart from that of what comes before. Short distances
    have a row each, longer ones share rows by their logarithm.
    """
    place = places(length)
    distance = place[None, :] - place[:, None]
    if isinstance(distance, np.ndarray):
        return _bucket(distance)
    # Whatever is farther away has the last row.
    rows = _bucket(np.arange(-_FARTHEST, _FARTHEST + 1))
    return jnp.asarray(rows)[distance.clip(-_FARTHEST, _FARTHEST) + _FARTHEST]


def _bucket(distance: np.ndarray) -> np.ndarray:
    later = RELATIVE_BUCKETS // 2
    exact = later // 2
    far = np.abs(distance).astype(np.float32)
    # In float32 as transformers computes it, which decides what falls on an edge.
    ratio = np.log(np.maximum(far, 1) / np.float32(exact)) / np.float32(math.log(_FARTHEST / exact))
    shared = exact + (ratio * np.float32(later - exact)).astype(np.int32)
    row = np.where(far < exact, far.astype(np.int32), np.minimum(shared, later - 1))
    return (row + (distance > 0) * later).astype(np.int32)


def distance_rows(length: int, buckets: int, farthest: int) -> Any:
    """The row of a table of ``2 * buckets`` for each distance of a query from a key.

    Up to half of ``buckets`` a distance has a row of its own, longer ones share rows by their
    logarithm, as transformers' DeBERTa has them.

    Args:
        length: Tokens of a block.
        buckets: Half of the rows.
        farthest: The distance of the last row, and of all beyond.

    Returns:
        int32 [2 * length - 1], from the first token's distance from the last one on.
    """
    distance = places(2 * length - 1) - (length - 1)
    if isinstance(distance, np.ndarray):
        return _distance_row(distance, buckets, farthest)
    # Beyond it all have the row at one of the two ends.
    known = 2 * farthest
    rows = _distance_row(np.arange(-known, known + 1), buckets, farthest)
    return jnp.asarray(rows)[distance.clip(-known, known) + known]


def _distance_row(distance: np.ndarray, buckets: int, farthest: int) -> np.ndarray:
    middle = buckets // 2
    far = np.maximum(np.abs(distance), middle).astype(np.float32)
    # In float32 as transformers computes it, which decides what falls on an edge.
    ratio = np.log(far / np.float32(middle)) / np.log(np.float32((farthest - 1) / middle))
    shared = np.ceil(ratio * np.float32(middle - 1)).astype(np.int32) + middle
    row = np.where(far <= middle, distance, np.sign(distance) * shared)
    return (row + buckets).clip(0, 2 * buckets - 1).astype(np.int32)


def by_distance(scores: jax.Array) -> jax.Array:
    """Of what a token has for each distance, what it has for each other token.

    Args:
        scores: [..., length, 2 * length - 1], of token i for each distance d of another one, from
            ``i - d`` farthest on: column c is of token ``i + c - (length - 1)``.

    Returns:
        [..., length, length].
    """
    length, before = scores.shape[-2], scores.shape[:-2]
    # One column more shifts each row by one against that before it.
    padded = jnp.pad(scores, [(0, 0)] * (scores.ndim - 1) + [(0, 1)])
    flat = padded.reshape(*before, 2 * length * length)
    shifted = flat[..., length - 1 : length - 1 + length * (2 * length - 1)]
    return shifted.reshape(*before, length, 2 * length - 1)[..., :length]


def rotation(position_ids: jax.Array, theta: float, head_size: int) -> Rotation:
    """The rotation of positions, int32 [batch, length], for heads of a width.

    Source: Su et al. 2021 (arXiv:2104.09864), equation 15.
    """
    exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
    frequencies = np.float32(1) / np.float32(theta) ** exponents
    angles = position_ids[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def turned(x: jax.Array, by: Rotation) -> jax.Array:
    """float32 [batch, length, heads, head size] -> the same: both halves of a head are a pair."""
    cos, sin = by
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
