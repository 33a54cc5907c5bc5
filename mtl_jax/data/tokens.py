"""Texts to token ids."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from typing import TYPE_CHECKING

import numpy as np

from mtl_jax.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

# Enough for the tokenizer's threads to share, few enough to keep the memory small.
_CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The token ids of n texts, one after the other.

    Each text is a single segment, so that its token types are all 0.
    """

    ids: np.ndarray
    """int32 [total]"""
    offsets: np.ndarray
    """int64 [n + 1]: text i is ``ids[offsets[i]:offsets[i + 1]]``"""
    truncated: int
    """texts that were cut to the maximal length"""
    empty: int
    """texts with nothing but special tokens"""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n]: the tokens of each text, special ones included."""
        return np.diff(self.offsets)

    def take(self, indices: np.ndarray) -> tuple[Tokens, np.ndarray]:
        """Picks texts.

        Args:
            indices: int [m]; the result has them in this order.

        Returns:
            Their ids, with nothing said of what was cut or is empty among them; and where
            each of the ids was, int64 [total].
        """
        lengths = self.lengths[indices]
        offsets = np.append(0, np.cumsum(lengths))
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[indices] - offsets[:-1], lengths)
        return Tokens(self.ids[places], offsets, truncated=0, empty=0), places

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the ids and of where each text ends."""
        hasher = hashlib.sha256(f"{self.ids.dtype} {self.offsets.dtype} {len(self)}\n".encode())
        hasher.update(np.ascontiguousarray(self.offsets).view(np.uint8).data)
        hasher.update(np.ascontiguousarray(self.ids).view(np.uint8).data)
        return hasher.hexdigest()


def special_tokens(tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
    """How many special tokens each text has, beside which it needs room.

    Raises:
        UserError: max_length leaves none.
    """
    special = tokenizer.num_special_tokens_to_add()
    if max_length <= special:
        raise UserError(
            f"--max-length {max_length} leaves no room beside {special} special tokens: "
            f"use at least {special + 1}"
        )
    return special


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> Tokens:
    """Tokenises texts, each a single segment with its special tokens.

    Args:
        tokenizer: What ``tokenizer.load_tokenizer`` gives.
        texts: n texts.
        max_length: Tokens kept of each text; a cut text keeps its special tokens.

    Raises:
        UserError: max_length leaves no room beside the special tokens.
    """
    special = special_tokens(tokenizer, max_length)
    ids, lengths, truncated = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)], 0
    for start in range(0, len(texts), _CHUNK):
        chunk = list(texts[start : start + _CHUNK])
        encoded = _ids(tokenizer, chunk, max_length)
        full = [i for i, text_ids in enumerate(encoded) if len(text_ids) == max_length]
        # A full text may have fitted exactly: only its untruncated length tells.
        whole = _ids(tokenizer, [chunk[i] for i in full], None) if full else []
        truncated += sum(len(text_ids) > max_length for text_ids in whole)
        lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        ids.append(np.fromiter(itertools.chain.from_iterable(encoded), np.int32))
    all_lengths = np.concatenate(lengths)
    return Tokens(
        ids=np.concatenate(ids),
        offsets=np.concatenate([[0], np.cumsum(all_lengths)]),
        truncated=truncated,
        empty=int(np.sum(all_lengths <= special)),
    )


def _ids(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int | None
) -> list[list[int]]:
    encoded = tokenizer(
        texts,
        truncation=max_length is not None,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return encoded["input_ids"]  # pyright: ignore[reportReturnType]  (lists unless asked else)
