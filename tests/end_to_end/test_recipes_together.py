"""Recipes on several devices, and of several seeds whose phases end at different steps."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.json_files import read_lines
from mtl_jax.runs.loop import train, train_seeds
from mtl_jax.runs.workdir import Workdir
from mtl_jax.training.inputs import Inputs
from tests.conftest import TASKS

SEEDS = (0, 1, 2)


@pytest.fixture
def settings(small_settings):
    """Of one layer: what is tried here does not depend on how many there are."""
    return dict(small_settings)


@pytest.fixture
def recipe(settings, tmp_path):
    """Settings of a run of phases that are given as JSON objects."""

    def make(phases, name, **changes):
        (tmp_path / "recipe.json").write_text(json.dumps(phases))
        file = str(tmp_path / "recipe.json")
        return TrainConfig(**settings | changes, workdir=str(tmp_path / name), recipe=file)

    return make


@pytest.mark.parametrize("parallel", ["pmap", "mesh"])
def test_a_recipe_on_several_devices(parallel, recipe):
    """With what is carried over, held, and saved within an epoch."""
    phases = [
        {"scenario": "backbone_frozen", "steps": 3},
        {
            "scenario": "classifier_frozen",
            "steps": 6,
            "hold_frozen_heads": 2.0,
            "drift_limit": 1e-9,
        },
        {"scenario": "top_1", "steps": 3},
    ]
    config = recipe(phases, "run", parallel=parallel, checkpoint_every=2)
    result = train(config, Inputs(config))
    assert result["phases"] == 3
    assert result["frozen_digest_unchanged"] is True
    log = read_lines(Workdir(config.workdir).path / "metrics.jsonl")
    assert [record["step"] for record in log if record["event"] == "phase"] == [3, 9, 12]
    assert [record["event"] for record in log].count("drift") == 1


def ends_and_losses(config):
    log = read_lines(Workdir(config.workdir).path / "metrics.jsonl")
    ends = [record["step"] for record in log if record["event"] == "phase"]
    last = [record for record in log if record["event"] == "epoch"][-1]["validation"]
    return ends, [last[task]["loss"] for task in TASKS]


def test_seeds_whose_phases_end_at_different_steps(recipe, tmp_path):
    phases: list[dict[str, Any]] = [
        {"scenario": "backbone_frozen", "epochs": 8, "patience": 1, "keep_best": True},
        {"scenario": "top_1", "steps": 4},
    ]
    phases[0] |= {"learning_rates": {"head": 0.1}, "schedule": "constant"}
    first = recipe(phases, "first")
    inputs = Inputs(first)
    together = [
        dataclasses.replace(first, workdir=str(tmp_path / f"together{seed}"), seed=seed)
        for seed in SEEDS
    ]
    outcomes = train_seeds(together, inputs)
    found = [ends_and_losses(config) for config in together]
    # Else this would be a test of seeds that end together.
    assert len({ends[0] for ends, _ in found}) > 1
    for config, outcome, (ends, losses) in zip(together, outcomes, found, strict=True):
        assert isinstance(outcome, dict)
        assert ends[1] == ends[0] + 4
        alone = dataclasses.replace(config, workdir=f"{config.workdir}-alone")
        train(alone, inputs)
        expected_ends, expected = ends_and_losses(alone)
        assert ends == expected_ends
        np.testing.assert_allclose(losses, expected, rtol=1e-3)
