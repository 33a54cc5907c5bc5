"""Runs of two and four real processes: the numbers of one device, one writer, a shared end."""

import dataclasses
import json
import shutil
import signal
from typing import Any

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mtl_jax.config.train import TrainConfig
from mtl_jax.core import distributed
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import read_lines
from mtl_jax.runs.checkpoints.reader import CheckpointReader
from mtl_jax.runs.loop import train
from tests import forked
from tests.conftest import SMALL, TASKS, write_checkpoint
from tests.several import started, together

# 96 texts in batches of 19 or 20, 5 steps: neither divides by any number of devices.
BATCH = 20
# What another order of summation makes of a parameter after ten steps of Adam.
TOLERANCE = 2e-4
RUNS = {
    "none_frozen": {"scenario": "none_frozen"},
    # Many steps in one program, on vectors that each process keeps for itself.
    "backbone_frozen": {"scenario": "backbone_frozen"},
    # Kept states, two phases, and targets that hold a frozen head's predictions.
    "held": {"recipe": "HELD", "hold_frozen_heads": 2.0},
}
PHASES = [{"scenario": "backbone_frozen"}, {"scenario": "RULES"}]
# How many processes, the devices of each, and how each of the runs is spread over them.
LAUNCHES = [
    (2, 2, {"none_frozen": "pmap", "backbone_frozen": "mesh", "held": "mesh"}),
    (4, 1, {"none_frozen": "fsdp"}),
]
# What the runtime says where the process that serves the others is gone.
GONE = "This most likely indicates that another task died"


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A small checkpoint without dropout, whose masks depend on which device has which row."""
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    folder = tmp_path_factory.mktemp("calm") / "checkpoint"
    return write_checkpoint(folder, dataclasses.replace(SMALL, **none))


@pytest.fixture(scope="module")
def runs(calm, shared_settings, tmp_path_factory):
    """The settings of the runs, as keyword arguments of a ``TrainConfig``."""
    folder = tmp_path_factory.mktemp("recipe")
    rules = [
        ["backbone/layer_0/*", "backbone"],
        ["sentiment/*", "frozen"],
        ["classifier/*", "head"],
    ]
    (folder / "rules.json").write_text(json.dumps([*rules, ["*", "frozen"]]))
    phases = [
        {**phase, "scenario": phase["scenario"].replace("RULES", str(folder / "rules.json"))}
        for phase in PHASES
    ]
    (folder / "held.json").write_text(json.dumps(phases))
    common = {**shared_settings, "backbone": str(calm), "batch_size": BATCH, "weight_decay": 0.0}
    files = {"HELD": str(folder / "held.json")}
    return {
        name: {**common, **{k: files.get(v, v) for k, v in changes.items()}}
        for name, changes in RUNS.items()
    }


def left(folder):
    """Parameters of the last checkpoint, measurements and result of a run."""
    lines = read_lines(folder / "metrics.jsonl")
    saved = CheckpointReader(folder / "checkpoints")
    params = saved.restore_params(saved.last_step or 0)
    epochs = [line for line in lines if line["event"] == "epoch"]
    (result,) = [line for line in lines if line["event"] == "result"]
    return dict[str, Any](flatten_dict(params, sep="/")), epochs, result


@pytest.fixture(scope="module")
def alone(runs, tmp_path_factory):
    """What each run leaves on one device of one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name, settings in runs.items():
        train(TrainConfig(**settings, workdir=str(folder / name)))
    return {name: left(folder / name) for name in runs}


@pytest.fixture(scope="module", params=LAUNCHES, ids=lambda launch: f"{launch[0]}x{launch[1]}")
def launched(request, runs, tmp_path_factory):
    """The same runs in several processes, and what these have said."""
    count, devices, kinds = request.param
    folder = tmp_path_factory.mktemp("several")
    listed = [
        {
            **runs[name],
            "parallel": "mesh" if kind == "fsdp" else kind,
            "shard": "fsdp" if kind == "fsdp" else None,
            "workdir": str(folder / name),
        }
        for name, kind in kinds.items()
    ]
    said = one_after_the_other(count, devices, listed, folder)
    return {name: left(folder / name) for name in kinds}, folder, said, count * devices


def one_after_the_other(count, devices, runs, folder):
    """Trains runs of these settings in the same processes; what these have said."""
    listed = [{**run, "data": dataclasses.asdict(run["data"])} for run in runs]
    (folder / "runs.json").write_text(json.dumps(listed))
    said = together(count, devices, "-m", "tests.several", str(folder / "runs.json"))
    assert [status for status, _, _ in said] == [0] * count, said
    return said


def test_the_numbers_are_those_of_one_device(launched, alone):
    for name, found in launched[0].items():
        assert_about_equal(found, alone[name])


def assert_about_equal(found, known):
    (params, epochs, result), (expected, expected_epochs, expected_result) = found, known
    assert params.keys() == expected.keys()
    for path, leaf in params.items():
        if not path.endswith("key/bias"):  # its gradient is rounding, which Adam scales up
            np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=TOLERANCE, err_msg=path)
    assert len(epochs) == len(expected_epochs)
    for record, before in zip(epochs, expected_epochs, strict=True):
        assert record["step"] == before["step"]
        for task in TASKS:
            assert record["train_loss"][task] == pytest.approx(before["train_loss"][task], rel=1e-3)
            measured, other = record["validation"][task], before["validation"][task]
            assert measured["examples"] == other["examples"]
            assert measured["loss"] == pytest.approx(other["loss"], rel=1e-3)
    for split in ("train", "test"):
        for task in TASKS:
            assert result[split][task]["accuracy"] == expected_result[split][task]["accuracy"]
            assert result[split][task]["macro_f1"] == expected_result[split][task]["macro_f1"]
    assert result["frozen_digest_unchanged"]
    # Counted and not measured: those of one device, whoever shares the work.
    assert result["train_flops"] == expected_result["train_flops"] > 0


def test_one_process_writes(launched):
    runs, folder, said, devices = launched
    for name in runs:
        environment = json.loads((folder / name / "config.json").read_text())["environment"]
        assert (environment["processes"], len(environment["devices"])) == (len(said), devices)
        lines = read_lines(folder / name / "metrics.jsonl")
        steps = [line["step"] for line in lines if line["event"] == "epoch"]
        assert steps == sorted(set(steps))
        saved = CheckpointReader(folder / name / "checkpoints")
        assert {saved.manifest(step).processes for step in saved.steps} == {len(said)}
    assert "none_frozen, seed 0: 96 texts to train on, 32 to validate" in said[0][2]
    for _, output, errors in said[1:]:
        # Gloo writes its lines in pieces, between which another thread's may come. On a machine
        # that is busy beside, who waits for the first one's activations says so.
        others = ("[Gloo]", "peer ranks", "waiting for another process that makes")
        lines = (output + errors).splitlines()
        told = [line for line in lines if not any(part in line for part in others)]
        assert not told


def command(flags, workdir, *more):
    kept = [flag for flag in flags if not flag.startswith("--parallel")]
    return ["-m", "mtl_jax", "train", "--distributed", *kept, "--workdir", str(workdir), *more]


@pytest.mark.parametrize(("killed", "saving"), [(0, False), (1, False), (1, True)])
def test_when_a_process_dies_the_other_ends_and_says_why(small_flags, tmp_path, killed, saving):
    more = ("--scenario=none_frozen", "--epochs=100000", "--measure-every=1")
    argv = command(small_flags, tmp_path / "run", *more)
    with started(2, 1, *argv) as those:
        (until_it_saves if saving else until_it_trains)(those[0], tmp_path / "run")
        those[killed].send_signal(signal.SIGKILL)
        _, errors = those[1 - killed].communicate(timeout=120)
    if GONE not in errors:
        last = errors.splitlines()[-1]
        assert last.startswith(f"error: process {1 - killed} of 2 lost another one")
        assert those[1 - killed].returncode == 1
    assert those[1 - killed].returncode in (1, -signal.SIGABRT)
    assert "Traceback" not in errors


def test_a_mistake_is_told_once(small_flags, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("do not touch")
    said = together(2, 1, *command(small_flags, tmp_path / "run"))
    assert [status for status, _, _ in said] == [2, 2]
    lines = [line for _, _, errors in said for line in errors.splitlines() if "error" in line]
    assert lines == [f"error: {tmp_path}/run is not empty and holds no run: name a new folder"]


def test_one_device_is_not_for_several_processes(small_flags, tmp_path):
    said = together(2, 1, *command(small_flags, tmp_path / "run"), "--parallel=jit")
    assert said[0][0] == 2
    assert "error: --parallel jit is for one device, and there are 2 processes" in said[0][2]
    assert not (tmp_path / "run").exists()


def test_without_a_launcher_there_is_nobody_to_join(flags, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES='two' is not a whole number"):
        distributed.join()
    monkeypatch.delenv("JAX_NUM_PROCESSES")
    with pytest.raises(UserError, match="the processes of this run were not found"):
        distributed.join()
    assert (distributed.count(), distributed.index(), distributed.is_main()) == (1, 0, True)


def test_a_process_by_itself_agrees_with_itself():
    assert distributed.broadcast({"a": [1]}) == {"a": [1]}
    assert distributed.call_on_main(lambda: 3) == 3
    assert distributed.share(8) == slice(0, 8)
    distributed.abandon(2)
    distributed.leave()


def test_a_study_whose_arms_two_processes_train_together(small_flags, tmp_path):
    kept = [flag for flag in small_flags if not flag.startswith("--parallel")]
    study = ["-m", "experiments.freezing", *kept, f"--workdir={tmp_path}/study", "--distributed"]
    said = together(2, 1, *study, "--arms=backbone_frozen", "--seeds=0")
    assert [status for status, _, _ in said] == [0, 0], said
    (line,) = read_lines(tmp_path / "study" / "results.jsonl")
    assert (line["arm"], line["seed"]) == ("backbone_frozen", 0)
    assert "backbone_frozen" in said[0][1]
    assert said[1][1] == ""
    report = (tmp_path / "study" / "report.md").read_text()
    assert "backbone_frozen" in report


def until_it_trains(process, workdir):
    """Waits for the first lines of the log."""
    forked.wait_until(lambda: read_lines(workdir / "metrics.jsonl"), process)


def until_it_saves(process, workdir):
    """Waits for a checkpoint that is being written."""
    unfinished = "*orbax-checkpoint-tmp*"
    forked.wait_until(lambda: list((workdir / "checkpoints").glob(unfinished)), process)


def losses(workdir):
    """Per logged step its losses; a step that came twice would be twice in the list."""
    lines = read_lines(workdir / "metrics.jsonl")
    return [(line["step"], line["loss"]) for line in lines if line["event"] == "step"]


def test_sigterm_ends_all_at_one_step_and_any_number_of_processes_goes_on(
    small_flags, small_settings, calm, tmp_path
):
    own = (f"--backbone={calm}", "--head-learning-rate=1e-3", "--backbone-learning-rate=1e-3")
    kept = [
        flag
        for flag in small_flags
        if flag.split("=")[0] not in {part.split("=")[0] for part in own}
    ]
    more = (*own, "--scenario=top_1", "--epochs=24", "--measure-every=24")
    kept = [flag for flag in kept if not flag.startswith("--epochs")]
    whole, cut, other = (tmp_path / name for name in ("whole", "cut", "other"))
    with started(2, 1, *command(kept, cut, *more)) as those:
        until_it_trains(those[0], cut)
        # A scheduler may tell the processes one after the other, or one of them only.
        those[1].send_signal(signal.SIGTERM)
        errors = [process.communicate(timeout=120)[1] for process in those]
    assert [process.returncode for process in those] == [75, 75], errors
    assert errors[0].splitlines()[-1].startswith("ended by SIGTERM, saved after step")
    assert not any(line["event"] == "result" for line in read_lines(cut / "metrics.jsonl"))
    shutil.copytree(cut, other)
    # The whole run is trained by the two that go on, which have compiled its step.
    rates = {"head_learning_rate": 1e-3, "backbone_learning_rate": 1e-3}
    same = {**small_settings, **rates, "backbone": str(calm), "scenario": "top_1"}
    same |= {"epochs": 24, "measure_every": 24, "parallel": "auto"}
    runs = [{**same, "workdir": str(folder)} for folder in (cut, whole)]
    said = one_after_the_other(2, 1, runs, tmp_path)
    assert "resuming from step" in said[0][2]
    assert losses(cut) == losses(whole)
    (params, _, result), (expected, _, before) = left(cut), left(whole)
    assert result["test"] == before["test"]
    assert all(np.array_equal(leaf, expected[path]) for path, leaf in params.items())
    # One process, and one device, in the place of two: the same batches in the same order.
    with started(
        1, 1, *[word for word in command(kept, other, *more) if word != "--distributed"]
    ) as (single,):
        _, error = single.communicate(timeout=120)
    assert single.returncode == 0, error
    assert "resuming from step" in error
    found, known = losses(other), losses(whole)
    assert [step for step, _ in found] == [step for step, _ in known]
    for (_, loss), (_, of_two) in zip(found, known, strict=True):
        assert loss == pytest.approx(of_two, rel=1e-3)
