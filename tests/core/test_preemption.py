"""SIGTERM, sent to real processes: what they save, how they end, and that they go on."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core import preemption
from mtl_jax.core.errors import Preempted, UserError
from mtl_jax.core.json_files import read_lines
from mtl_jax.data.corpus import Corpus
from mtl_jax.runs.checkpoints.manager import CheckpointManager
from mtl_jax.runs.checkpoints.reader import CheckpointReader
from mtl_jax.runs.loop import train, train_seeds
from mtl_jax.runs.seed_run import SeedRun
from mtl_jax.runs.workdir import Workdir
from mtl_jax.studies.runner import InputsPool, conduct
from mtl_jax.studies.stats.results import quality
from mtl_jax.training.inputs import Inputs
from tests import forked
from tests.end_to_end.test_recipes import everything
from tests.faults.runs import without_times
from tests.studies.test_runner import plan_of

NOTED = "SIGTERM: saving after this step"


@pytest.fixture
def settings(small_settings):
    """Of one layer: when a signal comes does not depend on how many there are."""
    return dict(small_settings)


def terminate():
    signal.raise_signal(signal.SIGTERM)


def test_where_nothing_is_lost_it_ends_the_work_at_once():
    before = signal.getsignal(signal.SIGTERM)
    words = r"ended by SIGTERM; what was saved before is there: run the same command again"
    with pytest.raises(Preempted, match=words), preemption.heeded():
        terminate()
    assert signal.getsignal(signal.SIGTERM) == before
    assert not preemption.due()


class Dies:
    """Something that is in the middle of its end when the signal comes."""

    def __del__(self):
        terminate()


def test_what_a_finalizer_swallows_comes_again_before_the_next_steps(capfd):
    def die_and_train():
        it = Dies()
        del it
        passed.append("the finalizer")
        with preemption.deferred():
            passed.append("a step")

    hook, passed = sys.unraisablehook, []
    with pytest.raises(Preempted, match="what was saved before is there"), preemption.heeded():
        die_and_train()
    assert passed == ["the finalizer"]
    assert capfd.readouterr().err == ""
    assert sys.unraisablehook is hook
    assert not preemption.due()


def test_in_training_it_is_noted_and_ends_the_work_with_it(capfd):
    def train_for_a_while():
        with preemption.deferred():
            seen.append(preemption.due())
            terminate()
            seen.append(preemption.due())
            # The next one is not ours.
            seen.append(signal.getsignal(signal.SIGTERM))

    seen = []
    words = "ended by SIGTERM, saved: run the same command again to go on"
    with preemption.heeded(), pytest.raises(Preempted, match=words):
        train_for_a_while()
    assert seen == [False, True, signal.SIG_DFL]
    assert capfd.readouterr().err == f"{NOTED}\n"
    assert not preemption.due()


def test_what_fails_meanwhile_is_told_in_its_place():
    def fail():
        with preemption.deferred():
            terminate()
            raise UserError("the loss is at fault")

    with preemption.heeded(), pytest.raises(UserError, match="at fault"):
        fail()


def test_it_is_no_failure_to_who_catches_failures():
    assert not issubclass(Preempted, Exception)


@contextlib.contextmanager
def started(flags, folder, devices=1):
    command = [sys.executable, "-m", "mtl_jax", "train", *flags, f"--workdir={folder}"]
    count = f"--xla_force_host_platform_device_count={devices}"
    with forked.Popen(
        command,
        env={**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {count}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def steps_logged(folder):
    return [r["step"] for r in read_lines(folder / "metrics.jsonl") if r["event"] == "step"]


@pytest.mark.parametrize("scenario", ["none_frozen", "backbone_frozen"])
def test_a_run_saves_and_leaves_and_goes_on_bit_for_bit(
    scenario, small_flags, small_settings, tmp_path
):
    folder = tmp_path / "cut"
    # Of heads alone many steps are taken at once: the end of such a block is waited for.
    epochs = 6000 if scenario == "backbone_frozen" else 30
    # Measured at the end only: a checkpoint before is there for the signal's sake.
    flags = [
        *small_flags,
        f"--epochs={epochs}",
        f"--measure-every={epochs}",
        f"--scenario={scenario}",
    ]
    with started(flags, folder) as process:
        forked.wait_until(lambda: steps_logged(folder), process)
        process.send_signal(signal.SIGTERM)
        out, said = process.communicate()
    assert process.returncode == 75
    assert out == ""
    done = CheckpointReader(folder / "checkpoints").last_step
    total = 6 * epochs
    assert done in range(10, total)
    assert said.splitlines()[-2:] == [
        NOTED,
        f"ended by SIGTERM, saved after step {done} of {total}: {preemption.AGAIN}",
    ]
    assert CheckpointReader(folder / "checkpoints").steps == [done]
    assert Workdir(folder).result() is None
    if scenario == "backbone_frozen":
        # The next test goes on with such a run.
        return
    settings = small_settings | {"scenario": scenario, "epochs": epochs, "measure_every": epochs}
    whole = TrainConfig(**settings, workdir=str(tmp_path / "whole"))
    inputs = Inputs(whole)
    result = train(whole, inputs)
    resumed = TrainConfig(**settings, workdir=str(folder))
    assert without_times(train(resumed, inputs)) == without_times(result)
    assert everything(resumed, inputs) == everything(whole, inputs)
    logs = [read_lines(f / "metrics.jsonl") for f in (folder, tmp_path / "whole")]
    assert without_times(logs[0]) == without_times(logs[1])


def test_scanned_steps_cut_anywhere_end_the_same(settings, tmp_path, monkeypatch):
    settings |= {"scenario": "backbone_frozen", "epochs": 6, "measure_every": 3}
    whole = TrainConfig(**settings, workdir=str(tmp_path / "whole"))
    inputs = Inputs(whole)
    result = train(whole, inputs)
    cut = TrainConfig(**settings, workdir=str(tmp_path / "cut"))
    draw, ends = SeedRun.draw, []

    def draw_and_terminate(member, steps):
        terminate()
        return draw(member, steps)

    with monkeypatch.context() as patch:
        patch.setattr(SeedRun, "draw", draw_and_terminate)
        while Workdir(cut.workdir).result() is None:
            try:
                with preemption.heeded():
                    train(cut, inputs)
            except Preempted:
                ends.append(CheckpointReader(tmp_path / "cut" / "checkpoints").last_step)
                if ends[-1] == 36:
                    break
    assert ends == sorted(set(ends))
    assert len(ends) > 3
    assert without_times(train(cut, inputs)) == without_times(result)
    assert everything(cut, inputs) == everything(whole, inputs)


def test_where_nothing_could_be_saved_it_says_why(shared_settings, small_disk, monkeypatch):
    disk = small_disk(1)
    free = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - 2**17))
    config = TrainConfig(**shared_settings, workdir=str(disk / "run"), scenario="top_1")
    draw = SeedRun.draw

    def draw_and_terminate(member, steps):
        terminate()
        return draw(member, steps)

    monkeypatch.setattr(SeedRun, "draw", draw_and_terminate)
    words = (
        r"checkpoint could not be saved in .* \([\d.]+ KiB of [\d.]+ KiB are free\): free some disk"
    )
    with preemption.heeded(), pytest.raises(UserError, match=words):
        train(config)


def test_seeds_that_are_trained_at_once_are_all_saved(settings, tmp_path, monkeypatch):
    def configs_in(folder):
        folders = {seed: str(tmp_path / folder / str(seed)) for seed in (0, 1)}
        return [
            TrainConfig(**settings, workdir=path, seed=seed, scenario="top_1")
            for seed, path in folders.items()
        ]

    whole, cut = configs_in("whole"), configs_in("cut")
    inputs = Inputs(whole[0])
    results = train_seeds(whole, inputs)
    add = SeedRun.add

    def add_and_terminate(member, done, *args):
        add(member, done, *args)
        if done == 4 and member.run.config.seed == 0:
            terminate()

    with monkeypatch.context() as patch:
        patch.setattr(SeedRun, "add", add_and_terminate)
        with preemption.heeded(), pytest.raises(Preempted, match="saved after step 4 of 12"):
            train_seeds(cut, inputs)
    for config in cut:
        assert CheckpointReader(Path(config.workdir) / "checkpoints").steps == [4]
    assert without_times(train_seeds(cut, inputs)) == without_times(results)
    for config, other in zip(cut, whole, strict=True):
        assert everything(config, inputs) == everything(other, inputs)


def test_on_four_devices_it_is_saved_and_on_one_it_is_ended(small_flags, tmp_path):
    folder = tmp_path / "run"
    flags = [flag for flag in small_flags if not flag.startswith("--parallel")]
    flags = [*flags, "--epochs=30", "--measure-every=30", "--scenario=top_1"]
    with started(flags, folder, devices=4) as process:
        forked.wait_until(lambda: steps_logged(folder), process)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 75
    done = CheckpointReader(folder / "checkpoints").last_step
    assert done
    with started(flags, folder) as process:
        _, said = process.communicate()
    assert process.returncode == 0, said
    assert f"resuming from step {done} of 180" in said
    assert (Workdir(folder).result() or {})["step"] == 180
    steps = steps_logged(folder)
    assert steps == list(range(10, 181, 10))


def test_while_data_are_read_it_leaves_at_once(settings, tmp_path, monkeypatch):
    read = Corpus.read

    def terminate_and_read(*args):
        terminate()
        return read(*args)

    monkeypatch.setattr(Corpus, "read", terminate_and_read)
    words = "what was saved before is there: run the same command again to go on"
    with pytest.raises(Preempted, match=words), preemption.heeded():
        train(TrainConfig(**settings, workdir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_while_the_end_is_measured_it_leaves_at_once(settings, tmp_path, monkeypatch):
    config = TrainConfig(**settings, workdir=str(tmp_path / "run"))
    inputs = Inputs(config)
    finish = SeedRun.finish

    def terminate_and_finish(member):
        terminate()
        finish(member)

    with monkeypatch.context() as patch:
        patch.setattr(SeedRun, "finish", terminate_and_finish)
        with pytest.raises(Preempted, match="what was saved before is there"), preemption.heeded():
            train(config, inputs)
    assert CheckpointReader(tmp_path / "run" / "checkpoints").last_step == 12
    whole = dataclasses.replace(config, workdir=str(tmp_path / "whole"))
    assert without_times(train(config, inputs)) == without_times(train(whole, inputs))


@pytest.mark.parametrize("moment", ["asked", "measured"])
def test_an_end_that_nobody_wanted_is_saved_all_the_same(moment, settings, tmp_path, monkeypatch):
    """Else the steps of a run whose model would be removed were lost."""
    settings |= {"checkpoint_minutes": 60.0, "keep_final_state": False}
    config = TrainConfig(**settings, workdir=str(tmp_path / "run"), scenario="top_1")
    whole = dataclasses.replace(config, workdir=str(tmp_path / "whole"))
    inputs, scores, finish = Inputs(config), [], SeedRun.finish

    def outdone(folder, score):
        assert folder == config.workdir
        scores.append(score)
        if moment == "asked":
            terminate()
        return True

    def terminate_and_finish(seed_run):
        terminate()
        finish(seed_run)

    with monkeypatch.context() as patch:
        if moment == "measured":
            patch.setattr(SeedRun, "finish", terminate_and_finish)
        with pytest.raises(Preempted), preemption.heeded():
            train_seeds([config], inputs, outdone=outdone)
    assert CheckpointReader(tmp_path / "run" / "checkpoints").steps == [12]
    (result,) = train_seeds([config], inputs, outdone=outdone)
    assert without_times(result) == without_times(train(whole, inputs))
    assert isinstance(result, dict)
    assert scores == [quality(result["validation"])]


def test_a_study_passes_it_on_and_counts_no_failure(settings, tmp_path, monkeypatch):
    folder, seen = tmp_path / "study", []
    scenarios = ["backbone_frozen", "top_1", "none_frozen"]
    plan = plan_of(folder, settings, [settings["backbone"]], scenarios, seen)
    save = SeedRun.save

    def save_and_terminate(member, *args):
        save(member, *args)
        if member.run.config.scenario == "top_1" and signal.getsignal(signal.SIGTERM):
            terminate()

    with monkeypatch.context() as patch:
        patch.setattr(SeedRun, "save", save_and_terminate)
        with pytest.raises(Preempted, match="saved after step 6 of 12"), preemption.heeded():
            conduct(plan, InputsPool(), "the command", 0.0)
    assert [line["arm"] for line in read_lines(folder / "results.jsonl")] == ["backbone_frozen"]
    assert conduct(plan, InputsPool(), "the command", 0.0) == 0
    assert [line["arm"] for line in read_lines(folder / "results.jsonl")] == scenarios


PROCESS = """
import os, signal, sys
import jax
port, number, folder = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number))
from pathlib import Path
from mtl_jax.core import preemption
from tests.runs.checkpoints.test_manager import Run, batches, opened, save
with preemption.heeded():
    steps = 0
    while not preemption.due():
        steps += 1
        if number == "1" and steps == 5:
            os.kill(os.getpid(), signal.SIGTERM)
run = Run("top_1")
with opened(Path(folder)) as checkpoints:
    for step in (1, 2, 3):
        save(checkpoints, run, step, 0.5)
print(steps, checkpoints.steps)
jax.distributed.shutdown()
"""


def test_several_processes_leave_after_the_same_step_and_save_together(tmp_path):
    """One of them has the signal; all have the step, and each saves the place of its data."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                forked.Popen(
                    [sys.executable, "-c", PROCESS, port, str(number), str(tmp_path / "saved")],
                    cwd=forked.REPOSITORY,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for number in (0, 1)
        ]
        ends = [(*process.communicate(timeout=240), process.returncode) for process in processes]
    assert [status for _, _, status in ends] == [0, 0], ends
    first, second = (out.splitlines()[-1] for out, _, _ in ends)
    assert first == second
    # Of equal ones the first is the best.
    assert first.endswith("[1, 2, 3]")
    folder = tmp_path / "saved"
    saved = CheckpointReader(folder)
    saved.check(3)
    assert saved.manifest(3).processes == 2
    # One process goes on from what two have saved.
    with contextlib.closing(CheckpointManager(folder)) as checkpoints:
        assert (checkpoints.last_step, checkpoints.best_step) == (3, 1)
    assert Path(folder / "2").is_dir()
