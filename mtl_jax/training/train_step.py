"""The train step of a research script: one call for each batch, whatever is frozen."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from mtl_jax.config.model import Parallel
from mtl_jax.config.optimizer import WeightingName
from mtl_jax.config.tasks import Task, refuse_weight
from mtl_jax.core.errors import UserError, require_type
from mtl_jax.core.type_checks import refuse_type
from mtl_jax.data.batches import TextSet
from mtl_jax.data.packing.plan import PackingPlan
from mtl_jax.freezing.partition import Params, Partition, Stages
from mtl_jax.models.multitask import Loss
from mtl_jax.training.compiled_step import CompiledTrainStep, drops_out, micro_batches
from mtl_jax.training.data import Data, TrainBatch
from mtl_jax.training.evaluator import ModelSpec, evaluator
from mtl_jax.training.extensions import check_loss, make_metric, refuse_built_in
from mtl_jax.training.frozen_activations import SHALLOWEST, FrozenActivations
from mtl_jax.training.inputs import Split
from mtl_jax.training.metrics import Metrics
from mtl_jax.training.model import MultiTaskModel
from mtl_jax.training.optimizer import Optimizer
from mtl_jax.training.program import Numbers, Template, TrainState, stream
from mtl_jax.training.runners import make_runner
from mtl_jax.training.weighting.base import Weighting
from mtl_jax.training.weighting.registry import make_weighting, refuse_weighting


@dataclasses.dataclass(frozen=True, eq=False)
class LoopState:
    """What a loop hands from one step to the next; the step before is no longer to be used.

    Attributes:
        train: What the step changes, on the devices.
        frozen: The frozen parameters, on the devices.
        backbone: The parameters that the encoder started with, each stage with its digest.
    """

    train: TrainState
    frozen: Params
    backbone: Stages

    @property
    def used(self) -> bool:
        """Whether a step has taken it, whose buffers are gone since."""
        step: Any = self.train.step  # Of numpy where it was read from a file.
        return isinstance(step, jax.Array) and step.is_deleted()

    @property
    def steps(self) -> int:
        """Steps done."""
        return int(self.train.step)

    def __repr__(self) -> str:
        return f"<LoopState, {'used by a step' if self.used else f'{self.steps} steps done'}>"


class StepMetrics(Mapping[str, Any]):
    """What a step has measured; the first look waits for the step.

    ``loss`` is the mean loss per task in nats, None where no text has a label; ``grad_norm`` the
    norm of the gradient before clipping; ``task_weights`` those of a ``weighting``, per task.
    """

    def __init__(self, tasks: Sequence[Task], found: Any):
        self._tasks, self._found = [task.name for task in tasks], found

    @functools.cached_property
    def _values(self) -> dict[str, Any]:
        measured = dict(self._found())
        losses = measured.pop("loss")
        # Compiled code gives a mapping back in the order of the alphabet.
        sums = {task: tuple(map(float, losses[task])) for task in self._tasks}
        means = {task: total / count if count else None for task, (total, count) in sums.items()}
        numbers = jax.tree.map(float, measured)
        if weights := numbers.get("task_weights"):
            numbers["task_weights"] = {task: weights[task] for task in self._tasks}
        return {"loss": means, **numbers}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


class TrainStep:
    """One training step for the parameters that a partition trains.

        step = mtl.TrainStep(model, partition, optimizer)
        state = step.init(seed=0)
        for batch in data.train_batches(batch_size=32, epochs=3, seed=0):
            state, metrics = step(state, batch)
        scores = mtl.evaluate(model, step.params(state), data.validation)

    The frozen lower layers of the encoder run without dropout, and so do heads if nothing else is
    trained. The outputs of these layers for the training texts are computed at the first step and
    cached; with ``cache=False`` they are computed in every step.

    Attributes:
        model: The model.
        partition: Which parameters are trained.
        frozen_depth: How much of the encoder is frozen from the bottom: 0 nothing, 1 the
            embeddings, 1 + k the embeddings and k layers.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        partition: Partition,
        optimizer: optax.GradientTransformation | optax.MultiSteps,
        loss: Loss | Mapping[str, Loss] | None = None,
        *,
        task_weights: Mapping[str, float] | None = None,
        weighting: WeightingName | Weighting = "fixed",
        parallel: Parallel = "auto",
        cache: bool = True,
        head_dropout: float | None = None,
        accumulate: int = 1,
        r_drop: float | None = None,
    ):
        """Prepares the step; it is compiled when it is first called.

        Steps that differ only in the numbers given to ``make_optimizer`` or in the task weights are
        compiled once per process.

        Args:
            model: The model.
            partition: A partition of ``model.params`` that trains at least one parameter.
            optimizer: From ``make_optimizer``, or any optax optimizer for the trained parameters;
                ``optax.MultiSteps`` accumulates gradients over several batches.
            loss: (logits, labels) -> (sum, count), for all tasks or by task; by default that of
                the task's kind. See ``docs/library.md`` for the shapes.
            task_weights: Factors of the mean loss of each task; by default the tasks' own weights.
            weighting: A name as in ``TrainConfig``, or a ``Weighting``.
            parallel: See ``TrainConfig``.
            cache: Whether to cache the outputs of the frozen lower layers.
            head_dropout: Dropout of the heads' input; by default the checkpoint's, or 0 if only
                heads are trained.
            accumulate: Number of micro-batches per batch, for less memory; as in
                ``Data.train_batches``.
            r_drop: Weight of R-Drop, as of ``TrainConfig``; without effect where no dropout
                reaches what is trained.

        Raises:
            UserError: An argument has another type, nothing is trained, an unknown task,
                ``weighting`` or ``parallel`` is named, a weight is negative, the optimizer is for
                other parameters, ``accumulate`` is not a number of micro-batches, or ``r_drop`` is
                not above 0 or has no task with classes.
        """
        require_type(model, MultiTaskModel, "model", "give a MultiTaskModel")
        require_type(
            partition, Partition, "partition", "give a Partition of the model's parameters"
        )
        remedy = "give what make_optimizer returns, or an optimizer of optax"
        if isinstance(optimizer, optax.MultiSteps):
            optimizer = optimizer.gradient_transformation()
        require_type(optimizer, optax.GradientTransformation, "optimizer", remedy)
        if isinstance(optimizer, Optimizer) and optimizer.adamw.partition != partition:
            raise UserError(
                "the optimizer was made for another partition: make it with "
                "make_optimizer(partition, ...) for this one"
            )
        remedy = "name a method, or give a Weighting"
        require_type(weighting, (str, Weighting), "weighting", remedy)
        names = [task.name for task in model.tasks]
        if not callable(loss):
            require_type(loss or {}, Mapping, "loss", "give a function, or one for each task")
        losses = dict.fromkeys(names, loss) if callable(loss) else dict(loss or {})
        for what, named in (("loss", losses), ("task_weights", task_weights or {})):
            if strange := [task for task in named if task not in names]:
                raise UserError(f"{what} names the task {strange[0]!r}: use {' or '.join(names)}")
        for task, weight in (task_weights or {}).items():
            refuse_weight(weight, f"task_weights {task}")
        if isinstance(weighting, str):
            refuse_weighting(weighting, "weighting")
        refuse_type("accumulate", accumulate, int)
        refuse_type("r_drop", r_drop, float | None)
        refuse_type("head_dropout", head_dropout, float | None)
        if accumulate < 1:
            raise UserError(f"accumulate {accumulate} must be at least 1")
        if r_drop is not None and not 0 < r_drop < math.inf:
            raise UserError(f"r_drop {r_drop} must be above 0: leave it out for none")
        if r_drop and all(task.kind == "regression" for task in model.tasks):
            raise UserError("r_drop is for tasks with classes, and all are regressions")
        if not partition.groups:
            raise UserError("the partition trains no parameter: there is no step to take")
        self.model, self.partition = model, partition
        self.frozen_depth = partition.depth(model.encoder.config.num_hidden_layers)
        self._losses = tuple(losses.items())
        given = {task.name: task.weight for task in model.tasks} | dict(task_weights or {})
        of_optimizer = optimizer.numbers if isinstance(optimizer, Optimizer) else None
        self._numbers = Numbers.of([given[name] for name in names], 0.0, of_optimizer)
        self._optimizer, self._weighting = optimizer, weighting
        self._parallel: Parallel = parallel
        self._runner = make_runner(parallel)
        self._micro_batches = micro_batches(accumulate, parallel)
        if head_dropout is None:
            head_dropout = model.encoder.config.trained_head_dropout(
                heads_alone=partition.trains_heads_alone
            )
        self._head_dropout = head_dropout
        two_passes = drops_out(partition, model.encoder.config, head_dropout)
        self._r_drop = (r_drop or 0.0) if two_passes else 0.0
        self._cache = cache and self.frozen_depth >= SHALLOWEST
        self._pooled = self._cache and partition.backbone_frozen
        self._pretrained = Stages(model.encoder.params)
        # With what they are for, so that nothing else gets its identity.
        self._compiled_steps: dict[int, tuple[CompiledTrainStep, PackingPlan]] = {}
        self._texts: dict[tuple[int, int], tuple[TextSet, Any, Any]] = {}

    def __repr__(self) -> str:
        return f"<TrainStep of {self.model!r}; {self.partition!r}>"

    def init(self, seed: int = 0, params: Params | None = None) -> LoopState:
        """Returns the state before the first step.

        Args:
            seed: Seed of the heads, of dropout, and of low-rank factors.
            params: All parameters to start from; by default the pre-trained encoder with newly
                initialised heads. Low-rank factors that the partition trains are continued or
                added; other factors are merged into their kernels.

        Raises:
            UserError: These are not all parameters.
        """
        params = self.model.init(seed) if params is None else params
        self.model.refuse_other_params(params)
        known = params["backbone"] is self._pretrained.params
        params = self.partition.with_factors(params, stream(seed, "lora"))
        trainable, frozen = self.partition.split(params)
        state = (
            self._template(self._spec(None), None, 1).program(self._numbers).init(trainable, seed)
        )
        backbone = self._pretrained if known else Stages(params["backbone"])
        return LoopState(self._runner.place([state]), self._runner.replicate(frozen), backbone)

    def __call__(self, state: LoopState, batch: TrainBatch) -> tuple[LoopState, StepMetrics]:
        """Takes one step.

        Args:
            state: From ``init`` or the previous step; its buffers are reused, so it can't be used
                again.
            batch: From ``Data.train_batches``.

        Returns:
            The next state, and the metrics of the step.

        Raises:
            UserError: The state has been used already, the batch is of other tasks or was made for
                another number of micro-batches, or a loss can't be called.
        """
        require_type(state, LoopState, "state", "give what init or the previous step returned")
        require_type(batch, TrainBatch, "batch", "give one of Data.train_batches")
        if state.used:
            raise UserError(
                "the state has been used by a step already, which reuses its buffers: go on with "
                "the state that the step returned, or begin anew with init"
            )
        number, rows = self._micro_batches.number, batch.plan.layout.rows
        if rows % (number * self._runner.devices):
            raise UserError(
                f"accumulate is {number}, and a batch has {rows} rows on {self._runner.devices} "
                f"devices: make the batches with train_batches(accumulate={number})"
            )
        compiled_step = self._compiled_step(batch)
        texts, vectors = self._as_read(state.backbone, batch, compiled_step)
        arrays = batch.arrays(texts, self._runner.own(batch.plan.layout.rows))
        train, (found,) = compiled_step(state.train, state.frozen, vectors, [[arrays]])
        return dataclasses.replace(state, train=train), StepMetrics(
            self.model.tasks, lambda: found(0)
        )

    def params(self, state: LoopState) -> Params:
        """Returns all parameters of a state, including low-rank factors, as numpy arrays.

        If the optimizer averages the trained parameters, the average is returned.
        """
        trainable = self._runner.unplace(state.train)[0].swapped().trainable
        merged = Partition.merge(trainable, self._runner.fetch(state.frozen))
        return jax.tree.map(np.asarray, merged)

    def _spec(self, data: Data | None, like: Any = None) -> ModelSpec:
        positions = self.model.encoder.config.max_length
        return self.model.spec(
            max_length=data.inputs.reader.max_length if data else positions,
            parallel=self._parallel,
            losses=self._losses,
            like=like,
        )

    def _template(self, spec: ModelSpec, blocks: Any, steps_per_epoch: int) -> Template:
        depth = self.frozen_depth
        method, optimizer = self._weighting, self._optimizer
        return Template(
            spec.model().clone(
                states_depth=depth if self._cache else 0,
                blocks=blocks,
                head_dropout=self._head_dropout,
            ),
            optimizer.adamw if isinstance(optimizer, Optimizer) else optimizer,
            depth,
            make_weighting(method, steps_per_epoch) if isinstance(method, str) else method,
            self._micro_batches,
            r_drop=self._r_drop,
        )

    def _compiled_step(self, batch: TrainBatch) -> CompiledTrainStep:
        """The compiled step for the batches of a plan."""
        plan = batch.plan
        if id(plan) not in self._compiled_steps:
            self._check(batch.data)
            spec = self._spec(batch.data, plan.layout)
            made = CompiledTrainStep(
                self._template(spec, plan.layout.blocks, plan.steps),
                self._numbers,
                plan.layout,
                parallel=self._parallel,
                on_pooled=self._pooled,
            )
            self._compiled_steps[id(plan)] = made, plan
        return self._compiled_steps[id(plan)][0]

    def _check(self, data: Data) -> None:
        """Refuses data of other tasks, and losses that can't be computed for them."""
        there = {task.name: task.outputs for task in data.tasks}
        for task in self.model.tasks:
            if there.get(task.name) != task.outputs:
                raise UserError(
                    f"the batch is of data without the model's task {task.name!r}, or with other "
                    "classes of it: make the model of the same data, MultiTaskModel(encoder, "
                    "data.tasks)"
                )
        soft = data.train.texts.soft
        tasks = {task.name: task for task in self.model.tasks}
        for name, loss in self._losses:
            check_loss(loss, f"the loss of {name}", tasks[name], soft=name in soft)

    def _as_read(
        self, backbone: Stages, batch: TrainBatch, compiled_step: CompiledTrainStep
    ) -> tuple[Any, Any]:
        """The training texts with what the frozen bottom makes of them, and what is on devices."""
        data, key = batch.data, (id(batch.data), id(backbone))
        if key not in self._texts:
            texts = data.train.texts
            if self._cache:
                alone = jax.process_count() > 1
                spec = dataclasses.replace(self._spec(data, batch.plan.layout), alone=alone)
                prefix = FrozenActivations(spec, evaluator(spec), backbone, data.inputs.store)
                if self._pooled:
                    texts, _ = prefix.pooled(texts)
                else:
                    texts, _ = prefix.states(texts, self.frozen_depth)
            self._texts[key] = texts, compiled_step.vectors(texts), (data, backbone)
        return self._texts[key][:2]


def evaluate(
    model: MultiTaskModel,
    params: Params,
    split: Split,
    *,
    metrics: Mapping[str, Callable[[np.ndarray, np.ndarray], Any]] | None = None,
    parallel: Parallel = "auto",
) -> Metrics:
    """Measures parameters on a split, without dropout.

        scores = mtl.evaluate(model, params, data.validation)
        scores["topic"]["macro_f1"]

    Args:
        model: The model.
        params: All of its parameters.
        split: A split of ``load_data``.
        metrics: Additional metrics by name, (labels, predictions) -> number, as ``--metrics`` names
            them.
        parallel: See ``TrainConfig``.

    Returns:
        For each task ``accuracy``, ``macro_f1``, ``loss`` (the mean, in nats), ``examples`` and
        ``weighted_f1_by_source``, and the additional metrics.

    Raises:
        UserError: An argument has another type, or an additional metric has the name of another
            one, or fails.
    """
    require_type(model, MultiTaskModel, "model", "give a MultiTaskModel")
    model.refuse_other_params(params)
    require_type(split, Split, "split", "give a split of load_data, such as data.validation")
    remedy = 'give functions by name, such as {"kappa": kappa}'
    require_type(metrics or {}, Mapping, "metrics", remedy)
    own = []
    for name, function in (metrics or {}).items():
        refuse_built_in(name, "metrics")
        own.append((name, make_metric(function, model.tasks, f"the metric {name}")))
    longest = max(int(split.texts.tokens.lengths.max(initial=1)), split.max_length or 1)
    measured = evaluator(model.spec(max_length=longest, parallel=parallel, like=split.like))
    classes = {task.name: task.classes for task in model.tasks}
    # Whatever they are, what is compiled is the same.
    logits, losses = measured.logits(measured.runner.replicate(params), split.texts)
    return measured.metrics_of(split.examples, logits, losses, classes, own)
