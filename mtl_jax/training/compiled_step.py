"""The compiled training steps of one run, or of several that differ in their seed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mtl_jax.data.batches import HostBatch, TextSet
from mtl_jax.data.packing.plan import Layout
from mtl_jax.freezing.partition import Params, Partition
from mtl_jax.models.fused_attention import of_seeds
from mtl_jax.training.evaluator import ModelSpec
from mtl_jax.training.optimizer import OptimizerConfig, build_optimizer
from mtl_jax.training.runners import Compiled, Runner, make_runner
from mtl_jax.training.seed_runner import SHARED, SeedRunner
from mtl_jax.training.step import Program, TrainState, scanned_steps, train_step
from mtl_jax.training.weighting.base import Weighting

StepMetrics = Callable[[int], Mapping[str, Any]]
"""The metrics of a step by seed, see ``train_step``; the first call waits for the step."""


@dataclasses.dataclass(frozen=True)
class TrainSpec:
    """What a training step is compiled from; equal specs share the compiled step.

    ``seeds`` is how many are trained at once; None for a run by itself, whose batches
    ``ModelSpec.parallel`` spreads over the devices. ``hold_weight`` is as of ``Program``.
    """

    model: ModelSpec
    partition: Partition
    optimizer: OptimizerConfig
    task_weights: tuple[float, ...]
    weighting: Weighting
    layout: Layout
    on_pooled: bool
    states_depth: int
    steps_at_once: int
    remat: bool
    scan_layers: bool
    seeds: int | None
    hold_weight: float = 0.0


class CompiledTrainStep:
    """Runs training steps: one at a time, or many at once where only heads are trained.

    Attributes:
        program: What the steps are compiled for.
        layout: The shape of the batches.
        on_pooled: Whether the batches are of vectors that stay on the device.
        most: Steps at a time, at most.
        step: The compiled step.
        runner: What it runs on.
    """

    def __init__(
        self,
        program: Program,
        layout: Layout,
        runner: Runner,
        *,
        on_pooled: bool = False,
        most: int = 1,
    ):
        self.program, self.layout, self.runner = program, layout, runner
        self.on_pooled, self.most = on_pooled, most
        step = scanned_steps if on_pooled else train_step
        self.step = Compiled(runner, step, program, donate=True)

    def vectors(self, texts: TextSet) -> Any:
        """What ``__call__`` needs of texts with ``pooled`` vectors, on every device."""
        if texts.pooled is None:
            return None
        return self.runner.replicate({"pooled": texts.pooled, **texts.labels})

    def place(
        self, states: Sequence[TrainState], frozen: Sequence[Params]
    ) -> tuple[TrainState, Params]:
        """Puts the state and the frozen partition of every seed on the devices.

        Of the frozen backbone, which is the same for all, the first seed's is taken.
        """
        shared = {name: tree for name, tree in frozen[0].items() if name in SHARED}
        own = [{k: tree for k, tree in each.items() if k not in SHARED} for each in frozen]
        held = {**self.runner.replicate(shared), **self.runner.place(own)}
        return self.runner.place(states), held

    def unplace(self, state: TrainState, frozen: Params) -> list[tuple[TrainState, Params]]:
        """The inverse of ``place``: one copy of each seed's, until the next step is taken."""
        shared = self.runner.fetch({k: tree for k, tree in frozen.items() if k in SHARED})
        own = self.runner.unplace({k: tree for k, tree in frozen.items() if k not in SHARED})
        states = self.runner.unplace(state)
        return [(one, {**shared, **heads}) for one, heads in zip(states, own, strict=True)]

    def __call__(
        self,
        state: TrainState,
        frozen: Params,
        vectors: Any,
        batches: Sequence[Sequence[HostBatch]],
    ) -> tuple[TrainState, list[StepMetrics]]:
        """Takes the same number of steps with every seed.

        Args:
            state: From ``place``; given away.
            frozen: From ``place``.
            vectors: From ``vectors``.
            batches: Per seed one batch for each step, at most ``most``, from
                ``train_batches``.

        Returns:
            The state after the last step, and the metrics of each.
        """
        if vectors is None:
            inputs = [{k: a for k, a in batch.items() if k != "example"} for (batch,) in batches]
            state, metrics = self.step(state, frozen, self.runner.shard(*inputs))
            return state, [_when_asked(self.runner, metrics)]
        own = self.runner.own(self.layout.rows)
        examples = [{"example": self._examples(of_seed)[own]} for of_seed in batches]
        state, metrics = self.step(state, frozen, vectors, self.runner.shard(*examples))
        found = jax.tree.map(np.asarray, self.runner.unplace(metrics))
        return state, [functools.partial(_of_step, found, i) for i in range(len(batches[0]))]

    def _examples(self, batches: Sequence[HostBatch]) -> np.ndarray:
        """int32 [rows, most, slots]: which text is where in each step, or -1."""
        rows, slots = batches[0]["example"].shape
        examples = np.full((rows, self.most, slots), -1, np.int32)
        for i, batch in enumerate(batches):
            examples[:, i] = batch["example"]
        return examples


def _runner(spec: TrainSpec) -> Runner:
    if spec.seeds is None:
        return make_runner(spec.model.parallel)
    return SeedRunner(spec.seeds, spread=spec.model.parallel != "jit")


def _when_asked(runner: Runner, metrics: Any) -> StepMetrics:
    # So that the device never waits for the host: the next step is sent off before.
    found = functools.cache(lambda: runner.unplace(metrics))
    return lambda seed: found()[seed]


def _of_step(metrics: Sequence[Any], step: int, seed: int) -> Mapping[str, Any]:
    return jax.tree.map(lambda leaf: leaf[step], metrics[seed])


# A study holds as many scenarios as this at a time.
@functools.lru_cache(maxsize=16)
def compiled_step(spec: TrainSpec) -> CompiledTrainStep:
    """The compiled step of ``spec``; a process compiles it once."""
    program = step_program(spec)
    return CompiledTrainStep(
        program, spec.layout, _runner(spec), on_pooled=spec.on_pooled, most=spec.steps_at_once
    )


def step_program(spec: TrainSpec) -> Program:
    """What the steps of ``spec`` are compiled for."""
    model = spec.model.model()
    return Program(
        model.clone(
            states_depth=spec.states_depth,
            blocks=spec.layout.blocks,
            remat=spec.remat,
            scan_layers=spec.scan_layers,
            fused=model.fused if spec.seeds is None else of_seeds(model.fused),
        ),
        build_optimizer(spec.partition, spec.optimizer),
        spec.partition.depth(spec.model.bert.num_hidden_layers),
        spec.task_weights,
        spec.weighting,
        spec.hold_weight,
    )
