"""Texts to token ids."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from mtl_jax.core.errors import UserError
from mtl_jax.data.pairs import Pair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

# Enough for the tokenizer's threads to share, few enough to keep the memory small.
_CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The token ids of n texts, one after the other."""

    ids: np.ndarray
    """int32 [total]"""
    offsets: np.ndarray
    """int64 [n + 1]: text i is ``ids[offsets[i]:offsets[i + 1]]``"""
    truncated: int
    """texts that were cut to the maximal length"""
    empty: int
    """texts with nothing but special tokens"""
    types: np.ndarray | None = None
    """int32 [total], the token types, where there are pairs and the backbone tells types apart;
    None where all are 0"""

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
        types = None if self.types is None else self.types[places]
        return Tokens(self.ids[places], offsets, truncated=0, empty=0, types=types), places

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the ids, of where each text ends, and of the types where there are some."""
        hasher = hashlib.sha256(f"{self.ids.dtype} {self.offsets.dtype} {len(self)}\n".encode())
        hasher.update(np.ascontiguousarray(self.offsets).view(np.uint8).data)
        hasher.update(np.ascontiguousarray(self.ids).view(np.uint8).data)
        if self.types is not None:
            hasher.update(np.ascontiguousarray(self.types).view(np.uint8).data)
        return hasher.hexdigest()


def special_tokens(
    tokenizer: PreTrainedTokenizerBase, max_length: int, *, pairs: bool = False
) -> int:
    """How many special tokens each text, or each pair, has, beside which it needs room.

    Raises:
        UserError: max_length leaves none.
    """
    special = tokenizer.num_special_tokens_to_add(pair=pairs)
    least = special + (2 if pairs else 1)
    if max_length < least:
        raise UserError(
            f"--max-length {max_length} leaves no room beside {special} special tokens"
            f"{' of a pair' if pairs else ''}: use at least {least}"
        )
    return special


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, *, types: bool = True
) -> Tokens:
    """Tokenises texts with their special tokens.

    A text is a single segment, whose token types are 0. A ``Pair`` is two, with special tokens
    between them and the types that the tokenizer gives; of one that is too long, tokens are taken
    off the end of the longer of its texts until it fits.

    Args:
        tokenizer: What ``tokenizer.load_tokenizer`` gives.
        texts: n texts, pairs among them.
        max_length: Tokens kept of each text; a cut text keeps its special tokens.
        types: Whether the backbone has token types, which are then given where there are pairs.

    Raises:
        UserError: max_length leaves no room beside the special tokens.
    """
    are_pairs = np.fromiter((isinstance(text, Pair) for text in texts), bool, len(texts))
    with_types = types and bool(are_pairs.any())
    special = np.zeros(2, np.int64)
    for pairs in {False, *are_pairs.tolist()}:
        special[int(pairs)] = special_tokens(tokenizer, max_length, pairs=pairs)
    all_types = [np.zeros(0, np.int32)]
    ids, lengths, truncated = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)], 0
    for start in range(0, len(texts), _CHUNK):
        chunk = list(texts[start : start + _CHUNK])
        encoded, of_types = _encoded(tokenizer, chunk, max_length, with_types)
        full = [i for i, text_ids in enumerate(encoded) if len(text_ids) == max_length]
        # A full text may have fitted exactly: only its untruncated length tells.
        whole = _encoded(tokenizer, [chunk[i] for i in full], None, False)[0] if full else []
        truncated += sum(len(text_ids) > max_length for text_ids in whole)
        lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        ids.append(np.fromiter(itertools.chain.from_iterable(encoded), np.int32))
        all_types.append(np.fromiter(itertools.chain.from_iterable(of_types), np.int32))
    all_lengths = np.concatenate(lengths)
    return Tokens(
        ids=np.concatenate(ids),
        offsets=np.concatenate([[0], np.cumsum(all_lengths)]),
        truncated=truncated,
        empty=int(np.sum(all_lengths <= special[are_pairs.astype(int)])),
        types=np.concatenate(all_types) if with_types else None,
    )


def _encoded(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int | None, types: bool
) -> tuple[list[list[int]], list[list[int]]]:
    """The ids of each text, and its token types if asked for."""
    inputs: list[Any] = texts
    if any(isinstance(text, Pair) for text in texts):
        inputs = [(text.first, text.second) if isinstance(text, Pair) else text for text in texts]
    encoded: Any = tokenizer(
        inputs,
        truncation="longest_first" if max_length is not None else False,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=types,
        verbose=False,
    )
    return encoded["input_ids"], encoded["token_type_ids"] if types else []
