"""What watches a run, read back from the files that it leaves, beside ``metrics.jsonl``."""

import contextlib
import dataclasses
import importlib
import json
import struct
import sys
import time

import numpy as np
import pytest

from mtl_jax.config.monitoring import MonitoringConfig, _installed
from mtl_jax.config.train import TrainConfig
from mtl_jax.core import runtime
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import read_lines
from mtl_jax.runs.loop import train, train_seeds
from mtl_jax.runs.monitoring.metric_writers import TensorBoard, scalars
from mtl_jax.runs.workdir import Workdir
from mtl_jax.training.inputs import Inputs
from tests.conftest import TASKS
from tests.training.weighting.test_train import interrupted_at

# As a run does: it would import PyTorch where that is installed.
with runtime.without("torch", "boto3"):
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c


@pytest.fixture
def settings(small_settings):
    """Of one layer: what is shown is numbers of steps and measurements."""
    return dict(small_settings)


@pytest.fixture(scope="module")
def inputs(small_settings):
    return Inputs(TrainConfig(**small_settings, workdir=""))


def events(folder):
    """All events of the one file in the folder that has any, each whole."""
    [file] = [file for file in (folder / "tensorboard").iterdir() if file.stat().st_size]
    data, found = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        body = data[12 : 12 + length]
        assert struct.unpack("<I", data[8:12]) == (masked_crc32c(data[:8]),)
        assert struct.unpack("<I", data[12 + length : 16 + length]) == (masked_crc32c(body),)
        found.append(vars(event_pb2)["Event"].FromString(body))
        data = data[16 + length :]
    return found


def curves(folder):
    """``{(tag, step): (value, wall time)}``, after the two events that a file begins with."""
    version, start, *rest = events(folder)
    assert version.file_version == "brain.Event:2"
    assert (start.session_log.status, start.step) == (start.session_log.START, 0)
    found = {}
    for event in rest:
        for value in event.summary.value:
            assert (value.tag, event.step) not in found
            found[value.tag, event.step] = value.simple_value, event.wall_time
    return found


def expected_curves(folder):
    return {
        (tag, record["step"]): (float(np.float32(value)), record.get("unix_seconds"))
        for record in read_lines(folder / "metrics.jsonl")
        for tag, value in scalars(record).items()
    }


def assert_same_curves(folder):
    found, expected = curves(folder), expected_curves(folder)
    assert {key: value for key, (value, _) in found.items()} == {
        key: value for key, (value, _) in expected.items()
    }
    for key, (_, when) in expected.items():
        assert when is None or found[key][1] == when
    return found


def test_every_number_of_the_log_is_a_curve(settings, inputs, tmp_path):
    settings |= {"epochs": 4, "scenario": "sentiment_frozen", "weighting": "uncertainty"}
    train(TrainConfig(**settings, workdir=str(tmp_path)), inputs)
    found = assert_same_curves(tmp_path)
    by_step = {step: {tag for tag, at in found if at == step} for _, step in found}
    assert by_step[10] == {
        *(f"train/{task}_loss" for task in TASKS),
        *(f"train/task_weight/{task}" for task in TASKS),
        *("train/learning_rate/backbone", "train/learning_rate/head", "train/grad_norm"),
        *("train/examples_per_second", "train/phase"),
    }
    numbers = ("accuracy", "ece", "loss", "macro_f1")
    metrics = {f"validation/{task}/{name}" for task in TASKS for name in numbers}
    assert by_step[6] == {
        *(f"train/{task}_mean_loss" for task in TASKS),
        *(*metrics, "drift/sentiment", "train/epoch", "train/seconds"),
    }
    assert {tag.replace("test/", "validation/") for tag in by_step[24] if "test/" in tag} == metrics

    log = read_lines(tmp_path / "metrics.jsonl")
    [first, *_] = [record for record in log if record["event"] == "step"]
    # The tenth of 24 steps, whose rate is that after nine; two of the steps are warm-up.
    peaks = {"backbone": settings["backbone_learning_rate"], "head": settings["head_learning_rate"]}
    assert first["learning_rates"] == {
        name: pytest.approx(peak * (24 - 9) / (24 - 2), rel=1e-6) for name, peak in peaks.items()
    }


def test_after_a_restart_no_step_is_there_twice(settings, inputs, tmp_path, monkeypatch):
    settings |= {"epochs": 4, "checkpoint_every": 5, "scenario": "top_1"}
    config = TrainConfig(**settings, workdir=str(tmp_path))
    with monkeypatch.context() as patch:
        # After the second line on a step, which comes again: the last checkpoint is of step 20.
        patch.setattr("mtl_jax.runs.loop.training_bar", interrupted_at(23))
        with pytest.raises(KeyboardInterrupt):
            train(config, inputs)
    before = assert_same_curves(tmp_path)
    assert max(step for _, step in before) == 20
    [file] = (tmp_path / "tensorboard").iterdir()
    # As a kill leaves it; and one of an even earlier start.
    file.write_bytes(file.read_bytes()[:-3])
    (tmp_path / "tensorboard" / "events.out.tfevents.1.other").write_bytes(b"old")
    train(config, inputs)
    after = assert_same_curves(tmp_path)
    assert max(step for _, step in after) == 24
    kept = {key for key in before if key[1] <= 18}
    assert kept
    # With the time of day at which it was, not that of the restart.
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}
    # One that a TensorBoard may be reading stays, empty, until the next start.
    board = TensorBoard(tmp_path / "tensorboard")
    board.close()
    sizes = [path.stat().st_size > 0 for path in (tmp_path / "tensorboard").iterdir()]
    assert sorted(sizes) == [False, True]


def test_each_of_several_seeds_has_its_own(settings, inputs, tmp_path):
    settings |= {"epochs": 2, "scenario": "backbone_frozen"}
    folders = [tmp_path / str(seed) for seed in range(2)]
    train_seeds(
        [TrainConfig(**settings, workdir=str(f), seed=i) for i, f in enumerate(folders)], inputs
    )
    first, second = (assert_same_curves(folder) for folder in folders)
    assert first.keys() == second.keys()
    assert first["validation/classifier/loss", 6] != second["validation/classifier/loss", 6]


def test_phases_are_told_apart(settings, inputs, tmp_path):
    settings |= {"epochs": 4, "recipe": "lp_ft"}
    train(TrainConfig(**settings, workdir=str(tmp_path)), inputs)
    found = assert_same_curves(tmp_path)
    assert [found["train/phase", step][0] for step in (10, 20)] == [1, 2]
    # Only the second trains the backbone.
    assert ("train/learning_rate/backbone", 10) not in found
    assert ("train/learning_rate/backbone", 20) in found


def test_a_full_disk_is_a_mistake_in_a_line(small_disk):
    folder = small_disk(1)
    board = TensorBoard(folder / "tensorboard")
    (folder / "full").write_bytes(bytes(2**20 - 2**14))
    record = {"event": "epoch", "epoch": 1, "step": 1, "seconds": 1.0, "train_loss": {}}
    record["validation"] = {f"task{i}": {"loss": 0.5} for i in range(1000)}
    with pytest.raises(UserError, match=r"board can't be written \(No space left on device\)"):
        board.log(0, record)
    board.close()


def test_the_log_has_what_a_watcher_refuses_not_yet(tmp_path):
    """What is not shown is not logged: a restart shows both."""

    class Refusing:
        def log(self, line, record):
            raise UserError("no room")

        def close(self):
            pass

    with contextlib.closing(Workdir(tmp_path)) as workdir:
        workdir.metrics.watch([Refusing()])
        with pytest.raises(UserError, match="no room"):
            workdir.metrics.log({"event": "phase", "step": 1})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_without_the_package_weights_and_biases_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = "--wandb mine needs a package that is not installed: pip install 'mtl-jax"
    with pytest.raises(UserError, match=words):
        MonitoringConfig(wandb="mine")


def test_a_folder_of_the_name_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "a_folder_and_no_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.import_module("a_folder_and_no_package").__path__
    assert not _installed("a_folder_and_no_package")
    assert _installed("numpy")


def offline_runs(folder):
    """The offline runs in a folder: what each begins with, and its rows."""
    found = []
    for file in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        parsed = finished(file)
        [run] = [record.run for record in parsed if record.WhichOneof("record_type") == "run"]
        history = [r.history for r in parsed if r.WhichOneof("record_type") == "history"]
        rows = [
            {
                name: json.loads(item.value_json)
                for item in each.item
                # The package adds times and its own count of steps.
                if not (name := "/".join(item.nested_key) or item.key).startswith("_")
            }
            for each in history
        ]
        found.append((run, rows))
    return found


def finished(file):
    """The records of an offline run, once the process that writes them has written the last."""
    record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    deadline, parsed = time.monotonic() + 60, []
    while not parsed or parsed[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < deadline
        time.sleep(0.02)
        parsed = [record.FromString(data) for data in leveldb_log(file.read_bytes())]
    return parsed


def leveldb_log(data):
    """The records of a file in LevelDB's log format, after a header of seven bytes."""
    records, at, size = [], 7, 2**15
    while at + 7 <= len(data):
        if size - at % size < 7:
            at += size - at % size
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + length > len(data):
            break
        body = data[at + 7 : at + 7 + length]
        # 1: whole; 2, 3, 4: the first, one in between, and the last part.
        records = [*records, body] if kind in (1, 2) else [*records[:-1], records[-1] + body]
        at += 7 + length
    return records


def test_weights_and_biases_is_told_the_log(settings, inputs, tmp_path, monkeypatch):
    """Without its server, which would say which lines it has."""
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))
    settings |= {"epochs": 4, "checkpoint_every": 5, "scenario": "top_1"}
    config = TrainConfig(
        **settings, workdir=str(tmp_path / "run"), watch=MonitoringConfig(wandb="mine")
    )
    with monkeypatch.context() as patch:
        patch.setattr("mtl_jax.runs.loop.training_bar", interrupted_at(23))
        with pytest.raises(KeyboardInterrupt):
            train(config, inputs)
    before = expected_rows(tmp_path / "run")
    # The package names a folder by the second in which it is made.
    [folder] = (tmp_path / "run" / "wandb").glob("offline-run-*")
    folder.rename(folder.with_name(folder.name.replace("offline-run-", "offline-run-0")))
    train(config, inputs)
    (first, rows), (second, more) = offline_runs(tmp_path / "run")
    assert rows == before
    assert more == expected_rows(tmp_path / "run")
    assert more[-1]["step"] == 24
    assert len(more) > len(rows)
    assert first.run_id == second.run_id
    assert (first.project, first.display_name, first.run_group) == ("mine", "run", "top_1")
    # A run without the flag goes on in the same folder: it changes nothing.
    assert train(dataclasses.replace(config, watch=MonitoringConfig()), inputs)["step"] == 24


def expected_rows(folder):
    log = read_lines(folder / "metrics.jsonl")
    return [{"step": record["step"], **shown} for record in log if (shown := scalars(record))]
