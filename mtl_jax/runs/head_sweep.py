"""Many pairs of heads on one frozen backbone, trained at once in one compiled program.

A run of a sweep does what ``train`` does for the scenario ``backbone_frozen`` with the same
settings: the same initial heads, order of the data, dropout, steps and choice of the epoch.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError
from mtl_jax.data.batches import EpochOrder, index_batch
from mtl_jax.runs.monitoring.progress_log import Heartbeat
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.runs.progress import beats
from mtl_jax.training.executables import kind_of
from mtl_jax.training.inputs import Inputs
from mtl_jax.training.kinds.base import Metrics, TaskKind
from mtl_jax.training.kinds.registry import kind_of as kind_of_labels
from mtl_jax.training.optimizer import build_optimizer
from mtl_jax.training.program import Program, TrainState, stream
from mtl_jax.training.seed_runner import devices_across
from mtl_jax.training.step import take, train_step

T = TypeVar("T")

# Steps of one call, unless an epoch has more: how far it is can be told, and Ctrl-C be heeded, only
# between two calls.
_STEPS_AT_ONCE = 1000

# The runs of one seed share the order of their data and dropout's masks: only once computed.
_OF_RUN: Any = TrainState(step=None, trainable=0, opt_state=0, rng=None, weighting=0)  # pyright: ignore


@dataclasses.dataclass(frozen=True)
class Grid:
    """The runs of a sweep: every seed with every combination of the others."""

    seeds: tuple[int, ...]
    head_learning_rate: tuple[float, ...]
    weight_decay: tuple[float, ...]
    """empty: that of the phase"""
    task_weights: tuple[tuple[str, tuple[float, ...]], ...]
    """``(task, weights)``, in the order of the tasks"""

    def settings(self) -> list[dict[str, float]]:
        """Every combination of what is not the seed; a task's weight as ``<task>_weight``."""
        values = {
            "head_learning_rate": self.head_learning_rate,
            "weight_decay": self.weight_decay,
            **{weight_of(task): weights for task, weights in self.task_weights},
        }
        values = {name: tried for name, tried in values.items() if tried}
        return [
            dict(zip(values, combination, strict=True))
            for combination in itertools.product(*values.values())
        ]


def weight_of(task: str) -> str:
    """What the weight of a task is called in a setting."""
    return f"{task}_weight"


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        settings: The combinations, n of them.
        measured: The epochs after which the runs are measured, from 1.
        validation: float64 [seeds, n, measured], the mean over tasks of macro-F1, and R2 of
            regressions; NaN after a run has diverged.
        kept: int [seeds, n], the index of the measurement that is kept of each run.
        chosen: The index of the combination with the best mean over seeds of the kept
            measurement's score; one that diverged with any seed is not chosen.
        test: Per seed the metrics of what is kept of the chosen combination on the test split,
            which no choice has seen; empty without such a split.
        feature_seconds: What computing the vectors took.
        compile_seconds: What compiling took.
    """

    settings: list[dict[str, float]]
    measured: tuple[int, ...]
    validation: np.ndarray
    kept: np.ndarray
    chosen: int
    test: list[Metrics]
    feature_seconds: float
    compile_seconds: float


def ready(config: TrainConfig, grid: Grid, inputs: Inputs) -> PhaseRun:
    """What the runs of ``grid`` have in common, made ready; see ``sweep``.

    Raises:
        UserError: The settings are at fault.
    """
    run = PhaseRun(config, inputs)
    heads_alone = len(run.plans) == 1 and run.partition.backbone_frozen and run.partition.groups
    if not heads_alone or not config.prefix_cache:
        raise UserError(
            f"a sweep trains heads on cached vectors: use --scenario backbone_frozen, not "
            f"{config.name}, and no --no-prefix-cache"
        )
    if any(0 in weights for _, weights in grid.task_weights):
        raise UserError(
            "the runs of a sweep share their texts, and a weight of 0 would leave some out: give "
            "each task a weight, or leave it out of --label-columns"
        )
    return run


def sweep(config: TrainConfig, grid: Grid, inputs: Inputs) -> SweepResult:
    """Trains every run of ``grid``, and measures it when ``train`` would.

    Args:
        config: What the runs have in common; its workdir is not used.
        grid: The runs.
        inputs: The data and the backbone.

    Raises:
        UserError: The scenario trains more than heads, a weight is 0, or no combination has
            converged.
    """
    return sweep_of([ready(config, grid, inputs)], grid)


def sweep_of(runs: Sequence[PhaseRun], grid: Grid) -> SweepResult:
    """As ``sweep``, of what ``ready`` has made ready.

    Args:
        runs: One for all seeds, or one for each, which then has training texts of its own, as many
            as the others.
        grid: The runs.

    Raises:
        UserError: No combination has converged.
    """
    run, inputs = runs[0], runs[0].inputs
    if note := run.useless_weighting:
        say(f"note: {note}")
    apart = len(runs) > 1
    grids = [dataclasses.replace(grid, seeds=(s,)) for s in grid.seeds] if apart else [grid]
    trained = [train_heads(each, own) for each, own in zip(runs, grids, strict=True)]
    measured = trained[0][1]
    scores = np.concatenate([of_run for *_, of_run in trained])
    diverged = np.isnan(scores).any(-1)
    last = np.full(diverged.shape, len(measured) - 1)
    kept = last if run.plans[0].keeps_end else scores.argmax(-1)
    settled = np.take_along_axis(scores, kept[..., None], -1)[..., 0]
    converged = ~diverged.any(0)
    if not converged.any():
        raise UserError("every setting of the sweep diverged: lower the learning rates")
    chosen = int(np.where(converged, settled.mean(0), -np.inf).argmax())
    test = []
    if "test" in inputs.corpus.splits:
        split = run.split("test")
        for (heads, *_), own in zip(trained, grids, strict=True):
            for seed in range(len(own.seeds)):
                params = {**run.params, **heads.kept(seed, chosen)}
                replicated = run.evaluator.runner.replicate(params)
                test.append(run.evaluator.metrics(replicated, split, inputs.classes))
    compiling = sum(heads.compile_seconds for heads, *_ in trained)
    return SweepResult(
        settings=trained[0][0].settings,
        measured=tuple(measured),
        validation=scores,
        kept=kept,
        chosen=chosen,
        test=test,
        feature_seconds=sum(each.feature_seconds for each in runs),
        compile_seconds=compiling + run.evaluation_compile_seconds,
    )


def train_heads(run: PhaseRun, grid: Grid) -> tuple[Heads, list[int], np.ndarray]:
    """Trains the heads of every run of ``grid`` in the first phase of ``run``.

    Returns:
        The heads; the epochs after which they were measured, from 1; and the scores of
        ``SweepResult.validation``.
    """
    plan = run.plans[0]
    heads, epochs = Heads(run, grid), max(round(plan.epochs(plan.steps)), 1)
    measured, scores = [], []
    heartbeat = Heartbeat(run.config.watch.heartbeat, epochs, phases=1, may_end_early=False)
    at_once = _epochs_at_once(plan.measure_every, epochs, plan.batches.steps)
    for epoch in range(at_once, epochs + 1, at_once):
        heads.train(range(epoch - at_once, epoch))
        if epoch % plan.measure_every == 0 or epoch == epochs:
            measured.append(epoch)
            scores.append(heads.measure())
        if heartbeat.due(epoch):
            left = ", ".join([f"epoch {epoch:,} of {epochs:,}", *heartbeat.left(epoch)])
            say(f"sweep of {len(heads.settings)} settings of the heads: {left}")
    return heads, measured, np.stack(scores, axis=-1)


def _epochs_at_once(measure_every: int, epochs: int, steps: int) -> int:
    """How many epochs one call trains, so that each measurement comes after a whole call.

    Args:
        measure_every: Epochs between two measurements.
        epochs: All of them, after which there is a measurement, too.
        steps: Those of an epoch.
    """
    even = math.gcd(measure_every, epochs)
    most = min(even, max(_STEPS_AT_ONCE // steps, 1))
    return next(number for number in range(most, 0, -1) if even % number == 0)


class Heads:
    """The states of all runs, [seeds, settings, ...], spread over the devices by both."""

    def __init__(self, run: PhaseRun, grid: Grid):
        self._run, self.settings = run, grid.settings()
        self._executables: dict[Any, Any] = {}
        self.compile_seconds = 0.0
        self._model = run.evaluator.model.clone(
            head_dropout=run.plans[0].head_dropout, losses=run.trained_losses
        )
        self._count = len(grid.seeds)
        devices = jax.local_devices()
        across = devices_across(len(devices), len(grid.seeds), len(self.settings))
        mesh = Mesh(np.array(devices).reshape(across), ("seeds", "settings"))
        everywhere, self._by_seed, self._by_run = (
            NamedSharding(mesh, PartitionSpec(*axes))
            for axes in ((), ("seeds",), ("seeds", "settings"))
        )
        # Of a run what has no axis of settings has one of seeds alone.
        self._of_states = jax.tree.map(lambda _: self._by_run, _OF_RUN).replace(
            step=self._by_seed, rng=self._by_seed
        )
        # Every device takes equally many; some may come twice, and are left out again.
        seeds = _padded(grid.seeds, across[0])
        settings = _padded(self.settings, across[1])
        self._settings = jax.device_put(
            {name: jnp.array([s[name] for s in settings]) for name in settings[0]},
            NamedSharding(mesh, PartitionSpec("settings")),
        )
        training, validation = run.training, run.split("validation")
        self._kinds = {
            task: kind_of_labels(labels) for task, labels in validation.texts.labels.items()
        }
        self._orders = [EpochOrder(run.plan, seed) for seed in seeds]
        self._vectors, self._held_out = (
            jax.device_put({"pooled": texts.pooled, **texts.labels, **texts.beside}, everywhere)
            for texts in (training.texts, validation.texts)
        )
        initial = jax.vmap(lambda seed: self._model.init_heads(stream(seed, "heads")))
        seeds = jax.device_put(jnp.array(seeds, jnp.uint32), self._by_seed)
        heads = jax.device_put(initial(seeds), self._by_seed)
        self._states = self._call(self._begin, self._settings, heads, seeds, out=self._of_states)
        self._kept = jax.tree.map(jnp.copy, self._states.swapped().trainable)
        self._kept_scores = np.full((len(seeds), len(settings)), -np.inf)

    def _program(self, setting: Mapping[str, Any]) -> Program:
        run = self._run
        own = run.plans[0].optimizer
        optimizer = dataclasses.replace(
            own,
            learning_rates=(("head", setting["head_learning_rate"]),),
            weight_decay=setting.get("weight_decay", own.weight_decay),
        )
        weights = tuple(setting[weight_of(task)] for task in self._model.tasks)
        adamw = build_optimizer(run.partition, optimizer)
        return Program(
            self._model, adamw, 0, run.weighting, r_drop=run.r_drop, task_weights=weights
        )

    def _call(
        self, function: Callable[..., Any], *args: Any, out: Any, donate: tuple[int, ...] = ()
    ) -> Any:
        """Calls a function, compiled for each kind of arguments; results are spread as ``out``."""
        # By name: a bound method as a key would keep this object, and its arrays, alive.
        key = function.__name__, kind_of(args)
        if key not in self._executables:
            started = time.perf_counter()
            jitted = jax.jit(function, donate_argnums=donate, out_shardings=out)
            self._executables[key] = jitted.lower(*args).compile()
            self.compile_seconds += time.perf_counter() - started
        return self._executables[key](*args)

    def _begin(self, settings: Any, heads: Any, seeds: jax.Array) -> TrainState:
        def of_setting(setting: Any, heads: Any, seed: Any) -> TrainState:
            return self._program(setting).init(heads, seed)

        of_seed = jax.vmap(of_setting, in_axes=(0, None, None), out_axes=_OF_RUN)
        return jax.vmap(of_seed, in_axes=(None, 0, 0))(settings, heads, seeds)

    def _train(
        self, states: TrainState, settings: Any, vectors: Any, examples: jax.Array
    ) -> TrainState:
        def update(setting: Any, state: TrainState, batch: Any) -> TrainState:
            return train_step(self._program(setting), state, {}, batch)[0]

        updates = jax.vmap(update, in_axes=(0, _OF_RUN, None), out_axes=_OF_RUN)

        def of_seed(state: TrainState, examples: jax.Array) -> TrainState:
            def step(state: TrainState, example: jax.Array) -> tuple[TrainState, None]:
                return updates(settings, state, take(vectors, example)), None

            return jax.lax.scan(step, state, examples)[0]

        return jax.vmap(of_seed)(states, examples)

    def _evaluate(self, heads: Any, vectors: Any) -> dict[str, jax.Array]:
        """Per task [seeds, settings, ...], what the score is made of; see ``TaskKind.counts``."""

        def of_run(heads: Any) -> dict[str, jax.Array]:
            logits: Any = self._model.apply({"params": heads}, {"pooled": vectors["pooled"]})
            return {
                task: kind_of_labels(vectors[task]).counts(own, vectors[task])
                for task, own in logits.items()
            }

        return jax.vmap(jax.vmap(of_run))(heads)

    def _better(self, better: jax.Array, new: Any, old: Any) -> Any:
        def choose(a: jax.Array, b: jax.Array) -> jax.Array:
            return jnp.where(better.reshape(better.shape + (1,) * (a.ndim - 2)), a, b)

        return jax.tree.map(choose, new, old)

    def train(self, epochs: Sequence[int]) -> None:
        """Trains all runs for these epochs, counted from 0."""
        examples = np.stack(
            [
                [
                    index_batch(self._run.plan.layout, placement)["example"]
                    for epoch in epochs
                    for placement in order.placements(epoch)
                ]
                for order in self._orders
            ]
        )
        examples = jax.device_put(examples, self._by_seed)
        args = self._states, self._settings, self._vectors, examples
        self._states = self._call(self._train, *args, out=self._of_states, donate=(0,))

    def measure(self) -> np.ndarray:
        """The validation scores of all runs, [seeds, settings].

        Keeps the heads of each run that ``train`` would keep: the present ones, or the best so far.
        """
        heads = self._states.swapped().trainable
        counts = self._call(self._evaluate, heads, self._held_out, out=self._by_run)
        scores = score_of_counts(jax.device_get(counts), self._kinds)
        better = beats(scores, self._kept_scores) | self._run.plans[0].keeps_end
        there = jax.device_put(better, self._by_run)
        self._kept = self._call(self._better, there, heads, self._kept, out=self._by_run)
        self._kept_scores = np.where(better, scores, self._kept_scores)
        return scores[: self._count, : len(self.settings)]

    def kept(self, seed: int, setting: int) -> Any:
        """The heads that are kept of a run, on the host."""
        return jax.tree.map(lambda leaf: np.asarray(leaf[seed, setting]), self._kept)

    def predicted(self, seed: int, setting: int, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """Per task what they make of ``vectors``, float32 [n, hidden], as ``TaskKind`` has it.

        Values of regressions are standardised.
        """
        params = {"params": self.kept(seed, setting)}
        logits: Any = self._model.apply(params, {"pooled": vectors})
        return {task: self._kinds[task].predicted(np.asarray(own)) for task, own in logits.items()}


def score_of_counts(counts: Mapping[str, np.ndarray], kinds: Mapping[str, TaskKind]) -> np.ndarray:
    """``metrics.mean_score`` of many runs, float64 [...].

    Args:
        counts: Per task what ``TaskKind.counts`` gives of each run, [..., a, b].
        kinds: The kinds of the tasks.
    """
    found = [kinds[task].score_of_counts(of_task) for task, of_task in counts.items()]
    scores = [score for score in found if score is not None]
    return np.mean(scores, axis=0) if scores else np.zeros(next(iter(counts.values())).shape[:-2])


def _padded(items: Sequence[T], devices: int) -> list[T]:
    """As many for each device, from the first again where they do not suffice."""
    return [items[i % len(items)] for i in range(-(-len(items) // devices) * devices)]
