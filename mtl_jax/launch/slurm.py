"""Jobs of a Slurm cluster."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import UseAppendAction

from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError, cannot_write, refuse_undecodable
from mtl_jax.core.paths import expanded
from mtl_jax.launch.command import Work
from mtl_jax.launch.options import (
    GONE_ON_WITH,
    MISTAKE,
    Options,
    commented,
    device_flags,
    need,
    python,
    quoted,
    refuse_unprintable,
)
from mtl_jax.studies.work_queue import forgive

# A cluster that sets no other MaxArraySize takes indices up to 1000.
_MOST_WORKERS = 1000
# See "--time" of sbatch.
_TIME = r"\d{1,9}(:\d{1,9}){0,2}|\d{1,9}-\d{1,9}(:\d{1,9}){0,2}|(?i:unlimited|infinite)"

# How a job ends. A job that is no longer RUNNING was cancelled, or is queued again by Slurm itself.
_END = """\
status=$?
again() {{
    [ "$(squeue --noheader --format=%T --jobs="{job}")" = RUNNING ] || exit "$status"
    scontrol requeue "{job}"
    exit "$status"
}}
case "$status" in
    {ended}) ;;
    {saved})
        # It has saved what it had, or had not begun: it goes on.
        [ "${{SLURM_RESTART_COUNT:-0}}" -ge {requeues} ] || again
        ;;
    *)
        # It crashed: it goes on from its last checkpoint. The file has a line for each time.
        crashes={crashes}"{job}"
        echo "$status" >>"$crashes"
        times=$(wc -l <"$crashes")
        if [ "$times" -le {retries} ]; then
            echo "it crashed (status $status): queued again, $times of {retries} times" >&2
            again
        fi
        ;;
esac
exit "$status"
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slurm(Options):
    """Write and submit sbatch files.

    A training run is a job of --tasks processes. A study is an array of --workers jobs that share
    its arms, and a final job, with the options of one worker, that gathers their results into the
    report. A job that is told to stop saves and is queued again. A job that crashed is queued
    again a few times.
    """

    workers: int = 8
    """jobs that share the arms of a study; a job that finds none left ends at once"""

    nodes: int = 1
    """number of machines"""
    tasks: int = 1
    """number of processes, over all machines; several share each batch. With --gpus-per-node, \
one per GPU"""
    cpus_per_task: int | None = None
    """processor cores per process"""
    gpus_per_task: int | None = None
    """GPUs per process, which sees no others"""
    gpus_per_node: int | None = None
    """GPUs per machine: one process for each, which computes on its own but sees all of them, as \
NCCL needs for the fastest connections"""
    devices_per_task: int | None = None
    """CPU devices per process; by default as in XLA_FLAGS, otherwise 1"""
    memory: str | None = None
    """memory per machine, such as 32G"""
    time: str | None = None
    """time limit, such as 04:00:00; by default the cluster's"""
    partition: str | None = None
    """partition; by default the cluster's default partition"""
    signal_seconds: int = 120
    """seconds before the time limit at which every process is told to save and exit"""
    max_requeues: int = 100
    """maximum number of times that a job is queued again after it was told to stop and has saved"""
    max_retries: int = 2
    """maximum number of times that a crashed job is queued again, to resume from its last \
checkpoint"""
    sbatch: Annotated[tuple[str, ...], UseAppendAction] = ()
    """another option for sbatch, such as --sbatch=--account=name; may be repeated"""
    setup: Annotated[tuple[str, ...], UseAppendAction] = ()
    """shell command to execute before the run, such as --setup='module load cuda'; may be \
repeated"""
    folder: str = "runs/slurm"
    """parent of the folder, named after the run id, with the sbatch files and the output of the \
jobs"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_outside(1, 100_000, "nodes", "tasks")
        self._refuse_outside(1, 1024, "cpus_per_task", "gpus_per_task", "devices_per_task")
        self._refuse_outside(1, 1024, "gpus_per_node")
        self._refuse_outside(1, _MOST_WORKERS, "workers")
        # Of the second sbatch says so.
        self._refuse_outside(0, 65_535, "max_requeues", "signal_seconds", "max_retries")
        self._refuse_unlike(_TIME, "04:00:00, 90 (minutes) or 1-12 (days-hours)", "time")
        self._refuse_unlike(r"(?i:\d{1,15}([kmgt]b?)?)", "32G", "memory")
        self._refuse_unlike_options("sbatch", "--account=name")
        if self.gpus_per_node:
            if self.gpus_per_task:
                raise UserError(
                    "--gpus-per-node and --gpus-per-task cannot be used together: use one"
                )
            one_each = self.nodes * self.gpus_per_node
            if self.tasks not in (1, one_each):
                raise UserError(
                    f"--tasks {self.tasks} must be {one_each}, one for each of --gpus-per-node "
                    f"{self.gpus_per_node} on --nodes {self.nodes}: leave it out"
                )
            object.__setattr__(self, "tasks", one_each)
        if self.tasks < self.nodes:
            raise UserError(f"--tasks {self.tasks} must be at least --nodes {self.nodes}")

    def launch(self, work: Work, run_id: str) -> int:
        """Writes the files and submits them; returns the exit status.

        Raises:
            UserError: It can't be run so, or Slurm refuses it.
        """
        work.refuse_tasks(self.tasks)
        folder = (expanded(self.folder) / run_id).absolute()
        refuse_unprintable("--folder", str(folder))
        if "\\" in str(folder):
            raise UserError(
                f"--folder {folder} has a backslash, and Slurm would write the output elsewhere: "
                "use another folder"
            )
        files = {"job.sbatch": self._job(work, run_id, folder)}
        if work.study:
            files["gather.sbatch"] = self._gather(work, run_id, folder)
        for text in files.values():
            refuse_undecodable(text)
        if self.dry_run:
            self._show(folder, files)
            return 0
        need("sbatch", "run this on a machine of a Slurm cluster")
        if work.study:
            # Whoever asks again has mended what arms have failed of.
            forgive(work.claims)
        _write(folder, files)
        job = _submit(folder / "job.sbatch")
        print(job)
        say(f"job {job} runs {folder / 'job.sbatch'}; its output is in {folder}")
        if work.study:
            try:
                gather = _submit(*_after(job), folder / "gather.sbatch")
            except UserError:
                subprocess.run(["scancel", job], check=False)  # noqa: S603, S607
                raise
            print(gather)
            say(f"job {gather} gathers the results when all of its workers have ended")
            say(f"how far they are: ./launch.sh status --workdir {shlex.quote(work.workdir)}")
        return 0

    def _job(self, work: Work, run_id: str, folder: Path) -> str:
        own: list[str] = []
        job, log = "$SLURM_JOB_ID", "%j.log"
        if work.study:
            own, log = [f"--array=0-{self.workers - 1}"], "%A_%a.log"
            job = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
            work = work.worker()
        options = [
            *self._options(f"{work.name}-{run_id}", folder / log, own),
            *self._resources(),
            "--requeue",
            f"--signal=TERM@{self.signal_seconds}",
            *self.sbatch,
        ]
        command = (work if self.tasks == 1 else work.distributed()).command(python())
        return "\n".join(
            [
                *_head(options),
                "# Caught and not ignored: this shell outlives a SIGTERM that its tasks get.",
                "trap : TERM",
                *self._body(),
                commented(quoted([*self._srun(), *command])),
                _END.format(
                    job=job,
                    saved="|".join(map(str, GONE_ON_WITH)),
                    ended="|".join(map(str, (0, MISTAKE))),
                    requeues=self.max_requeues,
                    retries=self.max_retries,
                    crashes=quoted([f"{folder}/crashes-"]),
                ),
            ]
        )

    def _gather(self, work: Work, run_id: str, folder: Path) -> str:
        options = [
            *self._options(f"gather-{work.name}-{run_id}", folder / "gather-%j.log", []),
            *([f"--cpus-per-task={self.cpus_per_task}"] if self.cpus_per_task else []),
            *([f"--mem={self.memory}"] if self.memory else []),
            "--requeue",
            *self.sbatch,
        ]
        command = quoted(["env", "JAX_PLATFORMS=cpu", *work.command(python(), "--gather")])
        return "\n".join([*_head(options), *self._body(), commented(f"exec {command}"), ""])

    def _options(self, name: str, log: Path, own: Sequence[str]) -> list[str]:
        # Of the folder alone: what follows is a pattern.
        output = f"{str(log.parent).replace('%', '%%')}/{log.name}"
        return [
            f"--job-name={name}",
            f"--output={output}",
            "--open-mode=append",
            *([f"--time={self.time}"] if self.time else []),
            *([f"--partition={self.partition}"] if self.partition else []),
            *own,
        ]

    def _resources(self) -> list[str]:
        return [
            f"--nodes={self.nodes}",
            f"--ntasks={self.tasks}",
            *([f"--cpus-per-task={self.cpus_per_task}"] if self.cpus_per_task else []),
            *([f"--gpus-per-task={self.gpus_per_task}"] if self.gpus_per_task else []),
            *(self._gpus_of_node if self.gpus_per_node else []),
            *([f"--mem={self.memory}"] if self.memory else []),
        ]

    @property
    def _gpus_of_node(self) -> list[str]:
        # None is bound to a task: JAX takes the one whose number is the task's on its machine.
        return [f"--gpus-per-node={self.gpus_per_node}", f"--ntasks-per-node={self.gpus_per_node}"]

    def _body(self) -> list[str]:
        """What comes before the run: the folder, the environment, the user's own commands."""
        lines = [f"cd {quoted([str(Path.cwd())])} || exit"]
        if flags := device_flags(self.devices_per_task):
            lines.append(f'export XLA_FLAGS="${{XLA_FLAGS-}} {flags}"')
        if self.gpus_per_task and self.tasks > 1:
            # Each task sees its own GPUs only; by itself JAX would take one, counted per machine.
            own = ",".join(map(str, range(self.gpus_per_task)))
            lines.append(f"export JAX_LOCAL_DEVICE_IDS={own}")
        return [*lines, *self.setup]

    def _srun(self) -> list[str]:
        # The others of a task that has ended may be about to end, too, and are given the time;
        # the number of cores is not taken over from the job.
        cores = [f"--cpus-per-task={self.cpus_per_task}"] if self.cpus_per_task else []
        unbound = ["--gpu-bind=none"] if self.gpus_per_node else []
        return ["srun", "--kill-on-bad-exit=0", "--wait=60", *cores, *unbound]

    def _show(self, folder: Path, files: dict[str, str]) -> None:
        for name, text in files.items():
            print(f"# {folder / name}\n{text}")
        print("# Submitted with:")
        submit = quoted(["sbatch", "--parsable", str(folder / "job.sbatch")])
        if "gather.sbatch" not in files:
            print(submit)
            return
        gather = quoted(["--kill-on-invalid-dep=yes", str(folder / "gather.sbatch")])
        print(f"job=$({submit})")
        print(f'sbatch --parsable --dependency="afterany:${{job%%;*}}" {gather}')


def _head(options: Sequence[str]) -> list[str]:
    lines = []
    for option in options:
        flag, equals, value = option.partition("=")
        # In quotes, too, a backslash escapes what follows it.
        quoted_value = shlex.quote(value).replace("\\", "\\\\") if value else ""
        lines.append(f"#SBATCH {flag}{equals}{quoted_value}")
    return ["#!/usr/bin/env bash", *lines, ""]


def _after(job: str) -> list[str]:
    return [f"--dependency=afterany:{job}", "--kill-on-invalid-dep=yes"]


def _write(folder: Path, files: dict[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise cannot_write(folder, error) from error


def _submit(*words: str | Path) -> str:
    """Submits a file; the number of the job."""
    command = ["sbatch", "--parsable", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise UserError(f"sbatch refuses {words[-1]}: {done.stderr.strip()}")
    # Of a federation the name of the cluster follows.
    return done.stdout.strip().partition(";")[0]
