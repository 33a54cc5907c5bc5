"""A step that is not finite: its task, its step and its texts are named, its batch is one file."""

import dataclasses
import weakref

import numpy as np
import pytest
import safetensors.numpy

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.runs.loop import train
from mtl_jax.runs.monitoring.train_metrics import Meter
from mtl_jax.runs.workdir import Workdir
from mtl_jax.training.inputs import Inputs
from tests.conftest import SMALL, TASKS, WORDS, write_checkpoint
from tests.several import together
from tests.training.weighting.test_train import interrupted_at

FAST = {"head_learning_rate": 1e38, "backbone_learning_rate": 1e38}


@pytest.fixture
def settings(small_settings):
    """Of one layer, of whose numbers one that is not finite is told as of many."""
    return dict(small_settings)


def spoilt_checkpoint(folder, word):
    """One whose vector of a word is so large that its layer norm is not finite."""
    write_checkpoint(folder, SMALL)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][WORDS.index(word)] = 3e38
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return str(folder)


def test_the_line_names_task_step_and_texts_and_the_batch_is_one_file(settings, tmp_path):
    folder = spoilt_checkpoint(tmp_path / "checkpoint", "phone")
    settings |= {"backbone": str(folder), "scenario": "none_frozen", "parallel": "jit"}
    config = TrainConfig(**settings, workdir=str(tmp_path / "run"))
    inputs = Inputs(config)
    file = tmp_path / "run" / "nonfinite" / "step_1.npz"
    with pytest.raises(UserError) as caught:
        train(config, inputs)
    words = f"the classifier loss is not finite at step 1, whose batch is kept in {file}, that of '"
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)
    assert list(file.parent.iterdir()) == [file]
    with np.load(file, allow_pickle=False) as kept:
        split = inputs.split("train")
        there = kept["example"] >= 0
        examples = kept["example"][there]
        assert kept["texts"].tolist() == [split.examples.texts[i] for i in examples.tolist()]
        assert repr(str(kept["texts"][0]))[1:40] in str(caught.value)
        for task in TASKS:
            np.testing.assert_array_equal(kept[task][there], split.texts.labels[task][examples])
        assert (kept["input_ids"][kept["segment_ids"] > 0] > 0).all()


def test_vectors_that_stay_on_the_device_are_in_the_file(settings, tmp_path):
    settings |= {"scenario": "backbone_frozen", "head_learning_rate": 1e38}
    config = TrainConfig(**settings, workdir=str(tmp_path))
    inputs = Inputs(config)
    with pytest.raises(UserError, match=r"whose batch is kept in .*nonfinite/step_"):
        train(config, inputs)
    (file,) = (tmp_path / "nonfinite").iterdir()
    with np.load(file, allow_pickle=False) as kept:
        there = kept["example"] >= 0
        assert kept["pooled"].shape == (*there.shape, inputs.bert.hidden_size)
        assert len(kept["texts"]) == there.sum()
        assert (kept["classifier"][~there] == -1).all()


@pytest.mark.parametrize(
    ("scenario", "parallel"),
    [("none_frozen", "jit"), ("none_frozen", "pmap"), ("backbone_frozen", "jit")],
)
def test_a_gradient_that_is_not_finite_is_told_at_its_own_step(
    scenario, parallel, settings, tmp_path
):
    """Vectors of 1e25: the losses are finite, and the norm of what they give the heads is not."""
    folder = write_checkpoint(tmp_path / "checkpoint", SMALL)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["encoder.layer.0.output.LayerNorm.weight"] *= np.float32(1e25)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    settings |= {"backbone": str(folder), "scenario": scenario, "parallel": parallel}
    config = TrainConfig(**settings, workdir=str(tmp_path / "run"))
    words = "the norm of the gradient is not finite at step 1, whose batch is kept in .*step_1.npz"
    with pytest.raises(UserError, match=words):
        train(config, Inputs(config))


def test_each_of_several_processes_keeps_its_rows(flags, tmp_path):
    backbone = spoilt_checkpoint(tmp_path / "checkpoint", "phone")
    command = ["-m", "mtl_jax", "train", "--distributed", f"--workdir={tmp_path / 'run'}", *flags]
    command += [f"--backbone={backbone}", "--parallel=pmap", "--scenario=none_frozen"]
    said = together(2, 2, *command)
    assert [status for status, _, _ in said] == [2, 2], said
    files = [tmp_path / "run" / "nonfinite" / f"step_1_process_{i}_of_2.npz" for i in range(2)]
    for file, (_, _, errors) in zip(files, said, strict=True):
        assert f"is not finite at step 1, whose batch is kept in {file}, that of" in errors
    assert sorted((tmp_path / "run" / "nonfinite").iterdir()) == files
    kept = [np.load(file)["example"] for file in files]
    met = np.concatenate([example[example >= 0] for example in kept])
    assert len(met) == len(set(met.tolist())) == 16


def test_a_batch_is_held_until_its_loss_is_known():
    class Array(np.ndarray):
        """One that can be referred to weakly."""

    def keep_nothing(step, batch):
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
    words = r"not finite at step 2, whose batch could not be kept \(File exists\), that of"
    with pytest.raises(UserError, match=words):
        train(config, inputs)


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
