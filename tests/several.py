"""Starts a run in several processes on this machine; run as a program, it is one of them."""

import contextlib
import json
import os
import socket
import sys
from pathlib import Path

from tests import forked

REPOSITORY = Path(__file__).parent.parent


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def started(processes, devices, *argv, port=None):
    """The processes of ``python argv``, each with so many devices; those left over are killed."""
    environment = {
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port or free_port()}",
        "JAX_NUM_PROCESSES": str(processes),
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
    }
    with contextlib.ExitStack() as stack:
        those = [
            stack.enter_context(
                forked.Popen(
                    [sys.executable, *argv],
                    env=environment | {"JAX_PROCESS_ID": str(index)},
                    cwd=REPOSITORY,
                    stdout=forked.PIPE,
                    stderr=forked.PIPE,
                    text=True,
                )
            )
            for index in range(processes)
        ]
        for process in those:
            stack.callback(process.kill)
        yield those


def together(processes, devices, *argv):
    """Runs them to their end: per process its status, standard output and standard error."""
    with started(processes, devices, *argv) as those:
        said = [process.communicate(timeout=900) for process in those]
    return [(those[index].returncode, *words) for index, words in enumerate(said)]


def train_all(file):
    """Trains what a JSON file lists, as settings of ``TrainConfig``."""
    from mtl_jax.config.train import DataConfig, TrainConfig
    from mtl_jax.core import distributed
    from mtl_jax.runs.loop import train

    distributed.join()
    for settings in json.loads(Path(file).read_text()):
        train(TrainConfig(**{**settings, "data": DataConfig(**settings["data"])}))
    distributed.leave()


if __name__ == "__main__":
    train_all(sys.argv[1])
