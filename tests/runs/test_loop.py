"""Whole runs of the tiny BERT: what they leave, how they resume, how they stop."""

import dataclasses
import json
import signal
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import read_lines
from mtl_jax.data.batches import make_batch
from mtl_jax.freezing import partition
from mtl_jax.runs.checkpoints.manager import CheckpointManager
from mtl_jax.runs.checkpoints.reader import CheckpointReader
from mtl_jax.runs.loop import train, train_seeds
from mtl_jax.runs.phase_run import PhaseRun, _even
from mtl_jax.runs.workdir import Workdir
from mtl_jax.training.inputs import Inputs
from mtl_jax.training.step import eval_step
from tests import conftest, forked
from tests.conftest import TASKS
from tests.faults.runs import without_times

UNTRAINED = {
    "all_frozen": ["classifier", "sentiment"],
    "classifier_frozen": ["classifier"],
    "sentiment_frozen": ["sentiment"],
}
SCENARIOS = (
    "all_frozen",
    "backbone_frozen",
    "classifier_frozen",
    "sentiment_frozen",
    "none_frozen",
    "top_1",
)


@pytest.fixture
def settings(small_settings):
    """Of one layer: what a run leaves and refuses does not depend on how many there are."""
    return dict(small_settings)


def final_params(folder):
    checkpoints = CheckpointManager(Workdir(folder).checkpoints)
    assert checkpoints.last_step is not None
    params = checkpoints.restore_params(checkpoints.last_step)
    checkpoints.close()
    return params


@pytest.fixture(scope="session")
def inputs_of():
    """Inputs by backbone, loaded once."""
    loaded = {}

    def of(config):
        key = (config.backbone, config.data)
        if key not in loaded:
            loaded[key] = Inputs(config)
        return loaded[key]

    return of


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_runs_and_leaves_its_proof(scenario, settings, inputs_of, tmp_path):
    config = TrainConfig(**settings, workdir=str(tmp_path / "run"), scenario=scenario, seed=3)
    inputs = inputs_of(config)
    run = PhaseRun(config, inputs)
    result = train(config, inputs)

    names = {path.name for path in (tmp_path / "run").iterdir()}
    labels = [label for path, label in run.partition.labels if path.startswith("backbone/")]
    assert ("frozen" in names) is ("frozen" in labels)
    assert names - {"frozen"} == {
        ".lock",
        "certificate.json",
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        *(f"predictions-{split}.parquet" for split in ("test", "train", "validation")),
        "tensorboard",
        "tokenizer",
    }
    certificate = json.loads((tmp_path / "run" / "certificate.json").read_text())
    _, before = run.partition.split(run.params)
    _, after = run.partition.split(final_params(tmp_path / "run"))
    assert (
        certificate["frozen_digest_before"] == partition.digest(before) == partition.digest(after)
    )
    assert certificate["frozen_digest_unchanged"] is result["frozen_digest_unchanged"] is True
    sizes = [leaf.size for leaf in jax.tree.leaves(run.partition.split(run.params)[0])]
    assert result["trainable_parameters"] == sum(sizes)
    for split in ("train", "validation", "test"):
        for task in TASKS:
            assert 0 <= result[split][task]["accuracy"] <= 1
    trained = scenario != "all_frozen"
    assert result["train_seconds"] > 0
    assert (result["step_seconds_range"] is not None) is trained
    if trained:
        low, high = result["step_seconds_range"]
        assert 0 < low <= result["step_seconds_median"] <= high < result["train_seconds"]
    assert result["untrained_heads"] == UNTRAINED.get(scenario, [])
    assert ("probe" in result and "chance" in result) is not trained
    log = read_lines(tmp_path / "run" / "metrics.jsonl")
    epochs = [record["epoch"] for record in log if record["event"] == "epoch"]
    assert epochs == ([1, 2] if trained else [0])
    assert log[-1] == result
    if trained:
        moved, _ = run.partition.split(final_params(tmp_path / "run"))
        start, _ = run.partition.split(run.params)
        assert all(
            not np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(moved), strict=True)
        )


def test_a_run_can_be_measured_less_often(settings, inputs_of, tmp_path):
    settings |= {"epochs": 5, "measure_every": 2}
    config = TrainConfig(**settings, workdir=str(tmp_path), scenario="top_1")
    train(config, inputs_of(config))
    log = read_lines(tmp_path / "metrics.jsonl")
    assert [record["epoch"] for record in log if record["event"] == "epoch"] == [2, 4, 5]


def test_a_run_that_is_outdone_leaves_its_result_and_no_model(settings, inputs_of, tmp_path):
    settings |= {"checkpoint_minutes": 60.0, "keep_final_state": False}
    config = TrainConfig(**settings, workdir=str(tmp_path / "run"), scenario="top_1")
    wanted, kept = (
        dataclasses.replace(config, workdir=str(tmp_path / name)) for name in ("wanted", "kept")
    )
    kept = dataclasses.replace(kept, keep_final_state=True)
    inputs, asked = inputs_of(config), []

    def outdone(folder, score):
        asked.append((folder, score))
        return folder == config.workdir

    results = [train_seeds([one], inputs, outdone=outdone)[0] for one in (config, wanted, kept)]
    assert without_times(results[0]) == without_times(results[1])
    folders = [Workdir(one.workdir).checkpoints for one in (config, wanted, kept)]
    assert [CheckpointReader(folder).steps for folder in folders] == [[], [12], [12]]
    # Of a run whose state is to be kept nothing is asked.
    assert [folder for folder, _ in asked] == [config.workdir, wanted.workdir]
    assert asked[0][1] == asked[1][1]
    # Where a kill has come between the result and the mark that its checkpoints are not lost.
    (again,) = train_seeds([config], inputs, outdone=outdone)
    assert without_times(again) == without_times(results[0])


def test_a_finished_run_says_so_and_changes_nothing(settings, inputs_of, tmp_path, capsys):
    config = TrainConfig(**settings, workdir=str(tmp_path))
    first = train(config, inputs_of(config))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")}
    capsys.readouterr()
    assert train(config, inputs_of(config)) == json.loads(json.dumps(first))
    assert "is done" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")} == before


def test_the_same_seed_repeats_and_another_differs(settings, inputs_of, tmp_path):
    def run(name, seed, inputs):
        config = TrainConfig(**settings, workdir=str(tmp_path / name), scenario="top_1", seed=seed)
        return without_times(train(config, inputs))

    shared = inputs_of(TrainConfig(**settings, workdir=""))
    first = run("a", 0, shared)
    assert run("b", 0, None) == first  # inputs of its own
    assert run("c", 1, shared)["train"] != first["train"]


def test_killed_at_any_moment_it_resumes_to_the_same_end(
    small_flags, small_settings, inputs_of, tmp_path
):
    flags = [*small_flags, "--scenario=none_frozen", "--checkpoint-every=1", "--epochs=3"]
    command = [sys.executable, "-m", "mtl_jax", "train", *flags]
    victim = forked.Popen(
        [*command, f"--workdir={tmp_path / 'killed'}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # The seventh of 18 steps lies within the second epoch.
    forked.wait_until((tmp_path / "killed" / "checkpoints" / "7").exists, victim)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert Workdir(tmp_path / "killed").result() is None

    settings = small_settings | {"checkpoint_every": 1, "epochs": 3, "scenario": "none_frozen"}
    whole = TrainConfig(**settings, workdir=str(tmp_path / "whole"))
    expected = train(whole, inputs_of(whole))
    resumed = forked.run(
        [*command, f"--workdir={tmp_path / 'killed'}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "resuming from step" in resumed.stderr
    result = Workdir(tmp_path / "killed").result()
    assert without_times(result) == without_times(expected)
    assert partition.digest(final_params(tmp_path / "killed")) == partition.digest(
        final_params(tmp_path / "whole")
    )
    logs = [read_lines(tmp_path / name / "metrics.jsonl") for name in ("killed", "whole")]
    assert without_times(logs[0]) == without_times(logs[1])


def test_another_configuration_is_refused_by_name(settings, inputs_of, tmp_path):
    config = TrainConfig(**settings, weight_decay=0.01, workdir=str(tmp_path))
    train(config, inputs_of(config))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    other = TrainConfig(**settings | {"weight_decay": 0.5}, workdir=str(tmp_path), seed=7)
    with pytest.raises(UserError, match=r"seed was 0, now 7.*weight_decay was 0\.01, now 0\.5"):
        train(other, inputs_of(other))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_two_processes_do_not_share_a_folder(settings, inputs_of, tmp_path):
    config = TrainConfig(**settings, workdir=str(tmp_path))
    holder = Workdir(tmp_path)
    holder.claim({})
    with pytest.raises(UserError, match="another process is working in"):
        train(config, inputs_of(config))
    holder.close()
    (tmp_path / "config.json").unlink()
    train(config, inputs_of(config))


def test_a_loss_that_is_not_finite_stops_the_run(settings, inputs_of, tmp_path):
    settings |= {"backbone_learning_rate": 1e38, "head_learning_rate": 1e38}
    config = TrainConfig(**settings, workdir=str(tmp_path), scenario="none_frozen")
    with pytest.raises(
        UserError, match=r"the \w+ loss is not finite at step \d+, whose batch is kept"
    ):
        train(config, inputs_of(config))
    assert Workdir(tmp_path).result() is None


def test_a_test_file_that_does_not_fit_is_refused_before_the_first_step(settings, tmp_path):
    broken = tmp_path / "test.csv"
    broken.write_text("text,topic,mood\nthe film was good,film,ecstatic\n")
    data = dataclasses.replace(settings["data"], test_file=str(broken))
    config = TrainConfig(**settings | {"data": data}, workdir=str(tmp_path / "run"))
    with pytest.raises(
        UserError, match=r"test\.csv, line 2: sentiment label 'ecstatic' is not among"
    ):
        train(config)
    assert not (tmp_path / "run").exists()


def test_the_data_is_told_before_the_first_step_and_the_test_texts_after_the_last(
    settings, tmp_path, capsys
):
    """Once, however many runs share what has been read."""
    data = dataclasses.replace(settings["data"], test_file=settings["data"].train_file)
    config = TrainConfig(**settings | {"data": data}, workdir=str(tmp_path / "run"))
    inputs = Inputs(config)
    train(config)
    said = capsys.readouterr().err.splitlines()
    first = next(i for i, line in enumerate(said) if "epoch 1 of" in line)
    last = next(i for i, line in enumerate(said) if "epoch 2 of" in line)
    before, after = said[:first], said[last + 1 :]
    counts = [line for line in before if "3 classes, texts in train / validation / test: " in line]
    assert [line.partition(":")[0] for line in counts] == ["classifier", "sentiment"]
    assert any(line.startswith("warning: the validation split is small") for line in before)
    assert not any(line.startswith("warning: test") for line in before)
    assert "warning: test: 96 of 96 texts are among those of training" in after
    train(dataclasses.replace(config, workdir=str(tmp_path / "a")), inputs)
    assert "are among those of training" in capsys.readouterr().err
    train(dataclasses.replace(config, workdir=str(tmp_path / "b")), inputs)
    said = capsys.readouterr().err
    assert "classes, texts in" not in said
    assert "are among those of training" not in said


def test_what_is_cut_or_empty_is_counted(settings, tmp_path, capsys):
    data = settings["data"]
    rows = [f"{'very ' * (i % 2 * 40)}good,film,pos" for i in range(8)] + [",film,neg"]
    (tmp_path / "train.csv").write_text("\n".join(["text,topic,mood", *rows]) + "\n")
    settings["data"] = type(data)(**{**vars(data), "train_file": str(tmp_path / "train.csv")})
    settings["data"] = type(data)(**{**vars(settings["data"]), "validation_file": None})
    settings["data"] = type(data)(**{**vars(settings["data"]), "test_file": None})
    train(TrainConfig(**settings, workdir=str(tmp_path / "run")))
    said = capsys.readouterr().err
    assert "texts were cut to 24 tokens" in said  # the tiny model's positions, not 128
    assert "1 of" in said
    assert "texts are empty" in said
    settings["data"] = dataclasses.replace(settings["data"], long_texts="refuse")
    words = r"train: 4 of 5 texts are longer than 24 tokens: shorten them, raise --max-length, or"
    with pytest.raises(UserError, match=words):
        train(TrainConfig(**settings, workdir=str(tmp_path / "refused")))
    assert not (tmp_path / "refused").exists()


def test_a_long_test_text_is_refused_before_the_first_step(settings, tmp_path):
    test_file = tmp_path / "test.csv"
    test_file.write_text(f"text,topic,mood\n{'very ' * 40}good,film,pos\n")
    data = dataclasses.replace(settings["data"], test_file=str(test_file), long_texts="refuse")
    config = TrainConfig(**settings | {"data": data}, workdir=str(tmp_path / "run"))
    with pytest.raises(UserError, match="test: 1 of 1 texts are longer than 24 tokens"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_layers_scanned_and_rematerialised_train_the_same(settings, tmp_path):
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    bert = dataclasses.replace(conftest.TINY, num_hidden_layers=2, **none)
    settings["backbone"] = str(conftest.write_checkpoint(tmp_path / "checkpoint", bert))
    settings["epochs"] = 1
    losses = []
    for flag in (False, True):
        config = TrainConfig(
            **settings,
            workdir=str(tmp_path / str(flag)),
            scenario="none_frozen",
            remat=flag,
            scan_layers=flag,
        )
        inputs = Inputs(config)
        model = PhaseRun(config, inputs).compiled_step().program.model
        assert (model.remat, model.scan_layers) == (flag, flag)
        result = train(config, inputs)
        losses.append(
            [result[split][task]["loss"] for split in ("train", "test") for task in TASKS]
        )
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.parametrize(
    ("steps", "at_once"), [(1, 1), (256, 256), (257, 129), (333, 167), (1000, 250)]
)
def test_an_epoch_is_cut_evenly(steps, at_once):
    assert _even(steps) == at_once


def test_kept_vectors_give_the_logits_of_the_tokens(settings, inputs_of, tmp_path):
    config = TrainConfig(**settings, workdir=str(tmp_path), scenario="backbone_frozen")
    run = PhaseRun(config, inputs_of(config))
    kept, whole = run.split("train").texts, inputs_of(config).split("train").texts
    assert kept.pooled is not None
    assert whole.pooled is None
    order = np.arange(len(whole))
    placement = run.plan.epoch(order, np.arange(run.plan.steps))[0]
    logits = []
    for texts in (kept, whole):
        batch: Any = make_batch(texts, run.plan.layout, placement)
        used = batch.pop("example") >= 0
        values, _ = eval_step(run._model.model(), run.params, batch)
        logits.append({task: np.asarray(values[task])[used] for task in TASKS})
    for task in TASKS:
        np.testing.assert_allclose(logits[0][task], logits[1][task], atol=2e-6)


def test_a_last_step_that_diverges_is_no_result(settings, inputs_of, tmp_path):
    """Its own loss is finite; that of the parameters it leaves is not."""
    settings |= {"head_learning_rate": 1e38, "batch_size": 96, "epochs": 1, "warmup_fraction": 0}
    settings |= {"weight_decay": 0.01, "head_dropout": 0.1}  # so that the logits are finite
    config = TrainConfig(**settings, workdir=str(tmp_path))
    words = r"the \w+ loss on the validation split is not finite after step 1, that of 'the"
    with pytest.raises(UserError, match=words):
        train(config, inputs_of(config))
    assert Workdir(tmp_path).result() is None
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_an_update_that_diverges_is_never_saved(settings, inputs_of, tmp_path):
    settings |= {"backbone_learning_rate": 1e38, "head_learning_rate": 1e38, "checkpoint_every": 1}
    config = TrainConfig(**settings, workdir=str(tmp_path), scenario="none_frozen")
    with pytest.raises(UserError, match="not finite"):
        train(config, inputs_of(config))
    for step in (tmp_path / "checkpoints").iterdir():
        checkpoints = CheckpointManager(tmp_path / "checkpoints")
        params = checkpoints.restore_params(int(step.name))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
        checkpoints.close()


def test_a_run_that_was_killed_at_its_first_write_begins(settings, inputs_of, tmp_path):
    # Killed by itself when the draft is there, under the name and the locks of a real first start.
    kill = (
        "import os, signal, sys\n"
        "from mtl_jax.runs.workdir import Workdir\n"
        "os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Workdir(sys.argv[1]).claim({'seed': 0})"
    )
    done = forked.run([sys.executable, "-c", kill, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (draft,) = tmp_path.glob(".config.json.[0-9]*")
    config = TrainConfig(**settings, workdir=str(tmp_path))
    assert train(config, inputs_of(config)) == Workdir(tmp_path).result()
    assert not draft.exists()


def test_a_folder_with_other_content_is_left_alone(settings, inputs_of, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"mine": 1}\n')
    config = TrainConfig(**settings, workdir=str(tmp_path))
    with pytest.raises(UserError, match="is not empty and holds no run: name a new folder"):
        train(config, inputs_of(config))
    assert (tmp_path / "metrics.jsonl").read_text() == '{"mine": 1}\n'
    assert not (tmp_path / "config.json").exists()
