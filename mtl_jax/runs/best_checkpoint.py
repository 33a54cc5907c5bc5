"""The parameters that a run has kept as its best."""

from __future__ import annotations

from mtl_jax.core.errors import UserError
from mtl_jax.freezing.partition import Params
from mtl_jax.runs.checkpoints.reader import CheckpointReader
from mtl_jax.runs.run_config import identity
from mtl_jax.runs.workdir import Workdir


def best_parameters(workdir: Workdir) -> Params:
    """The parameters of the best checkpoint of a run.

    Raises:
        UserError: There is none, or it is not what the run has saved.
    """
    if workdir.checkpoints_removed:
        raise UserError(
            f"{workdir.path} is done and its checkpoints have been removed: run the study in a "
            "new folder with --keep-checkpoints"
        )
    end, saved = _end(workdir), CheckpointReader(workdir.checkpoints, identity(workdir.config()))
    if end is not None and saved.last_step != end:
        raise UserError(
            f"{workdir.path} is done, but its last checkpoint, {end}, is lost: run train again on "
            "its --workdir, which recreates it"
        )
    if (params := saved.restore_best()) is None:
        raise UserError(f"{workdir.path} has no checkpoint yet: run train again on its --workdir")
    return params


def _end(workdir: Workdir) -> int | None:
    """The last step of a finished run; None where it is not known to be one."""
    try:
        result = workdir.result()
    except UserError:
        # Of a damaged log nothing is needed here; train makes up for it.
        return None
    return result["step"] if result else None
