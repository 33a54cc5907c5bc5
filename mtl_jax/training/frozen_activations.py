"""What the frozen bottom of the backbone makes of the texts, computed once and kept.

A depth says how much of the bottom is frozen: 1 + k is the embeddings and k layers, whose
result is the input of layer k.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable

import jax
import numpy as np

from mtl_jax.core.versions import version
from mtl_jax.data.batches import TextSet
from mtl_jax.freezing.partition import Params, Stages
from mtl_jax.training.cache.array_file import Write
from mtl_jax.training.cache.array_store import ArrayStore
from mtl_jax.training.evaluator import Evaluator, ModelSpec

# The embeddings alone cost less to compute than to keep: activations are kept from here on.
SHALLOWEST = 2

# To be raised when files are made in another way.
_VERSION = 5


class FrozenActivations:
    """One backbone's frozen bottom, for one run.

    What the run gets stays in the store for as long as this object lives, or until ``release``.

    Args:
        spec: The model.
        evaluator: Its compiled evaluation.
        backbone: The backbone's parameters.
        store: Where the activations are kept.
    """

    def __init__(self, spec: ModelSpec, evaluator: Evaluator, backbone: Stages, store: ArrayStore):
        self._spec, self._evaluator = spec, evaluator
        self._backbone, self._store = backbone, store

    def states(self, texts: TextSet, depth: int) -> tuple[TextSet, float]:
        """Texts with their token states.

        They are computed from the deepest shallower ones that are kept, else from the ids.

        Args:
            texts: n texts, without ``states``.
            depth: From ``SHALLOWEST`` to 1 + the number of layers.

        Returns:
            The texts, and the seconds that computing their states from the ids takes, without
            compilation: where they were computed from kept ones, or by another process, as
            much as all that took, so that the number does not depend on what is kept.
        """

        def fill(source: TextSet, write: Write) -> None:
            self._evaluator.states(self._params(), source, depth, write)

        states, seconds = self._get(texts, depth, fill)
        return dataclasses.replace(texts, states=states, depth=depth), seconds

    def pooled(self, texts: TextSet) -> tuple[TextSet, float]:
        """Texts with their ``pooled`` vectors, where the whole backbone is frozen.

        Args and returns: as of ``states``.
        """

        def fill(source: TextSet, write: Write) -> None:
            write(0, self._evaluator.pooled(self._params(), source))

        vectors, seconds = self._get(texts, None, fill)
        return dataclasses.replace(texts, pooled=vectors), seconds

    def _get(
        self, texts: TextSet, depth: int | None, fill: Callable[[TextSet, Write], None]
    ) -> tuple[np.ndarray, float]:
        key, form = self.key(texts, depth), self.form(texts, depth)
        if (array := self._store.find(key, *form)) is None:
            # Found before room is made, it has just been used, and makes room last.
            source, before = self._deepest(texts, depth)

            def working() -> float:
                return time.perf_counter() - self._evaluator.compile_seconds

            def timed(write: Write) -> float:
                started = working()
                fill(source, write)
                return before + working() - started

            array = self._store.make(key, *form, timed)
        self._store.use(key, self)
        return array, self._store.seconds[key]

    def _params(self) -> Params:
        return self._evaluator.runner.replicate({"backbone": self._backbone.params})

    def form(self, texts: TextSet, depth: int | None) -> tuple[tuple[int, int], np.dtype]:
        """Shape and type of what is kept of texts; the arguments are as of ``key``."""
        rows = len(texts) if depth is None else len(texts.tokens.ids)
        return (rows, self._spec.bert.hidden_size), np.dtype(np.float32)

    def release(self) -> None:
        """Lets what the run has got make room for others."""
        self._store.release(self)

    def _deepest(self, texts: TextSet, below: int | None) -> tuple[TextSet, float]:
        """The texts with the deepest states that are kept, and the seconds that these cost."""
        if below is None:
            below = 2 + self._spec.bert.num_hidden_layers
        for depth in range(below - 1, SHALLOWEST - 1, -1):
            key = self.key(texts, depth)
            states = self._store.find(key, *self.form(texts, depth))
            if states is not None:
                found = dataclasses.replace(texts, states=states, depth=depth)
                return found, self._store.seconds[key]
        return texts, 0.0

    def key(self, texts: TextSet, depth: int | None) -> str:
        """SHA-256 of everything that the activations depend on.

        The token ids stand for the texts, the tokenizer and the maximal length, from which
        they follow.

        Args:
            texts: The texts.
            depth: Of the token states; None for the pooled vectors.
        """
        parts = {
            "version": _VERSION,
            "depth": depth,
            "pooling": self._spec.pooling if depth is None else None,
            "weights": self._weights(depth),
            "bert": self._spec.bert.record(),
            "tokens": texts.tokens.digest,
            "dtype": self._spec.dtype,
            "fused": self._evaluator.model.fused,
            "layout": dataclasses.asdict(self._evaluator.layout),
            "devices": [device.device_kind for device in jax.local_devices()],
            "runner": type(self._evaluator.runner).__name__,
            "matmul_precision": jax.config.jax_default_matmul_precision,  # pyright: ignore[reportAttributeAccessIssue]
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "versions": [version(package) for package in ("jax", "jaxlib")],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _weights(self, depth: int | None) -> list[str]:
        below = ["embeddings", *(f"layer_{i}" for i in range((depth or 1) - 1))]
        stages = sorted(self._backbone.params) if depth is None else below
        return [self._backbone.digest(stage) for stage in stages]
