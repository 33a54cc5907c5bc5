"""The compiled training steps of one run, or of several that differ in their seed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mtl_jax.config.model import Placement
from mtl_jax.data.batches import HostBatch, TextSet
from mtl_jax.data.packing.plan import Layout
from mtl_jax.freezing.partition import Params, Partition
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.fused_attention import of_seeds
from mtl_jax.training.evaluator import ModelSpec
from mtl_jax.training.executables import Compiled
from mtl_jax.training.micro_batches import MicroBatches
from mtl_jax.training.optimizer import AdamW, OptimizerConfig
from mtl_jax.training.program import Numbers, Program, Template, TrainState
from mtl_jax.training.runners import Runner, compiler_shards, gathered, make_runner
from mtl_jax.training.seed_runner import SHARED, SeedRunner
from mtl_jax.training.step import scanned_steps_with, train_step_with
from mtl_jax.training.weighting.base import Weighting

StepMetrics = Callable[[int], Mapping[str, Any]]
"""The metrics of a step by seed, see ``train_step``; the first call waits for the step."""


@dataclasses.dataclass(frozen=True)
class TrainSpec:
    """What the training steps of a run follow from.

    Those that differ in numbers alone, as rates, the length of a schedule or the weights of tasks,
    share what is compiled.

    ``seeds`` is how many are trained at once; None for a run by itself, whose batches
    ``ModelSpec.parallel`` spreads over the devices. ``hold_weight`` and ``r_drop`` are as of
    ``Program``; ``accumulate`` is how many micro-batches a batch is computed in; ``head_dropout``
    is as of ``MultiTaskModule``.
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
    accumulate: int = 1
    head_dropout: float | None = None
    r_drop: float = 0.0


class CompiledTrainStep:
    """Runs training steps: one at a time, or many at once where only heads are trained.

    Attributes:
        template: What the steps are compiled for.
        numbers: What they are given beside.
        layout: The shape of the batches.
        on_pooled: Whether the batches are of vectors that stay on the device.
        most: Steps at a time, at most.
        step: The compiled step, shared with all that have the same template.
        runner: What it runs on.
    """

    def __init__(
        self,
        template: Template,
        numbers: Numbers,
        layout: Layout,
        *,
        parallel: Placement,
        seeds: int | None = None,
        on_pooled: bool = False,
        most: int = 1,
    ):
        self.template, self.numbers, self.layout = template, numbers, layout
        self.on_pooled, self.most = on_pooled, most
        self.step = shared_step(template, parallel, seeds, on_pooled)
        self.runner = self.step.runner

    @property
    def program(self) -> Program:
        """What the steps do."""
        return self.template.program(self.numbers)

    @functools.cached_property
    def _placed(self) -> Any:
        return self.runner.replicate(self.numbers)

    def vectors(self, texts: TextSet) -> Any:
        """What ``__call__`` needs of texts with ``pooled`` vectors, on every device."""
        if texts.pooled is None:
            return None
        return self.runner.replicate({"pooled": texts.pooled, **texts.labels, **texts.beside})

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
            state, metrics = self.step(state, frozen, self._placed, self.runner.shard(*inputs))
            return state, [_when_asked(self.runner, metrics)]
        own = self.runner.own(self.layout.rows)
        examples = [{"example": self._examples(of_seed)[own]} for of_seed in batches]
        state, metrics = self.step(
            state, frozen, self._placed, vectors, self.runner.shard(*examples)
        )
        found = jax.tree.map(np.asarray, self.runner.unplace(metrics))
        return state, [functools.partial(_of_step, found, i) for i in range(len(batches[0]))]

    def _examples(self, batches: Sequence[HostBatch]) -> np.ndarray:
        """int32 [rows, most, slots]: which text is where in each step, or -1."""
        rows, slots = batches[0]["example"].shape
        examples = np.full((rows, self.most, slots), -1, np.int32)
        for i, batch in enumerate(batches):
            examples[:, i] = batch["example"]
        return examples


def _when_asked(runner: Runner, metrics: Any) -> StepMetrics:
    # So that the device never waits for the host: the next step is sent off before.
    found = functools.cache(lambda: runner.unplace(metrics))
    return lambda seed: found()[seed]


def _of_step(metrics: Sequence[Any], step: int, seed: int) -> Mapping[str, Any]:
    return jax.tree.map(lambda leaf: leaf[step], metrics[seed])


# A study holds as many scenarios as this at a time.
@functools.lru_cache(maxsize=16)
def shared_step(
    template: Template, parallel: Placement, seeds: int | None, on_pooled: bool
) -> Compiled:
    """The step of a template; a process compiles it once for arguments of each shape."""
    runner: Runner = (
        make_runner(parallel) if seeds is None else SeedRunner(seeds, spread=parallel != "jit")
    )
    step = scanned_steps_with if on_pooled else train_step_with
    return Compiled(runner, step, template, donate=True)


def compiled_step(spec: TrainSpec) -> CompiledTrainStep:
    """The compiled step of ``spec``."""
    return CompiledTrainStep(
        step_template(spec),
        step_numbers(spec),
        spec.layout,
        parallel=spec.model.parallel,
        seeds=spec.seeds,
        on_pooled=spec.on_pooled,
        most=spec.steps_at_once,
    )


def step_numbers(spec: TrainSpec) -> Numbers:
    """What the steps of ``spec`` are given at each call."""
    numbers = spec.optimizer.numbers(spec.partition.groups)
    return Numbers.of(spec.task_weights, spec.hold_weight, numbers)


def step_template(spec: TrainSpec) -> Template:
    """What the steps of ``spec`` are compiled for."""
    model = spec.model.model()
    return Template(
        model.clone(
            states_depth=spec.states_depth,
            blocks=spec.layout.blocks,
            remat=spec.remat,
            scan_layers=spec.scan_layers,
            head_dropout=spec.head_dropout,
            fused=model.fused if spec.seeds is None else of_seeds(model.fused),
        ),
        AdamW.of(spec.partition, spec.optimizer),
        spec.partition.depth(spec.model.bert.num_hidden_layers),
        spec.weighting,
        micro_batches(spec.accumulate, spec.model.parallel, alone=spec.seeds is not None),
        gathered(spec.model.parallel) if spec.seeds is None else None,
        spec.r_drop,
    )


def micro_batches(number: int, parallel: Placement, *, alone: bool = False) -> MicroBatches:
    """How a batch is cut into so many micro-batches.

    Args:
        number: Of them.
        parallel: How the batch is spread over devices.
        alone: Whether each batch is whole on one device, whatever that says.
    """
    shards = 1 if number == 1 or alone else compiler_shards(parallel)
    return MicroBatches(number, shards)


def drops_out(partition: Partition, encoder: EncoderConfig, head_dropout: float) -> bool:
    """Whether dropout reaches anything that trains, so that two passes of a text differ.

    Args:
        partition: What trains; below it nothing is dropped.
        encoder: The backbone's configuration.
        head_dropout: As of ``TrainSpec``.
    """
    in_layers = not partition.backbone_frozen and encoder.drops_out
    return bool(head_dropout or in_layers or (partition.lora and partition.lora.dropout))
