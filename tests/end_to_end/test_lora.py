"""Whole runs with low-rank factors: what they leave, across phases, cut off, and put to use."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.freezing.lora import merge_lora
from mtl_jax.runs.loop import train, train_seeds
from mtl_jax.runs.notes import without_effect
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.tools.predict import Predictor
from mtl_jax.training.inputs import Inputs
from tests.conftest import TASKS
from tests.end_to_end.test_recipes import certificate_of, ends_the_same, with_snapshots
from tests.runs.test_loop import final_params
from tests.training.test_step import flat

PHASES = [
    {"scenario": "lora_2", "steps": 2},
    # The same factors go on, with dropout; then others; then the kernels themselves.
    {"scenario": "lora_2", "steps": 2, "lora_dropout": 0.3, "layer_decay": 0.5},
    {"scenario": "lora_3", "steps": 2, "lora_targets": ["layer_0/mlp/*"], "lora_alpha": 6},
    {"scenario": "backbone_frozen", "steps": 2},
]


@pytest.fixture(scope="module")
def inputs(small_settings):
    return Inputs(TrainConfig(**small_settings, workdir=""))


@pytest.fixture
def settings(small_settings):
    return {**small_settings, "epochs": 1}


@pytest.fixture(scope="module")
def recipe(small_settings, inputs, tmp_path_factory):
    """A whole run of ``PHASES``, and its folder as a kill after each step leaves it."""
    folder = tmp_path_factory.mktemp("lora")
    (folder / "phases.json").write_text(json.dumps(PHASES))
    return with_snapshots(small_settings, inputs, folder, recipe=str(folder / "phases.json"))


def test_a_run_trains_the_factors_and_is_put_to_use(settings, inputs, tmp_path):
    lora = {"lora_targets": ("value", "mlp_output"), "lora_alpha": 8, "lora_dropout": 0.1}
    config = TrainConfig(**settings, **lora, workdir=str(tmp_path), scenario="lora_2", seed=4)
    result = train(config, inputs)
    proof, after = certificate_of(config), flat(final_params(tmp_path))
    heads = 2 * (16 * 3 + 3)
    factors = 2 * ((16 + 16) + (32 + 16))
    assert result["trainable_parameters_by_label"] == {"head": heads, "lora": factors}
    assert result["trainable_parameters"] == heads + factors
    assert proof["labels"]["lora"] == {"leaves": 2 * 2, "parameters": factors}
    assert proof["frozen_digest_unchanged"] is True
    # Two moments of each parameter, a count of each leaf, and of each of the two groups.
    assert proof["optimizer_state_bytes"] == 8 * (heads + factors) + 4 * (2 * 2 + 4 + 2)
    for path, leaf in flat(inputs.backbone).items():
        assert after[f"backbone/{path}"].tobytes() == leaf.tobytes()
    config_of_run = json.loads((tmp_path / "config.json").read_text())
    (phase,) = config_of_run["phases"]
    assert (phase["lora_alpha"], ["lora", 5e-4] in phase["learning_rates"]) == (8, True)

    found = Predictor(tmp_path)
    assert found.evaluate("test") == result["test"]
    ((_, vectors),) = found.pooled(["the film was good"])
    merged = Predictor(tmp_path)
    merged._params = merged._evaluator.runner.replicate(merge_lora(found._params))
    ((_, plain),) = merged.pooled(["the film was good"])
    np.testing.assert_allclose(plain, vectors, atol=1e-5)
    assert (
        merged.evaluate("test")["sentiment"]["accuracy"] == result["test"]["sentiment"]["accuracy"]
    )


def test_the_seed_draws_the_factors(settings, inputs):
    runs = [
        PhaseRun(TrainConfig(**settings, workdir="", scenario="lora_2", seed=seed), inputs)
        for seed in (0, 0, 1)
    ]
    first, again, other = (
        flat(run.params)["backbone/layer_0/attention/query/lora_a"] for run in runs
    )
    assert first.tobytes() == again.tobytes() != other.tobytes()
    # What was pre-trained is one copy for all.
    for path, leaf in flat(inputs.backbone).items():
        assert flat(runs[2].params)[f"backbone/{path}"] is leaf


def test_factors_go_on_in_the_phase_that_has_them_and_are_merged_before_others(recipe, inputs):
    config, folder, result = recipe
    proofs = certificate_of(config)["phases"]
    assert all(proof["frozen_digest_unchanged"] for proof in proofs)
    assert {label.split("/")[0] for label in proofs[1]["labels"]} == {"frozen", "head", "lora"}
    assert "lora/layer_0" in proofs[1]["labels"]
    assert "lora" not in str(proofs[3]["labels"])
    after = {step: final_params(folder / f"after-{step}") for step in range(2, 8)}
    query, inner = (f"backbone/layer_0/{each}" for each in ("attention/query", "mlp/output"))
    # Adam moves by no more than about the rate in a step, and the factors are those of before.
    moved = flat(after[3])[f"{query}/lora_a"] - flat(after[2])[f"{query}/lora_a"]
    assert 0 < np.abs(moved).max() < 2e-3
    assert f"{query}/lora_dropout" in flat(after[3])
    base = flat(inputs.backbone)["layer_0/attention/query/kernel"]
    assert flat(after[4])[f"{query}/kernel"].tobytes() == base.tobytes()
    # Merged when they no longer train, kernel by kernel.
    assert {path.split("/")[2] for path in flat(after[5]) if "lora" in path} == {"mlp"}
    assert flat(after[5])[f"{inner}/lora_scale"] == 2
    assert not any("lora" in path for path in flat(after[7]))
    for kernel, before, later in ((query, 4, 5), (query, 4, 7), (inner, 6, 7)):
        merged = flat(merge_lora(after[before]))[f"{kernel}/kernel"]
        assert flat(after[later])[f"{kernel}/kernel"].tobytes() == merged.tobytes()
        assert not np.array_equal(merged, flat(after[before])[f"{kernel}/kernel"])
    heads = 2 * (16 * 3 + 3)
    assert result["trainable_parameters_by_label"] == {"head": heads, "lora": 3 * 2 * (16 + 32)}


@pytest.mark.parametrize("step", [1, 3, 5])
def test_cut_off_in_any_phase_it_ends_the_same(step, recipe, inputs, tmp_path):
    config, folder, result = recipe
    ends_the_same(step, config, folder, result, inputs, tmp_path / "cut")


def test_seeds_share_kernels_and_have_factors_of_their_own(settings, inputs, tmp_path):
    settings |= {"scenario": "lora_2", "lora_targets": ("layer_0/attention/*",)}
    configs = [TrainConfig(**settings, workdir=str(tmp_path / f"{s}"), seed=s) for s in (0, 1)]
    together: list[Any] = train_seeds(configs, inputs)
    alone = train(dataclasses.replace(configs[1], workdir=str(tmp_path / "alone")), inputs)
    for task in TASKS:
        assert together[1]["test"][task]["loss"] == pytest.approx(
            alone["test"][task]["loss"], rel=1e-4
        )
    found, expected = (flat(final_params(tmp_path / name)) for name in ("1", "alone"))
    for path, leaf in expected.items():
        if path.endswith("lora_b"):
            np.testing.assert_allclose(found[path], leaf, atol=5e-4)
            assert leaf.any()


def test_seeds_whose_merged_kernels_differ_are_trained_apart(recipe, inputs, tmp_path):
    config, _, result = recipe
    configs = [
        dataclasses.replace(
            config, workdir=str(tmp_path / f"{seed}"), seed=seed, checkpoint_every=0
        )
        for seed in (0, 1)
    ]
    results: list[Any] = train_seeds(configs, inputs)
    first, second = results
    assert first["validation"] == result["validation"]
    assert second["validation"] != result["validation"]


def test_settings_of_factors_that_nothing_has_a_use_for_are_told(settings, inputs):
    given = {"lora_alpha": 4.0, "lora_targets": ("key",), "lora_learning_rate": 0.1}
    config = TrainConfig(**settings, **given, workdir="", scenario="top_1")
    words = "is without effect: top_1 trains no low-rank factors: use a scenario such as lora_8"
    assert without_effect(config, PhaseRun(config, inputs).plans) == [
        f"note: --lora-targets key {words}",
        f"note: --lora-alpha 4.0 {words}",
        f"note: --lora-learning-rate 0.1 {words}",
    ]
    (phase,) = PhaseRun(config, inputs).record()["phases"]
    # A run that was begun before there were factors has no word of them.
    assert not any("lora" in name for name in phase)
    config = dataclasses.replace(config, scenario="lora_1")
    assert without_effect(config, PhaseRun(config, inputs).plans) == []
