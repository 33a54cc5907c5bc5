"""The parameters that a run has kept as its best."""

from __future__ import annotations

from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError
from mtl_jax.freezing.partition import Params
from mtl_jax.runs.checkpoints.reader import CheckpointReader
from mtl_jax.runs.run_config import identity
from mtl_jax.runs.workdir import Workdir


def best_parameters(workdir: Workdir) -> Params:
    """The parameters of the best checkpoint of a run; tells of a run that has not finished.

    Raises:
        UserError: There is none, or it is not what the run has saved.
    """
    if workdir.checkpoints_removed:
        raise UserError(
            f"{workdir.path} is done and its checkpoints have been removed: run the study in a "
            "new folder with --keep-checkpoints"
        )
    saved = CheckpointReader(workdir.checkpoints, identity(workdir.config()))
    known, end = _end(workdir)
    if end is not None and saved.last_step != end:
        raise UserError(
            f"{workdir.path} is done, but its last checkpoint, {end}, is lost: run train again on "
            "its --workdir, which recreates it"
        )
    if (params := saved.restore_best()) is None:
        lacks = "has no checkpoint yet" if saved.last_step is None else "has not been measured yet"
        raise UserError(f"{workdir.path} {lacks}: run train again on its --workdir")
    if known and end is None:
        say(
            f"note: {workdir.path} has not finished training: this is the best of what it has "
            f"saved up to step {saved.last_step}; run train again on its --workdir to finish it"
        )
    return params


def _end(workdir: Workdir) -> tuple[bool, int | None]:
    """Whether it is known if a run is finished, and its last step where it is."""
    try:
        result = workdir.result()
    except UserError:
        # Of a damaged log nothing is needed here; train makes up for it.
        return False, None
    return True, result["step"] if result else None
