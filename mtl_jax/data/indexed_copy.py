"""A copy of texts and labels in the cache, from which texts are read by index.

It is made once, in one pass, where the texts are too many to be held in memory. Its name is a
digest of the data and of the columns that are read; a copy that is damaged is recreated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.core.console import say
from mtl_jax.core.downloads import cache_dir
from mtl_jax.core.file_lock import exclusive, unwritable
from mtl_jax.data.kinds import LabelKind
from mtl_jax.data.sources.base import Source
from mtl_jax.data.table import Table, read_table, stored_table
from mtl_jax.data.texts import KeepStored, StoredTexts

# A copy of another layout is another copy.
_LAYOUT = 2
_RECORD, _ARRAYS = "record.json", "rows.npz"


def indexed_table(
    source: Source, split: str, kinds: Mapping[str, LabelKind], *, set_aside: bool
) -> Table:
    """Opens the copy of a split, or makes it; ``read_table`` says what it holds.

    Raises:
        UserError: The split can't be read, or the copy can't be written.
    """
    words = json.dumps([_LAYOUT, source.digest(split), list(kinds), set_aside])
    folder = cache_dir() / "texts" / hashlib.sha256(words.encode()).hexdigest()[:32]
    with exclusive(folder):
        if folder.exists():
            if found := _opened(folder, source, split):
                return found
            say(f"note: {folder} is damaged: it is recreated from the data")
            shutil.rmtree(folder)
        for stale in folder.parent.glob(f".{folder.name}.*"):
            # Under the lock it can only be what a killed process left.
            shutil.rmtree(stale, ignore_errors=True)
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            draft.mkdir()
            return _made(draft, folder, source, split, kinds, set_aside)
        except OSError as error:
            raise unwritable(folder.parent, error) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _made(
    draft: Path,
    folder: Path,
    source: Source,
    split: str,
    kinds: Mapping[str, LabelKind],
    set_aside: bool,
) -> Table:
    made: list[KeepStored] = []

    def keepers() -> tuple[KeepStored, KeepStored]:
        made[:] = [KeepStored(draft / f"{name}-{len(made)}") for name in ("stay", "aside")]
        return made[0], made[1]

    say(f"note: {source.name}, {split}: making an indexed copy of the texts in {folder}")
    table = read_table(lambda: source.stream(split), kinds, keepers, set_aside=set_aside)
    arrays, record = table.stored()
    np.savez(draft / _ARRAYS, **arrays)  # pyright: ignore[reportArgumentType]
    stored = [texts for texts in table.texts if isinstance(texts, StoredTexts)]
    record |= {
        "texts": [[texts.path.name, len(texts), texts.pairs] for texts in stored],
        "sha256": {
            path.name: _sha256(path) for path in (draft / _ARRAYS, *(t.path for t in stored))
        },
    }
    (draft / _RECORD).write_text(json.dumps(record))
    draft.rename(folder)
    return dataclasses.replace(table, texts=_stored(folder, record))


def _stored(folder: Path, record: dict[str, Any]) -> tuple[StoredTexts, StoredTexts]:
    stay, aside = (
        StoredTexts(folder / name, count, pairs=pairs) for name, count, pairs in record["texts"]
    )
    return stay, aside


def _opened(folder: Path, source: Source, split: str) -> Table | None:
    """The copy in a folder; None where it is not whole."""
    try:
        record = json.loads((folder / _RECORD).read_text())
        if any(_sha256(folder / name) != digest for name, digest in record["sha256"].items()):
            return None
        with np.load(folder / _ARRAYS) as arrays:
            place = source.stream(split).place
            return stored_table(arrays, record, _stored(folder, record), place)
    except (OSError, ValueError, KeyError, IndexError, TypeError, zipfile.BadZipFile):
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
