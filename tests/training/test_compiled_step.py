"""What the training steps are compiled for."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.runs.loop import train, train_seeds
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.training.compiled_step import shared_step
from mtl_jax.training.evaluator import ModelSpec, evaluator
from mtl_jax.training.executables import Compiled
from mtl_jax.training.inputs import Inputs
from mtl_jax.training.runners import JitRunner


@pytest.fixture
def settings(small_settings):
    """Of one layer: how many there are is no matter here."""
    return dict(small_settings)


class OnACard(ModelSpec):
    """The model that a device with cuDNN would be given."""

    def model(self):
        return super().model().clone(fused="cudnn")


@pytest.mark.parametrize(("together", "fused"), [(False, "cudnn"), (True, "cudnn_of_seeds")])
def test_seeds_trained_at_once_have_the_fused_attention_of_seeds(together, fused, settings):
    config = TrainConfig(**settings, workdir="unused")
    run = PhaseRun(config, Inputs(config), together=together)
    fields = dataclasses.fields(run._model)
    run._model = OnACard(**{field.name: getattr(run._model, field.name) for field in fields})
    assert run.compiled_step(2).program.model.fused == fused


def cut_to(settings, texts, folder):
    """The settings, with so many of the training texts in a file of their own."""
    lines = Path(settings["data"].train_file).read_text().splitlines(keepends=True)
    file = folder / f"train-{texts}.csv"
    file.write_text("".join(lines[: 1 + texts]))
    return {**settings, "data": dataclasses.replace(settings["data"], train_file=str(file))}


def of_numbers(result):
    return {name: result[name] for name in ("step", "validation", "train", "test")}


@pytest.mark.parametrize("parallel", ["jit", "mesh", "pmap"])
def test_a_run_on_other_texts_in_one_process_is_trained(parallel, settings, tmp_path):
    """Where only heads are trained, the steps read their vectors from all training texts.

    The folds of a cross-validation differ by one text, and take equally many steps.
    """
    settings |= {"parallel": parallel, "batch_size": 4, "epochs": 1}
    for texts in (18, 17):
        own = cut_to(settings, texts, tmp_path)
        end = train(TrainConfig(**own, workdir=str(tmp_path / f"{texts}")))
        assert end["train_examples"] == texts
    if parallel == "jit":
        shared_step.cache_clear()
        evaluator.cache_clear()
        alone = train(TrainConfig(**own, workdir=str(tmp_path / "alone")))
        for split in ("train", "validation", "test"):
            assert alone[split] == end[split]


@pytest.mark.parametrize("parallel", ["jit", "auto"])
def test_seeds_on_other_texts_in_one_process_are_trained(parallel, settings, tmp_path):
    settings |= {"parallel": parallel, "batch_size": 4, "epochs": 1}
    for texts in (18, 17):
        own = cut_to(settings, texts, tmp_path)
        configs = [
            TrainConfig(**own, seed=seed, workdir=str(tmp_path / f"{texts}-{seed}"))
            for seed in (0, 1)
        ]
        assert [type(end) for end in train_seeds(configs)] == [dict, dict]


def test_a_step_is_compiled_once_for_each_kind_of_arguments():
    """Its seconds are those of all of them."""

    def step(static: int, numbers: jax.Array) -> jax.Array:
        return static * numbers.sum()

    compiled, seconds = Compiled(JitRunner(), step, 2), [0.0]
    for numbers in (jnp.ones(18), jnp.ones(17), jnp.ones(17, jnp.int32), jnp.ones((1, 17))):
        for _ in range(2):
            assert float(compiled(numbers)) == 2 * numbers.size
        seconds.append(compiled.seconds)
    assert seconds == sorted(set(seconds))
    assert len(compiled._executables) == 4


def test_without_jit_a_step_runs_operation_by_operation():
    seen = []

    def step(static: int, numbers: jax.Array) -> jax.Array:
        seen.append(numbers)
        return static * numbers.sum()

    compiled = Compiled(JitRunner(), step, 2, donate=True)
    with jax.disable_jit():
        assert float(compiled(jnp.ones(19))) == 38
    assert float(seen[0].sum()) == 19
    assert not compiled._executables
