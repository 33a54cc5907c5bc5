"""Where two real processes do not see the same folder, or one of them alone meets an error."""

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import socket
import sys
import time

import pytest

from mtl_jax.core import distributed, preemption
from tests import forked
from tests.several import REPOSITORY, free_port, started, together


@pytest.fixture(scope="module")
def met(small_settings, tmp_path_factory):
    """The folder of ``apart.py``, and what each of two processes has come to there."""
    folder = tmp_path_factory.mktemp("apart")
    for steps, disk in (([3, 6], "disk0"), ([3], "disk1")):
        for step in steps:
            (folder / disk / "checkpoints" / str(step)).mkdir(parents=True)
    settings = {**small_settings, "scenario": "top_1", "head_learning_rate": 1e38}
    del settings["parallel"]
    settings["data"] = dataclasses.asdict(settings["data"])
    (folder / "settings.json").write_text(json.dumps(settings))
    said = together(2, 1, "-m", "tests.apart", str(folder), str(folder / "settings.json"))
    assert [status for status, _, _ in said] == [0, 0], said
    return folder, [json.loads(output) for _, output, _ in said]


def test_what_one_refuses_all_refuse_and_the_first_says_so(met):
    _, (first, second) = met
    assert (first["own"], second["own"]) == (0, 1)
    assert first["refused"] == ["the second has no room", True]
    assert second["refused"] == ["the second has no room", False]


def test_a_workdir_that_one_does_not_see_is_refused_by_all(met):
    folder, found = met
    for each in found:
        assert each["apart"][0].startswith("--workdir run is not seen by process 1")
        assert each["claimed"] is None
    assert not list((folder / "claimed").glob(".seen-*"))


def test_all_list_the_checkpoints_that_the_first_lists(met):
    for each in met[1]:
        assert each["listed"][0].startswith("process 1 sees other checkpoints in ")
        assert "([3], there [3, 6])" in each["listed"][0]


def test_a_batch_is_kept_by_all_before_any_ends(met):
    for each in met[1]:
        assert "loss is not finite at step" in each["lost"][0]
        step = each["lost"][0].partition("at step ")[2].partition(",")[0]
        assert each["kept"] == [f"step_{step}_process_{i}_of_2.npz" for i in (0, 1)]
        # Of the second alone: its file can't be replaced.
        assert "whose batch could not be kept (it is a folder)" in each["not kept"][0]


def test_all_leave_before_the_next_part_when_one_is_told_to(met):
    # A run of no steps, which is done before JAX has spread the notice.
    words = f"ended by SIGTERM; what was saved before is there: {preemption.AGAIN}"
    assert [each["left"] for each in met[1]] == [words, words]


def test_what_comes_to_be_seen_is_waited_for():
    looks = iter([False, True])
    assert distributed.awaited(lambda: next(looks))
    assert distributed.call_on_all(lambda: 3) == 3


def test_an_error_of_one_process_alone_ends_the_study_and_one_of_all_an_arm(small_flags, tmp_path):
    kept = [flag for flag in small_flags if not flag.startswith("--parallel")]
    study, arms = tmp_path / "study", tmp_path / "study" / "arms"
    argv = ["-m", "experiments.freezing", *kept, f"--workdir={study}", "--distributed"]
    argv += ["--arms=backbone_frozen", "--seeds", "0", "1", "2"]
    foreign = arms / "backbone_frozen-seed0" / "thesis.txt"
    with started(2, 1, *argv) as those:
        begun(those[0], study / "config.json")
        foreign.parent.mkdir(parents=True)
        foreign.write_text("do not touch")
        begun(those[0], arms / "backbone_frozen-seed1" / "config.json")
        # The first process alone writes it, at the end of the arm.
        (arms / "backbone_frozen-seed1" / "certificate.json").mkdir()
        said = [process.communicate(timeout=120)[1] for process in those]
    assert "arm 1 failed" in said[0]
    assert "thesis" not in said[1]
    assert those[0].returncode == 2, said
    assert (
        said[0]
        .splitlines()[-1]
        .endswith("(it is a folder): there should be a file: name one, or move that away")
    )
    assert those[1].returncode != 0
    assert "arm 3" not in said[0]
    assert not (arms / "backbone_frozen-seed2").exists()


def test_before_the_first_step_sigterm_to_one_ends_all_though_the_port_is_taken(
    small_flags, tmp_path
):
    kept = [flag for flag in small_flags if not flag.startswith("--parallel")]
    run = tmp_path / "run"
    run.mkdir()
    argv = ["-m", "mtl_jax", "train", "--distributed", *kept, f"--workdir={run}"]
    with (run / ".lock").open("wb") as lock, socket.create_server(("", 0)) as foreign:
        # The first process waits for this, and the second one in a collective for the first.
        lock.write(b"another machine")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with started(2, 1, *argv, port=foreign.getsockname()[1]) as those:
            lines = those[0].stderr
            assert lines is not None
            assert any("waiting for a process that works in" in line for line in lines)
            told = time.monotonic()
            those[1].send_signal(signal.SIGTERM)
            said = [process.communicate(timeout=60)[1] for process in those]
    assert time.monotonic() - told < 5
    assert [process.returncode for process in those] == [75, 75], said
    words = f"ended by SIGTERM; what was saved before is there: {preemption.AGAIN}"
    assert [lines.splitlines()[-1] for lines in said] == [words, words]
    assert not (run / "config.json").exists()


def test_while_jax_waits_for_the_others_sigterm_ends_all(small_flags, tmp_path):
    """The second one has come, and says nothing to JAX's service."""
    port, argv = free_port(), ["-m", "mtl_jax", "train", "--distributed", *small_flags]
    environment = {
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "0",
    }
    command = [sys.executable, *argv, f"--workdir={tmp_path}/run"]
    with forked.Popen(
        command, env=environment, cwd=REPOSITORY, stderr=forked.PIPE, text=True
    ) as process:
        try:
            with second_of_two(process, port) as lines:
                # Where JAX's service is to be; from then on the first one waits in it.
                service = int(lines.readline())
                forked.wait_until(lambda: listens(service), process)
                told = time.monotonic()
                process.send_signal(signal.SIGTERM)
                assert lines.readline() == "left\n"
                said = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert time.monotonic() - told < 5
    assert process.returncode == 75
    assert said.splitlines()[-1].startswith("ended by SIGTERM; what was saved before is there")


@contextlib.contextmanager
def second_of_two(process, port):
    """Meets the first process as the second one would; gives what that says from then on."""
    callers = []

    def connected():
        with contextlib.suppress(ConnectionRefusedError):
            callers.append(socket.create_connection(("127.0.0.1", port)))
        return callers

    forked.wait_until(connected, process)
    (caller,) = callers
    with caller, caller.makefile("r") as lines:
        assert lines.readline().startswith("mtl_jax ")
        caller.sendall(b"1\n")
        yield lines


def listens(port):
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def begun(process, file):
    forked.wait_until(file.exists, process)
