"""Launching: what is run, here and as it is written down for others, and what is refused."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtl_jax.core.command_line import guarded
from mtl_jax.launch.__main__ import main
from mtl_jax.launch.command import read_work
from tests import forked
from tests.launching import AWKWARD, recorded, recorder, shellcheck, shown
from tests.test_docs import commands

ROOT = Path(__file__).parents[2]
OWN_STUDY = ROOT / "experiments" / "examples" / "own_study.py"


def test_scripts_are_clean():
    scripts = [ROOT / "launch.sh", ROOT / ".ci" / "run", *(ROOT / "tests").glob("*.sh")]
    assert len(scripts) == 3
    shellcheck(*(script.read_text() for script in scripts))


def test_what_is_to_be_run():
    work = read_work(["train", "--seed=3", "--workdir", "a b"], "id", "runs")
    assert work.command("python", "x") == [
        *("python", "-m", "mtl_jax", "train", "--seed=3", "--workdir", "a b", "x")
    ]
    assert (work.workdir, work.trains, work.study) == ("a b", True, False)
    assert work.distributed().words == (*work.words, "--distributed")
    assert work.distributed().distributed() == work.distributed()
    study = read_work(["experiment", "scarce-task", "--workdir=x", "--workdir=y"], "id", "runs")
    assert study.command("python")[:5] == ["python", "-m", "mtl_jax", "study", "scarce_task"]
    assert (study.workdir, study.trains, study.study) == ("y", False, True)
    assert study.launched == ["experiment", "scarce_task", "--workdir=x", "--workdir=y"]
    for alone in ("heads", "experiments.heads", "experiments.benchmarks"):
        heads = read_work(["experiment", alone, "--workdir=x"], "id", "runs")
        assert (heads.study, heads.distributed()) == (False, heads)
    own = read_work(["experiment", str(OWN_STUDY)], "id", "runs")
    assert own.launched == ["experiment", str(OWN_STUDY), "--workdir=runs/own_study-id"]
    assert own.study


def test_a_run_without_a_folder_gets_one_of_its_run_id(capsys):
    work = read_work(["train"], "some-id", "runs")
    assert work.words == ("train", "--workdir=runs/train-some-id")
    assert "--workdir is runs/train-some-id" in capsys.readouterr().err
    study = read_work(["experiment", "freezing"], "some-id", "/mnt/")
    assert study.words == ("study", "freezing", "--workdir=/mnt/freezing-some-id")
    # Made anew for each launch that names none.
    made = [shown(capsys, "local", "--dry-run", "--", "train") for _ in range(2)]
    assert made[0] != made[1]
    assert "--workdir=runs/train-" in made[0]


K8S = ["kubernetes", "--image=i", "--claim=c", "--dry-run"]
SKY = ["sky", "--dry-run"]
SECOND_LINE = "x\ntouch f #"
# Values that no place takes, by the place and the option; what is to be run is right.
WRONG_VALUES = [
    *[
        (["slurm", "--dry-run"], option, value)
        for option in ("time", "partition", "memory", "run-id", "folder", "sbatch")
        for value in (SECOND_LINE, "x\r", "x\x1b[2J", "x\x85", "x\u2028y", "", " ", "\udcff")
    ],
    *[(["slurm", "--dry-run"], "setup", value) for value in ("x\r", "", "\udcff")],
    *[(["slurm", "--dry-run"], "folder", value) for value in ("a\\b", "\\")],
    *[
        (["slurm", "--dry-run"], "time", value)
        for value in ("04:00:00 #", "1-", "1:2:3:4", "-1", "1-2-3", "soon", "٣")
    ],
    *[(["slurm", "--dry-run"], "memory", value) for value in ("32GiB", "-1", "1.5G", "G", "1 G")],
    *[(["slurm", "--dry-run"], "sbatch", value) for value in ("account", "--a=b\n#SBATCH -x")],
    *[
        (["slurm", "--dry-run"], option, value)
        for option in ("nodes", "tasks", "cpus-per-task", "gpus-per-task", "devices-per-task")
        for value in ("0", "-1", "1000000000")
    ],
    *[
        (["slurm", "--dry-run"], option, value)
        for option in ("workers", "signal-seconds", "max-requeues", "max-retries")
        for value in ("-1", "1000000000")
    ],
    *[(["local", "--dry-run"], "tasks", value) for value in ("-1", "1000000000", "9" * 5000)],
    *[(["local", "--dry-run"], "grace", value) for value in ("nan", "inf", "-1")],
    *[(["local", "--dry-run"], "retries", value) for value in ("-1", "1000000000")],
    *[(["local", "--dry-run"], "run-id", value) for value in ("a\n", "../x", "x" * 101)],
    *[
        (K8S, option, value)
        for option in (
            *("image", "claim", "mount", "memory", "accelerator", "topology", "namespace"),
            *("python", "run-id"),
        )
        for value in ("", SECOND_LINE, "\udcff")
    ],
    *[
        (K8S, "image", value)
        for value in (
            *("I", "/i", "i/", "a//b", "a:b:c", "i:", "i@sha256:abc", "i:.tag", "a b", "-i"),
            *("i:" + "t" * 129, "x/" * 200 + "i", "host:port/i"),
        )
    ],
    *[
        (K8S, option, value)
        for option in ("claim", "namespace")
        for value in ("A", "a_b", "-a", "a-", "a" * 64, "../etc")
    ],
    (K8S, "namespace", "a.b"),
    *[
        (K8S, "mount", value)
        for value in ("x", "/", "//runs", "/runs/../etc", "/runs/./x", "/runs//x", "/..", "/a:b")
    ],
    *[(K8S, "memory", value) for value in ("0", "0Gi", "0.0Gi", "-1Gi", "32GB", "Gi", "1e400")],
    *[(K8S, "topology", value) for value in ("2", "0x4", "2x", "2x-4", "x", "2X4")],
    *[(K8S, "accelerator", value) for value in ("a b", "-a", "a" * 64, "a/b")],
    *[
        (K8S, option, value)
        for option in (
            *("tasks", "cpus-per-task", "gpus-per-task", "tpus-per-task", "grace-seconds"),
            "devices-per-task",
        )
        for value in ("0", "-1", "1000000000")
    ],
    (K8S, "max-restarts", "-1"),
    *[
        (SKY, option, value)
        for option in ("volume", "infra", "accelerators", "image", "mount", "setup", "run-id")
        for value in ("", "\udcff", *(() if option == "setup" else (SECOND_LINE,)))
    ],
    *[(SKY, "accelerators", value) for value in ("H100:", "8", "H100 8")],
    *[(SKY, option, value) for option in ("cpus", "memory") for value in ("x", "8++", "-1")],
    *[(SKY, option, "-1") for option in ("tasks", "max-restarts", "disk-size")],
    *[(K8S, option, "0") for option in ("workers", "shm")],
    *[(K8S, "queue", value) for value in ("A", "a b", "")],
    *[(K8S, "node-selector", value) for value in ("a", "a b=c", "a=b c", "")],
    *[(K8S, "exclusive-topology", value) for value in ("a b", "/x", "")],
    (K8S, "spot", "moon"),
]


def test_values_that_no_script_or_manifest_may_hold_are_refused_by_name(capsys):
    for words, option, value in WRONG_VALUES:
        given = [*words, f"--{option}={value}", "--", "train", "--workdir=/runs/x"]
        assert guarded(main, given) == 2, (option, value)
        out, err = capsys.readouterr()
        assert out == "", (option, value)
        (line,) = err.splitlines()
        assert line.startswith("error: "), (option, value)
        assert f"--{option}" in line, (option, value, line)
        assert len(line) < 600


def test_values_that_the_places_take(capsys):
    for words, option, values in (
        (["slurm"], "time", ("90", "90:00", "4:00:00", "1-12", "1-12:30:00", "UNLIMITED")),
        (["slurm"], "memory", ("0", "32", "32G", "512mb")),
        (["slurm"], "partition", ("gpu,cpu", "p q", "é")),
        (
            K8S,
            "image",
            ("i", "a/b", "host:5000/a__b/c-d:1.0", f"gcr.io/p/i:T@sha256:{'a' * 64}"),
        ),
        (K8S, "claim", ("c", "a.b-c", "1")),
        (K8S, "mount", ("/runs", "/mnt/runs/", "/data")),
        (K8S, "memory", ("32Gi", "1.5Gi", "100M", "0.5Gi")),
        (K8S, "topology", ("2x4", "4x4x8")),
        (K8S, "node-selector", ("a=b", "x.y/z=", "pool=a100")),
        (SKY, "infra", ("gcp", "gcp/us-central1", "*/us-east-1", "k8s/my-context")),
        (SKY, "accelerators", ("H100", "H100:8", "A100-80GB:4", "tpu-v5litepod-8")),
        (SKY, "cpus", ("8", "8+", "0.5")),
        (SKY, "setup", ("a\nb\tc",)),
    ):
        for value in values:
            folder = "/runs/x" if option != "mount" else f"{value.rstrip('/')}/x"
            more = [f"--{option}={value}", "--dry-run", "--", "train", f"--workdir={folder}"]
            assert shown(capsys, *words, *more), (option, value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            [*K8S, "--", "train", "--workdir=/runs/../etc"],
            ["--workdir /runs/../etc", "'..'"],
        ),
        ([*K8S, "--", "train", "--workdir=/runs/./x"], ["--workdir /runs/./x"]),
        ([*K8S, "--", "train", "--workdir=runs/x"], ["--workdir runs/x"]),
        ([*SKY, "--", "train", "--workdir=/runs/../etc"], ["--workdir /runs/../etc", "'..'"]),
        (["slurm", "--dry-run", "--", "train", "--workdir="], ["--workdir is empty"]),
        (
            ["slurm", "--dry-run", "--", "train", "--train-file=\udcff.csv"],
            ["xff.csv", "is not UTF-8 text"],
        ),
        ([*K8S, "--", "train", "--train-file=\udcff.csv"], ["is not UTF-8 text"]),
        ([*SKY, "--", "train", "--train-file=\udcff.csv"], ["is not UTF-8 text"]),
        (["local", "--dry-run", "--", "train", "--seed=-1"], ["--seed -1"]),
        (["local"], ["-- is missing", "-- train|experiment"]),
        (["local", "--"], ["write train, or experiment"]),
        (["local", "--", "evaluate"], ["'evaluate'", "write train, or experiment"]),
        (["local", "--", "experiment"], ["unknown study ''", "freezing"]),
        (["local", "--", "experiment", "frezing"], ["'frezing'", "did you mean freezing?"]),
        (["local", "--", "experiment", "report"], ["unknown study 'report'"]),
        (["local", "--", "experiment", "gone.py"], ["study gone.py is not there"]),
        (["local", "--", "train", "--epochs=0"], ["--epochs 0", "at least 1"]),
        (["local", "--", "train", "--epoch=1"], ["--epoch"]),
        (["local", "--tasks=0", "--", "train"], ["--tasks 0 must be at least 1"]),
        (["local", "--gpus-per-task=-1", "--", "train"], ["--gpus-per-task -1"]),
        (
            ["local", "--tasks=2", "--", "experiment", "heads"],
            ["--tasks 2", "heads runs in one process"],
        ),
        (["local", "--workers=2", "--", "train"], ["--workers 2", "train has no arms to share"]),
        (
            ["local", "--workers=2", "--tasks=2", "--", "experiment", "freezing"],
            ["--workers 2 and --tasks 2 cannot be used together"],
        ),
        (["slurm", "--", "experiment", "freezing", "--arms", "top9"], ["unknown arm 'top9'"]),
        (["slurm", "--", "experiment", "freezing", "--epochs=0"], ["--epochs 0"]),
        (["local", "--run-id=a/b", "--", "train"], ["--run-id a/b"]),
        (["slurm", "--tasks=1", "--nodes=2", "--", "train"], ["--tasks 1", "--nodes 2"]),
        (["slurm", "--tasks=2", "--", "experiment", "heads"], ["--tasks 2", "use --tasks 1"]),
        (["slurm", "--sbatch=account", "--", "train"], ["--sbatch 'account'"]),
        (["slurm", "--signal-seconds=-1", "--", "train"], ["--signal-seconds -1"]),
        (["slurm", "--", "train"], ["sbatch was not found", "--dry-run"]),
        ([*SKY, "--", "train", "--workdir=gs://b/x"], ["--workdir gs://b/x"]),
        ([*SKY, "--", "train", "--workdir=/x"], ["gone with its machine", "--mount /runs"]),
        (["kubernetes", "--claim=c", "--", "train"], ["--image"]),
        (
            ["kubernetes", "--image=i", "--claim=c", "--", "train", "--workdir=/x"],
            ["--mount /runs"],
        ),
        (["kubernetes", "--image=i", "--claim=c", "--mount=x", "--", "train"], ["--mount x"]),
        (["moon", "--", "train"], ["moon"]),
    ],
)
def test_mistakes_are_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert guarded(main, words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    line = err.splitlines()[-1]
    assert line.startswith("error: ")
    for word in said:
        assert word in line
    assert list(tmp_path.iterdir()) == []


def test_the_script_passes_on_what_it_is_given(tmp_path):
    """``launch.sh`` itself, in an environment that needs nothing installed."""
    shutil.copy(ROOT / "launch.sh", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for extras in ("", "-cuda"):
        shutil.copy(ROOT / "pyproject.toml", tmp_path / ".venv" / f"installed{extras}")
    python = recorder(tmp_path / ".venv" / "bin" / "python")
    script = tmp_path / "launch.sh"
    for extras in ("", "cuda"):
        words = ["slurm", "--partition", AWKWARD, "--", "train", AWKWARD]
        subprocess.run([script, *words], env={**os.environ, "EXTRAS": extras}, check=True)
    subprocess.run([script, "--seeds", "0"], check=True)
    assert recorded(python) == [
        *[["-m", "mtl_jax.launch", *words]] * 2,
        ["-m", "experiments.freezing", "--workdir", "runs/freezing", "--seeds", "0"],
    ]
    wrong = subprocess.run([script, "moon"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "unknown task 'moon'" in wrong.stderr


def test_several_processes_are_told_how_to_find_each_other(capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: {2, 3, 5, 7, 9})
    words = [
        "--tasks=2",
        "--devices-per-task=3",
        "--dry-run",
        "--",
        "train",
        f"--workdir={AWKWARD}",
    ]
    first, second = map(shlex.split, as_lines(shown(capsys, "local", *words)))
    assert first[0].startswith("JAX_COORDINATOR_ADDRESS=127.0.0.1:")
    assert first[1] == first[0].replace("ADDRESS", "BIND_ADDRESS")
    devices = "XLA_FLAGS=--xla_a=1 --xla_force_host_platform_device_count=3"
    assert first[2:5] == ["JAX_NUM_PROCESSES=2", "JAX_PROCESS_ID=0", devices]
    assert second[3] == "JAX_PROCESS_ID=1"
    command = ["-m", "mtl_jax", "train", f"--workdir={AWKWARD}", "--distributed"]
    # Threads for all cores in each of two processes would wait for each other's.
    assert first[5:] == ["taskset", "--cpu-list", "2,3", sys.executable, *command]
    assert second[5:] == ["taskset", "--cpu-list", "5,7", sys.executable, *command]
    third = as_lines(shown(capsys, "local", "--no-pin", *words))[0]
    assert shlex.split(third)[5:] == [sys.executable, *command]
    many = ["local", "--tasks=6", "--dry-run", "--", "train", f"--workdir={AWKWARD}"]
    assert "taskset" not in shown(capsys, *many)
    alone = shlex.split(shown(capsys, "local", "--dry-run", "--", "train", "--workdir=x"))
    assert alone == [sys.executable, "-m", "mtl_jax", "train", "--workdir=x"]


def as_lines(text):
    """The lines of commands, of which some go on over several."""
    lines = [""]
    for line in text.splitlines():
        lines[-1] += line
        try:
            shlex.split(lines[-1])
        except ValueError:
            lines[-1] += "\n"
        else:
            lines.append("")
    return lines[:-1]


def test_gpus_are_shared_out(capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-6,7,8")
    words = ["local", "--gpus-per-task=2", "--dry-run", "--", "train", "--workdir=x"]
    lines = as_lines(shown(capsys, *words[:2], "--tasks=2", *words[2:]))
    assert [next(w for w in shlex.split(line) if "CUDA" in w) for line in lines] == [
        "CUDA_VISIBLE_DEVICES=4,5",
        "CUDA_VISIBLE_DEVICES=GPU-6,7",
    ]
    assert guarded(main, [*words[:2], "--tasks=3", *words[2:]]) == 2
    assert "need 6 GPUs, and there are 5 in CUDA_VISIBLE_DEVICES=" in capsys.readouterr().err
    # Without a word on it several processes share out what there is; one sees all.
    monkeypatch.setenv("JAX_PLATFORMS", "")
    assert "CUDA_VISIBLE_DEVICES=4,5 " in shown(capsys, "local", "--tasks=2", *words[2:])
    study = ["--workers=5", "--dry-run", "--", "experiment", "freezing", "--workdir=x"]
    assert "CUDA_VISIBLE_DEVICES=GPU-6 " in shown(capsys, "local", *study)
    assert "CUDA" not in shown(capsys, "local", *words[2:])
    assert guarded(main, ["local", "--tasks=6", *words[2:]]) == 2
    assert "6 processes need 6 GPUs, and there are 5" in capsys.readouterr().err
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "CUDA" not in shown(capsys, "local", "--tasks=2", *words[2:])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    last = as_lines(shown(capsys, *words[:2], "--tasks=3", *words[2:]))[-1]
    assert "CUDA_VISIBLE_DEVICES=4,5" in shlex.split(last)


def test_the_arms_of_a_study_are_shared_by_workers(capsys):
    words = ["local", "--no-pin", "--workers=2", "--dry-run"]
    asked = ["--", "experiment", "freezing", "--workdir=x"]
    lines = [shlex.split(line) for line in as_lines(shown(capsys, *words, *asked))]
    command = [sys.executable, "-m", "mtl_jax", "study", "freezing", "--workdir=x"]
    assert lines == [[*command, word] for word in ("--worker", "--worker", "--gather")]
    # Each arm on several processes.
    words[2] = "--tasks=2"
    lines = [shlex.split(line) for line in as_lines(shown(capsys, *words, *asked))]
    assert [line[-1] for line in lines] == ["--distributed"] * 2
    assert lines[1][3] == "JAX_PROCESS_ID=1"


# Stands in for the interpreter: ends each call with the next status of a file for its words.
_ENDS = """
import fcntl, os
words = " ".join(sys.argv[1:]) + os.environ.get("JAX_PROCESS_ID", "")
for file in sorted(pathlib.Path(__file__).parent.glob("*.ends")):
    if file.stem in words:
        # Two may begin at once, and each status is one process's.
        with file.open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            first, *later = held.read().split() or ["0"]
            held.seek(0)
            held.truncate()
            held.write(" ".join(later))
        number = int(first)
        import atexit, signal
        if number < 0: atexit.register(lambda: os.kill(os.getpid(), -number))
        else: atexit.register(lambda: os._exit(number))
"""


@pytest.fixture
def ending(tmp_path, monkeypatch):
    """Launches what ends so; gives its status, and what each of the processes was asked for."""
    python = recorder(tmp_path / "python", _ENDS)
    monkeypatch.setattr(sys, "executable", str(python))

    def launch(ends, *words):
        for file in tmp_path.glob("*.end*"):
            file.unlink()
        for part, statuses in ends.items():
            (tmp_path / f"{part}.ends").write_text(statuses)
        python.with_name("python.jsonl").unlink(missing_ok=True)
        status = guarded(main, ["local", "--no-pin", *words])
        left = {part: (tmp_path / f"{part}.ends").read_text() for part in ends}
        return status, [call[-1] for call in recorded(python)], left

    return launch


STUDY = ["--workers=2", "--", "experiment", "freezing", "--workdir=x"]
RUN = ["--tasks=2", "--", "train", "--workdir=x"]


def test_workers_that_crashed_are_begun_again_a_few_times(ending, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The first is killed once, then both go on to their ends.
    status, calls, _ = ending({"worker": "-9 0 0"}, *STUDY)
    assert status == 0
    assert sorted(calls) == ["--gather", *["--worker"] * 3]
    assert "it crashed (status 137): restarted, 1 of 2 times" in capsys.readouterr().err
    # Three times in all, and what the others have left is gathered.
    _, calls, _ = ending({"worker": "0 3 3 3 3"}, *STUDY)
    assert sorted(calls) == ["--gather", *["--worker"] * 4]
    status, calls, _ = ending({"worker": "3 3 3 3 3"}, "--retries=0", *STUDY)
    assert (status, calls) == (3, ["--worker"] * 2)
    # A new launch lets arms be tried again that have failed.
    failed = tmp_path / "x" / "queue" / "arm-seed0.1.failed"
    failed.parent.mkdir(parents=True)
    failed.write_text('{"error": "it was wrong"}')
    assert ending({"worker": "0 0", "gather": "1"}, *STUDY)[0] == 1
    assert [path.name for path in failed.parent.iterdir()] == ["arm-seed0.1.left"]


@pytest.mark.parametrize(
    ("first", "options", "status", "left"),
    [
        ("-11 0", (), 0, ""),
        ("3 -9 0 0", (), 0, "0"),
        ("3 3 3 3", (), 3, "3"),
        ("3 3 3 3 0 4", ("--retries=5",), 0, "4"),
        ("3 0", ("--retries=0",), 3, "0"),
        # A mistake that is the user's to mend; what has saved, or had not begun.
        ("2 0", (), 2, "0"),
        ("75 0", (), 75, "0"),
        ("-15 0", (), 143, "0"),
        ("130 0", (), 130, "0"),
    ],
)
def test_a_run_that_crashed_is_begun_again_by_all(first, options, status, left, ending):
    found, _, after = ending({"distributed0": first}, *options, *RUN)
    assert (found, after["distributed0"]) == (status, left)


def test_two_processes_here_train_one_run(small_flags, tmp_path):
    workdir = tmp_path / "a run"
    spread = [flag for flag in small_flags if not flag.startswith("--parallel")]
    words = ["train", f"--workdir={workdir}", *spread, "--epochs=1"]
    options = ["local", "--tasks=2", "--devices-per-task=2"]
    done = forked.run(
        [sys.executable, "-m", "mtl_jax.launch", *options, "--", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
        check=True,
        executable=forked.interpreter(),
    )
    # The first process's result is that of all, and the others have nothing to say to it.
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert json.loads(done.stdout) == last["test"]
    there = json.loads((workdir / "config.json").read_text())["environment"]
    assert (there["processes"], len(there["devices"])) == (2, 4)


def test_a_job_of_several_tasks(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [
        *("--nodes=2", "--tasks=4", "--cpus-per-task=3", "--gpus-per-task=2", "--memory=8G"),
        *("--time=01:00:00", "--partition=p q", "--signal-seconds=7", "--devices-per-task=2"),
        *("--sbatch=--account=x", "--sbatch=-A y", "--setup=export SET=up", "--run-id=some-id"),
        *("--folder=it's 100%", "--max-requeues=5"),
    ]
    words = ["train", "--seed=3", f"--workdir={AWKWARD}"]
    text = shown(capsys, "slurm", *options, "--dry-run", "--", *words)
    title, job = text.split("\n", 1)
    job, end = job.split("# Submitted with:\n")
    file = tmp_path / "it's 100%" / "some-id" / "job.sbatch"
    assert title == f"# {file}"
    assert shlex.split(end) == ["sbatch", "--parsable", str(file)]
    assert list(tmp_path.iterdir()) == []
    flags = [line.removeprefix("#SBATCH ") for line in job.splitlines() if "#SBATCH" in line]
    assert [shlex.split(flag) for flag in flags] == [
        ["--job-name=train-some-id"],
        [f"--output={tmp_path}/it's 100%%/some-id/%j.log"],
        ["--open-mode=append"],
        ["--time=01:00:00"],
        ["--partition=p q"],
        ["--nodes=2"],
        ["--ntasks=4"],
        ["--cpus-per-task=3"],
        ["--gpus-per-task=2"],
        ["--mem=8G"],
        ["--requeue"],
        ["--signal=TERM@7"],
        ["--account=x"],
        ["-A", "y"],
    ]
    shellcheck(job)

    # What a node's shell makes of it, where srun and scontrol write down what they are given.
    srun = recorder(
        tmp_path / "srun",
        "import os\nassert os.environ['SET'] == 'up'\n"
        "assert os.environ['JAX_LOCAL_DEVICE_IDS'] == '0,1'\n"
        "assert os.environ['XLA_FLAGS'].endswith('_device_count=2')\n"
        "import atexit; atexit.register(lambda: os._exit(int(os.environ['STATUS'])))",
    )
    scontrol = recorder(tmp_path / "scontrol")
    squeue = recorder(tmp_path / "squeue", "import os; print(os.environ['STATE'])")

    def status(ends, restarts, state="RUNNING"):
        own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "STATUS": ends, "STATE": state}
        own |= {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": restarts}
        return subprocess.run(
            ["bash", "-c", job], env={**os.environ, **own}, check=False
        ).returncode

    assert [status("0", "0"), status("2", "0"), status("75", "5")] == [0, 2, 75]
    assert status("75", "0", "COMPLETING") == 75
    assert not scontrol.with_name("scontrol.jsonl").exists()
    # It has saved, or was told to end before it had begun.
    assert [status("75", "4"), status("143", "4")] == [75, 143]
    # What crashed is tried again twice, however often it was driven out before.
    crashes = tmp_path / "it's 100%" / "some-id" / "crashes-7"
    crashes.parent.mkdir(parents=True)
    assert [status("1", "9") for _ in range(3)] == [1, 1, 1]
    assert crashes.read_text() == "1\n" * 3
    assert status("139", "9") == 139
    assert recorded(scontrol) == [["requeue", "7"]] * 4
    assert recorded(squeue) == [["--noheader", "--format=%T", "--jobs=7"]] * 5
    srun_flags = ["--kill-on-bad-exit=0", "--wait=60", "--cpus-per-task=3"]
    command = [sys.executable, "-m", "mtl_jax", *words, "--distributed"]
    assert recorded(srun) == [[*srun_flags, *command]] * 10


def test_a_study_is_an_array_of_workers(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", "/no/interpreter/reads/a/corpus")
    words = ["--", "experiment", "freezing", "--workdir=s"]
    options = ["--dry-run", "--run-id=a", "--folder=f", "--workers=3", "--gpus-per-task=1"]
    text = shown(capsys, "slurm", *options, *words)
    _, job, gather, end = re.split("(?m)^# (?:/.*sbatch|Submitted with:)\n", text)
    shellcheck(job, gather)
    assert "#SBATCH --array=0-2\n" in job
    command = f"{sys.executable} -m mtl_jax study freezing --workdir=s"
    assert f"srun --kill-on-bad-exit=0 --wait=60 {command} --worker\n" in job
    assert gather.endswith(f"exec env JAX_PLATFORMS=cpu {command} --gather\n\n")
    assert end.splitlines()[1].startswith('sbatch --parsable --dependency="afterany:${job%%;*}" ')
    assert list(tmp_path.iterdir()) == []


def test_each_process_of_a_machine_sees_all_of_its_gpus(capsys):
    options = ["--dry-run", "--nodes=2", "--gpus-per-node=8", "--", "train", "--workdir=x"]
    job = shown(capsys, "slurm", *options)
    for line in ("--ntasks=16", "--gpus-per-node=8", "--ntasks-per-node=8"):
        assert f"#SBATCH {line}\n" in job
    assert " --gpu-bind=none " in job
    # JAX itself takes the one whose number the task has on its machine.
    assert "JAX_LOCAL_DEVICE_IDS" not in job
    for wrong in (["--tasks=3"], ["--gpus-per-task=1"]):
        assert guarded(main, ["slurm", *wrong, *options]) == 2
        assert f"{wrong[0].partition('=')[0]} " in capsys.readouterr().err


def test_the_commands_of_the_page_on_clusters_run(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    places = []
    for words in commands(ROOT / "docs" / "clusters.md"):
        if words[0] == "./launch.sh" and words[1] != "status":
            assert shown(capsys, words[1], "--dry-run", *words[2:])
            places.append(words[1])
    assert {*places} == {"local", "slurm", "kubernetes", "sky"}
