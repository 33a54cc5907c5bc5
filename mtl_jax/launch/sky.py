"""A task for SkyPilot, which finds machines at any cloud, and makes them again.

The fields are those of SkyPilot 0.14.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import yaml
from tyro.conf import UseAppendAction

from mtl_jax.core.errors import UserError, refuse_undecodable
from mtl_jax.launch.command import Work
from mtl_jax.launch.options import (
    GONE_ON_WITH,
    Options,
    commented,
    device_flags,
    quoted,
    refuse_other_folders,
)

_ROOT = Path(__file__).parents[2]
_PORT = 55527
# How the machines of a task find each other; the first address is of the first machine.
_TOGETHER = [
    f'JAX_COORDINATOR_ADDRESS="$(head -n 1 <<<"$SKYPILOT_NODE_IPS"):{_PORT}"',
    "export JAX_COORDINATOR_ADDRESS",
    'export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES"',
    'export JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"',
]
# Each machine has a disk of its own, which the others do not see.
_SEEN_BY_ALL = """\
mkdir -p {folder} || exit 2
if [ "$(stat -c %d {folder})" = "$(stat -c %d "$HOME")" ]; then
    printf "error: %s is on the machine's own disk: mount what all see with --setup\\n" {folder} >&2
    exit 2
fi"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sky(Options):
    """Print a task for SkyPilot, for "> task.yaml; sky jobs launch task.yaml".

    The repository is copied to the machines and installed there. A training run uses --tasks
    machines that share each batch. For a study, launch the task once per worker. If a machine is
    taken away, another one is found, in any cloud, and the run resumes from its last checkpoint.
    """

    mount: str = "/runs"
    """folder on a file system that all machines mount, for example by --setup or --volume; \
--workdir is a folder in it. A bucket is not sufficient, because claims and checkpoints need \
links and renames"""
    volume: str | None = None
    """SkyPilot volume to mount there"""
    setup: Annotated[tuple[str, ...], UseAppendAction] = ()
    """shell command to execute on every machine before the run, such as --setup='mountpoint -q \
/runs || sudo mount -t nfs 10.0.0.2:/share /runs'; may be repeated"""
    infra: str | None = None
    """where to run, such as gcp/us-central1 or kubernetes; by default wherever it is cheapest"""
    accelerators: str | None = None
    """accelerators per machine, such as H100:8 or tpu-v5litepod-8"""
    cpus: str | None = None
    """processor cores per machine, such as 8 or 8+"""
    memory: str | None = None
    """memory per machine in GiB, such as 32 or 32+"""
    disk_size: int | None = None
    """disk per machine in GiB"""
    image: str | None = None
    """machine or container image, such as docker:nvcr.io/nvidia/jax:25.01-py3"""
    spot: bool = False
    """use spot machines, which are cheaper but may be taken away at any time"""
    tasks: int = 1
    """machines, one process each; several share each batch"""
    devices_per_task: int | None = None
    """CPU devices per machine"""
    max_restarts: int = 3
    """maximum number of times that a crashed process is restarted"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_outside(1, 100_000, "tasks", "disk_size")
        self._refuse_outside(1, 1024, "devices_per_task")
        self._refuse_outside(0, 65_535, "max_restarts")
        self._refuse_unlike(r"[A-Za-z0-9][\w.-]{0,62}", "my-volume", "volume")
        self._refuse_unlike(r"[*A-Za-z0-9][\w*:./@-]*", "gcp/us-central1", "infra")
        self._refuse_unlike(r"[A-Za-z][\w.-]*(:\d+(\.\d+)?)?", "H100:8", "accelerators")
        self._refuse_unlike(r"\d+(\.\d+)?\+?", "8+", "cpus", "memory")
        self._refuse_unlike(r"[A-Za-z0-9][\w.:/@-]*", "docker:NAME:TAG", "image")
        refuse_other_folders("--mount", self.mount)
        if self.mount == "/":
            raise UserError("--mount / must be a folder below /, as /runs")

    def runs_folder(self) -> str | None:
        """See ``Options``."""
        return self.mount

    def launch(self, work: Work, run_id: str) -> int:
        """Prints the task; returns the exit status.

        Raises:
            UserError: It can't be run so.
        """
        work.refuse_tasks(self.tasks)
        refuse_other_folders("--workdir", work.workdir)
        if not PurePosixPath(work.workdir).is_relative_to(self.mount):
            raise UserError(
                f"--workdir {work.workdir} would be gone with its machine: name a folder in "
                f"--mount {self.mount}"
            )
        task = self.task(_as_copied(work), run_id)
        for word in (task["run"], task.get("setup", "")):
            refuse_undecodable(word)
        if work.study:
            report = quoted(work.command("python", "--gather"))
            if not report.isprintable():
                # A comment ends with its line.
                report = "the same study with --gather"
            print(
                "# Each launch is a worker: for i in 1 2 3 4; do sky jobs launch -y -d FILE; done"
            )
            print(f"# The report, where the folder is mounted: {report}")
        print(yaml.safe_dump(task, sort_keys=False, width=1000), end="")
        return 0

    def task(self, work: Work, run_id: str) -> dict[str, Any]:
        """The task, as of ``sky.Task.from_yaml``."""
        resources = {
            "infra": self.infra,
            "accelerators": self.accelerators,
            "cpus": self.cpus,
            "memory": self.memory,
            "disk_size": self.disk_size,
            "image_id": self.image,
            "use_spot": self.spot or None,
            "job_recovery": {
                "max_restarts_on_errors": self.max_restarts,
                "recover_on_exit_codes": list(GONE_ON_WITH),
            },
        }
        task = {
            "name": re.sub(r"[^a-z0-9]+", "-", f"{work.name}-{run_id}".lower()).strip("-"),
            "workdir": str(_ROOT),
            "num_nodes": self.tasks,
            "resources": {name: value for name, value in resources.items() if value is not None},
            "volumes": {self.mount: self.volume} if self.volume else None,
            "run": "\n".join([*self._before(), self._command(work), ""]),
        }
        return {name: value for name, value in task.items() if value is not None}

    def _before(self) -> list[str]:
        folder = quoted([self.mount])
        # Not in SkyPilot's setup, which is not done again where a machine has begun anew.
        lines = ["set -e", *self.setup, _SEEN_BY_ALL.format(folder=folder)]
        if self.tasks > 1:
            lines += _TOGETHER
        if flags := device_flags(self.devices_per_task):
            lines.append(f'export XLA_FLAGS="${{XLA_FLAGS-}} {flags}"')
        return lines

    def _command(self, work: Work) -> str:
        if self.tasks > 1:
            work = work.distributed()
        elif work.study:
            work = work.worker()
        name = (self.accelerators or "").lower()
        extras = "tpu" if name.startswith("tpu") else "cuda" if name else ""
        launch = quoted(["./launch.sh", "local", "--", *work.launched])
        return commented(f"EXTRAS={extras} exec {launch}")


def _as_copied(work: Work) -> Work:
    """The same in the copy of the repository that a machine has.

    Raises:
        UserError: It is a file that is not copied.
    """
    if work.file is None:
        return work
    if not work.file.is_relative_to(_ROOT):
        raise UserError(
            f"{work.file} is outside {_ROOT}, of which each machine gets a copy: move the "
            "file there"
        )
    copied = str(work.file.relative_to(_ROOT))
    return dataclasses.replace(work, words=("study", copied, *work.words[2:]))
