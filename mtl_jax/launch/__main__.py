"""The command line of ``./launch.sh local|slurm|kubernetes|sky``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

from tyro.conf import subcommand

from mtl_jax.core.command_line import guarded, parse
from mtl_jax.core.errors import UserError
from mtl_jax.launch.command import read_work
from mtl_jax.launch.kubernetes import Kubernetes
from mtl_jax.launch.local import Local
from mtl_jax.launch.sky import Sky
from mtl_jax.launch.slurm import Slurm

_USAGE = "./launch.sh PLACE [options] -- train|experiment ..."
_DESCRIPTION = f"""{_USAGE}

PLACE is local, slurm, kubernetes or sky. What to run follows the --: "train ..." runs "python -m
mtl_jax train ...", and "experiment STUDY ..." runs "python -m mtl_jax study STUDY ...", where
STUDY is the name of a built-in study, a module, or the .py file of your own study. Without
--workdir the folder is named after the run id, which is created once, so that a run that a
scheduler stops and starts again resumes in the same folder. "./launch.sh status --workdir DIR"
shows the progress of a study's workers.
"""

Place = (
    Annotated[Local, subcommand("local")]
    | Annotated[Slurm, subcommand("slurm")]
    | Annotated[Kubernetes, subcommand("kubernetes")]
    | Annotated[Sky, subcommand("sky")]
)


def main(argv: Sequence[str]) -> None:
    """Reads the options before the first ``--``, and what is to be run behind it.

    ``status`` runs nothing, and has no ``--``.

    Raises:
        SystemExit: What was run did not end well, or help was asked for.
        UserError: The options are wrong.
    """
    words = list(argv)
    if words[:1] == ["status"]:
        from mtl_jax.studies.status import show_status

        show_status(words[1:], "./launch.sh status")
        return
    cut = words.index("--") if "--" in words else len(words)
    place: Local | Slurm | Kubernetes | Sky = parse(Place, words[:cut], "./launch.sh", _DESCRIPTION)
    if cut == len(words):
        raise UserError(f"-- is missing before what is to be run: {_USAGE}")
    run_id = place.known_run_id()
    if status := place.launch(read_work(words[cut + 1 :], run_id, place.runs_folder()), run_id):
        sys.exit(status)


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
