"""The texts of a split: in memory, a sample of them, or read by index from a file."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np

from mtl_jax.core.errors import UserError, first_line
from mtl_jax.data.pairs import Pair

_READ = 4096
# Records that are compressed together: enough to be small, few enough to read one alone.
_OPTIONS = "group_size:256"


class _Texts(Sequence[str]):
    """A sequence of texts that is no list."""

    def _at(self, index: int) -> str:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._at(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._at(index % len(self))

    def take(self, indices: np.ndarray) -> Sequence[str]:
        """Those at int64 [m], in this order."""
        raise NotImplementedError


class SomeTexts(_Texts):
    """The texts of a split of which only some are known.

    Attributes:
        known: int64 [k], ascending: which.
    """

    def __init__(self, count: int, texts: dict[int, str]):
        self._count, self._texts = count, texts
        self.known = np.array(sorted(texts), np.int64)

    def __len__(self) -> int:
        return self._count

    def _at(self, index: int) -> str:
        return self._texts[index]

    def take(self, indices: np.ndarray) -> Sequence[str]:
        """Those at int64 [m]; a list where all of them are known."""
        new = np.flatnonzero(np.isin(indices, self.known)).tolist()
        texts = {i: self._texts[int(indices[i])] for i in new}
        if len(texts) == len(indices):
            return list(texts.values())
        return SomeTexts(len(indices), texts)


class StoredTexts(_Texts):
    """The texts of a split, in an ArrayRecord file.

    Attributes:
        path: The file.
        pairs: Whether each is a ``Pair``.
        indices: int64 [m], which of its records these are; None where they are all.
    """

    def __init__(
        self, path: Path, count: int, *, pairs: bool = False, indices: np.ndarray | None = None
    ):
        """Reads nothing yet.

        Args:
            path: The file.
            count: Its records.
            pairs: Whether each is a ``Pair``.
            indices: int64 [m], which of them, in this order; all by default.
        """
        self.path, self.pairs = path, pairs
        self._records, self.indices = count, indices

    def __len__(self) -> int:
        return self._records if self.indices is None else len(self.indices)

    @functools.cached_property
    def _reader(self) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        return ArrayRecordReader(str(self.path), "readahead_buffer_size:0")

    def _read(self, start: int, stop: int) -> list[str]:
        where = (start, stop) if self.indices is None else (self.indices[start:stop].tolist(),)
        try:
            decoded = _pair if self.pairs else bytes.decode
            found = list(map(decoded, self._reader.read(*where)))
            if len(found) != stop - start:
                raise ValueError(f"{len(found)} of {stop - start} records")
        except Exception as error:
            raise UserError(
                f"{self.path} is damaged ({first_line(error)}): delete {self.path.parent}, it is "
                "recreated from the data"
            ) from error
        return found

    def _at(self, index: int) -> str:
        return self._read(index, index + 1)[0]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _READ):
            yield from self._read(start, min(start + _READ, len(self)))

    def take(self, indices: np.ndarray) -> Sequence[str]:
        """Those at int64 [m], still in the file."""
        chosen = indices if self.indices is None else self.indices[indices]
        return StoredTexts(self.path, self._records, pairs=self.pairs, indices=chosen)


# Before a pair stands how many bytes of it are its first text.
_LENGTH = 8


def _record(text: str) -> bytes:
    if not isinstance(text, Pair):
        return text.encode()
    first = text.first.encode()
    return len(first).to_bytes(_LENGTH) + first + text.second.encode()


def _pair(record: bytes) -> Pair:
    end = _LENGTH + int.from_bytes(record[:_LENGTH])
    return Pair(record[_LENGTH:end].decode(), record[end:].decode())


def take(texts: Sequence[str], indices: np.ndarray) -> Sequence[str]:
    """The texts at int64 [m], in this order."""
    if isinstance(texts, _Texts):
        return texts.take(indices)
    places: list[int] = indices.tolist()
    return [texts[i] for i in places]


class JoinedTexts(_Texts):
    """Texts of several places, one after the other.

    Attributes:
        parts: Those of each place.
    """

    def __init__(self, parts: Sequence[Sequence[str]]):
        self.parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _at(self, index: int) -> str:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[part][index - int(self._starts[part])]

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(self.parts)

    def take(self, indices: np.ndarray) -> Sequence[str]:
        """Those at int64 [m]; the ascending ones of each part are left where they are."""
        of_part = np.searchsorted(self._starts, indices, side="right") - 1
        if (np.diff(of_part) < 0).any():
            return [self._at(i) for i in indices.tolist()]
        return joined(
            [take(p, indices[of_part == i] - self._starts[i]) for i, p in enumerate(self.parts)]
        )


def joined(parts: Sequence[Sequence[str]]) -> Sequence[str]:
    """The texts of all parts, one after the other; a list where each of them is one."""
    if all(isinstance(part, list) for part in parts):
        return list(itertools.chain.from_iterable(parts))
    return JoinedTexts(parts)


def content_digest(texts: Sequence[str]) -> str:
    """SHA-256 of what the texts are; of stored ones their file stands for them."""
    hasher = hashlib.sha256()
    if isinstance(texts, StoredTexts):
        hasher.update(f"{texts.path.parent.name}/{texts.path.name} {len(texts)}\n".encode())
        if texts.indices is not None:
            hasher.update(np.ascontiguousarray(texts.indices).view(np.uint8).data)
    elif isinstance(texts, JoinedTexts):
        hasher.update(json.dumps([content_digest(part) for part in texts.parts]).encode())
    else:
        ends = [[len(text), len(text.first) if isinstance(text, Pair) else -1] for text in texts]
        hasher.update(json.dumps(ends).encode())
        hasher.update("".join(texts).encode())
    return hasher.hexdigest()


class Keeper(Protocol):
    """Is given the texts of a split from first to last, and keeps what is wanted of them."""

    def add(self, texts: list[str], labelled: np.ndarray) -> None:
        """Takes the next k texts; bool [k] says which of them have a label."""

    def texts(self) -> Sequence[str]:
        """All that it was given, as it keeps them."""
        ...


class KeepAll:
    """Keeps them in memory."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def add(self, texts: list[str], labelled: np.ndarray) -> None:
        """See ``Keeper``."""
        del labelled
        self._texts += texts

    def texts(self) -> Sequence[str]:
        """A list."""
        return self._texts


class _KeepLowest:
    """Keeps those with the lowest keys in memory, equal ones as they come."""

    def __init__(self, most: int):
        self._most, self._count = most, 0
        self._found: list[tuple[Any, int, str]] = []
        self._bound: Any = None

    def _keep(self, found: Iterable[tuple[Any, int, str]]) -> None:
        """Takes keys, rows and texts, of which those from the bound on may be left out."""
        self._found += found
        if len(self._found) > 2 * self._most + _READ:
            self._cut()

    def _cut(self) -> None:
        self._found.sort(key=operator.itemgetter(0, 1))
        del self._found[self._most :]
        if len(self._found) == self._most:
            self._bound = self._found[-1][0]

    def texts(self) -> Sequence[str]:
        """The chosen ones, each in its place."""
        self._cut()
        chosen = {row: text for _, row, text in self._found}
        return SomeTexts(self._count, dict(sorted(chosen.items())))


class KeepChosen(_KeepLowest):
    """Keeps those that a limit chooses: see ``choose``; of a ``subset``, see ``drawn``."""

    def __init__(self, most: int, *, labelled_only: bool = False, subset: int | None = None):
        super().__init__(most)
        self._labelled_only, self._subset = labelled_only, subset

    def add(self, texts: list[str], labelled: np.ndarray) -> None:
        """See ``Keeper``."""
        start, bound = self._count, self._bound
        self._count += len(texts)
        there = labelled.tolist() if self._labelled_only else itertools.repeat(True)
        drawn = self._subset
        keyed = (
            (choice_key(f"{row}\n{text}" if drawn is None else f"{drawn}\n{row}\n"), row, text)
            for row, text, is_there in zip(itertools.count(start), texts, there, strict=False)
            if is_there
        )
        self._keep(found for found in keyed if bound is None or found[0] < bound)


class KeepSample(_KeepLowest):
    """Keeps a random sample, the same one each time."""

    def __init__(self, most: int):
        super().__init__(most)
        self._random = np.random.default_rng(0)

    def add(self, texts: list[str], labelled: np.ndarray) -> None:
        """See ``Keeper``."""
        del labelled
        keys, start = self._random.random(len(texts)), self._count
        self._count += len(texts)
        low = np.flatnonzero(keys < (np.inf if self._bound is None else self._bound))
        self._keep((keys[i], start + i, texts[i]) for i in low.tolist())


class KeepNone:
    """Keeps none."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, texts: list[str], labelled: np.ndarray) -> None:
        """See ``Keeper``."""
        del labelled
        self._count += len(texts)

    def texts(self) -> Sequence[str]:
        """As many, none of them known."""
        return SomeTexts(self._count, {})


class KeepStored:
    """Writes them to an ArrayRecord file: all are pairs, or none is."""

    def __init__(self, path: Path):
        from array_record.python.array_record_module import ArrayRecordWriter

        self._path, self._count, self._pairs = path, 0, False
        self._writer = ArrayRecordWriter(str(path), _OPTIONS)

    def add(self, texts: list[str], labelled: np.ndarray) -> None:
        """See ``Keeper``."""
        del labelled
        for text in texts:
            self._writer.write(_record(text))
        self._count += len(texts)
        self._pairs = self._pairs or any(isinstance(text, Pair) for text in texts[:1])

    def texts(self) -> Sequence[str]:
        """What reads them from the file, which is whole then."""
        self._writer.close()
        return StoredTexts(self._path, self._count, pairs=self._pairs)


def choice_key(words: str) -> bytes:
    """What examples are chosen by: SHA-256."""
    return hashlib.sha256(words.encode()).digest()


def choose(
    texts: Sequence[str], indices: np.ndarray, count: int, words: Callable[[int], str]
) -> np.ndarray:
    """Those ``count`` of the indices whose words and text have the smallest SHA-256, ascending.

    Args:
        texts: The texts of the split.
        indices: int64 [m], ascending.
        count: How many.
        words: What is put before the text at an index.
    """
    chosen = take(texts, indices)
    keys = [choice_key(words(i) + text) for i, text in zip(indices.tolist(), chosen, strict=True)]
    return _lowest(indices, keys, count)


def drawn(indices: np.ndarray, count: int, subset: int, what: str = "") -> np.ndarray:
    """A random draw of ``count`` of the indices, ascending: those with the smallest SHA-256.

    Those of a smaller draw are among those of a larger one of the same ``subset``.

    Args:
        indices: int64 [m], ascending.
        count: How many.
        subset: Which draw.
        what: Tells draws of one subset apart.
    """
    keys = [choice_key(f"{subset}\n{i}\n{what}") for i in indices.tolist()]
    return _lowest(indices, keys, count)


def _lowest(indices: np.ndarray, keys: Sequence[bytes], count: int) -> np.ndarray:
    order = sorted(range(len(keys)), key=keys.__getitem__)[:count]
    return np.sort(indices[np.array(order, np.int64)])
