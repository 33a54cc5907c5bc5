"""The file of a training batch that is kept, as the step saw it.

It is a ``.npz`` of plain arrays, which needs no pickle, with one JSON text among them.
"""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mtl_jax.core.atomic_write import whole
from mtl_jax.core.errors import UserError, first_line
from mtl_jax.core.json_files import parse_json
from mtl_jax.data.batches import HostBatch
from mtl_jax.data.tokens import Tokens

# The arrays beside those of the batch.
_ABOUT, _IDS, _OFFSETS = "about", "text_ids", "text_offsets"
_IN_JSON = ("step", "task", "seed", "phase", "depth", "blocks", "parts", "texts")
_COUNT = {"type": "integer", "minimum": 0}
_SCHEMA = {
    "type": "object",
    "required": [*_IN_JSON, "dtypes"],
    "properties": {
        **dict.fromkeys(("step", "seed", "phase", "depth"), _COUNT),
        "task": {"type": ["string", "null"]},
        "blocks": {"type": "array", "items": {"type": "array", "items": _COUNT}},
        "parts": {"type": ["integer", "null"]},
        "texts": {"type": "array", "items": {"type": "string"}},
        "dtypes": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "additionalProperties": False,
}
_NAME = re.compile(r"step_(\d+)(?:_process_(\d+)_of_(\d+))?\.npz")


@dataclasses.dataclass(frozen=True)
class KeptBatch:
    """A batch, and where it is from.

    Attributes:
        step: The step of the run that it is the batch of, from 1.
        task: The task whose loss was not finite; None: the norm of the gradient was not.
        seed: The run's.
        phase: The phase of the step, from 0.
        depth: Where its ``states`` are from; see ``TextSet``.
        blocks: How its rows are cut; see ``Layout``.
        parts: Into how many equal parts of its rows, each with dropout of its own, the whole batch
            was cut; None where it was not.
        texts: The texts, row by row and slot by slot.
        tokens: Their ids.
        batch: As the step saw it, with ``example``: int32 [rows, slots], which text of the
            training texts it is, or -1.
    """

    step: int
    task: str | None
    seed: int
    phase: int
    depth: int
    blocks: tuple[tuple[int, int], ...]
    parts: int | None
    texts: tuple[str, ...]
    tokens: Tokens
    batch: HostBatch


def write_batch(folder: Path, kept: KeptBatch, process: int = 0, processes: int = 1) -> Path:
    """Writes a batch, whole or not at all, in the place of one of the same step.

    Args:
        folder: Where to.
        kept: The batch.
        process: Which part of the whole batch it is: each process keeps its own rows.
        processes: How many parts there are.

    Returns:
        The file.

    Raises:
        OSError: It can't be written.
    """
    part = f"_process_{process}_of_{processes}" if processes > 1 else ""
    path = folder / f"step_{kept.step}{part}.npz"
    about = {name: getattr(kept, name) for name in _IN_JSON}
    about["dtypes"] = {name: array.dtype.name for name, array in kept.batch.items()}
    arrays: dict[str, Any] = {name: _plain(array) for name, array in kept.batch.items()}
    arrays |= {_IDS: kept.tokens.ids, _OFFSETS: kept.tokens.offsets}
    arrays[_ABOUT] = np.array(json.dumps(about))
    folder.mkdir(parents=True, exist_ok=True)
    with whole(path) as draft, draft.open("wb") as file:
        np.savez(file, **arrays)
    return path


def _plain(array: np.ndarray) -> np.ndarray:
    # numpy's files know no bfloat16.
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array


def read_batch(path: Path) -> KeptBatch:
    """Reads a batch; of one that several processes have kept, with the parts of the others.

    Raises:
        UserError: The file, or one of the others, is not there or not whole.
    """
    name = _NAME.fullmatch(path.name)
    if name is None or name[3] is None:
        return _read(path)
    whole = f"step_{name[1]}_process_{{}}_of_{name[3]}.npz"
    parts = [_read(path.with_name(whole.format(i))) for i in range(int(name[3]))]
    lengths = np.concatenate([part.tokens.lengths for part in parts])
    return dataclasses.replace(
        parts[0],
        texts=tuple(text for part in parts for text in part.texts),
        tokens=_tokens(
            np.concatenate([part.tokens.ids for part in parts]), np.append(0, np.cumsum(lengths))
        ),
        batch={key: np.concatenate([part.batch[key] for part in parts]) for key in parts[0].batch},
    )


def _tokens(ids: np.ndarray, offsets: np.ndarray) -> Tokens:
    return Tokens(ids, offsets, truncated=0, empty=0)


def _read(path: Path) -> KeptBatch:
    try:
        # Of a path numpy leaves the file open where it is damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            about = parse_json(str(file[_ABOUT]), _SCHEMA, str(path), "name another")
            dtypes = about.pop("dtypes")
            batch = {name: file[name].view(jnp.dtype(dtype)) for name, dtype in dtypes.items()}
            tokens = _tokens(file[_IDS], file[_OFFSETS])
        about |= {"blocks": tuple(map(tuple, about["blocks"])), "texts": tuple(about["texts"])}
        return KeptBatch(**about, tokens=tokens, batch=batch)
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there: name a file that a run has kept") from error
    except (EOFError, OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is no batch that a run has kept, or damaged ({first_line(error)}): name "
            "another"
        ) from error


def newest_batch(folder: Path) -> Path | None:
    """The file in a folder that was written last; None where there is none."""
    files = [path for path in folder.glob("step_*.npz") if _NAME.fullmatch(path.name)]
    return max(files, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)
