"""Texts to token ids."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mtl_jax.core.errors import UserError
from mtl_jax.core.file_lock import unwritable

if TYPE_CHECKING:
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


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int,
    folder: Path | None = None,
) -> Tokens:
    """Tokenises texts, each a single segment with its special tokens.

    Args:
        tokenizer: What ``tokenizer.load_tokenizer`` gives.
        texts: n texts.
        max_length: Tokens kept of each text; a cut text keeps its special tokens.
        folder: Where the ids are put in a file that has no name and ends with the process, from
            which they are mapped; by default they are in memory.

    Raises:
        UserError: max_length leaves no room beside the special tokens, or the folder none for ids.
    """
    special = special_tokens(tokenizer, max_length)
    lengths, truncated = [np.zeros(0, np.int64)], 0
    with _Ids(folder) as ids:
        for chunk in _chunks(texts):
            encoded = _ids(tokenizer, chunk, max_length)
            full = [i for i, text_ids in enumerate(encoded) if len(text_ids) == max_length]
            # A full text may have fitted exactly: only its untruncated length tells.
            whole = _ids(tokenizer, [chunk[i] for i in full], None) if full else []
            truncated += sum(len(text_ids) > max_length for text_ids in whole)
            lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
            ids.add(np.fromiter(itertools.chain.from_iterable(encoded), np.int32))
        all_ids = ids.all()
    all_lengths = np.concatenate(lengths)
    return Tokens(
        ids=all_ids,
        offsets=np.concatenate([[0], np.cumsum(all_lengths)]),
        truncated=truncated,
        empty=int(np.sum(all_lengths <= special)),
    )


class _Ids(contextlib.ExitStack):
    """Token ids as they come, in memory or in a file without a name in a folder."""

    def __init__(self, folder: Path | None):
        super().__init__()
        self._folder, self._file = folder, None
        self._parts = [np.zeros(0, np.int32)]
        if folder is not None:
            with self._writing():
                folder.mkdir(parents=True, exist_ok=True)
                file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed with the stack)
                self._file = self.enter_context(file)

    def add(self, ids: np.ndarray) -> None:
        """Takes the next ones, int32 [k]."""
        if self._file is None:
            self._parts.append(ids)
        elif len(ids):
            # Written, not mapped: a disk that fills is then an error, not a signal.
            with self._writing():
                self._file.write(ids.tobytes())

    def all(self) -> np.ndarray:
        """All of them, int32; mapped from the file, which is there as long as they are."""
        if self._file is None or not self._file.tell():
            return np.concatenate(self._parts)
        with self._writing():
            self._file.flush()
        return np.memmap(self._file, np.int32, "r")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unwritable(self._folder or Path(), error) from error


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    remaining = iter(texts)
    while chunk := list(itertools.islice(remaining, _CHUNK)):
        yield chunk


def lengths_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> np.ndarray:
    """The tokens of each text, special ones included and none cut, int64 [n]."""
    lengths = [
        len(text_ids) for chunk in _chunks(texts) for text_ids in _ids(tokenizer, chunk, None)
    ]
    return np.array(lengths, np.int64)


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
