"""One of two processes that do not see, or meet, the same; prints what it has come to as JSON."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

from mtl_jax.config.train import DataConfig, TrainConfig
from mtl_jax.core import distributed, preemption
from mtl_jax.core.errors import Preempted, SharedError, UserError
from mtl_jax.runs.checkpoints.manager import CheckpointManager
from mtl_jax.runs.loop import train
from mtl_jax.runs.workdir import Workdir


def told(action):
    """The error that all have met, and whether it is for this process to print."""
    try:
        action()
    except SharedError as error:
        return [str(error), not isinstance(error, distributed.RelayedError)]
    return None


def left(config):
    """What a run says as it leaves, of whose processes the second one is told to."""
    # As after a first step: before it each would leave at once.
    with preemption.deferred():
        preemption.due()
    if distributed.index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    try:
        train(config)
    except Preempted as stop:
        return str(stop)
    return None


def refuse_in_the_second():
    if distributed.index() == 1:
        raise UserError("the second has no room")
    return distributed.index()


def main(folder, settings):
    distributed.join()
    distributed.PATIENCE_SECONDS = 0.5
    own = folder / f"disk{distributed.index()}"
    os.chdir(own)
    config = TrainConfig(
        **{**settings, "data": DataConfig(**settings["data"])}, workdir=str(folder / "run")
    )
    found = {
        "own": distributed.call_on_all(distributed.index),
        "refused": told(lambda: distributed.call_on_all(refuse_in_the_second)),
        "apart": told(lambda: Workdir("run").claim({})),
        "claimed": told(lambda: Workdir(folder / "claimed").claim({})),
        "listed": told(lambda: CheckpointManager(own / "checkpoints")),
        "lost": told(lambda: train(config)),
    }
    kept = sorted(path.name for path in (folder / "run" / "nonfinite").iterdir())
    distributed.call_on_main(lambda: replace_by_a_folder(folder / "run" / "nonfinite" / kept[1]))
    found |= {"kept": kept, "not kept": told(lambda: train(config))}
    found["left"] = left(
        dataclasses.replace(config, scenario="all_frozen", workdir=str(folder / "untrained"))
    )
    print(json.dumps(found))
    distributed.leave()


def replace_by_a_folder(file):
    file.unlink()
    file.mkdir()


if __name__ == "__main__":
    with preemption.heeded():
        main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
