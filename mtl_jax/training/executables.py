"""Steps as compiled programs: one for arguments of each tree, shape, type and sharding."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mtl_jax.training.runners import Runner


class Compiled:
    """A step that is compiled at its first call for arguments of each kind.

    That is their tree and the shapes, types and shardings in it: of texts that stay on the
    device there may be as many in one run and fewer in the next.

    Attributes:
        runner: What it runs on.
        seconds: What compiling took, so far.
    """

    def __init__(
        self, runner: Runner, step: Callable[..., Any], static: Any, *, donate: bool = False
    ):
        self.runner = runner
        self._jit = functools.partial(runner.jit, step, static, donate)
        self._executables: dict[Any, Callable[..., Any]] = {}
        self._lowered: dict[Any, Any] = {}
        self._alone = runner.alone
        # The devices of a CPU share its few threads: with two steps in flight, those that
        # wait in the second's reduction can keep the first's from ever being complete.
        self._one_at_a_time = runner.devices > 1 and jax.default_backend() == "cpu"
        self.seconds = 0.0

    def lower(self, *args: Any) -> Any:
        """The step lowered for these arguments, or their shapes, as JAX has it; not compiled.

        Where it has been compiled for arguments of these shapes, that is what it was compiled from.
        """
        kept = self._lowered.get(_shapes_of(args))
        return kept or self._traced(*args)

    def _traced(self, *args: Any) -> Any:
        # By a function of its own: JAX keeps a trace, some 12 MB of a small encoder's step,
        # for as long as there is the function.
        return self._jit().lower(*args)

    def __call__(self, *args: Any) -> Any:
        """Runs the step on arguments as the runner places them.

        Under ``jax.disable_jit`` nothing is compiled: the step runs operation by operation, so that
        a debugger or a print in a user's loss or head sees the numbers.
        """
        config: Any = jax.config
        if config.jax_disable_jit:
            return self._jit()(*args)
        kind = kind_of(args)
        executable = self._executables.get(kind)
        if executable is None:
            start = time.perf_counter()
            lowered = self._traced(*args)
            executable = self._executables[kind] = lowered.compile()
            if jax.default_backend() == "cpu":
                # To count its operations later; another backend's are not those that are counted.
                self._lowered[_shapes_of(args)] = lowered
            if not self._alone:
                # The others may take longer: JAX keeps what the first process has compiled, and
                # on a CPU the others do not find it.
                multihost_utils.sync_global_devices("compiled")
            self.seconds += time.perf_counter() - start
        result = executable(*args)
        if self._one_at_a_time:
            jax.block_until_ready(result)
        return result


def _shapes_of(args: Any) -> Any:
    leaves, tree = jax.tree.flatten(args)
    return tree, tuple([(tuple(leaf.shape), np.dtype(leaf.dtype)) for leaf in leaves])


def kind_of(args: Any) -> Any:
    """What a compiled program depends on of its arguments: their tree, shapes, types, shardings."""
    leaves, tree = jax.tree.flatten(args)
    return tree, tuple(
        [(leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)) for leaf in leaves]
    )
