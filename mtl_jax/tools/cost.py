"""What a run would cost, before it starts: parameters, memory, FLOPs, seconds."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mtl_jax.data.batches import EpochOrder, TextSet, evaluation_batches, make_batch, train_batches
from mtl_jax.data.packing.plan import Placement, evaluation_plan
from mtl_jax.runs.flops import as_kept, counted
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.training.inputs import Inputs
from mtl_jax.training.micro_batches import WHOLE
from mtl_jax.training.program import Program, Template
from mtl_jax.training.step import pooled_step, states_step, train_step_with

# The median of more calls would differ little.
_MOST_CALLS = 50
# Batches that stand for a split in a measurement: the second is made while the first runs.
_MEASURED_BATCHES = 2


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one scenario, or one phase of a recipe, would cost.

    FLOPs are XLA's count of the programs before optimization, so that they are the same on
    every device; they are per training text, its share of the padding included. Seconds are
    extrapolated from a measurement on this machine; compiling and writing checkpoints are
    not in them.

    Attributes:
        trainable_parameters: Parameters that are trained.
        frozen_parameters: Those that are not.
        optimizer_state_bytes: Bytes of the optimizer's state.
        cache_bytes: Bytes of the activations that the run keeps of all splits.
        flops: ``forward``: the model in the training step, from where kept activations enter;
            ``backward``: the rest of the step, the update included; ``prefix``: what is
            computed once for each text and kept.
        seconds: ``prefix``: the activations of all splits, where no earlier phase has kept
            them; ``training``: all steps; ``validation``: after each epoch; ``final``: training
            and test split after the last phase; ``total``.
    """

    trainable_parameters: int
    frozen_parameters: int
    optimizer_state_bytes: int
    cache_bytes: int
    flops: dict[str, int]
    seconds: dict[str, float]


class EvaluationBatches:
    """The splits, and how an evaluation lays them out, the same for every scenario.

    Attributes:
        texts: Per split its texts.
    """

    def __init__(self, inputs: Inputs):
        self.texts = {name: inputs.split(name).texts for name in inputs.corpus.splits}
        self._placements: dict[str, list[Placement]] = {}

    def count(self, run: PhaseRun, name: str) -> int:
        """Batches of a split; 0 where there is no such split."""
        return len(self._of(run, name)) if name in self.texts else 0

    def sample(self, run: PhaseRun, name: str) -> TextSet:
        """The texts of the first batches of a split."""
        placements = self._of(run, name)[:_MEASURED_BATCHES]
        return self.texts[name].take(np.concatenate([each.texts for each in placements]))

    def _of(self, run: PhaseRun, name: str) -> list[Placement]:
        if name not in self._placements:
            lengths = self.texts[name].tokens.lengths
            self._placements[name] = evaluation_plan(lengths, run.evaluator.layout)
        return self._placements[name]


def estimate_cost(run: PhaseRun, batches: EvaluationBatches, limit: float) -> Cost:
    """Counts and measures what a run would cost; it is not begun.

    Args:
        run: The run.
        batches: Of its inputs.
        limit: Seconds to measure at most, compilation aside; each of three parts is run at
            least twice.
    """
    compiled_step = run.compiled_step()
    program = compiled_step.program
    trainable, _ = run.partition.split(run.params)
    total, trained = (
        sum(np.size(leaf) for leaf in jax.tree.leaves(tree)) for tree in (run.params, trainable)
    )
    state = jax.tree.leaves(jax.eval_shape(program.optimizer.init, trainable))
    seconds = _seconds(run, program, batches, limit)
    return Cost(
        trainable_parameters=trained,
        frozen_parameters=total - trained,
        optimizer_state_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in state),
        cache_bytes=sum(array.nbytes for array in kept_arrays(run)),
        flops=_flops(run, compiled_step.template, batches),
        seconds={**seconds, "total": sum(seconds.values())},
    )


def kept_arrays(run: PhaseRun) -> list[np.ndarray]:
    """The activations that a run keeps, split by split in its order: zeros in their place."""
    kept = (as_kept(run, run.inputs.split(name).texts) for name in run.inputs.corpus.splits)
    arrays = (texts.states if texts.pooled is None else texts.pooled for texts in kept)
    return [array for array in arrays if array is not None]


def _flops(run: PhaseRun, template: Template, batches: EvaluationBatches) -> dict[str, int]:
    texts, steps = run.inputs.training(run.phase.tasks).texts, run.plan.steps
    placement = EpochOrder(run.plan, run.config.seed).placements(0)[0]
    batch = make_batch(as_kept(run, texts), run.plan.layout, placement)
    del batch["example"]
    # XLA counts one round of a loop, and nothing of what cuDNN computes.
    model = template.model.clone(scan_layers=False, fused=None)
    template = dataclasses.replace(template, model=model, parts=WHOLE, gathered=None)
    numbers = run.compiled_step().numbers
    program = template.program(numbers)

    def forward(params: Any, batch: Any) -> Any:
        return program.model.apply(
            {"params": params},
            batch,
            train=True,
            frozen_depth=program.frozen_depth,
            rngs={"dropout": jax.random.key(0)},
        )

    once = step = counted(forward, run.params, batch)
    if run.partition.groups:
        trainable, frozen = run.partition.split(run.params)
        state = jax.eval_shape(functools.partial(program.init, seed=0), trainable)
        step = counted(functools.partial(train_step_with, template), state, frozen, numbers, batch)
    prefix = 0
    if run.keeps:
        model = run.evaluator.model.clone(fused=None)
        compute = functools.partial(states_step, (model, run.states_depth))
        if run.partition.backbone_frozen:
            compute = functools.partial(pooled_step, model)
        first = next(evaluation_batches(batches.sample(run, "train"), run.evaluator.layout))
        del first["example"]
        prefix = counted(compute, {"backbone": run.params["backbone"]}, first)
    return {
        "forward": round(once * steps / run.plan.places),
        "backward": round((step - once) * steps / run.plan.places),
        "prefix": round(prefix * batches.count(run, "train") / len(batches.texts["train"])),
    }


def _seconds(
    run: PhaseRun, program: Program, batches: EvaluationBatches, limit: float
) -> dict[str, float]:
    runner, evaluator = run.evaluator.runner, run.evaluator
    sample = batches.sample(run, "train")
    measured = len(evaluation_plan(sample.tokens.lengths, evaluator.layout))
    prefix = step = 0.0
    if run.keeps:
        backbone = runner.replicate({"backbone": run.params["backbone"]})

        def compute() -> None:
            if run.partition.backbone_frozen:
                evaluator.pooled(backbone, sample)
            else:
                evaluator.states(backbone, sample, run.states_depth, lambda *_: None)

        prefix = _median_seconds(compute, limit / 3) / measured
    kept, params = as_kept(run, sample), runner.replicate(run.params)
    evaluation = _median_seconds(lambda: evaluator.logits(params, kept), limit / 3) / measured
    if run.partition.groups:
        texts = run.inputs.training(run.phase.tasks).texts
        step = _step_seconds(run, program, as_kept(run, texts), limit / 3)
    counts = {name: batches.count(run, name) for name in ("train", "validation", "test")}
    # Where nothing is trained, it is evaluated all the same.
    between = run.plans[run.index].measure_every * run.plan.steps
    measurements = max(math.ceil(run.total_steps / between), 1)
    last = run.index + 1 == len(run.plans)
    return {
        "prefix": 0.0 if run.prepared else prefix * sum(counts.values()),
        "training": step * run.total_steps,
        "validation": evaluation * counts["validation"] * measurements,
        "final": evaluation * (counts["train"] + counts["test"]) * last,
    }


def _step_seconds(run: PhaseRun, program: Program, texts: TextSet, limit: float) -> float:
    compiled_step = run.compiled_step()
    trainable, frozen = run.partition.split(run.params)
    state, frozen = compiled_step.place([program.init(trainable, 0)], [frozen])
    vectors = compiled_step.vectors(texts)
    data = train_batches(
        texts, run.plan, run.config.seed, 0, (_MOST_CALLS + 1) * compiled_step.most
    )

    def call() -> None:
        nonlocal state
        batches = list(itertools.islice(data, compiled_step.most))
        state, _ = compiled_step(state, frozen, vectors, [batches])
        jax.block_until_ready(state)

    return _median_seconds(call, limit) / compiled_step.most


def _median_seconds(call: Callable[[], Any], limit: float) -> float:
    """The median of the calls that ``limit`` leaves time for, after one that may compile."""
    call()
    seconds: list[float] = []
    while not seconds or (sum(seconds) < limit and len(seconds) < _MOST_CALLS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
