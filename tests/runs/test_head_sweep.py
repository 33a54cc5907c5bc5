import dataclasses
import gc
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.runs import head_sweep as sweeping
from mtl_jax.runs.checkpoints.reader import CheckpointReader
from mtl_jax.runs.head_sweep import Grid, _epochs_at_once, score_of_counts, sweep
from mtl_jax.runs.loop import train
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.runs.workdir import Workdir
from mtl_jax.studies.builtin.heads import Heads
from mtl_jax.studies.builtin.heads import run as run_heads
from mtl_jax.training.inputs import Inputs
from mtl_jax.training.kinds.registry import KINDS
from mtl_jax.training.metrics import mean_score, split_metrics
from mtl_jax.training.prediction_counts import class_counts
from mtl_jax.training.program import TrainState
from mtl_jax.training.seed_runner import devices_across
from mtl_jax.training.step import scanned_steps, take, train_step
from tests.conftest import TASKS, settings_of, weights

GRID = Grid((0, 3, 4), (1e-3, 5e-2), (0.0, 0.1), weights((1.0,), (1.0, 0.25)))


@pytest.fixture(scope="module")
def swept(shared_settings):
    own = {"epochs": 3, "clip_norm": 0.5}
    shared: dict[str, Any] = {k: v for k, v in shared_settings.items() if "rate" not in k} | own
    inputs = Inputs(TrainConfig(workdir="", **shared))
    return shared, inputs, sweep(TrainConfig(workdir="", **shared), GRID, inputs)


@pytest.mark.parametrize(("seed", "setting"), [(0, 0), (1, 3), (2, 5), (2, 7)])
def test_a_run_of_a_sweep_scores_what_training_it_alone_does(swept, tmp_path, seed, setting):
    shared, inputs, result = swept
    config = TrainConfig(
        workdir=str(tmp_path),
        seed=GRID.seeds[seed],
        **shared,
        **settings_of(result.settings[setting]),
    )
    train(config, inputs)
    epochs = [r for r in Workdir(tmp_path).metrics.records() if r["event"] == "epoch"]
    alone = [mean_score(record["validation"]) for record in epochs]
    np.testing.assert_allclose(result.validation[seed, setting], alone, atol=1e-9)


def test_the_setting_is_chosen_on_validation_and_tested_as_training_would(swept, tmp_path):
    shared, inputs, result = swept
    assert (result.kept == len(result.measured) - 1).all()
    means = result.validation[..., -1].mean(0)
    assert means[result.chosen] == means.max()
    assert len(set(means.tolist())) > 1
    config = TrainConfig(
        workdir=str(tmp_path),
        seed=GRID.seeds[1],
        **shared,
        **settings_of(result.settings[result.chosen]),
    )
    alone = train(config, inputs)["test"]
    for task in TASKS:
        assert result.test[1][task]["accuracy"] == alone[task]["accuracy"]
        assert result.test[1][task]["loss"] == pytest.approx(alone[task]["loss"], abs=1e-5)


def test_the_epoch_is_chosen_among_those_that_training_measures(swept, tmp_path):
    """The best of all five epochs of the last seed is none of them."""
    shared, inputs, _ = swept
    # Of heads whose rate falls to nothing the end is kept.
    shared: dict[str, Any] = {**shared, "schedule": "constant"}
    grid = Grid((0, 3, 5), (5e-2, 2e-1), (0.0,), weights((1.0,), (1.0,)))
    shared |= {"epochs": 5}
    every = sweep(TrainConfig(workdir="", **shared), grid, inputs)
    some = {**shared, "measure_every": 3}
    found = sweep(TrainConfig(workdir="", **some), grid, inputs)
    assert (every.measured, found.measured) == ((1, 2, 3, 4, 5), (3, 5))
    np.testing.assert_array_equal(found.validation, every.validation[..., [2, 4]])
    assert found.validation[2, found.chosen].max() < every.validation[2, found.chosen].max()
    chosen: dict[str, Any] = {**some, **settings_of(found.settings[found.chosen])}
    alone = train(TrainConfig(workdir=str(tmp_path), seed=5, **chosen), inputs)
    assert max(found.validation[2, found.chosen]) == pytest.approx(
        mean_score(alone["validation"]), abs=1e-9
    )
    for task in TASKS:
        assert found.test[2][task]["loss"] == pytest.approx(alone["test"][task]["loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("devices", "seeds", "settings", "across"),
    [
        (8, 1, 64, (1, 8)),
        (8, 16, 1, (8, 1)),
        (8, 4, 6, (4, 2)),
        (8, 8, 8, (8, 1)),
        (4, 3, 8, (1, 4)),
        (6, 5, 2, (6, 1)),
        (1, 3, 8, (1, 1)),
    ],
)
def test_every_device_has_as_few_runs_as_can_be(devices, seeds, settings, across):
    assert devices_across(devices, seeds, settings) == across


def test_the_settings_of_one_seed_are_spread_over_the_devices(swept, tmp_path):
    shared, inputs, result = swept
    run = PhaseRun(TrainConfig(workdir="", **shared), inputs)
    heads = sweeping.Heads(run, dataclasses.replace(GRID, seeds=GRID.seeds[1:2]))
    scores = []
    for epoch in range(shared["epochs"]):
        heads.train([epoch])
        scores.append(heads.measure())
    np.testing.assert_allclose(np.stack(scores, axis=-1), result.validation[1:2], atol=1e-9)
    kernel = heads.kept(0, 5)["classifier"]["kernel"]
    spread = heads._states.trainable["classifier"]["kernel"].addressable_shards
    assert [shard.data.shape for shard in spread] == [(1, 2, *kernel.shape)] * 4
    assert len({shard.index[1].start for shard in spread}) == 4


@pytest.mark.parametrize(
    ("between", "epochs", "steps", "at_once"),
    [
        (1, 7, 5, 1),
        (10, 95, 5, 5),
        (10, 20, 1000, 1),
        (100, 1000, 3, 100),
        (20_000_000, 200_000_000, 5, 200),
        (10**9 + 7, 10**9 + 7, 1, 1),
    ],
)
def test_a_call_of_a_sweep_takes_few_steps(between, epochs, steps, at_once):
    assert _epochs_at_once(between, epochs, steps) == at_once


def test_many_steps_in_one_program_are_the_steps_one_by_one(settings, tmp_path):
    config = TrainConfig(**settings, workdir=str(tmp_path), scenario="backbone_frozen")
    run = PhaseRun(config, Inputs(config))
    texts = run.split("train").texts
    program = run.compiled_step().program
    trainable, _ = run.partition.split(run.params)
    vectors = {k: jnp.asarray(v) for k, v in {"pooled": texts.pooled, **texts.labels}.items()}
    rng = np.random.default_rng(0)
    examples = jnp.asarray(rng.integers(-1, len(texts), (2, 5, 4)), jnp.int32)
    examples = examples.at[:, 3:].set(-1)  # not there: passed over
    scan = jax.jit(lambda s: scanned_steps(program, s, {}, vectors, {"example": examples}))
    scanned, metrics = scan(program.init(trainable, 0))
    state: TrainState = program.init(trainable, 0)
    step = jax.jit(lambda s, b: train_step(program, s, {}, b))
    losses = []
    for i in range(3):
        batch = take(vectors, examples[:, i])
        state, of_step = step(state, batch)
        losses.append(float(of_step["loss"]["classifier"][0]))
    assert int(scanned.step) == int(state.step) == 3
    np.testing.assert_allclose(metrics["loss"]["classifier"][0], [*losses, 0, 0], rtol=1e-6)
    for ours, theirs in zip(
        jax.tree.leaves(scanned.trainable), jax.tree.leaves(state.trainable), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("there", [4, 3, 2, 1])
def test_scores_on_the_device_are_those_of_scikit_learn(there):
    """Also where a split has labels, or labels and predictions, of few of the classes."""
    rng = np.random.default_rng(there)
    labels: dict[str, Any] = {task: rng.integers(-1, 4, 50) for task in TASKS}
    labels["sentiment"][labels["sentiment"] >= there] = 0
    logits: dict[str, Any] = {task: rng.normal(size=(50, 4)).astype(np.float32) for task in TASKS}
    logits["sentiment"][:, there + 1 :] = -9  # at most one class is predicted that is not there
    counts = {t: np.asarray(class_counts(logits[t], labels[t]))[None, None] for t in TASKS}
    classes = {task: tuple("abcd") for task in TASKS}
    kinds: Any = dict.fromkeys(TASKS, KINDS["single_label"])
    predicted = {task: logits[task].argmax(-1) for task in TASKS}
    expected = mean_score(split_metrics(labels, predicted, classes, None))
    assert score_of_counts(counts, kinds)[0, 0] == pytest.approx(expected, abs=1e-12)
    counts["sentiment"] = np.full_like(counts["sentiment"], np.nan)
    assert np.isnan(score_of_counts(counts, kinds)[0, 0])


def test_a_diverged_setting_is_not_chosen(swept):
    shared, inputs, _ = swept
    config = TrainConfig(workdir="", **shared | {"warmup_fraction": 0.0})
    result = sweep(config, Grid((0, 1), (1e38, 1e-2), (0.0,), weights((1.0,), (1.0,))), inputs)
    assert np.isnan(result.validation[:, 0]).any()
    assert result.chosen == 1


@pytest.mark.parametrize(("schedule", "epoch"), [("constant", 1), ("linear", 3)])
def test_of_equal_measurements_a_sweep_and_training_keep_the_same(swept, schedule, epoch, tmp_path):
    """At a rate that moves the heads, but none of their predictions.

    The first is kept, but of heads whose rate falls to nothing the end.
    """
    shared, inputs, _ = swept
    shared = {**shared, "schedule": schedule}
    rates: dict[str, Any] = {"head_learning_rate": 1e-6, "weight_decay": 0.0}
    config = TrainConfig(workdir=str(tmp_path), **shared, **rates)
    result = train(config, inputs)
    scores = [
        mean_score(r["validation"])
        for r in Workdir(tmp_path).metrics.records()
        if r["event"] == "epoch"
    ]
    assert len(set(scores)) == 1
    assert len(scores) == 3
    assert result["best_epoch"] == epoch
    heads = sweeping.Heads(
        PhaseRun(config, inputs), Grid((0,), (1e-6,), (0.0,), weights((1.0,), (1.0,)))
    )
    kernels = []
    for number in range(3):
        heads.train([number])
        np.testing.assert_array_equal(heads.measure(), [[scores[0]]])
        kernels.append(np.array(heads._states.trainable["classifier"]["kernel"][0, 0]))
    kept = heads.kept(0, 0)["classifier"]["kernel"]
    assert [np.array_equal(kept, kernel) for kernel in kernels].index(True) == epoch - 1
    assert not np.array_equal(kernels[0], kernels[2])
    saved: Any = CheckpointReader(Workdir(tmp_path).checkpoints).restore_best()
    np.testing.assert_allclose(saved["classifier"]["kernel"], kept, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "masked"),
    [({}, False), ({"head_dropout": 0.3}, True), ({"scenario": "top_1"}, True)],
)
def test_heads_alone_train_without_dropout(swept, changes, masked):
    shared, inputs, _ = swept
    run = PhaseRun(TrainConfig(workdir="", **shared | changes), inputs)
    program = run.compiled_step().program
    trainable, frozen = run.partition.split(run.params)
    rng = np.random.default_rng(0)
    pooled = rng.normal(size=(4, 2, inputs.bert.hidden_size)).astype(np.float32)
    batch = {"pooled": jnp.asarray(pooled), **{task: jnp.ones((4, 2), jnp.int32) for task in TASKS}}
    states = [program.init(trainable, seed) for seed in (0, 1)]
    step = jax.jit(lambda state: train_step(program, state, frozen, batch)[0].trainable)
    kernels = [np.asarray(step(state)["classifier"]["kernel"]) for state in states]
    assert np.array_equal(kernels[0], kernels[1]) != masked
    assert run.plans[0].head_dropout == (changes.get("head_dropout", 0.1) if masked else 0)


def test_a_sweep_weighs_both_tasks(swept):
    shared, inputs, _ = swept
    config = TrainConfig(workdir="", **shared)
    with pytest.raises(UserError, match="a weight of 0 would leave some out"):
        sweep(config, Grid((0,), (1e-2,), (0.0,), weights((1.0,), (1.0, 0.0))), inputs)


def test_a_sweep_leaves_no_arrays_behind(swept):
    shared, inputs, _ = swept
    gc.collect()
    gc.disable()
    try:
        sweep(
            TrainConfig(workdir="", **shared),
            Grid((0,), (1e-2,), (0.0,), weights((1.0,), (1.0,))),
            inputs,
        )
        assert not [held for held in gc.get_objects() if type(held) is sweeping.Heads]
    finally:
        gc.enable()


def test_a_sweep_of_more_than_heads_is_refused(swept):
    shared, inputs, _ = swept
    others: list[dict[str, Any]] = [
        {"scenario": "top_1"},
        {"scenario": "all_frozen"},
        {"prefix_cache": False},
    ]
    for other in others:
        with pytest.raises(UserError, match="use --scenario backbone_frozen"):
            sweep(TrainConfig(workdir="", **shared, **other), GRID, inputs)


def test_the_experiment_leaves_a_line_per_run_and_a_report(swept, tmp_path, capsys):
    shared, _, result = swept
    study = Heads(
        workdir=str(tmp_path),
        **shared,
        seeds=GRID.seeds,
        learning_rates=GRID.head_learning_rate,
        weight_decays=GRID.weight_decay,
        task_weight_values=tuple(
            f"{task}={','.join(map(str, tried))}" for task, tried in GRID.task_weights
        ),
    )
    run_heads(study, "the command")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {line["train_flops"] for line in lines} == {lines[0]["train_flops"]}
    assert isinstance(lines[0]["train_flops"], int)
    assert len(lines) == 24
    chosen = [line for line in lines if line["chosen"]]
    assert [line["seed"] for line in chosen] == [0, 3, 4]
    assert chosen[0]["setting"] == result.settings[result.chosen]
    assert all(line["test"] for line in chosen)
    assert not any(line["test"] for line in lines if not line["chosen"])
    np.testing.assert_allclose(chosen[0]["validation"], result.validation[0, result.chosen])
    assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")
    report = (tmp_path / "report.md").read_text()
    assert report.count("| head_learning_rate") == 7
    assert report.count("| **head_learning_rate") == 1
    capsys.readouterr()
    run_heads(study, "the command")
    assert "is done" in capsys.readouterr().err


def test_of_a_part_of_the_texts_each_seed_has_its_own(swept, tmp_path):
    shared, inputs, _ = swept
    own = {**shared, "data": dataclasses.replace(shared["data"], max_train_examples=40)}
    asked = {"learning_rates": (1e-2, 3e-2), "weight_decays": (0.0,)}
    run_heads(Heads(workdir=str(tmp_path), **own, **asked, seeds=(3, 5)), "the command")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(line["seed"], line["train_subset"]) for line in lines] == [(3, 3), (5, 5)] * 2
    # The same texts as a run of that seed has.
    data = dataclasses.replace(own["data"], train_subset=5)
    grid = Grid((5,), (1e-2, 3e-2), (0.0,), ())
    grid = dataclasses.replace(grid, task_weights=tuple((task, (1.0,)) for task in TASKS))
    config = TrainConfig(**{**own, "data": data}, scenario="backbone_frozen", workdir="")
    alone = sweep(config, grid, inputs.limited(data))
    for number, line in enumerate(line for line in lines if line["seed"] == 5):
        np.testing.assert_allclose(line["validation"], alone.validation[0, number])


def test_where_all_has_diverged_the_remedy_is_one_that_works(swept, tmp_path):
    shared, _, _ = swept
    grid = {"seeds": (0,), "weight_decays": (0.0,), "warmup_fraction": 0.0}
    asked = {**shared, **grid, "workdir": str(tmp_path / "heads")}
    words = (
        "every setting of the sweep diverged: lower the learning rates; other settings need "
        f"another --workdir than {tmp_path / 'heads'}"
    )
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        run_heads(Heads(**asked, learning_rates=(1e38,)), "the command")
    other = asked | {"workdir": str(tmp_path / "lower"), "learning_rates": (1e-2,)}
    run_heads(Heads(**other), "the command")
    assert (tmp_path / "lower" / "report.md").is_file()


def test_what_is_refused_leaves_no_folder(swept, tmp_path):
    shared, _, _ = swept
    asked = {**shared, "workdir": str(tmp_path / "heads"), "seeds": (0,)}
    for wrong, words in (
        ({"task_weight_values": ("classifier=0",)}, "a weight of 0 would leave some out"),
        ({"epochs": 2**31 - 1}, "backbone_frozen would take [0-9]+ steps, and 2147483647 can be"),
        (
            {"hold_frozen_heads": 2.0},
            "--hold-frozen-heads 2 is for a head that an earlier phase has trained",
        ),
    ):
        with pytest.raises(UserError, match=words):
            run_heads(Heads(**{**asked, **wrong}), "the command")
        assert not (tmp_path / "heads").exists()
    with pytest.raises(UserError, match="--seeds 4294967296 must be at most 4294967295"):
        Heads(**{**asked, "seeds": (0, 2**32)})
