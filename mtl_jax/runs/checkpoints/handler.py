"""Writes a checkpoint's files while training goes on, as an item of an Orbax checkpoint.

Orbax gives the checkpoint its name when all of them are whole.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import future

from mtl_jax.runs.checkpoints import arrays
from mtl_jax.runs.checkpoints.manifest import FILE, Manifest, read, written


def file_of(part: str) -> str:
    """The name of the file of a part's arrays."""
    return f"{part}.safetensors"


class StateHandler(ocp.AsyncCheckpointHandler):
    """Writes a ``StateSave``; the first of several processes does, for all have the same."""

    async def async_save(
        self, directory: epath.Path, *, args: StateSave
    ) -> list[future.Future] | None:
        """As of Orbax."""
        if jax.process_index() != 0:
            return None
        return [future.CommitFutureAwaitingContractedSignals(_write(directory, args), name="state")]

    def save(self, directory: epath.Path, *, args: StateSave) -> None:
        """As of Orbax."""
        asyncio.run(_write(directory, args))

    def restore(self, directory: epath.Path, *, args: StateRestore | None = None) -> Manifest:
        """As of Orbax; see ``CheckpointReader``, which needs no manager."""
        del args
        return read(Path(directory).parent)


async def _write(directory: epath.Path, args: StateSave) -> None:
    digests = {}
    for part, tree in args.arrays.items():
        arrays.write(Path(directory) / file_of(part), tree)
        digests[part] = arrays.digest(tree)
    manifest = dataclasses.replace(args.manifest, digests=digests)
    (directory / FILE).write_text(written(manifest))


@ocp.args.register_with_handler(StateHandler, for_save=True)
@dataclasses.dataclass
class StateSave(ocp.args.CheckpointArgs):
    """What a checkpoint has.

    Attributes:
        manifest: All but its digests.
        arrays: The parts, trees of numpy arrays, which must not change.
    """

    manifest: Manifest
    arrays: Mapping[str, Any]


@ocp.args.register_with_handler(StateHandler, for_restore=True)
@dataclasses.dataclass
class StateRestore(ocp.args.CheckpointArgs):
    """Asks for a manifest."""
