"""The training steps of several seeds as one program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mtl_jax.training.runners import AXIS, by_device, on_each

# Of a frozen partition, what is the same whatever the seed; the heads are drawn by it.
SHARED = ("backbone",)


class SeedRunner:
    """The trainings of several seeds at once: ``vmap`` on one device, ``pmap`` of it on several.

    Each seed has its batches whole on one device, so that nothing is reduced and a seed
    sees what it would see on a device of its own. Where the devices do not divide the
    seeds, some seeds are trained twice, and the surplus is dropped.

    A step's state, its batch and the heads of its frozen part have a seed axis; what is
    between the frozen part and the batch, and the frozen part of the backbone, is one copy
    on each device, for all of its seeds.

    Args:
        seeds: How many.
        spread: Whether over all local devices, as far as there are seeds; else on one.
    """

    devices = 1
    alone = True

    def own(self, rows: int) -> slice:
        """See ``Runner``."""
        return slice(rows)

    def __init__(self, seeds: int, *, spread: bool):
        available = jax.local_devices() if spread else jax.local_devices()[:1]
        self._seeds = seeds
        self._each = -(-seeds // len(available))
        self._devices = available[: -(-seeds // self._each)]
        self._several = len(self._devices) > 1

    def replicate(self, tree: Any) -> Any:
        """See ``Runner``; for all seeds."""
        return on_each(tree, self._devices) if self._several else jax.device_put(tree)

    def fetch(self, tree: Any) -> Any:
        """See ``Runner``."""
        return jax.tree.map(lambda leaf: leaf[0], tree) if self._several else tree

    def place(self, trees: Sequence[Any]) -> Any:
        """See ``Runner``.

        Raises:
            ValueError: There are not as many trees as seeds.
        """
        if len(trees) != self._seeds:
            raise ValueError(f"{len(trees)} trees for {self._seeds} seeds")
        stacked = jax.tree.map(lambda *leaves: self._stack(leaves), *trees)
        return jax.device_put(stacked, by_device(self._devices) if self._several else None)

    def _stack(self, leaves: Sequence[Any]) -> np.ndarray:
        """[lanes, ...] on one device, else [devices, lanes of each, ...]."""
        lanes = len(self._devices) * self._each
        stacked = np.stack([np.asarray(leaves[lane % self._seeds]) for lane in range(lanes)])
        if not self._several:
            return stacked
        return stacked.reshape(len(self._devices), self._each, *stacked.shape[1:])

    def unplace(self, tree: Any) -> list[Any]:
        """See ``Runner``."""
        gathered = self.gather(tree)
        return [jax.tree.map(lambda leaf, i=i: leaf[i], gathered) for i in range(self._seeds)]

    def shard(self, *batches: Mapping[str, np.ndarray]) -> Any:
        """See ``Runner``."""
        return self.place(batches)

    def gather(self, rows: Any) -> Any:
        """What ``place`` has placed, or a step has given, on the host: numpy [seeds, ...]."""

        def whole(leaf: Any) -> np.ndarray:
            array = np.asarray(leaf)
            array = array.reshape(-1, *array.shape[2:]) if self._several else array
            return array[: self._seeds]

        return jax.tree.map(whole, rows)

    def jit(self, step: Callable[..., Any], static: Any, donate: bool) -> Any:
        """See ``Runner``; a training step."""

        def of_seeds(state: Any, frozen: Mapping[str, Any], *rest: Any) -> Any:
            own = {name: None if name in SHARED else 0 for name in frozen}
            axes = (0, own, *(None for _ in rest[1:]), 0)
            return jax.vmap(functools.partial(step, static), axes)(state, frozen, *rest)

        donated = 0 if donate else ()
        if not self._several:
            return jax.jit(of_seeds, donate_argnums=donated)
        return jax.pmap(of_seeds, AXIS, devices=self._devices, donate_argnums=donated)


def devices_across(devices: int, seeds: int, settings: int) -> tuple[int, int]:
    """Over how many devices the seeds of a sweep go, and over how many the settings.

    Every device has equally many of both; of the ways to share out the devices this is one in
    which it has the fewest runs, and of those the one with most devices along the seeds.
    """
    ways = [(n, devices // n) for n in range(devices, 0, -1) if devices % n == 0]
    return min(ways, key=lambda way: -(-seeds // way[0]) * -(-settings // way[1]))
