"""Ways to run the pure steps: jit on one device, jit over a mesh, pmap over several.

``jax.pmap`` is in maintenance; it is kept for the code and clusters that expect it. The
mesh does the same with shardings, and a test holds the three equal. All three run one
training; ``seeds.SeedRunner`` runs those of several seeds at once.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mtl_jax.config import Parallel
from mtl_jax.step import eval_step, pooled_step, scanned_steps, states_step, train_step

AXIS = "devices"


class Runner(Protocol):
    """Places arrays on devices and compiles the steps for them.

    Attributes:
        devices: Over how many the rows of one batch are spread.
    """

    devices: int

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
        """Spreads the rows of one batch of each seed over the devices."""
        ...

    def gather(self, rows: Any) -> Any:
        """Rows of every device, on the host: numpy [rows, ...]."""
        ...

    def jit(self, step: Callable[..., Any], static: Any, donate: bool) -> Any:
        """Wraps one of the three steps, its first argument bound; the result has ``lower``."""
        ...


class _OneSeed:
    """What a runner of one training makes of trees and batches by seed: there is but one."""

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

    def replicate(self, tree: Any) -> Any:
        """See ``Runner``."""
        return jax.device_put(tree)

    def fetch(self, tree: Any) -> Any:
        """See ``Runner``."""
        return tree

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


class MeshRunner(JitRunner):
    """``jit`` over a one-dimensional mesh of all local devices."""

    def __init__(self) -> None:
        self.devices = jax.local_device_count()
        mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._by_row = NamedSharding(mesh, PartitionSpec(AXIS))

    def replicate(self, tree: Any) -> Any:
        """See ``Runner``."""
        return jax.device_put(tree, self._everywhere)

    def shard(self, *batches: Mapping[str, np.ndarray]) -> Any:
        """See ``Runner``."""
        (batch,) = batches
        return jax.device_put(dict(batch), self._by_row)

    def jit(self, step: Callable[..., Any], static: Any, donate: bool) -> Any:
        """See ``Runner``."""
        shardings = {
            train_step: self._everywhere,
            scanned_steps: self._everywhere,
            eval_step: (self._by_row, self._everywhere),
            pooled_step: self._by_row,
            states_step: self._by_row,
        }
        return jax.jit(
            functools.partial(step, static),
            donate_argnums=0 if donate else (),
            out_shardings=shardings[step],
        )


def by_device(devices: Sequence[Any]) -> NamedSharding:
    """The first axis over the devices, as ``pmap`` has it."""
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))


def on_each(tree: Any, devices: Sequence[Any]) -> Any:
    """A copy on every device, each leaf [devices, ...]."""
    stacked = jax.tree.map(
        lambda leaf: np.broadcast_to(np.asarray(leaf), (len(devices), *np.shape(leaf))), tree
    )
    return jax.device_put(stacked, by_device(devices))


class PmapRunner(_OneSeed):
    """``pmap`` over all local devices, reducing over the named axis."""

    def __init__(self) -> None:
        self.devices = jax.local_device_count()

    def replicate(self, tree: Any) -> Any:
        """See ``Runner``."""
        return on_each(tree, jax.local_devices())

    def fetch(self, tree: Any) -> Any:
        """See ``Runner``."""
        return jax.tree.map(lambda leaf: leaf[0], tree)

    def shard(self, *batches: Mapping[str, np.ndarray]) -> Any:
        """See ``Runner``."""
        (batch,) = batches
        return {
            name: array.reshape(self.devices, -1, *array.shape[1:]) for name, array in batch.items()
        }

    def gather(self, rows: Any) -> Any:
        """See ``Runner``."""
        return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), rows)

    def jit(self, step: Callable[..., Any], static: Any, donate: bool) -> Any:
        """See ``Runner``."""
        return jax.pmap(
            functools.partial(step, static, axis_name=AXIS),
            axis_name=AXIS,
            donate_argnums=0 if donate else (),
        )


def make_runner(kind: Parallel) -> Runner:
    """The runner of that name; ``auto`` is jit on one device and pmap on several."""
    if kind == "auto":
        kind = "jit" if jax.local_device_count() == 1 else "pmap"
    return {"jit": JitRunner, "pmap": PmapRunner, "mesh": MeshRunner}[kind]()


def dropout_parts(runner: Runner) -> int:
    """Into how many parts of its rows, each with dropout of its own, a batch is cut."""
    return runner.devices if isinstance(runner, PmapRunner) else 1


class Compiled:
    """A step that is compiled once, at its first call, for the shapes of that call.

    A call with other shapes fails instead of compiling again.

    Attributes:
        seconds: What compiling took, so far.
    """

    def __init__(
        self, runner: Runner, step: Callable[..., Any], static: Any, *, donate: bool = False
    ):
        self._wrapped = runner.jit(step, static, donate)
        self._executable: Callable[..., Any] | None = None
        # The devices of a CPU share its few threads: with two steps in flight, those that
        # wait in the second's reduction can keep the first's from ever being complete.
        self._one_at_a_time = runner.devices > 1 and jax.default_backend() == "cpu"
        self.seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        """Runs the step on arguments as the runner places them."""
        executable = self._executable
        if executable is None:
            start = time.perf_counter()
            executable = self._executable = self._wrapped.lower(*args).compile()
            self.seconds = time.perf_counter() - start
        result = executable(*args)
        if self._one_at_a_time:
            jax.block_until_ready(result)
        return result
