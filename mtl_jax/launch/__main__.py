"""The command line of ``./launch.sh local|slurm|tpu|gke``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

from tyro.conf import subcommand

from mtl_jax.core.command_line import guarded, parse
from mtl_jax.core.errors import UserError
from mtl_jax.launch.command import read_work
from mtl_jax.launch.gke import Gke
from mtl_jax.launch.local import Local
from mtl_jax.launch.slurm import Slurm
from mtl_jax.launch.tpu import Tpu

_USAGE = "./launch.sh PLACE [options] -- train|experiment ..."
_DESCRIPTION = f"""{_USAGE}

What follows the -- is run at the place: "train ..." is "python -m mtl_jax train ...", and
"experiment STUDY ..." is "python -m mtl_jax study STUDY ...", with the name of a built-in study,
a module, or the .py file of a study of your own. Without --workdir a folder is named after the
run id, which is made once: a run that a scheduler ends and starts again goes on in the same
folder.
"""

Place = (
    Annotated[Local, subcommand("local")]
    | Annotated[Slurm, subcommand("slurm")]
    | Annotated[Tpu, subcommand("tpu")]
    | Annotated[Gke, subcommand("gke")]
)


def main(argv: Sequence[str]) -> None:
    """Reads the options before the first ``--``, and what is to be run behind it.

    Raises:
        SystemExit: What was run did not end well, or help was asked for.
        UserError: The options are wrong.
    """
    words = list(argv)
    cut = words.index("--") if "--" in words else len(words)
    place: Local | Slurm | Tpu | Gke = parse(Place, words[:cut], "./launch.sh", _DESCRIPTION)
    if cut == len(words):
        raise UserError(f"there is no --, which comes before what is to be run: {_USAGE}")
    run_id = place.known_run_id()
    if status := place.launch(read_work(words[cut + 1 :], run_id, place.runs_folder()), run_id):
        sys.exit(status)


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
