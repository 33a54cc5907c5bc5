"""The arrays of checkpoints that earlier versions saved: array checkpoints of Orbax.

Each part is an item of its own in them, and ``params`` is the whole model. They are read, and no
more gone on from: see ``recovery.done_before``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.type_handlers import (
    ArrayHandler,
    NumpyHandler,
    ParamInfo,
    RestoreArgs,
    create_type_handler_registry,
)

from mtl_jax.core.errors import first_line
from mtl_jax.runs.checkpoints import arrays, manifest


class _WaitsForAll(NumpyHandler):
    """Reads arrays; where one can't be, waits for the others before it says so.

    Who does not wait closes the event loop under them, and each prints a traceback.
    """

    async def deserialize(
        self, infos: Sequence[ParamInfo], args: Sequence[RestoreArgs] | None = None
    ) -> list[np.ndarray]:
        """As of Orbax."""
        each = zip(infos, args or [RestoreArgs()] * len(infos), strict=True)
        reading = (NumpyHandler.deserialize(self, [info], [how]) for info, how in each)
        found = await asyncio.gather(*reading, return_exceptions=True)
        if failed := [one for one in found if isinstance(one, BaseException)]:
            raise failed[0]
        return [array for one in found if not isinstance(one, BaseException) for array in one]


def read(folder: Path) -> dict[str, np.ndarray]:
    """The leaves of a part, by name, as of ``arrays.read``.

    Args:
        folder: The part's.

    Raises:
        UserError: A file of it can't be reached.
        ValueError: It holds no arrays, or not all of them.
    """
    # Orbax warns where there is none for jax.Array, of which nothing was saved.
    types = create_type_handler_registry((np.ndarray, _WaitsForAll()), (jax.Array, ArrayHandler()))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=types)
    try:
        tree = handler.restore(epath.Path(folder.absolute()), args=ocp.args.PyTreeRestore())
        return arrays.named(tree)
    except Exception as error:  # (there is no end to what broken files can be to a library)
        _refuse_unreachable(folder)
        raise ValueError(first_line(error)) from error
    finally:
        handler.close()


def _refuse_unreachable(folder: Path) -> None:
    """Refuses to go on where a file in a folder, or its list of files, can't be reached.

    Raises:
        UserError: One can't be.
    """
    try:
        for path in [folder, *folder.rglob("*")]:
            if path.is_dir():
                next(path.iterdir(), None)
            else:
                path.open("rb").close()
    except OSError as error:
        manifest.refuse_access(Path(error.filename or folder), error)
