"""The splits as one phase of a run reads them: with what the frozen layers make of their texts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from mtl_jax.core import distributed
from mtl_jax.data.batches import TextSet
from mtl_jax.runs.phase_plan import PhasePlan, on_the_way
from mtl_jax.training.cache.array_file import file_bytes
from mtl_jax.training.frozen_activations import SHALLOWEST, FrozenActivations
from mtl_jax.training.inputs import Inputs, Split


class CachedSplits:
    """Splits whose activations at the phase's boundary are kept.

    Args:
        inputs: Those of the run.
        plans: Its phases.
        index: Which of them this is.
        prefix: The frozen bottom of its backbone.
        keep: Whether anything of it is kept; else the splits are those of ``inputs``.

    Attributes:
        training_seconds: What the frozen layers take to make of the training texts, from their
            ids, what the phase keeps of it, in full even where it was kept before; 0 where
            nothing is kept.
    """

    def __init__(
        self,
        inputs: Inputs,
        plans: Sequence[PhasePlan],
        index: int,
        prefix: FrozenActivations,
        keep: bool,
    ):
        self.training_seconds = 0.0
        self._inputs, self._plans, self._index = inputs, plans, index
        self._prefix, self._keep = prefix, keep
        self._layers = inputs.bert.num_hidden_layers
        self._depth = plans[index].partition.depth(self._layers)
        self._pooled = plans[index].partition.backbone_frozen
        self._splits: dict[str, Split] = {}

    def get(self, name: str) -> Split:
        """A split; ``training`` is the training texts with a label for a task that counts."""
        if name not in self._splits:
            split = self._texts(name)
            if split is self._texts("train"):
                name = "train"
            if name not in self._splits:
                if self._keep:
                    # A disk may be full for one process only, and the others would wait for it.
                    split = distributed.call_on_all(functools.partial(self._with_kept, split, name))
                self._splits[name] = split
        return self._splits[name]

    def release(self) -> None:
        """Lets them make room for those of others; they are recreated if asked for."""
        self._splits.clear()
        self._prefix.release()

    def _texts(self, name: str) -> Split:
        if name == "training":
            return self._inputs.training(self._plans[self._index].phase.tasks)
        return self._inputs.split(name)

    def _with_kept(self, split: Split, name: str) -> Split:
        source = _kept_of(split)
        for depth in self._worth_keeping(split, name):
            self._prefix.states(source, depth)
        if self._pooled:
            texts, seconds = self._prefix.pooled(source)
        else:
            texts, seconds = self._prefix.states(source, self._depth)
        if split.places is not None:
            seconds *= len(split.texts.tokens.ids) / len(source.tokens.ids)
            texts = dataclasses.replace(texts.take(split.places), tokens=split.texts.tokens)
        if name in ("train", "training"):
            self.training_seconds = seconds
        # A draw may have fewer labels than those that it was drawn from.
        texts = dataclasses.replace(texts, labels=split.texts.labels, soft=split.texts.soft)
        return dataclasses.replace(split, texts=texts)

    def _worth_keeping(self, split: Split, name: str) -> list[int]:
        """Depths on the way to this one that later phases start from, where there is room.

        That is room beside all that this phase itself has still to keep.
        """
        if name == "test":
            return []
        texts = self._plans[self._index].texts
        alike = {
            depth
            for index, depth in on_the_way(self._plans, self._index, self._layers).items()
            if name == "validation" or self._plans[index].texts == texts
        }
        depths = sorted(depth for depth in alike if SHALLOWEST <= depth < self._depth)
        own = None if self._pooled else self._depth
        forms = [self._prefix.form(_kept_of(split), depth) for depth in depths]
        forms += [self._prefix.form(_kept_of(each), own) for each in self._to_come()]
        files = sum(file_bytes(*form) for form in forms)
        return [] if self._inputs.store.refusals(files) else depths

    def _to_come(self) -> list[Split]:
        """The splits that have not been got; of two names for the same texts one.

        But for the test split, which is not read before the end.
        """
        names = ("training", "train", "validation")
        splits = [self._texts(name) for name in names if name not in self._splits]
        return list({id(split): split for split in splits}.values())


def _kept_of(split: Split) -> TextSet:
    """The texts of which it is kept what frozen layers make of them."""
    return split.texts if split.drawn_from is None else split.drawn_from
