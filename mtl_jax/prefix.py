"""What the frozen bottom of the backbone makes of the texts, computed once and kept.

A depth says how much of the bottom is frozen: 1 + k is the embeddings and k layers, whose
result is the input of layer k.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batches import TextSet
from mtl_jax.evaluate import Evaluator, ModelSpec
from mtl_jax.freeze import Params, digest
from mtl_jax.store import Store, Write

# The embeddings alone cost less to compute than to keep: activations are kept from here on.
SHALLOWEST = 2

# To be raised when files are made in another way.
_VERSION = 1


class Prefix:
    """One backbone's frozen bottom.

    Args:
        spec: The model.
        evaluator: Its compiled evaluation.
        backbone: The backbone's parameters, on the host.
        store: Where the activations are kept.
    """

    def __init__(self, spec: ModelSpec, evaluator: Evaluator, backbone: Params, store: Store):
        self._spec, self._evaluator = spec, evaluator
        self._backbone, self._store = backbone, store

    def states(self, texts: TextSet, depth: int) -> tuple[TextSet, float]:
        """Texts with their token states.

        They are computed from the deepest shallower ones that are kept, else from the ids.

        Args:
            texts: n texts, without ``states``.
            depth: From ``SHALLOWEST`` to 1 + the number of layers.

        Returns:
            The texts, and the seconds that computing their states took in this process,
            without compilation.
        """
        key = self.key(texts, depth)

        def fill(write: Write) -> None:
            source = self._deepest(texts, depth)
            self._evaluator.states(self._params(), source, depth, write)

        shape = (len(texts.tokens.ids), self._spec.bert.hidden_size)
        states = self._get(key, shape, self._spec.dtype, fill)
        found = dataclasses.replace(texts, states=states, depth=depth)
        return found, self._store.seconds.get(key, 0.0)

    def pooled(self, texts: TextSet) -> tuple[TextSet, float]:
        """Texts with their ``pooled`` vectors, where the whole backbone is frozen.

        Args and returns: as of ``states``.
        """
        layers = self._spec.bert.num_hidden_layers
        key = self.key(texts, None)

        def fill(write: Write) -> None:
            source = self._deepest(texts, 2 + layers)
            write(0, self._evaluator.pooled(self._params(), source))

        shape = (len(texts), self._spec.bert.hidden_size)
        vectors = self._get(key, shape, "float32", fill)
        return dataclasses.replace(texts, pooled=vectors), self._store.seconds.get(key, 0.0)

    def _get(
        self, key: str, shape: tuple[int, int], dtype: str, fill: Callable[[Write], None]
    ) -> np.ndarray:
        def working() -> float:
            return time.perf_counter() - self._evaluator.compile_seconds

        def timed(write: Write) -> None:
            started = working()
            fill(write)
            self._store.seconds[key] = working() - started

        return self._store.get(key, shape, jnp.dtype(dtype), timed)

    def _params(self) -> Params:
        return self._evaluator.runner.replicate({"backbone": self._backbone})

    def _deepest(self, texts: TextSet, below: int) -> TextSet:
        for depth in range(below - 1, SHALLOWEST - 1, -1):
            if self.key(texts, depth) in self._store:
                return self.states(texts, depth)[0]
        return texts

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
            "bert": dataclasses.asdict(self._spec.bert),
            "ids": hashlib.sha256(texts.tokens.ids.tobytes()).hexdigest(),
            "offsets": hashlib.sha256(texts.tokens.offsets.tobytes()).hexdigest(),
            "dtype": self._spec.dtype,
            "fused": self._evaluator.model.fused,
            "layout": dataclasses.asdict(self._evaluator.layout),
            "devices": [device.device_kind for device in jax.local_devices()],
            "runner": type(self._evaluator.runner).__name__,
            "jax": version("jax"),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _weights(self, depth: int | None) -> str:
        names = ["embeddings", *(f"layer_{i}" for i in range((depth or 1) - 1))]
        below = self._backbone if depth is None else {n: self._backbone[n] for n in names}
        return digest(below)
