"""The workers of a TPU VM slice, through ``gcloud``."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path, PurePosixPath
from typing import Annotated

from tyro.conf import UseAppendAction

from mtl_jax.core.errors import SAVED, UserError, refuse_undecodable
from mtl_jax.launch.command import Work
from mtl_jax.launch.options import (
    DOTTED,
    LABEL,
    Options,
    need,
    quoted,
    refuse_other_folders,
)

_ROOT = Path(__file__).parents[2]
_ARCHIVE = "mtl_jax.tar.gz"
_FOLDER = "mtl_jax"

# What of the repository no worker needs.
_LEFT_OUT = (".git", ".venv", "runs", "__pycache__", "*.egg-info")

# Some images of TPU VMs have Python 3.10 alone.
_PYTHON = """\
python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
command -v python3.11 >/dev/null ||
{ sudo apt-get update -qq && sudo apt-get install -y -qq python3.11 python3.11-venv; }"""

# Each worker has a disk of its own, which the others do not see.
_SEEN_BY_ALL = """\
mkdir -p {folder} || exit 2
if [ "$workers" -gt 1 ] && [ "$(stat -c %d {folder})" = "$(stat -c %d "$HOME")" ]; then
    echo "error: --workdir is on the worker's own disk: mount a file system that all see" >&2
    exit 2
fi"""

_SCRIPT = """\
#!/usr/bin/env bash
set -euo pipefail

state() {{ {describe} '--format=value(state)' 2>/dev/null || true; }}

make() {{ {create}; }}

# Makes the slice where there is none, and anew where its machines are gone; whether it is ready.
ensure() {{
    local found
    found=$(state)
    case "$found" in
        READY) ;;
        '') make ;;
        PREEMPTED | TERMINATED | STOPPED | FAILED) {delete} && make ;;
        *)
            echo {name} "is $found: wait until it is ready, or name another one" >&2
            return 2
            ;;
    esac
}}

run() {{
    local workers
    workers=$({describe} '--format=value(networkEndpoints.len())') || return
    {copy} || return
    # shellcheck disable=SC2016  # the shell of the worker expands it
    {ssh} --command="workers=$workers
"{command}
}}

archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
tar -czf "$archive" {left_out} -C {root} .

crashes=0
for restart in $(seq 0 {restarts}); do
    status=0
    ensure || status=$?
    if [ "$status" -ne 0 ]; then
        # At the start somebody is there to mend it; later a slice may be long in coming.
        [ "$restart" -gt 0 ] || exit "$status"
        echo {name} "is not ready after restart $restart of {restarts}" >&2
        sleep {pause}
        continue
    fi
    run || status=$?
    # The machines may be gone, or the run has saved what it had: it goes on in the same folder.
    if [ "$status" -ne {saved} ] && [ "$(state)" = READY ]; then
        if [ "$status" -eq 0 ] || [ "$status" -eq 2 ] || [ "$crashes" -ge {retries} ]; then
            exit "$status"
        fi
        crashes=$((crashes + 1))
        echo "status $status: begun again, $crashes of {retries}" >&2
    fi
done
exit {saved}
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tpu(Options):
    """Make or reuse a TPU VM slice, and run one command on every worker of it.

    The repository is copied to each worker and installed there. What the run leaves has to be
    where all workers see it: --workdir names a folder of a file system that they mount, as
    Filestore is, at every start anew where it is not mounted yet, by
    --setup='mountpoint -q /mnt/runs ||
    { sudo mkdir -p /mnt/runs && sudo mount -t nfs 10.0.0.2:/share /mnt/runs; }'.
    A bucket itself, gs://..., can't be used.
    """

    name: str
    """of the slice"""
    zone: str
    """where it is, as us-central1-a"""
    accelerator_type: str = "v5litepod-8"
    """what it is, where it has to be made"""
    version: str = "v2-alpha-tpuv5-lite"
    """the image of its workers, where it has to be made"""
    project: str | None = None
    """of the cloud; gcloud's own by default"""
    spot: bool = False
    """make a cheaper one, which may be taken away at any time"""
    max_restarts: int = 100
    """how often a slice that was taken away is made again, and the run gone on with; asking \
again for one that could not be made, or is not ready yet, counts, too"""
    pause_seconds: int = 60
    """how long to wait before that is asked again"""
    max_retries: int = 2
    """how often a run that crashed is begun again, from its last checkpoint"""
    setup: Annotated[tuple[str, ...], UseAppendAction] = ()
    """a shell command on every worker before the run, as to mount a file system; again for more"""
    gcloud: Annotated[tuple[str, ...], UseAppendAction] = ()
    """a further option for the making, as --gcloud=--network=name; again for more"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_outside(0, 65_535, "max_restarts", "max_retries")
        self._refuse_outside(0, 86_400, "pause_seconds")
        # Google's names are of RFC 1035: a letter comes first.
        self._refuse_unlike(rf"(?=[a-z]){LABEL}", "my-slice (small letters, digits, '-')", "name")
        self._refuse_unlike(rf"(?=[a-z]){LABEL}", "us-central1-a", "zone")
        self._refuse_unlike(LABEL, "v5litepod-8", "accelerator_type")
        self._refuse_unlike(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", "v2-alpha-tpuv5-lite", "version")
        self._refuse_unlike(rf"({DOTTED}:)?{LABEL}", "my-project", "project")
        self._refuse_unlike_options("gcloud", "--network=name")

    def runs_folder(self) -> str | None:
        """See ``Options``."""
        return None

    def launch(self, work: Work, _run_id: str) -> int:
        """Runs it, or prints the script that would; returns the exit status.

        Raises:
            UserError: It can't be run so.
        """
        if "://" in work.workdir:
            raise UserError(
                f"--workdir {work.workdir} is no folder: mount the bucket or a file server on "
                "every worker with --setup, and name a folder there"
            )
        if not PurePosixPath(work.workdir).is_absolute():
            raise UserError(
                f"--workdir {work.workdir} would be on each worker's own disk: name a folder, "
                "from / on, of a file system that all workers mount"
            )
        refuse_other_folders("--workdir", work.workdir)
        script = self.script(_as_copied(work))
        refuse_undecodable(script)
        if self.dry_run:
            print(script, end="")
            return 0
        need("gcloud", "install the Google Cloud CLI")
        return subprocess.run(["bash", "-c", script], check=False).returncode  # noqa: S603, S607

    def script(self, work: Work) -> str:
        """The bash script that does all."""
        where = [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]

        def tpu_vm(verb: str, *words: str) -> str:
            return quoted(["gcloud", "compute", "tpus", "tpu-vm", verb, *words, *where])

        create = [f"--accelerator-type={self.accelerator_type}", f"--version={self.version}"]
        create += ["--spot"] if self.spot else []
        return _SCRIPT.format(
            describe=tpu_vm("describe", self.name),
            create=tpu_vm("create", self.name, *create, *self.gcloud),
            delete=tpu_vm("delete", self.name, "--quiet"),
            name=quoted([self.name]),
            copy=tpu_vm("scp", "ARCHIVE", f"{self.name}:{_ARCHIVE}", "--worker=all").replace(
                "ARCHIVE", '"$archive"', 1
            ),
            ssh=tpu_vm("ssh", self.name, "--worker=all"),
            command=quoted([self._on_worker(work)]),
            left_out=quoted([f"--exclude={each}" for each in _LEFT_OUT]),
            root=quoted([str(_ROOT)]),
            restarts=self.max_restarts,
            pause=self.pause_seconds,
            retries=self.max_retries,
            saved=SAVED,
        )

    def _on_worker(self, work: Work) -> str:
        """What a worker's shell reads."""
        launch = ["./launch.sh", "local", "--", *work.distributed().launched]
        return "\n".join(
            [
                "set -e",
                *self.setup,
                _SEEN_BY_ALL.format(folder=quoted([str(PurePosixPath(work.workdir).parent)])),
                _PYTHON,
                f"rm -rf {_FOLDER}.new && mkdir {_FOLDER}.new",
                # What is installed is kept from one start to the next.
                f"[ ! -d {_FOLDER}/.venv ] || mv {_FOLDER}/.venv {_FOLDER}.new/.venv",
                f"tar -xzf {_ARCHIVE} -C {_FOLDER}.new",
                f"rm -rf {_FOLDER} && mv {_FOLDER}.new {_FOLDER}",
                f"cd {_FOLDER}",
                f"EXTRAS=tpu exec {quoted(launch)}",
            ]
        )


def _as_copied(work: Work) -> Work:
    """The same in the copy of the repository that a worker has.

    Raises:
        UserError: It is a file that is not copied.
    """
    if work.file is None:
        return work
    if not work.file.is_relative_to(_ROOT):
        raise UserError(
            f"{work.file} would be on no worker, which get a copy of {_ROOT}: move the file there"
        )
    copied = str(work.file.relative_to(_ROOT))
    return dataclasses.replace(work, words=("study", copied, *work.words[2:]))
