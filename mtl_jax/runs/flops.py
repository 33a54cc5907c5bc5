"""The training FLOPs of a run, counted and not measured: they are the same on every machine.

XLA counts them in the programs of one CPU, before it optimizes them: what these programs compute,
so padding, dropout's random numbers and the optimizer's update are in them, and with ``remat``
what is computed twice. A run on several devices, with other seeds at once, in micro-batches, with
its layers in a loop or with fused attention makes the same updates, and has the same count.
Evaluation is no training, and is not counted.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError
from mtl_jax.core.versions import code_digest, version
from mtl_jax.data.batches import HostBatch, TextSet, make_batch
from mtl_jax.data.packing.plan import Layout, Placement, evaluation_layout, evaluation_plan
from mtl_jax.freezing.scenarios import FROZEN
from mtl_jax.models.multitask import MultiTaskModule
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.training.cache.facts import fact
from mtl_jax.training.compiled_step import step_numbers, step_template
from mtl_jax.training.evaluator import CPU_TOKENS
from mtl_jax.training.executables import Compiled
from mtl_jax.training.kinds.registry import KINDS
from mtl_jax.training.runners import JitRunner
from mtl_jax.training.step import pooled_step, states_step, train_step_with

# A batch of one text: its shape is that of every other.
_ONE = Placement(*(np.zeros(1, np.int64) for _ in range(3)))

_known: dict[Any, int] = {}


@dataclasses.dataclass(frozen=True)
class PhaseFlops:
    """The count of one phase.

    Attributes:
        steps: Updates.
        step: FLOPs of each.
        prefix: FLOPs of the one pass that computes what the frozen layers make of the training
            texts, where that is kept: from the token ids, whatever a cache had of it, but
            without what an earlier phase of the run has computed.
    """

    steps: int
    step: int
    prefix: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.steps * self.step + self.prefix


def run_flops(run: PhaseRun, steps: Sequence[int]) -> list[PhaseFlops]:
    """Counts what the phases of a run take.

    Args:
        run: The run, in any phase.
        steps: Updates in each phase that was begun.

    Raises:
        UserError: JAX has no CPU backend, which does the counting.
    """
    found = []
    trained: Counter[str] = Counter()
    paid: list[tuple[list[str], int]] = []
    for index, count in enumerate(steps):
        phase = run if index == run.index else run.at(index, run.params)
        prefix = 0
        if phase.keeps:
            stages = ["embeddings", *(f"layer_{i}" for i in range(phase.states_depth - 1))]
            # A stage that has been trained in between is another one.
            names = [phase.plans[index].texts, *(f"{each} {trained[each]}" for each in stages)]
            whole = prefix_flops(phase)
            before = (cost for known, cost in paid if names[: len(known)] == known[: len(names)])
            prefix = max(whole - max(before, default=0), 0)
            paid.append((names, whole))
        found.append(PhaseFlops(count, step_flops(phase) if count else 0, prefix))
        if count:
            paths = (path.split("/") for path, label in phase.partition.labels if label != FROZEN)
            trained.update({stage for part, stage, *_ in paths if part == "backbone"})
    return found


def flops_record(run: PhaseRun, steps: Sequence[int], beside: int) -> dict[str, Any]:
    """What a result says of them.

    Args:
        run: The run, in any phase.
        steps: Updates in each phase that was begun.
        beside: FLOPs of what is computed in the place of training.

    Returns:
        ``train_flops``, and ``flops_of_phases`` with the fields of ``PhaseFlops`` of each; None
        for both where JAX has no CPU backend, which is said.
    """
    try:
        phases = run_flops(run, steps)
    except UserError as error:
        say(f"note: train_flops is null: {error}")
        return {"train_flops": None, "flops_of_phases": None}
    return {
        "train_flops": sum(phase.total for phase in phases) + beside,
        "flops_of_phases": [dataclasses.asdict(phase) for phase in phases],
    }


def step_flops(run: PhaseRun) -> int:
    """FLOPs of one update of a run's phase; of many in one program the share of one."""
    if not run.partition.groups:
        return 0
    plan, compiled_step, spec = run.plans[run.index], run.compiled_step(), run.train_spec()
    layout = _one_device_layout(run)
    template = step_template(
        dataclasses.replace(
            spec,
            model=dataclasses.replace(spec.model, parallel="jit", fused_attention=False),
            layout=layout,
            scan_layers=False,
            accumulate=1,
            seeds=None,
        )
    )
    training = run.inputs.training(run.phase.tasks).texts
    key = template, layout, plan.held, tuple(training.soft)
    if key not in _known:
        trainable, frozen = run.partition.split(_shapes(run.params))
        init = template.program(step_numbers(spec)).init
        state = jax.eval_shape(functools.partial(init, seed=0), trainable)
        texts = as_kept(run, training)
        targets = {
            task: np.broadcast_to(np.float32(0), (len(texts), _target_width(run, task)))
            for task in plan.held
        }
        batch = _batch(dataclasses.replace(texts, targets=targets), layout)
        step = functools.partial(train_step_with, template)
        same = template == compiled_step.template and layout == compiled_step.layout
        if same and not spec.on_pooled and isinstance(compiled_step.runner, JitRunner):
            step = compiled_step.step
        args = state, frozen, step_numbers(spec), batch
        _known[key] = _kept(key, template.model, batch, lambda: counted(step, *args))
    return _known[key]


def _kept(key: Any, model: MultiTaskModule, batch: HostBatch, count: Callable[[], int]) -> int:
    """A count that this or another process has made, of the same program.

    One with a part of the user's own, which another process may know by the same name, is counted
    again by each.
    """
    parts = [*(head.module for _, head in model.heads), *(loss for _, loss in model.losses)]
    shapes = {name: (array.shape, array.dtype.str) for name, array in sorted(batch.items())}
    name = repr((key, shapes))
    own = any(not type(part).__module__.startswith("mtl_jax.") for part in parts)
    if own or " at 0x" in name:
        return count()
    versions = {package: version(package) for package in ("jax", "jaxlib", "flax", "optax")}
    return fact({"flops_of": name, "code": code_digest(), "versions": versions}, count)


def _target_width(run: PhaseRun, task: str) -> int:
    of_task = run.inputs.tasks[task]
    return KINDS[of_task.kind].targets(np.zeros((1, of_task.outputs), np.float32)).shape[1]


def prefix_flops(run: PhaseRun) -> int:
    """FLOPs of one pass of a phase's frozen layers over its training texts, from the ids."""
    layout = _one_device_layout(run)
    own, texts = run.evaluator, run.inputs.training(run.phase.tasks).texts
    layout = evaluation_layout(run.inputs.reader.max_length, CPU_TOKENS, 1, layout)
    depth = None if run.partition.backbone_frozen else run.states_depth
    model = own.model.clone(fused=None, blocks=layout.blocks)
    key = model, layout, depth
    if key not in _known:
        compute = functools.partial(
            *((pooled_step, model) if depth is None else (states_step, (model, depth)))
        )
        if (model, layout) == (own.model, own.layout) and isinstance(own.runner, JitRunner):
            compute = own.frozen_step(texts, depth)
        params = {"backbone": _shapes(run.params["backbone"])}
        batch = _batch(texts, layout)
        _known[key] = _kept(key, model, batch, lambda: counted(compute, params, batch))
    return _known[key] * len(evaluation_plan(texts.tokens.lengths, layout))


def counted(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of a function, which is neither compiled nor run.

    Args:
        function: To be jitted, or a step that has been.
        *args: Its arguments, or their shapes.

    Raises:
        UserError: JAX has no CPU backend, which does the counting.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise UserError(
            "FLOPs are counted by JAX's CPU backend, which JAX_PLATFORMS leaves out: add cpu to it"
        ) from error
    lower = function.lower if isinstance(function, Compiled) else jax.jit(function).lower
    # Other backends count only what they have compiled, each in its own way.
    with jax.default_device(cpu):
        analysis: Any = lower(*args).cost_analysis()
    return int(analysis["flops"])


def as_kept(run: PhaseRun, texts: TextSet) -> TextSet:
    """Texts with zeros, which take no memory, for the activations that the run would keep."""
    if not run.keeps:
        return texts
    width = run.inputs.bert.hidden_size
    if run.partition.backbone_frozen:
        pooled = np.broadcast_to(np.float32(0), (len(texts), width))
        return dataclasses.replace(texts, pooled=pooled)
    states = np.broadcast_to(np.float32(0), (len(texts.tokens.ids), width))
    return dataclasses.replace(texts, states=states, depth=run.states_depth)


def _one_device_layout(run: PhaseRun) -> Layout:
    return run.inputs.plan(run.config.batch_size, 1, run.phase.tasks).layout


def _batch(texts: TextSet, layout: Layout) -> HostBatch:
    """What a step is given of a batch of these texts, by its shape."""
    batch = make_batch(texts, layout, _ONE)
    del batch["example"]
    return batch


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), tree)
