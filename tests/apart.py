"""One of two processes that do not see, or meet, the same; prints what it has come to as JSON."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

from mtl_jax import processes
from mtl_jax.checkpoint import Checkpoints
from mtl_jax.config import DataConfig, TrainConfig
from mtl_jax.errors import Preempted, SharedError, UserError
from mtl_jax.train import train
from mtl_jax.workdir import Workdir


def told(action):
    """The error that all have met, and whether it is for this process to print."""
    try:
        action()
    except SharedError as error:
        return [str(error), not isinstance(error, processes.RelayedError)]
    return None


def left(config):
    """What a run says as it leaves, of whose processes the second one is told to."""
    if processes.index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    try:
        train(config)
    except Preempted as stop:
        return str(stop)
    return None


def refuse_in_the_second():
    if processes.index() == 1:
        raise UserError("the second has no room")
    return processes.index()


def main(folder, settings):
    processes.join()
    processes.PATIENCE_SECONDS = 0.5
    own = folder / f"disk{processes.index()}"
    os.chdir(own)
    config = TrainConfig(
        **{**settings, "data": DataConfig(**settings["data"])}, workdir=str(folder / "run")
    )
    found = {
        "own": processes.in_all(processes.index),
        "refused": told(lambda: processes.in_all(refuse_in_the_second)),
        "apart": told(lambda: Workdir("run").claim({})),
        "claimed": told(lambda: Workdir(folder / "claimed").claim({})),
        "listed": told(lambda: Checkpoints(own / "checkpoints")),
        "lost": told(lambda: train(config)),
    }
    kept = sorted(path.name for path in (folder / "run" / "nonfinite").iterdir())
    processes.on_main(lambda: replace_by_a_folder(folder / "run" / "nonfinite" / kept[1]))
    found |= {"kept": kept, "not kept": told(lambda: train(config))}
    found["left"] = left(
        dataclasses.replace(config, scenario="all_frozen", workdir=str(folder / "untrained"))
    )
    print(json.dumps(found))
    processes.leave()


def replace_by_a_folder(file):
    file.unlink()
    file.mkdir()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
