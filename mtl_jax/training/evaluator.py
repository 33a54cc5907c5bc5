"""Runs the model over whole splits, and turns logits into metrics."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.config.model import Placement, Pooling
from mtl_jax.config.tasks import Task
from mtl_jax.data.batches import HostBatch, TextSet, evaluation_batches
from mtl_jax.data.examples import Examples
from mtl_jax.data.kinds import has_label
from mtl_jax.data.packing.plan import Layout, evaluation_layout, likely_layout
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.fused_attention import cudnn_can
from mtl_jax.models.multitask import Head, Loss, MultiTaskModule
from mtl_jax.training.cache.array_file import Write
from mtl_jax.training.executables import Compiled
from mtl_jax.training.extensions import Metric
from mtl_jax.training.inputs import Split
from mtl_jax.training.kinds.base import Metrics
from mtl_jax.training.kinds.registry import kind_of
from mtl_jax.training.metrics import split_metrics
from mtl_jax.training.runners import Runner, make_runner
from mtl_jax.training.step import eval_step, pooled_at_step, pooled_step, states_step

NEIGHBOURS = 20

# Enough tokens to keep a device busy; what a CPU's caches hold is a twentieth faster there.
CPU_TOKENS = 1024
_TOKENS_ELSEWHERE = 8192


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What a model is built and its evaluation compiled from.

    ``classes`` is ``(task, outputs)`` of each head, ``scales`` ``(task, (mean, deviation))`` of
    each regression; see ``Task``. ``like`` is the layout of training batches, whose texts those to
    evaluate are taken to resemble; without one, nothing is taken for granted but ``max_length``.
    ``alone`` is for what each of several processes computes for itself.
    """

    bert: EncoderConfig
    classes: tuple[tuple[str, int], ...]
    pooling: Pooling
    dtype: str
    max_length: int
    parallel: Placement = "auto"
    fused_attention: bool = True
    heads: tuple[tuple[str, Head], ...] = ()
    losses: tuple[tuple[str, Loss], ...] = ()
    metrics: tuple[tuple[str, Metric], ...] = ()
    scales: tuple[tuple[str, tuple[float, float]], ...] = ()
    like: Layout | None = None
    alone: bool = False

    def model(self) -> MultiTaskModule:
        """The Flax module."""
        dtype = jnp.dtype(self.dtype)
        fused = "cudnn" if self.fused_attention and cudnn_can(self.bert, dtype) else None
        return MultiTaskModule(
            self.bert,
            self.classes,
            self.pooling,
            dtype,
            fused=fused,
            heads=self.heads,
            losses=self.losses,
        )


class Evaluator:
    """The compiled evaluation steps of one model, for any parameters.

    Attributes:
        model: The model.
        layout: The shape of the batches.
        runner: How the steps run; parameters are given as it replicates them.
    """

    def __init__(self, spec: ModelSpec):
        self.runner: Runner = make_runner(spec.parallel, alone=spec.alone)
        self._spec, self._tokens = spec, _TOKENS_ELSEWHERE
        if jax.default_backend() == "cpu":
            self._tokens = CPU_TOKENS
        self.layout = evaluation_layout(
            spec.max_length, self._tokens, self.runner.devices, spec.like
        )
        self.model = spec.model().clone(blocks=self.layout.blocks)
        self._metrics, self._scales = spec.metrics, dict(spec.scales)
        self._steps: dict[Any, Compiled] = {}

    def fitted(self, lengths: np.ndarray) -> Evaluator:
        """Returns the evaluator of the same model for texts that are about as long as some are.

        Any text still fits; in short blocks attention costs less. An evaluator that is made for
        known texts stays as it is.

        Args:
            lengths: int [n], tokens of some of the texts.
        """
        if self._spec.like is not None:
            return self
        size = self._spec.bert.hidden_size
        like = likely_layout(lengths, self._spec.max_length, self._tokens, size)
        return evaluator(dataclasses.replace(self._spec, like=like))

    @property
    def compile_seconds(self) -> float:
        """What compiling took so far."""
        return sum(step.seconds for step in self._steps.values())

    def _step(self, step: Callable[..., Any], texts: TextSet, *static: Any) -> Compiled:
        """The step, compiled for what batches of ``texts`` hold."""
        key = (step, texts.depth, texts.pooled is None, *static)
        if key not in self._steps:
            model = self.model.clone(states_depth=texts.depth)
            bound = (model, *static) if static else model
            self._steps[key] = Compiled(self.runner, step, bound)
        return self._steps[key]

    def frozen_step(self, texts: TextSet, depth: int | None) -> Compiled:
        """The compiled step of ``states`` at a depth, or of ``pooled`` where that is None."""
        if depth is None:
            return self._step(pooled_step, texts)
        return self._step(states_step, texts, depth)

    def batches(self, texts: TextSet) -> Iterator[HostBatch]:
        """Every text once; to be made elsewhere than where the batches are run."""
        return evaluation_batches(texts, self.layout, self.runner.own(self.layout.rows))

    def logits(
        self, params: Any, texts: TextSet, batches: Iterable[HostBatch] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, float | None]]:
        """Per task float32 [n, outputs], and the mean loss over its labels.

        Args:
            params: The parameters, as ``runner`` replicates them.
            texts: n texts.
            batches: Their ``batches``, where these have been made already.
        """
        step = self._step(eval_step, texts)
        losses = []

        def run(batch: Any) -> Any:
            logits, of_batch = step(params, batch)
            # Looked at when all batches are on their way: to add them up here would wait.
            losses.append(self.runner.fetch(of_batch))
            return logits

        logits = self._collect(run, texts, batches)
        totals = {
            task: sum((np.array(each[task], np.float64) for each in losses), np.zeros(2))
            for task in self.model.tasks
        }
        return logits, {
            task: float(total / count) if count else None for task, (total, count) in totals.items()
        }

    def pooled(
        self,
        params: Any,
        texts: TextSet,
        batches: Iterable[HostBatch] | None = None,
        depth: int | None = None,
    ) -> np.ndarray:
        """The pooled vectors, float32 [n, hidden].

        Args:
            params: As of ``logits``.
            texts: As of ``logits``.
            batches: As of ``logits``.
            depth: Of the token states that are pooled: 1 is what the embeddings make, 1 + k what
                k layers do; by default that of all layers.
        """
        if depth is None:
            step = self.frozen_step(texts, None)
        else:
            step = self._step(pooled_at_step, texts, depth)
        return self._collect(functools.partial(step, params), texts, batches)

    def states(self, params: Any, texts: TextSet, depth: int, write: Write) -> None:
        """Computes the token states at ``depth`` and writes them in the order of the ids.

        Of several processes each does this ``alone``.
        """
        step = functools.partial(self.frozen_step(texts, depth), params)
        offsets = texts.tokens.offsets.tolist()
        for batch, rows in self._run(step, texts):
            # Row by row and text by text, as in ``example``, wherever in its row a text lies.
            segments = batch["segment_ids"]
            row, token = np.nonzero(segments)
            order = np.lexsort((segments[row, token], row))
            states = rows[row[order], token[order]]
            start = 0
            for text in batch["example"][batch["example"] >= 0].tolist():
                stop = start + offsets[text + 1] - offsets[text]
                write(offsets[text], states[start:stop])
                start = stop

    def _run(
        self,
        step: Callable[[Any], Any],
        texts: TextSet,
        batches: Iterable[HostBatch] | None = None,
    ) -> Iterator[tuple[HostBatch, Any]]:
        """Every batch with what ``step`` makes of it, on the host.

        The next batch is made and sent off before the last one is waited for.
        """
        waiting: tuple[HostBatch, Any] | None = None
        for batch in self.batches(texts) if batches is None else batches:
            inputs = {name: array for name, array in batch.items() if name != "example"}
            sent = batch, step(self.runner.shard(inputs))
            if waiting:
                yield waiting[0], self.runner.gather(waiting[1])
            waiting = sent
        if waiting:
            yield waiting[0], self.runner.gather(waiting[1])

    def _collect(
        self, step: Callable[[Any], Any], texts: TextSet, batches: Iterable[HostBatch] | None
    ) -> Any:
        outputs: list[Any] = []
        examples: list[np.ndarray] = []
        for batch, rows in self._run(step, texts, batches):
            used = batch["example"] >= 0
            outputs.append(jax.tree.map(lambda leaf, used=used: leaf[used], rows))
            examples.append(batch["example"][used])
        order = np.argsort(np.concatenate(examples))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[order], *outputs)

    def metrics(self, params: Any, split: Split, classes: Mapping[str, Sequence[str]]) -> Metrics:
        """``metrics.split_metrics`` of a split, and the mean ``loss`` per task.

        A loss is in nats, of a regression the mean squared error of standardised labels.
        """
        return self.measure(params, split, classes)[0]

    def measure(
        self, params: Any, split: Split, classes: Mapping[str, Sequence[str]]
    ) -> tuple[Metrics, dict[str, np.ndarray]]:
        """``metrics`` and the ``logits`` that they come from."""
        logits, losses = self.logits(params, split.texts)
        return self.metrics_of(split.examples, logits, losses, classes), logits

    def metrics_of(
        self,
        examples: Examples,
        logits: Mapping[str, np.ndarray],
        losses: Mapping[str, float | None],
        classes: Mapping[str, Sequence[str]],
        own: Iterable[tuple[str, Metric]] = (),
    ) -> Metrics:
        """``metrics`` of examples whose logits and mean losses are known, and metrics beside."""
        kinds = {task: kind_of(labels) for task, labels in examples.labels.items()}
        predicted = {
            task: kinds[task].predicted(values, *self._scales.get(task, ()))
            for task, values in logits.items()
        }
        probabilities = probabilities_of(examples.labels, logits)
        result = split_metrics(examples.labels, predicted, classes, examples.groups, probabilities)
        for task, loss in losses.items():
            result[task]["loss"] = loss
            labels = examples.labels[task]
            there = has_label(labels)
            for name, metric in (*self._metrics, *own):
                if kinds[task].name not in metric.kinds:
                    continue
                found = metric(labels[there], predicted[task][there]) if there.any() else math.nan
                # JSON has no NaN, which scikit-learn gives where a metric is not defined.
                result[task][name] = found if math.isfinite(found) else None
        return result


def probabilities_of(
    labels: Mapping[str, np.ndarray], logits: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Those of the classes, float32 [n, classes], of each task that has any."""
    found = {task: kind_of(labels[task]).probabilities(values) for task, values in logits.items()}
    return {task: values for task, values in found.items() if values is not None}


def of_tasks(tasks: Iterable[Task]) -> dict[str, Any]:
    """What ``ModelSpec`` is told of the tasks, as keyword arguments."""
    tasks = tuple(tasks)
    return {
        "classes": tuple((task.name, task.outputs) for task in tasks),
        "scales": tuple(
            (task.name, (task.mean, task.deviation)) for task in tasks if task.kind == "regression"
        ),
    }


@functools.lru_cache(maxsize=8)
def evaluator(spec: ModelSpec) -> Evaluator:
    """The evaluator of ``spec``; a process compiles it once."""
    return Evaluator(spec)


def neighbour_probe(known: Split, asked: Split, classes: Mapping[str, Sequence[str]]) -> Metrics:
    """What frozen vectors tell without any training: a vote of the nearest neighbours.

    Args:
        known: A split with ``pooled`` vectors and labels.
        asked: The split to predict, with ``pooled`` vectors.
        classes: Per task the names of its classes.

    Returns:
        ``metrics.split_metrics`` of the majority, of a regression the mean, among the
        ``NEIGHBOURS`` vectors of ``known`` with the largest cosine similarity.
    """
    features, queries = known.texts.pooled, asked.texts.pooled
    if features is None or queries is None:
        raise ValueError("both splits need pooled vectors")
    predicted = {}
    for task in classes:
        labels = known.examples.labels[task]
        kind, present = kind_of(labels), has_label(labels)
        if present.any():
            vote = kind.neighbours(min(NEIGHBOURS, int(present.sum())))
            predicted[task] = kind.fitted(vote, features[present], labels[present], [queries])
        else:
            predicted[task] = kind.constant(labels[present], len(asked.texts), len(classes[task]))
    return split_metrics(asked.examples.labels, predicted, classes, asked.examples.groups)


def probe_flops(known: Split, asked: Split) -> int:
    """FLOPs of ``neighbour_probe``: of each product of a vector of ``asked`` with one of ``known``.

    With n labels of a task, m texts to predict and vectors of width h that is ``2 n m h``; the
    votes are not in it.
    """
    width = 0 if known.texts.pooled is None else known.texts.pooled.shape[1]
    labels = sum(int(has_label(of_task).sum()) for of_task in known.examples.labels.values())
    return 2 * width * labels * len(asked.texts)


def majority_baseline(known: Split, asked: Split, classes: Mapping[str, Sequence[str]]) -> Metrics:
    """Chance: every example is given the most frequent class of ``known``, or the mean."""
    predicted = {}
    for task in classes:
        labels = known.examples.labels[task]
        there, size = labels[has_label(labels)], len(classes[task])
        predicted[task] = kind_of(labels).constant(there, len(asked.texts), size)
    return split_metrics(asked.examples.labels, predicted, classes, asked.examples.groups)
