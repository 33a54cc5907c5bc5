"""Batches of packed texts, in an order that Grain shuffles and can resume."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import grain
import numpy as np

from mtl_jax.core.prefetch import begun
from mtl_jax.data.kinds import blank
from mtl_jax.data.packing.plan import Layout, PackingPlan, Placement, evaluation_plan
from mtl_jax.data.packing.shuffle import Shuffle
from mtl_jax.data.soft_labels import soft_name
from mtl_jax.data.tokens import Tokens

HostBatch = dict[str, np.ndarray]
"""A ``model.Batch`` on the host, or a process's rows of it, with ``example``: int32 [rows, slots],
which text it is, or -1, of the whole batch in any case."""

WHOLE = slice(None)

# Texts of an epoch from which on it is planned in a thread: below, that takes some milliseconds.
_PLANNED_AHEAD = 100_000


@dataclasses.dataclass(frozen=True)
class TextSet:
    """The texts of a split, ready to be batched.

    Attributes:
        tokens: Their ids.
        labels: Per task one label to a text: int32 [n], int8 [n, classes], or float32 [n].
        pooled: Their vectors, float32 [n, hidden], where these are a fixed function of the
            text; batches then hold them in the place of the tokens.
        states: What the frozen layers made of their tokens, [total, hidden], in the order of
            ``tokens.ids``; batches then hold them in the place of the ids.
        depth: Where ``states`` are from: 1 + k is the input of layer k.
        targets: Per task that is to be held, float32 [n, ...], such as probabilities; batches
            then have them as ``target_`` and the task's name, [rows, slots, ...], 0 elsewhere.
        soft: Per task that is trained on distributions, as of ``Examples``; batches to train on
            then have them under ``soft_name``, [rows, slots, classes], 0 elsewhere.
    """

    tokens: Tokens
    labels: Mapping[str, np.ndarray]
    pooled: np.ndarray | None = None
    states: np.ndarray | None = None
    depth: int = 0
    targets: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    soft: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"<TextSet: {len(self)} texts with labels for {', '.join(self.labels)}>"

    def take(self, indices: np.ndarray) -> TextSet:
        """Picks texts, int [m]; the result has them in this order."""
        tokens, places = self.tokens.take(indices)
        return TextSet(
            tokens,
            {task: labels[indices] for task, labels in self.labels.items()},
            None if self.pooled is None else self.pooled[indices],
            None if self.states is None else self.states[places],
            self.depth,
            {task: targets[indices] for task, targets in self.targets.items()},
            {task: shares[indices] for task, shares in self.soft.items()},
        )

    @property
    def beside(self) -> dict[str, np.ndarray]:
        """What batches have beside the labels, by name, float32 [n, ...]."""
        targets = {f"target_{task}": of_task for task, of_task in self.targets.items()}
        return targets | {soft_name(task): shares for task, shares in self.soft.items()}


def index_batch(layout: Layout, placement: Placement) -> HostBatch:
    """Which text is where, without the texts: ``example``, int32 [rows, slots], or -1."""
    example = np.full((layout.rows, layout.slots), -1, np.int32)
    example[placement.rows, _rank_in_group(placement.rows)] = placement.texts
    return {"example": example}


def make_batch(
    texts: TextSet, layout: Layout, placement: Placement, own: slice = WHOLE
) -> HostBatch:
    """Lays the texts of ``placement`` out in rows.

    Args:
        texts: The texts.
        layout: The shape.
        placement: Which of them go where.
        own: The rows that are wanted; the texts of others are not looked at.
    """
    batch = index_batch(layout, placement)
    first, stop, _ = own.indices(layout.rows)
    placement = placement.within(first, stop)
    cells = (stop - first, layout.slots)
    batch |= {task: blank(labels, cells) for task, labels in texts.labels.items()}
    slot = _rank_in_group(placement.rows)
    where = (placement.rows, slot)
    for task, labels in texts.labels.items():
        batch[task][where] = labels[placement.texts]
    for name, values in texts.beside.items():
        batch[name] = np.zeros((*cells, values.shape[1]), np.float32)
        batch[name][where] = values[placement.texts]
    if texts.pooled is not None:
        batch["pooled"] = np.zeros((*cells, texts.pooled.shape[1]), np.float32)
        batch["pooled"][where] = texts.pooled[placement.texts]
        return batch
    shape = (stop - first, layout.length)
    for name in ("segment_ids", "position_ids"):
        batch[name] = np.zeros(shape, np.int32)
    per_token = {"input_ids": texts.tokens.ids}
    if texts.states is not None:
        per_token = {"states": texts.states}
    elif texts.tokens.types is not None:
        per_token["token_type_ids"] = texts.tokens.types
    for name, values in per_token.items():
        batch[name] = np.zeros((*shape, *values.shape[1:]), values.dtype)
    places = zip(placement.texts, placement.rows, placement.starts, slot + 1, strict=True)
    for text, row, start, segment in places:
        of_text = slice(*texts.tokens.offsets[text : text + 2].tolist())
        length = of_text.stop - of_text.start
        span = slice(start, start + length)
        for name, values in per_token.items():
            batch[name][row, span] = values[of_text]
        batch["segment_ids"][row, span] = segment
        batch["position_ids"][row, span] = np.arange(length)
    return batch


def _rank_in_group(groups: np.ndarray) -> np.ndarray:
    """[2, 0, 2, 2, 0] -> [0, 0, 1, 2, 1]."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    sizes = np.diff(np.append(starts, len(groups)))
    rank = np.empty(len(groups), np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(starts, sizes)
    return rank


class EpochOrder:
    """The endless order of a run's data, shuffled as Grain does; it depends on the seed alone.

    Of many texts an epoch is planned in a thread before it is asked for: one that is under way,
    beside the one in use, is all that is kept.
    """

    def __init__(self, plan: PackingPlan, seed: int):
        seeds = np.random.SeedSequence(seed).generate_state(2).tolist()
        self._plan, self._seed = plan, seed
        self._texts, self._batches = (
            Shuffle(size, own_seed)
            for own_seed, size in zip(seeds, (plan.places, plan.steps), strict=True)
        )
        self._last: tuple[int, Sequence[Placement]] | None = None
        self._next: tuple[int, Callable[[], Sequence[Placement]]] | None = None

    def placements(self, epoch: int) -> Sequence[Placement]:
        """Where every text of an epoch goes, batch by batch."""
        if self._last is None or self._last[0] != epoch:
            if self._next is not None and self._next[0] == epoch:
                planned = self._next[1]()
                self._next = None
            else:
                planned = self._planned(epoch)
            self._last = epoch, planned
        return self._last[1]

    def prepare(self, epoch: int) -> None:
        """Has an epoch planned that is asked for before long, where that takes its time."""
        there = {each[0] for each in (self._last, self._next) if each is not None}
        if self._plan.places >= _PLANNED_AHEAD and epoch not in there:
            self._next = epoch, begun(partial(self._planned, epoch))

    def _planned(self, epoch: int) -> Sequence[Placement]:
        mixture = self._plan.mixture
        chosen = mixture.texts(self._seed, epoch) if mixture else None
        return self._plan.epoch(self._texts.of(epoch), self._batches.of(epoch), chosen)


def train_batches(
    texts: TextSet, plan: PackingPlan, seed: int, start: int, steps: int, own: slice = WHOLE
) -> grain.DatasetIterator[HostBatch]:
    """Batches of a run; the iterator's state can be saved and set.

    Every epoch of ``plan.steps`` batches holds every text once, or what the plan's mixture
    has of each, in an order that depends on ``seed`` and the epoch alone. Of texts with
    ``pooled`` vectors, which are on the device already, it gives the ``index_batch`` only.

    Args:
        texts: What the plan was made for.
        plan: Where they go.
        seed: Of the order, which has no end.
        start: The first batch.
        steps: How many batches.
        own: As of ``make_batch``.
    """
    order = EpochOrder(plan, seed)
    if steps:
        order.prepare(start // plan.steps)

    def batch(index: int) -> HostBatch:
        epoch, step = divmod(index, plan.steps)
        placement = order.placements(epoch)[step]
        if (epoch + 1) * plan.steps < start + steps:
            order.prepare(epoch + 1)
        if texts.pooled is not None:
            return index_batch(plan.layout, placement)
        return make_batch(texts, plan.layout, placement, own)

    dataset = grain.MapDataset.range(start, start + steps).map(batch)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(dataset.to_iter_dataset(options))


def evaluation_batches(texts: TextSet, layout: Layout, own: slice = WHOLE) -> Iterator[HostBatch]:
    """Every text once, in batches of one shape; ``own`` is as of ``make_batch``.

    They have no distributions: what is measured is measured against the labels.
    """
    texts = dataclasses.replace(texts, soft={})
    for placement in evaluation_plan(texts.tokens.lengths, layout):
        yield make_batch(texts, layout, placement, own)
