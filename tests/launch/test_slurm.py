"""Jobs of a real Slurm cluster of one node, which these tests bring up and down."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.command_line import guarded
from mtl_jax.core.json_files import read_lines
from mtl_jax.launch.__main__ import main
from mtl_jax.runs.loop import train
from tests import forked
from tests.conftest import COMPILER_FLAGS

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "tests" / "slurm_cluster.sh"
_SECONDS = 120
_DAEMONS = ("slurmctld", "slurmd", "munged")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The configuration file of a cluster of four processors."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [tool for tool in ("sbatch", *_DAEMONS) if shutil.which(tool, path=path) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("only root may start the daemons of Slurm")
    folder = tmp_path_factory.mktemp("slurm")
    try:
        subprocess.run([CLUSTER, "up", folder, "4"], check=True)
        yield folder / "slurm.conf"
    finally:
        subprocess.run([CLUSTER, "down", folder], check=True)


@pytest.fixture
def launch(cluster, tmp_path, monkeypatch, capsys):
    """Launches on the cluster; gives the numbers of the jobs and the folder of their logs."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "executable", forked.interpreter())
    for name, value in {
        "SLURM_CONF": cluster,
        # Without the number of devices, which is the launcher's to say.
        "XLA_FLAGS": COMPILER_FLAGS,
    }.items():
        monkeypatch.setenv(name, str(value))

    def run(options, words):
        folder = tmp_path / "the jobs' folder"
        own = [f"--folder={folder}", "--run-id=this", *options]
        capsys.readouterr()
        status = guarded(main, ["slurm", *own, "--", *words])
        out, err = capsys.readouterr()
        assert status == 0, err
        return out.split(), folder / "this"

    return run


def states(job):
    """The states of a job, or of the tasks of an array."""
    words = ["squeue", "--noheader", "--states=all", "--array", "--format=%T", f"--jobs={job}"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()


def until(true, logs):
    """Waits until something is so, as the cluster's daemons take their time."""
    deadline = time.monotonic() + _SECONDS
    while not (found := true()):
        if time.monotonic() > deadline:
            said = "\n".join(file.read_text() for file in sorted(logs.glob("*.log")))
            pytest.fail(f"this did not come true; the jobs have said:\n{said}")
        time.sleep(0.1)
    return found


def ended(job, logs):
    """The states in which the tasks of a job have ended."""
    going_on = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"}
    until(lambda: not going_on & {*states(job)}, logs)
    return states(job)


def spread(flags):
    """The flags of a run whose batches are spread over all devices."""
    return [*(flag for flag in flags if not flag.startswith("--parallel")), "--parallel=mesh"]


def test_a_study_is_an_array_of_workers_whose_results_a_last_job_gathers(
    launch, small_flags, tmp_path
):
    workdir = tmp_path / 'it\'s a "study" of $HOME'
    names = ["all_frozen", "backbone_frozen", "top_9"]
    words = [f"--workdir={workdir}", "--arms", *names, "--seeds", "0", *small_flags]
    refused = ["experiment", "freezing", *words]
    with pytest.raises(AssertionError, match="'top_9' does not fit the backbone's 1 layers"):
        launch([], refused)
    assert not workdir.exists()

    words[words.index("top_9")] = "top_1"
    awkward = 'it\'s "so" $HOME `id` \\n #!'
    options = ["--workers=2", f"--sbatch=--comment={awkward}"]
    (job, gather), logs = launch(options, ["experiment", "freezing", *words])
    seen = ["squeue", "--noheader", "--states=all", "--format=%k", f"--jobs={gather}"]
    found = subprocess.run(seen, capture_output=True, text=True, check=True).stdout
    assert found.rstrip("\n") == awkward
    assert ended(gather, logs) == ["COMPLETED"]
    assert states(job) == ["COMPLETED"] * 2
    names[-1] = "top_1"
    said = "".join((logs / f"{job}_{task}.log").read_text() for task in range(2))
    for number, name in enumerate(names, start=1):
        assert said.count(f"arm {number} of 3: {name}, seed 0") == 1
    lines = (workdir / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["arm"] for line in lines] == names
    assert (workdir / "report.html").exists()
    assert "the report is" in (logs / f"gather-{gather}.log").read_text()


def test_two_tasks_with_two_devices_each_train_as_four_devices_do(
    launch, small_flags, small_settings, tmp_path
):
    workdir = tmp_path / "run"
    words = ["train", f"--workdir={workdir}", "--scenario=none_frozen", *spread(small_flags)]
    (job,), logs = launch(["--tasks=2", "--devices-per-task=2"], words)
    assert ended(job, logs) == ["COMPLETED"]
    settings = small_settings | {"parallel": "mesh", "scenario": "none_frozen"}
    train(TrainConfig(**settings, workdir=str(tmp_path / "alone")))
    found, known = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("run", "alone"))
    assert [line["event"] for line in found] == [line["event"] for line in known]
    for ours, theirs in zip(found, known, strict=True):
        if ours["event"] == "epoch":
            assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
    there = json.loads((workdir / "config.json").read_text())["environment"]
    assert (there["processes"], len(there["devices"])) == (2, 4)
    # One result on standard output, that of the first process.
    assert (logs / f"{job}.log").read_text().count('{"classifier": ') == 1


def test_a_run_that_is_driven_out_goes_on_when_it_is_its_turn_again(launch, small_flags, tmp_path):
    workdir = tmp_path / "run"
    # Longer than any test: it is cancelled in the end.
    run = ["--scenario=top_1", *spread(small_flags), "--epochs=9999", "--measure-every=5"]
    (job,), logs = launch(["--tasks=2"], ["train", f"--workdir={workdir}", *run])
    log, metrics = logs / f"{job}.log", workdir / "metrics.jsonl"

    def said(words):
        return lambda: log.exists() and words in log.read_text()

    until(said("epoch 5 of 9999"), logs)
    words = ["--parsable", "--partition=urgent", "--ntasks=4", "--output=/dev/null", "--wrap=:"]
    # It is not waited for by sbatch, which looks less and less often.
    urgent = subprocess.run(["sbatch", *words], check=True, capture_output=True, text=True).stdout
    assert ended(urgent.strip(), logs) == ["COMPLETED"]
    assert states(job) == ["PENDING"]
    done = len(read_lines(metrics))
    until(said("resuming from step"), logs)
    until(lambda: len(read_lines(metrics)) > done >= 1, logs)
    # Whoever cancels it does not want it queued again, though it saves then, too.
    subprocess.run(["scancel", job], check=True)
    assert ended(job, logs) == ["CANCELLED"]
    text = log.read_text()
    assert text.count("top_1, seed 0: ") == 2
    ends = [line for line in text.splitlines() if line.startswith("srun: error: ")]
    assert sum(2 if "tasks 0-1: " in line else 1 for line in ends) == 4
    assert all(line.endswith("Exited with exit code 75") for line in ends)


def test_what_slurm_refuses_is_told(launch, tmp_path):
    words = ["train", f"--workdir={tmp_path / 'run'}"]
    with pytest.raises(AssertionError, match=r"sbatch refuses .*job.sbatch: .*invalid partition"):
        launch(["--partition=none"], words)
