"""What reading a split has given, kept in the cache: the next process does not parse it again.

Its name is a digest of the data and of the columns that are read. A copy that is damaged is
noticed by its SHA-256 and made again; those that were used longest ago make room for new ones.
Texts that are too many to be held in memory have an ``indexed_copy`` in its place.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.core.atomic_write import atomic_write
from mtl_jax.core.console import say
from mtl_jax.core.downloads import cache_dir
from mtl_jax.data.kinds import LabelKind
from mtl_jax.data.pairs import Pair
from mtl_jax.data.sources.base import Source
from mtl_jax.data.table import Table, stored_table

# A copy of another layout, or by another way of reading, is another copy.
_LAYOUT = 1
# Bytes that all copies may take together.
_MOST = 2**30
_SUFFIX = ".table"
_DIGEST_SIZE = hashlib.sha256().digest_size


def parsed_table(
    source: Source,
    split: str,
    kinds: Mapping[str, LabelKind],
    read: Callable[[], Table],
    *,
    set_aside: bool,
) -> Table:
    """Opens the copy of a split, or reads the split and leaves one.

    A cache that can't be written costs the next process the reading, and nothing else.

    Args:
        source: Where it comes from.
        split: Which it is.
        kinds: As of ``read_table``.
        read: Reads it, with all its texts in memory.
        set_aside: As of ``read_table``.
    """
    # What is said of a file names it: files of other names have other copies.
    where = source.stream(split).place(0)
    words = json.dumps([_LAYOUT, source.digest(split), where, list(kinds), set_aside])
    name = hashlib.sha256(words.encode()).hexdigest()[:32]
    file = cache_dir() / "tables" / f"{name}{_SUFFIX}"
    if (found := _opened(file, source, split)) is not None:
        return found
    table = read()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        content = _content(table)
        _make_room(file.parent, len(content))
        with atomic_write(file) as draft:
            draft.write_bytes(content)
    return table


def _content(table: Table) -> bytes:
    arrays, record = table.stored()
    for part, texts in enumerate(table.texts):
        records = [_record(text) for text in texts]
        arrays[f"texts {part}"] = np.frombuffer(b"".join(map(b"".join, records)), np.uint8)
        arrays[f"ends {part}"] = np.array([list(map(len, each)) for each in records], np.int64)
    arrays["record"] = np.frombuffer(json.dumps(record).encode(), np.uint8)
    made = io.BytesIO()
    np.savez(made, **arrays)  # pyright: ignore[reportArgumentType]
    content = made.getvalue()
    return hashlib.sha256(content).digest() + content


def _record(text: str) -> tuple[bytes, ...]:
    """The parts of a text: two of a pair."""
    return tuple(map(str.encode, (text.first, text.second) if isinstance(text, Pair) else (text,)))


def _texts(joined: np.ndarray, lengths: np.ndarray) -> list[str]:
    content, parts, start = joined.tobytes(), [], 0
    for length in lengths.ravel().tolist():
        parts.append(content[start : start + length].decode())
        start += length
    if lengths.ndim == 2 and lengths.shape[1] == 2:
        return list(map(Pair, parts[::2], parts[1::2]))
    return parts


def _opened(file: Path, source: Source, split: str) -> Table | None:
    """The copy in a file; None where it is not there or not whole, which is said."""
    try:
        content = file.read_bytes()
        if hashlib.sha256(content[_DIGEST_SIZE:]).digest() != content[:_DIGEST_SIZE]:
            raise ValueError("another digest than it had")
        with np.load(io.BytesIO(content[_DIGEST_SIZE:])) as arrays:
            record: dict[str, Any] = json.loads(arrays["record"].tobytes())
            stay, aside = (_texts(arrays[f"texts {k}"], arrays[f"ends {k}"]) for k in (0, 1))
            table = stored_table(
                arrays, record, (stay, aside), lambda row: source.stream(split).place(row)
            )
        # To be used is what keeps it; who may not say so uses it all the same.
        with contextlib.suppress(OSError):
            os.utime(file)
    except OSError:
        return None
    except (ValueError, KeyError, IndexError, TypeError, zipfile.BadZipFile):
        say(f"note: {file} is damaged: it is recreated from the data")
        return None
    return table


def _make_room(folder: Path, size: int) -> None:
    """Removes the copies that were used longest ago until one of ``size`` bytes fits."""
    there = []
    for file in folder.glob(f"*{_SUFFIX}"):
        # Another process may be making room, too.
        with contextlib.suppress(FileNotFoundError):
            found = file.stat()
            there.append((found.st_mtime_ns, found.st_size, file))
    taken = sum(size for _, size, _ in there)
    for _, its_size, file in sorted(there):
        if taken + size <= _MOST:
            break
        file.unlink(missing_ok=True)
        taken -= its_size
