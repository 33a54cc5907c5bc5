"""Sums over devices of gradients: large tables by rows, small leaves together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

# Below this a collective costs by its latency; copying so much costs less.
_SMALL_BYTES = 2**20


def summed(tree: Any, axis_name: str, looked_up: Mapping[str, jax.Array] | None = None) -> Any:
    """``jax.lax.psum`` of a tree, in fewer and smaller collectives.

    A BERT has some hundred gradients of a few kilobytes. Between processes on a CPU each
    collective waits for threads of the other side, and those hundred took longer than the
    rest of the 90 MB (buckets, as in Li et al. 2020, *PyTorch Distributed*, arXiv:2006.15704,
    section 3.2.1). Half of the rest is the table of word embeddings, of which a batch reads
    few rows: only these are exchanged (as Horovod does with TensorFlow's ``IndexedSlices``,
    Sergeev & Del Balso 2018, arXiv:1802.05799).

    Args:
        tree: Arrays of one device.
        axis_name: The axis of the devices.
        looked_up: By the end of its path, as ``a/b/c``, the rows of a table outside of which
            its gradient is 0 on this device: integers of any shape, some maybe repeated.

    Returns:
        The sums, on every device the same.
    """
    found, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [jnp.asarray(leaf) for _, leaf in found]
    small: dict[Any, dict[int, jax.Array]] = {}
    by_rows: dict[int, jax.Array] = {}
    for place, (path, _) in enumerate(found):
        rows = _rows_of(path, looked_up or {})
        if leaves[place].nbytes < _SMALL_BYTES:
            small.setdefault(leaves[place].dtype, {})[place] = leaves[place]
        elif rows is not None and rows.size * jax.lax.axis_size(axis_name) < len(leaves[place]):
            by_rows[place] = rows
    joined = {dtype: ravel_pytree(of_type) for dtype, of_type in small.items()}
    done = {i: _sum_by_rows(leaves[i], rows, axis_name) for i, rows in by_rows.items()}
    others = set(range(len(leaves))).difference(by_rows, *small.values())
    together = {dtype: vector for dtype, (vector, _) in joined.items()}
    together, apart = jax.lax.psum((together, {i: leaves[i] for i in others}), axis_name)
    done |= apart
    for dtype, (_, parted) in joined.items():
        done |= parted(together[dtype])
    return jax.tree.unflatten(structure, [done[i] for i in range(len(leaves))])


def _rows_of(path: Any, looked_up: Mapping[str, jax.Array]) -> jax.Array | None:
    name = f"/{jax.tree_util.keystr(path, simple=True, separator='/')}"
    return next((rows for end, rows in looked_up.items() if name.endswith(f"/{end}")), None)


def _sum_by_rows(table: jax.Array, rows: jax.Array, axis_name: str) -> jax.Array:
    """The sum of tables [n, ...] that are 0 outside of ``rows``, device after device."""
    count = rows.size
    own = jnp.unique(rows, size=count, fill_value=len(table))
    # What fills up is past the table, where nothing is read or added; no index comes twice.
    own = jnp.where(own < len(table), own, len(table) + jnp.arange(count))
    values = table.at[own].get(mode="fill", fill_value=0, unique_indices=True)
    indices, values = jax.lax.all_gather((own, values), axis_name)

    def add(sum_: jax.Array, of_device: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, value = of_device
        return sum_.at[index].add(value, mode="drop", unique_indices=True), None

    # From 0 and in one order, for the devices to agree to the last bit.
    return jax.lax.scan(add, jnp.zeros_like(table), (indices, values))[0]
