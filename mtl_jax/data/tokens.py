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
from typing import TYPE_CHECKING, Any

import numpy as np

from mtl_jax.core.errors import UserError
from mtl_jax.core.file_lock import unwritable
from mtl_jax.data.pairs import Pair

if TYPE_CHECKING:
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
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int,
    folder: Path | None = None,
    *,
    types: bool = True,
) -> Tokens:
    """Tokenises texts with their special tokens.

    A text is a single segment, whose token types are 0. A ``Pair`` is two, with special tokens
    between them and the types that the tokenizer gives; of one that is too long, tokens are taken
    off the end of the longer of its texts until it fits.

    Args:
        tokenizer: What ``tokenizer.load_tokenizer`` gives.
        texts: n texts, pairs among them.
        max_length: Tokens kept of each text; a cut text keeps its special tokens.
        folder: Where the ids are put in a file that has no name and ends with the process, from
            which they are mapped; by default they are in memory.
        types: Whether the backbone has token types, which are then given where there are pairs.

    Raises:
        UserError: max_length leaves no room beside the special tokens, or the folder none for ids.
    """
    single = special_tokens(tokenizer, max_length)
    lengths, truncated, empty = [np.zeros(0, np.int64)], 0, 0
    with contextlib.ExitStack() as stack:
        ids, of_types = stack.enter_context(_Ids(folder)), None
        for chunk in _chunks(texts):
            are_pairs = np.fromiter((isinstance(text, Pair) for text in chunk), bool, len(chunk))
            least = np.full(len(chunk), single)
            if are_pairs.any():
                least[are_pairs] = special_tokens(tokenizer, max_length, pairs=True)
                if types and of_types is None:
                    # All texts so far are single ones.
                    of_types = stack.enter_context(_Ids(folder))
                    for of_chunk in lengths:
                        of_types.add(np.zeros(of_chunk.sum(), np.int32))
            encoded, own = _encoded(tokenizer, chunk, max_length, of_types is not None)
            full = [i for i, text_ids in enumerate(encoded) if len(text_ids) == max_length]
            # A full text may have fitted exactly: only its untruncated length tells.
            whole = _ids(tokenizer, [chunk[i] for i in full]) if full else []
            truncated += sum(len(text_ids) > max_length for text_ids in whole)
            lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
            empty += int(np.sum(lengths[-1] <= least))
            ids.add(np.fromiter(itertools.chain.from_iterable(encoded), np.int32))
            if of_types is not None:
                of_types.add(np.fromiter(itertools.chain.from_iterable(own), np.int32))
        return Tokens(
            ids=ids.all(),
            offsets=np.concatenate([[0], np.cumsum(np.concatenate(lengths))]),
            truncated=truncated,
            empty=empty,
            types=None if of_types is None else of_types.all(),
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
    """The tokens of each text or pair, special ones included and none cut, int64 [n]."""
    lengths = [len(text_ids) for chunk in _chunks(texts) for text_ids in _ids(tokenizer, chunk)]
    return np.array(lengths, np.int64)


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return _encoded(tokenizer, texts, None, types=False)[0]


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
