"""Batches whose loss is not finite, from real runs: they are kept, and the texts at fault found."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import read_lines
from mtl_jax.data.batches import train_batches
from mtl_jax.runs.kept_batch import read_batch
from mtl_jax.runs.loop import train
from mtl_jax.runs.monitoring.train_metrics import Meter
from mtl_jax.runs.nonfinite import keep
from mtl_jax.runs.phase_run import Run
from mtl_jax.runs.workdir import Workdir
from mtl_jax.tools.replay import replay
from mtl_jax.training.inputs import Inputs
from tests.conftest import TASKS, WORDS, write_checkpoint
from tests.several import together
from tests.training.weighting.test_train import interrupted_at


def spoilt_checkpoint(folder, word):
    """One whose vector of a word is so large that its layer norm is not finite."""
    write_checkpoint(folder)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][WORDS.index(word)] = 3e38
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return str(folder)


def rejecting_nan(constant):
    raise AssertionError(f"{constant} is no JSON")


@pytest.mark.parametrize(
    ("scenario", "parallel"),
    [("none_frozen", "jit"), ("top_1", "jit"), ("backbone_frozen", "jit"), ("none_frozen", "pmap")],
)
def test_the_texts_at_fault_are_found(scenario, parallel, settings, tmp_path):
    """In a row of several a text spoils its neighbours, kept activations included."""
    backbone = spoilt_checkpoint(tmp_path / "checkpoint", "phone")
    settings |= {"backbone": backbone, "scenario": scenario, "parallel": parallel}
    config = TrainConfig(**settings, workdir=str(tmp_path / "run"))
    words = (
        r"the \w+ loss is not finite at step 1, whose batch is kept in (.*/nonfinite/step_1\.npz) "
        "for python -m mtl_jax replay: lower the learning rates; the last checkpoint is kept"
    )
    with pytest.raises(UserError, match=words):
        train(config, Inputs(config))
    *lines, whole = replay(tmp_path / "run")
    assert len(lines) == 16
    guilty = [line for line in lines if "phone" in line["text"].split()]
    assert 0 < len(guilty) < 16
    texts = Inputs(config).split("train").examples
    for line in lines:
        assert line["text"] == texts.texts[line["example"]]
        assert line["at_fault"] is (line in guilty)
        for task in TASKS:
            labelled = bool(texts.labels[task][line["example"]] >= 0)
            assert line[task]["finite"] is (line not in guilty)
            assert (line[task]["loss"] is not None) is (labelled and line not in guilty)
    assert whole == {
        "step": 1,
        "parameters_after": 0,
        "at_fault": len(guilty),
        "loss": {"classifier": None, "sentiment": None},
        "total": None,
        "gradient_norm": None,
    }


@pytest.mark.parametrize(
    ("scenario", "parallel"),
    [
        *(("none_frozen", "jit"), ("none_frozen", "pmap"), ("none_frozen", "mesh")),
        *(("top_1", "pmap"), ("backbone_frozen", "pmap")),
    ],
)
def test_the_step_is_taken_again(scenario, parallel, settings, tmp_path, monkeypatch):
    """With its dropout: the losses and the norm that the log has of it come again."""
    settings |= {"scenario": scenario, "parallel": parallel, "checkpoint_every": 9, "seed": 3}
    config = TrainConfig(**settings | {"task_weights": ("classifier=0.5",)}, workdir=str(tmp_path))
    inputs = Inputs(config)
    with monkeypatch.context() as patch:
        patch.setattr("mtl_jax.runs.loop.training_bar", interrupted_at(12))
        with pytest.raises(KeyboardInterrupt):
            train(config, inputs)
    [logged] = [r for r in read_lines(tmp_path / "metrics.jsonl") if r["event"] == "step"]
    assert logged["step"] == 10
    run = Run(config, inputs)
    texts = run.training.texts
    batches = train_batches(texts, run.plan, config.seed, 9, 1)
    keep(tmp_path, run, 10, "sentiment", next(batches))
    *lines, whole = replay(tmp_path)
    assert len(lines) == 16
    assert (whole["step"], whole["parameters_after"], whole["at_fault"]) == (10, 9, 0)
    for task in TASKS:
        assert whole["loss"][task] == pytest.approx(logged["loss"][task], rel=1e-5)
    assert whole["gradient_norm"] == pytest.approx(logged["grad_norm"], rel=1e-4)
    total = 0.5 * whole["loss"]["classifier"] + whole["loss"]["sentiment"]
    assert whole["total"] == pytest.approx(total)


def test_from_a_learning_rate_to_the_replay(flags, tmp_path):
    """As a user sees it, in processes of their own."""

    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "mtl_jax", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "XLA_FLAGS": ""},
            check=False,
        )

    folder = f"--workdir={tmp_path / 'run'}"
    rates = ["--head-learning-rate=1e38", "--backbone-learning-rate=1e38"]
    trained = call("train", folder, "--scenario=none_frozen", *flags, *rates)
    assert trained.returncode == 2
    [error] = [line for line in trained.stderr.splitlines() if line.startswith("error: ")]
    file = tmp_path / "run" / "nonfinite" / "step_2.npz"
    assert f"loss is not finite at step 2, whose batch is kept in {file} for " in error
    kept = read_batch(file)
    assert (kept.step, kept.seed, kept.phase) == (2, 0, 0)
    assert error.startswith(f"error: the {kept.task} loss")

    replayed = call("replay", folder, f"--file={file}")
    assert replayed.returncode == 0, replayed.stderr
    assert f"{file}: step 2, with the parameters after step 0" in replayed.stderr
    *lines, whole = [
        json.loads(line, parse_constant=rejecting_nan) for line in replayed.stdout.splitlines()
    ]
    # Those of the start are sound: the first update was not.
    assert tuple(line["text"] for line in lines) == kept.texts
    assert not any(line["at_fault"] for line in lines)
    assert whole["total"] > 0
    assert whole["gradient_norm"] > 0

    none = call("replay", f"--workdir={tmp_path}")
    assert none.returncode == 2
    assert "is not the folder of a run (no config.json)" in none.stderr


@pytest.mark.parametrize(
    ("scenario", "parallel"),
    [("none_frozen", "jit"), ("none_frozen", "pmap"), ("backbone_frozen", "jit")],
)
def test_a_gradient_that_is_not_finite_is_told_at_its_own_step(
    scenario, parallel, settings, tmp_path
):
    """Vectors of 1e25: the losses are finite, and the norm of what they give the heads is not."""
    folder = write_checkpoint(tmp_path / "checkpoint")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["encoder.layer.2.output.LayerNorm.weight"] *= np.float32(1e25)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    settings |= {"backbone": str(folder), "scenario": scenario, "parallel": parallel}
    config = TrainConfig(**settings, workdir=str(tmp_path / "run"))
    words = "the norm of the gradient is not finite at step 1, whose batch is kept in .*step_1.npz"
    with pytest.raises(UserError, match=words):
        train(config, Inputs(config))
    assert read_batch(tmp_path / "run" / "nonfinite" / "step_1.npz").task is None
    *lines, whole = replay(tmp_path / "run")
    assert not any(line["at_fault"] for line in lines)
    assert whole["total"] > 1e20
    assert whole["gradient_norm"] is None


def test_a_learning_rate_that_spoils_the_gradient_first_is_told_there(settings, tmp_path):
    """After the first step the losses are still finite, and the gradient has overflowed."""
    settings |= {
        "head_learning_rate": 1e4,
        "backbone_learning_rate": 1e4,
        "scenario": "none_frozen",
    }
    settings |= {"warmup_fraction": 0.0, "checkpoint_every": 1}
    config = TrainConfig(**settings, workdir=str(tmp_path))
    with pytest.raises(UserError, match="the norm of the gradient is not finite at step 2, whose"):
        train(config, Inputs(config))
    whole = list(replay(tmp_path))[-1]
    assert (whole["step"], whole["parameters_after"]) == (2, 1)
    assert None not in (whole["total"], *whole["loss"].values())
    assert whole["gradient_norm"] is None


def test_each_of_several_processes_keeps_its_rows(flags, tmp_path):
    """And one of them watches; the replay puts the rows together."""
    backbone = spoilt_checkpoint(tmp_path / "checkpoint", "phone")
    command = ["-m", "mtl_jax", "train", "--distributed", f"--workdir={tmp_path / 'run'}", *flags]
    command += [f"--backbone={backbone}", "--parallel=pmap", "--scenario=none_frozen"]
    said = together(2, 2, *command)
    assert [status for status, _, _ in said] == [2, 2], said
    files = [tmp_path / "run" / "nonfinite" / f"step_1_process_{i}_of_2.npz" for i in range(2)]
    for file, (_, _, errors) in zip(files, said, strict=True):
        assert f"is not finite at step 1, whose batch is kept in {file} for" in errors
    assert sorted((tmp_path / "run" / "nonfinite").iterdir()) == files
    assert len([*(tmp_path / "run" / "tensorboard").iterdir()]) == 1
    *lines, whole = replay(tmp_path / "run")
    assert len(lines) == 16
    assert len({line["example"] for line in lines}) == 16
    assert all(line["at_fault"] is ("phone" in line["text"].split()) for line in lines)
    assert whole["total"] is None


def test_a_batch_is_held_until_its_loss_is_known():
    import weakref

    class Array(np.ndarray):
        """One that can be referred to weakly."""

    def keep_nothing(step, task, batch):
        raise AssertionError

    meter = Meter(TASKS, keep_nothing)
    held = []
    for step in range(1, 4):
        example = np.zeros((1, 1), np.int32).view(Array)
        held.append(weakref.ref(example))
        loss = dict.fromkeys(TASKS, (1.0, 1.0))
        meter.add(step, lambda loss=loss: {"loss": loss, "grad_norm": 1.0}, {"example": example})
        del example
        assert [ref() is not None for ref in held] == [False] * (step - 1) + [True]
    meter.read()
    assert held[-1]() is None


def test_a_batch_that_cannot_be_kept_hides_nothing(settings, tmp_path, monkeypatch):
    settings |= {"head_learning_rate": 1e38, "backbone_learning_rate": 1e38}
    config = TrainConfig(**settings, workdir=str(tmp_path), scenario="none_frozen")
    inputs = Inputs(config)
    with monkeypatch.context() as patch:
        patch.setattr("mtl_jax.runs.loop.training_bar", interrupted_at(1))
        with pytest.raises(KeyboardInterrupt):
            train(config, inputs)
    (tmp_path / "nonfinite").write_text("in the way")
    words = r"not finite at step 2, whose batch could not be kept \(File exists\): lower the learn"
    with pytest.raises(UserError, match=words):
        train(config, inputs)


def test_without_a_batch_or_the_weights_there_is_nothing_to_replay(settings, tmp_path):
    backbone = spoilt_checkpoint(tmp_path / "checkpoint", "the")
    settings |= {"backbone": backbone, "scenario": "none_frozen"}
    config = TrainConfig(**settings, workdir=str(tmp_path / "run"))
    with pytest.raises(UserError, match="is not finite at step 1"):
        train(config, Inputs(config))
    write_checkpoint(tmp_path / "checkpoint", seed=1)
    with pytest.raises(UserError, match="has no checkpoint from before step 1, and backbone"):
        list(replay(tmp_path / "run"))
    (tmp_path / "run" / "nonfinite" / "step_1.npz").unlink()
    with pytest.raises(UserError, match="has kept no batch: all its steps have been finite"):
        list(replay(tmp_path / "run"))


@pytest.mark.parametrize("count", [2, 4])
def test_texts_of_validation_are_named(count, settings, reviews, tmp_path):
    title, *lines = (reviews / "validation.csv").read_text().splitlines()
    guilty = [line.replace(" was", " awful") for line in lines[::5]][:count]
    file = tmp_path / "validation.csv"
    file.write_text("\n".join([title, *lines, *guilty]) + "\n")
    settings["data"] = dataclasses.replace(settings["data"], validation_file=str(file))
    settings["backbone"] = spoilt_checkpoint(tmp_path / "checkpoint", "awful")
    settings |= {"scenario": "none_frozen", "epochs": 1}
    config = TrainConfig(**settings, workdir=str(tmp_path / "run"))
    with pytest.raises(UserError) as raised:
        train(config, Inputs(config))
    shown = ", ".join(repr(line.split(",")[0]) for line in guilty[:3])
    shown += " and others" if count > 3 else ""
    assert str(raised.value) == (
        "the classifier loss on the validation split is not finite after step 6, that of "
        f"{shown}: lower the learning rates; the last checkpoint is kept"
    )
    assert Workdir(tmp_path / "run").result() is None
