"""Ways to run the pure steps: jit on one device, jit over a mesh of several, or pmap.

``jax.pmap`` is in maintenance; it is kept for the code and clusters that expect it. Over a mesh
the parameters may be spread, too. Tests hold all of them equal. They run one training;
``seed_runner.SeedRunner`` runs those of several seeds at once.

In a run of several processes the mesh and ``pmap`` are over the devices of all: each process
gives its rows of a batch, and gets what is the same for all, or the rows of all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, get_args

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mtl_jax.config.model import Placement
from mtl_jax.core import distributed
from mtl_jax.core.errors import UserError
from mtl_jax.training.step import eval_step, pooled_at_step, pooled_step, states_step

AXIS = "devices"
# The steps whose results have a row for each of the batch's.
_GIVES_ROWS = (eval_step, pooled_step, pooled_at_step, states_step)


class Runner(Protocol):
    """Places arrays on devices and compiles the steps for them.

    Attributes:
        devices: Over how many the rows of one batch are spread, those of all processes.
        alone: Whether they are all of this process.
    """

    devices: int
    alone: bool

    def own(self, rows: int) -> slice:
        """Which rows of a batch of so many are this process's to give."""
        ...

    def replicate(self, tree: Any) -> Any:
        """Puts the same values on every device."""
        ...

    def fetch(self, tree: Any) -> Any:
        """The inverse of ``replicate``: one copy."""
        ...

    def place(self, trees: Sequence[Any]) -> Any:
        """Puts the trees of all seeds, one of each, on the devices."""
        ...

    def unplace(self, tree: Any) -> list[Any]:
        """The inverse of ``place``: one copy of each seed's."""
        ...

    def shard(self, *batches: Mapping[str, np.ndarray]) -> Any:
        """Spreads this process's own rows of one batch of each seed over the devices."""
        ...

    def gather(self, rows: Any) -> Any:
        """Rows of every device of every process, on the host: numpy [rows, ...]."""
        ...

    def jit(self, step: Callable[..., Any], static: Any, donate: bool) -> Any:
        """Wraps one of the three steps, its first argument bound; the result has ``lower``."""
        ...


class _OneSeed:
    """What a runner of one training makes of trees and batches by seed: there is but one."""

    def fetch(self, tree: Any) -> Any:
        """See ``Runner``."""
        return tree

    def place(self: Runner, trees: Sequence[Any]) -> Any:
        """See ``Runner``."""
        (tree,) = trees
        return self.replicate(tree)

    def unplace(self: Runner, tree: Any) -> list[Any]:
        """See ``Runner``."""
        return [self.fetch(tree)]


class JitRunner(_OneSeed):
    """One device."""

    devices = 1
    alone = True

    def own(self, rows: int) -> slice:
        """See ``Runner``."""
        return slice(rows)

    def replicate(self, tree: Any) -> Any:
        """See ``Runner``."""
        return jax.device_put(tree)

    def shard(self, *batches: Mapping[str, np.ndarray]) -> Any:
        """See ``Runner``."""
        (batch,) = batches
        return jax.device_put(dict(batch))

    def gather(self, rows: Any) -> Any:
        """See ``Runner``."""
        return jax.tree.map(np.asarray, rows)

    def jit(self, step: Callable[..., Any], static: Any, donate: bool) -> Any:
        """See ``Runner``."""
        return jax.jit(functools.partial(step, static), donate_argnums=0 if donate else ())


class _Spread:
    """What the runners over several devices have in common.

    Args:
        alone: Whether over the devices of this process only, whatever the others do.
    """

    def __init__(self, *, alone: bool = False) -> None:
        self._all = jax.local_devices() if alone else jax.devices()
        self.alone = alone or distributed.count() == 1
        self.devices = len(self._all)
        self._by_row = by_device(self._all)
        self.everywhere = NamedSharding(self._by_row.mesh, PartitionSpec())

    def own(self, rows: int) -> slice:
        """See ``Runner``."""
        return slice(rows) if self.alone else distributed.share(rows)

    def gather(self, rows: Any) -> Any:
        """See ``Runner``: in every process."""
        if self.alone:
            return jax.tree.map(np.asarray, rows)
        return multihost_utils.process_allgather(rows, tiled=True)


class MeshRunner(_Spread, _OneSeed):
    """``jit`` over a one-dimensional mesh of all devices, each of which has all parameters.

    A step is mapped over the mesh, as ``pmap`` maps it, so that ``collectives.summed`` says what
    devices exchange. The compiler, given the whole batch, would sum every gradient apart, and
    the table of words as a whole.
    """

    def replicate(self, tree: Any) -> Any:
        """See ``Runner``."""
        return _put(tree, self.everywhere)

    def shard(self, *batches: Mapping[str, np.ndarray]) -> Any:
        """See ``Runner``."""
        (batch,) = batches
        return _put(dict(batch), self._by_row)

    def jit(self, step: Callable[..., Any], static: Any, donate: bool) -> Any:
        """See ``Runner``: each device computes with its rows, and reduces as the step says."""
        rows, everywhere = self._by_row.spec, self.everywhere.spec
        of_device = functools.partial(step, static, axis_name=AXIS)

        def of_all(*args: Any) -> Any:
            # Of a step's arguments the batch is the last one.
            of_args = (*[everywhere] * (len(args) - 1), rows)
            sharded = jax.shard_map(
                of_device,
                mesh=self._by_row.mesh,
                in_specs=of_args,
                out_specs=self._results_of(step, rows, everywhere),
                # With the check JAX itself sums the gradients of replicated parameters, each apart.
                check_vma=False,
            )
            return sharded(*args)

        return jax.jit(of_all, donate_argnums=0 if donate else ())

    @staticmethod
    def _results_of(step: Callable[..., Any], rows: Any, everywhere: Any) -> Any:
        """How a step's results are spread: over ``rows``, or ``everywhere`` what is reduced."""
        if step is eval_step:
            return rows, everywhere
        return rows if step in _GIVES_ROWS else everywhere


class ShardedRunner(MeshRunner):
    """A mesh whose devices each keep a part of the parameters and moments: fully sharded data.

    Each computes with its rows of the batch, and has of the others what a layer needs, for as
    long as it needs it; see ``train_step``. Vectors, such as biases, are everywhere.

    Source: Rajbhandari et al. 2020, "ZeRO" (arXiv:1910.02054), stage 3; Zhao et al. 2023, "PyTorch
    FSDP" (arXiv:2304.11277).
    """

    def _sharding(self, shape: Sequence[int]) -> NamedSharding:
        """Along the longest axis that the devices divide; everywhere where there is none."""
        axes = [axis for axis, size in enumerate(shape) if size and size % self.devices == 0]
        if len(shape) < 2 or not axes:
            return self.everywhere
        longest = max(axes, key=lambda axis: shape[axis])
        return NamedSharding(
            self._by_row.mesh,
            PartitionSpec(*(AXIS if i == longest else None for i in range(longest + 1))),
        )

    def replicate(self, tree: Any) -> Any:
        """See ``Runner``: of every array each device has what it keeps."""

        def put(leaf: Any) -> jax.Array:
            sharding = self._sharding(np.shape(leaf))
            if self.alone:
                return jax.device_put(leaf, sharding)
            whole = np.asarray(leaf)
            return jax.make_array_from_callback(whole.shape, sharding, lambda at: whole[at])

        return jax.tree.map(put, tree)

    def fetch(self, tree: Any) -> Any:
        """See ``Runner``."""
        return tree if self.alone else multihost_utils.process_allgather(tree, tiled=True)

    def jit(self, step: Callable[..., Any], static: Any, donate: bool) -> Any:
        """See ``Runner``."""
        if step in _GIVES_ROWS:
            results = self._results_of(step, self._by_row, self.everywhere)
            return jax.jit(functools.partial(step, static), out_shardings=results)

        def kept(*args: Any) -> Any:
            state, metrics = step(static, *args)
            # As it came, so that the next step is the same program, and may have its memory.
            state = jax.tree.map(
                lambda leaf: jax.lax.with_sharding_constraint(leaf, self._sharding(leaf.shape)),
                state,
            )
            return state, jax.lax.with_sharding_constraint(metrics, self.everywhere)

        return jax.jit(kept, donate_argnums=0 if donate else ())


def by_device(devices: Sequence[Any]) -> NamedSharding:
    """The first axis over the devices, as ``pmap`` has it."""
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))


def _put(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays of which this process has its own part, on its devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree
    )


def on_each(tree: Any, devices: Sequence[Any]) -> Any:
    """A copy on every device, each leaf [devices, ...]."""
    sharding = by_device(devices)
    own = len(sharding.addressable_devices)
    stacked = jax.tree.map(
        lambda leaf: np.broadcast_to(np.asarray(leaf), (own, *np.shape(leaf))), tree
    )
    return _put(stacked, sharding)


class PmapRunner(_Spread, _OneSeed):
    """``pmap`` over all devices, reducing over the named axis."""

    def replicate(self, tree: Any) -> Any:
        """See ``Runner``."""
        return on_each(tree, self._all)

    def fetch(self, tree: Any) -> Any:
        """See ``Runner``."""
        return jax.tree.map(lambda leaf: leaf.addressable_data(0)[0], tree)

    def shard(self, *batches: Mapping[str, np.ndarray]) -> Any:
        """See ``Runner``."""
        (batch,) = batches
        own = len(self._by_row.addressable_devices)
        parts = {name: rows.reshape(own, -1, *rows.shape[1:]) for name, rows in batch.items()}
        return _put(parts, self._by_row)

    def gather(self, rows: Any) -> Any:
        """See ``Runner``."""
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), super().gather(rows))

    def jit(self, step: Callable[..., Any], static: Any, donate: bool) -> Any:
        """See ``Runner``."""
        return jax.pmap(
            functools.partial(step, static, axis_name=AXIS),
            axis_name=AXIS,
            devices=self._all,
            donate_argnums=0 if donate else (),
        )


def make_runner(kind: Placement, *, alone: bool = False) -> Runner:
    """The runner of that name; ``auto`` is jit on one device, a mesh over several.

    Args:
        kind: Which.
        alone: Whether over the devices of this process only, whatever the others do.

    Raises:
        UserError: There is none of that name, or one device is asked for, of several processes.
    """
    if kind not in get_args(Placement):
        raise UserError(f"parallel {kind!r} is unknown: use {', '.join(get_args(Placement))}")
    alone = alone or distributed.count() == 1
    if kind == "jit" and not alone:
        raise UserError(
            f"--parallel jit is for one device, and there are {distributed.count()} processes: use "
            "mesh, pmap or auto"
        )
    if kind == "auto":
        devices = jax.local_device_count() if alone else jax.device_count()
        # Operation by operation JAX computes no derivative of a function of ours over a mesh.
        config: Any = jax.config
        kind = "jit" if devices == 1 or (alone and config.jax_disable_jit) else "mesh"
    if kind == "jit":
        return JitRunner()
    kinds = {"pmap": PmapRunner, "mesh": MeshRunner, "fsdp": ShardedRunner}
    return kinds[kind](alone=alone)


def compiler_shards(kind: Placement) -> int:
    """Over how many devices the compiler spreads a batch that a step sees as a whole."""
    return ShardedRunner().devices if kind == "fsdp" else 1


def gathered(kind: Placement) -> NamedSharding | None:
    """Where a step has parameters of which each device keeps a part; None where all keep all."""
    return ShardedRunner().everywhere if kind == "fsdp" else None
