"""Launching on TPU slices, with a stand-in for gcloud, and in Kubernetes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mtl_jax.launch.tpu import Tpu
from tests.launching import AWKWARD, recorded, recorder, shellcheck, shown

ROOT = Path(__file__).parents[2]
SLICE = ["tpu", "--name=a-slice", "--zone=z", "--project=p"]
VM = ["compute", "tpus", "tpu-vm"]
WHERE = ["--zone=z", "--project=p"]

# Plays the parts of Google's: one state of the slice after the other, copies to a worker's home,
# and that worker's shell.
_GCLOUD = """
import os, shutil, subprocess
verb, words, home = sys.argv[4], sys.argv[5:], os.environ["WORKER_HOME"]
status = 0
if verb == "describe" and words[-1] == "--format=value(state)":
    states = pathlib.Path(os.environ["STATES"])
    first, *later = states.read_text().split("\\n")
    states.write_text("\\n".join(later))
    print(first)
elif verb in ("create", "delete"):
    failures = pathlib.Path(os.environ["FAILURES"])
    first, *later = failures.read_text().split() or ["0"]
    failures.write_text(" ".join(later))
    status = int(first)
elif verb == "describe":
    print(os.environ["WORKERS"])
elif verb == "scp":
    shutil.copy(words[0], pathlib.Path(home) / words[1].partition(":")[2])
elif verb == "ssh":
    command = words[-1].removeprefix("--command=")
    own = {**os.environ, "HOME": home}
    status = subprocess.run(["bash", "-c", command], cwd=home, env=own).returncode
import atexit; atexit.register(lambda: os._exit(status))
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """Runs the script of a launch where gcloud is such a stand-in.

    The worker has an environment that needs nothing installed, whose Python writes down what
    it is given, and gives the statuses of the call one after the other.
    """
    home, bin_folder = tmp_path / "home", tmp_path / "bin"
    (home / "mtl_jax" / ".venv" / "bin").mkdir(parents=True)
    bin_folder.mkdir()
    shutil.copy(ROOT / "pyproject.toml", home / "mtl_jax" / ".venv" / "installed-tpu")
    python = home / "mtl_jax" / ".venv" / "bin" / "python"
    statuses = tmp_path / "statuses"
    recorder(
        python,
        f"first, *later = pathlib.Path({str(statuses)!r}).read_text().split()\n"
        f"pathlib.Path({str(statuses)!r}).write_text(' '.join(later))\n"
        "import atexit, os; atexit.register(lambda: os._exit(int(first)))",
    )
    gcloud = recorder(bin_folder / "gcloud", _GCLOUD)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    monkeypatch.setenv("WORKER_HOME", str(home))
    monkeypatch.setenv("STATES", str(tmp_path / "states"))
    monkeypatch.setenv("FAILURES", str(tmp_path / "failures"))

    def run(words, states, ends, workers="1", failures=""):
        (tmp_path / "states").write_text("\n".join(states))
        (tmp_path / "failures").write_text(failures)
        statuses.write_text(" ".join(ends))
        monkeypatch.setenv("WORKERS", workers)
        command = [sys.executable, "-m", "mtl_jax.launch", *SLICE, *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        calls = [call[len(VM) :] for call in recorded(gcloud)]
        gcloud.with_name("gcloud.jsonl").unlink()
        ran = python.with_name("python.jsonl")
        arguments = recorded(python) if ran.exists() else []
        ran.unlink(missing_ok=True)
        return done, calls, arguments

    return run


def test_every_argument_arrives_on_the_worker(cloud, tmp_path):
    words = ["train", f"--train-file={AWKWARD}", f"--workdir={tmp_path}/runs/{AWKWARD}"]
    setup = f"echo mounted > {tmp_path}/mounted"
    options = [f"--setup={setup}", "--spot", "--gcloud=--network=a b"]
    done, calls, arguments = cloud([*options, "--", *words], ["", "READY"], ["0"])
    assert done.returncode == 0, done.stderr
    assert [call[0] for call in calls] == [
        "describe",
        "create",
        "describe",
        "scp",
        "ssh",
        "describe",
    ]
    what = ["--accelerator-type=v5litepod-8", "--version=v2-alpha-tpuv5-lite", "--spot"]
    assert calls[1] == ["create", "a-slice", *what, "--network=a b", *WHERE]
    assert calls[3][2:] == ["a-slice:mtl_jax.tar.gz", "--worker=all", *WHERE]
    assert calls[4][1:5] == ["a-slice", "--worker=all", *WHERE]
    # What launch.sh on the worker, the project's own out of the archive, makes of the command.
    assert arguments == [["-m", "mtl_jax.launch", "local", "--", *words, "--distributed"]]
    assert (tmp_path / "mounted").read_text() == "mounted\n"
    there = tmp_path / "home" / "mtl_jax"
    assert (there / "mtl_jax" / "launch" / "tpu.py").read_bytes() == (
        ROOT / "mtl_jax" / "launch" / "tpu.py"
    ).read_bytes()
    assert not (there / ".git").exists()


@pytest.mark.parametrize("where", ["docs", "help"])
def test_the_file_server_of_the_example_is_mounted_once(where, cloud, tmp_path):
    text = (ROOT / "docs" / "clusters.md").read_text() if where == "docs" else (Tpu.__doc__ or "")
    (setup,) = re.findall(r"--setup[ =]'(mountpoint[^']*)'", text)
    mounted, own = tmp_path / "mounted", tmp_path / "bin"
    recorder(own / "mountpoint", f"pathlib.Path({str(mounted)!r}).exists() or sys.exit(1)")
    # As on a new worker: no folder to mount at, and none is made but by mkdir.
    sudo = recorder(
        own / "sudo",
        f"place = pathlib.Path({str(tmp_path / 'place')!r})\n"
        "if sys.argv[1] == 'mkdir': place.touch()\n"
        f"else: place.exists() and pathlib.Path({str(mounted)!r}).touch(exist_ok=False)",
    )
    words = [f"--setup={setup}", "--", "train", f"--workdir={tmp_path}/x"]
    for _ in range(2):
        done, _, arguments = cloud(words, ["READY"] * 2, ["0"])
        assert (done.returncode, len(arguments)) == (0, 1), done.stderr
    assert recorded(sudo) == [
        ["mkdir", "-p", "/mnt/runs"],
        ["mount", "-t", "nfs", "10.0.0.2:/share", "/mnt/runs"],
    ]
    assert recorded(own / "mountpoint") == [["-q", "/mnt/runs"]]
    # It stands before the folder of the run is asked for.
    printed = subprocess.run(
        [sys.executable, "-m", "mtl_jax.launch", *SLICE, "--dry-run", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.index(setup) < printed.index(f"mkdir -p {tmp_path} || exit 2")


def test_what_was_taken_away_is_made_again_and_what_failed_is_not(cloud, tmp_path):
    words = ["--", "train", f"--workdir={tmp_path}/x"]
    # Ready; gone after the run; so made again; the second run ends well.
    states = ["READY", "PREEMPTED", "PREEMPTED", "READY"]
    done, calls, arguments = cloud(words, states, ["255", "0"])
    assert done.returncode == 0, done.stderr
    assert [call[0] for call in calls] == [
        *("describe", "describe", "scp", "ssh", "describe"),
        *("describe", "delete", "create", "describe", "scp", "ssh", "describe"),
    ]
    assert calls[6] == ["delete", "a-slice", "--quiet", *WHERE]
    assert len(arguments) == 2
    assert arguments[0] == arguments[1]
    # 75 says that it has saved, to be gone on with: as often as it may be.
    saved = ["--max-restarts=1", *words]
    done, calls, arguments = cloud(saved, ["READY"] * 4, ["75", "75"])
    assert (done.returncode, len(arguments)) == (75, 2)
    # What crashed is begun again twice; what the user has to mend, never.
    failed, _, arguments = cloud(words, ["READY"] * 6, ["3"] * 3)
    assert (failed.returncode, len(arguments)) == (3, 3)
    assert "status 3: begun again, 2 of 2" in failed.stderr
    failed, _, arguments = cloud(["--max-retries=0", *words], ["READY"] * 2, ["3"])
    assert (failed.returncode, len(arguments)) == (3, 1)
    failed, _, arguments = cloud(words, ["READY"] * 2, ["2"])
    assert (failed.returncode, len(arguments)) == (2, 1)
    busy, calls, _ = cloud(words, ["CREATING"], ["0"])
    assert busy.returncode == 2
    assert "a-slice is CREATING: wait until it is ready" in busy.stderr
    assert len(calls) == 1


def test_a_slice_that_is_long_in_coming_is_waited_for(cloud, tmp_path):
    words = ["--pause-seconds=0", "--", "train", f"--workdir={tmp_path}/x"]
    # Stopped under the run; on its way; gone, with no room for another; made at last, and mended.
    states = ["READY", *["STOPPING"] * 2, "REPAIRING", "TERMINATED", "PREEMPTED", "", "READY"]
    done, calls, arguments = cloud(words, states, ["255", "0"], failures="0 1 3")
    assert done.returncode == 0, done.stderr
    assert len(arguments) == 2
    assert [call[0] for call in calls] == [
        *("describe", "describe", "scp", "ssh", "describe"),
        *("describe", "describe"),
        *("describe", "delete", "create"),
        *("describe", "delete"),
        *("describe", "create"),
        *("describe", "scp", "ssh", "describe"),
    ]
    said = [line for line in done.stderr.splitlines() if line.startswith("a-slice is")]
    assert said[0] == "a-slice is STOPPING: wait until it is ready, or name another one"
    assert said[1] == "a-slice is not ready after restart 1 of 100"
    assert said[2] == "a-slice is REPAIRING: wait until it is ready, or name another one"
    assert said[-1] == "a-slice is not ready after restart 4 of 100"


def test_a_slice_that_does_not_come_ends_what_has_saved(cloud, tmp_path):
    words = ["--pause-seconds=0", "--max-restarts=3", "--", "train", f"--workdir={tmp_path}/x"]
    done, calls, _ = cloud(words, ["READY"], ["255"], failures="1 1 1")
    assert done.returncode == 75
    assert [call[0] for call in calls[5:]] == ["describe", "create"] * 3
    # That it can't be made at all, as there is no such kind, is said at once.
    done, calls, arguments = cloud(words, [""], ["0"], failures="4")
    assert (done.returncode, len(calls), arguments) == (4, 2, [])


def test_a_folder_that_only_one_worker_sees_is_refused(cloud, tmp_path):
    words = ["--", "train", f"--workdir={tmp_path}/x"]
    own_disk, _, arguments = cloud(words, ["READY"] * 2, ["0"], "4")
    assert (own_disk.returncode, arguments) == (2, [])
    assert "--workdir is on the worker's own disk" in own_disk.stderr


def test_the_arms_of_a_study_are_trained_by_all_workers(cloud, tmp_path):
    words = ["experiment", "scarce-task", f"--workdir={tmp_path}/x", "--seeds", "0"]
    done, _, (arguments,) = cloud(["--", *words], ["READY"] * 2, ["0"])
    assert done.returncode == 0, done.stderr
    words[1] = "scarce_task"
    assert arguments == ["-m", "mtl_jax.launch", "local", "--", *words, "--distributed"]


def test_the_script_for_a_slice_is_printed_as_it_runs(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    words = [*SLICE, "--dry-run", "--", "train", f"--workdir=/mnt/{AWKWARD}"]
    script = shown(capsys, *words)
    monkeypatch.undo()
    assert script.startswith("#!/usr/bin/env bash\n")
    shellcheck(script)


def test_a_manifest_of_several_pods(capsys):
    options = [
        *("--image=i", "--claim=c", "--tasks=4", "--cpus-per-task=3", "--memory=32Gi"),
        *("--tpus-per-task=4", "--accelerator=tpu-v5-lite-podslice", "--topology=4x4"),
        *("--namespace=n", "--devices-per-task=2", "--run-id=A_b.7", "--max-restarts=3"),
    ]
    words = ["train", f"--train-file={AWKWARD}", "--workdir=/runs/x"]
    manifest = yaml.safe_load(shown(capsys, "gke", *options, "--", *words))
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["metadata"] == {"name": "train-a-b-7", "namespace": "n"}
    spec = manifest["spec"]
    assert spec["network"] == {"enableDNSHostnames": True, "subdomain": "train-a-b-7"}
    # A mistake ends all at once; what crashed is made again three times.
    mistake = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert spec["failurePolicy"] == {"maxRestarts": 3, "rules": [mistake]}
    (replicated,) = spec["replicatedJobs"]
    assert (replicated["name"], replicated["replicas"]) == ("run", 1)
    job = replicated["template"]["spec"]
    counts = [job[name] for name in ("completionMode", "completions", "parallelism")]
    assert counts == ["Indexed", 4, 4]
    # 75 and what takes a pod away are no failures; any other makes all pods again.
    assert job["backoffLimit"] == 0
    wrong, saved, gone = job["podFailurePolicy"]["rules"]
    assert (wrong["action"], saved["action"], gone["action"]) == ("FailJob", "Ignore", "Ignore")
    assert wrong["onExitCodes"] == {"containerName": "run", "operator": "In", "values": [2]}
    assert saved["onExitCodes"] == {"containerName": "run", "operator": "In", "values": [75, 143]}
    assert gone["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] == 120
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert pod["volumes"] == [{"name": "runs", "persistentVolumeClaim": {"claimName": "c"}}]
    (container,) = pod["containers"]
    assert (container["name"], container["image"]) == ("run", "i")
    assert container["volumeMounts"] == [{"name": "runs", "mountPath": "/runs"}]
    # Kubernetes takes $$ for $, and $(NAME) for a variable.
    command = [word.replace("$$", "$") for word in container["command"]]
    assert command == ["python", "-m", "mtl_jax", *words, "--distributed"]
    assert AWKWARD.replace("$", "$$") in container["command"][4]
    assert container["resources"] == {
        "requests": {"cpu": "3", "memory": "32Gi"},
        "limits": {"google.com/tpu": "4"},
    }
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert container["env"] == [
        {"name": "JAX_COORDINATOR_ADDRESS", "value": "train-a-b-7-run-0-0.train-a-b-7:55527"},
        {"name": "JAX_NUM_PROCESSES", "value": "4"},
        {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        {"name": "XLA_FLAGS", "value": "--xla_force_host_platform_device_count=2"},
    ]


def test_a_manifest_of_one_pod(capsys):
    options = ["--image=i", "--claim=c", "--gpus-per-task=1", "--accelerator=nvidia-l4"]
    names = ["--mount=/data", f"--run-id={'7' * 60}", "--python=/venv/bin/python"]
    words = ["gke", *options, *names, "--dry-run", "--", "experiment", "freezing"]
    manifest = yaml.safe_load(shown(capsys, *words))
    name = manifest["metadata"]["name"]
    assert name == "r" + "7" * 40
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    workdir = f"--workdir=/data/freezing-{'7' * 60}"
    command = ["/venv/bin/python", "-m", "mtl_jax", "study", "freezing", workdir]
    assert container["command"] == command
    assert "env" not in container
    assert container["resources"] == {"limits": {"nvidia.com/gpu": "1"}}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
