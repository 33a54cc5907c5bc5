"""What each layer does: the score without what it has learned, and what its vectors tell."""

import dataclasses

import numpy as np
import pytest

from mtl_jax.config.monitoring import MonitoringConfig
from mtl_jax.config.train import TrainConfig
from mtl_jax.runs.layer_roles import layer_roles
from mtl_jax.runs.loop import train
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.training.inputs import Inputs

LAYERS = ["layer_0", "layer_1", "layer_2"]


@pytest.fixture(scope="module")
def inputs(tiny_settings):
    return Inputs(TrainConfig(**tiny_settings, workdir=""))


def scores(metrics):
    return {task: {"macro_f1": of_task["macro_f1"]} for task, of_task in metrics.items()}


def test_a_layer_that_was_not_trained_can_be_rolled_back_without_loss(
    tiny_settings, inputs, tmp_path
):
    config = TrainConfig(
        **{**tiny_settings, "epochs": 3},
        workdir=str(tmp_path),
        scenario="top_1",
        watch=MonitoringConfig(measure_layers=True),
    )
    result = train(config, inputs)
    found = result["layers"]
    assert list(found) == ["rolled_back", "probe", "probe_before"]
    assert [list(each) for each in found.values()] == [LAYERS] * 3
    whole = scores(result["validation"])
    for layer in LAYERS[:2]:
        assert found["rolled_back"][layer] == whole
        assert found["probe"][layer] == found["probe_before"][layer]
    assert found["rolled_back"]["layer_2"] != whole
    assert found["probe"]["layer_2"] != found["probe_before"]["layer_2"]
    # What is measured is not what is trained, and folders that have it not are as they were.
    plain = dataclasses.replace(config, workdir=str(tmp_path / "x"), watch=MonitoringConfig())
    other = train(plain, inputs)
    assert "layers" not in other
    assert other["test"] == result["test"]


def test_a_frozen_backbone_has_nothing_to_roll_back(tiny_settings, inputs):
    run = PhaseRun(TrainConfig(**tiny_settings, workdir="", scenario="backbone_frozen"), inputs)
    assert layer_roles(run, run.params) is None


def test_factors_are_a_part_of_the_layer_that_they_are_beside(tiny_settings, inputs):
    run = PhaseRun(TrainConfig(**tiny_settings, workdir="", scenario="lora_2"), inputs)
    params = dict(run.params)
    backbone = dict(params["backbone"])

    def moved(tree):
        if not isinstance(tree, dict):
            return tree
        return {
            name: np.full_like(leaf, 0.5) if name == "lora_b" else moved(leaf)
            for name, leaf in tree.items()
        }

    backbone["layer_1"] = moved(backbone["layer_1"])
    found = layer_roles(run, {**params, "backbone": backbone})
    assert found is not None
    rolled = found["rolled_back"]
    # Without the only layer that differs the model is the pre-trained one.
    assert rolled["layer_0"] == rolled["layer_2"]
    placed = run.evaluator.runner.replicate({**params, "backbone": inputs.backbone})
    before = run.evaluator.metrics(placed, inputs.split("validation"), inputs.classes)
    assert rolled["layer_1"] == scores(before)
