"""Token ids that are computed once and kept, for every process that reads the same texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np

from mtl_jax.core.versions import version
from mtl_jax.data.texts import content_digest
from mtl_jax.data.tokens import Tokens
from mtl_jax.training.cache.array_store import ArrayStore

# To be raised when ids are made, or laid out, in another way.
_VERSION = 1
_HEADER = 4


class TokenStore:
    """The tokens of one tokenizer in a store.

    A file is the int32 vector of the numbers of texts, of those that were cut and of empty ones,
    of whether there are types, then the length of each text, all ids, and all types.

    Args:
        store: Where they are kept.
        tokenizer: Digest of the tokenizer's files.
    """

    def __init__(self, store: ArrayStore, tokenizer: str):
        self._store, self._tokenizer = store, tokenizer

    def get(
        self, texts: Sequence[str], max_length: int, *, types: bool, make: Callable[[], Tokens]
    ) -> Tokens:
        """The tokens of texts, mapped from their file; ``make`` makes them where there is none.

        Args:
            texts: n texts.
            max_length: As of ``tokenize``.
            types: As of ``tokenize``.
            make: Calls that.
        """
        parts = {
            "version": _VERSION,
            "texts": content_digest(texts),
            "tokenizer": self._tokenizer,
            "max_length": max_length,
            "types": types,
            "versions": [version(package) for package in ("transformers", "tokenizers")],
        }
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return _tokens(self._store.vector(key, np.int32, lambda: _vector(make())))


def _vector(tokens: Tokens) -> np.ndarray:
    counts = [len(tokens), tokens.truncated, tokens.empty, tokens.types is not None]
    parts = [np.array(counts, np.int32), tokens.lengths.astype(np.int32), tokens.ids]
    return np.concatenate([*parts, *([] if tokens.types is None else [tokens.types])])


def _tokens(vector: np.ndarray) -> Tokens:
    # A view that is no memmap: each slice of one would cost more than the slice.
    vector = np.asarray(vector)
    count, truncated, empty, typed = vector[:_HEADER].tolist()
    lengths, rest = vector[_HEADER : _HEADER + count], vector[_HEADER + count :]
    offsets = np.append(0, np.cumsum(lengths, dtype=np.int64))
    total = int(offsets[-1])
    types = rest[total:] if typed else None
    return Tokens(rest[:total], offsets, truncated, empty, types)
