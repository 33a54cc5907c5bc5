"""The learning rate of heads on a frozen backbone: chosen on validation, once, and kept."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from mtl_jax.config.monitoring import MonitoringConfig
from mtl_jax.config.optimizer import head_weight_decay
from mtl_jax.config.train import DataConfig, TrainConfig
from mtl_jax.runs.best_checkpoint import best_parameters
from mtl_jax.runs.head_rate import RATES, _choice, _compared, chosen_head_rate, rate_key
from mtl_jax.runs.head_sweep import Grid, train_heads
from mtl_jax.runs.loop import train, train_seeds
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.runs.workdir import Workdir
from mtl_jax.training.inputs import Inputs
from mtl_jax.training.kinds.registry import KINDS
from tests.conftest import weights

DEFAULT = RATES.index(3e-3)


@pytest.fixture(scope="module")
def open_settings(small_settings):
    """Settings that leave the heads' rate to the sweep; of one layer, for it is frozen."""
    stated = {name: value for name, value in small_settings.items() if "head" not in name}
    return stated | {"epochs": 20, "measure_every": 10}


@pytest.fixture(scope="module")
def inputs(open_settings):
    return Inputs(TrainConfig(**open_settings, workdir=""))


def rates_of(folder):
    phases = json.loads((folder / "config.json").read_text())["phases"]
    return [dict(phase["learning_rates"])["head"] for phase in phases]


def test_weighted_macro_f1_is_that_of_scikit_learn():
    draw = np.random.default_rng(0)
    labels, predicted = draw.integers(-1, 5, 60), draw.integers(0, 4, 60)
    weights = draw.integers(0, 3, (7, 60)).astype(np.float32)
    expected = []
    for row in weights:
        there = np.repeat(np.arange(60), row.astype(int))
        there = there[labels[there] >= 0]
        expected.append(f1_score(labels[there], predicted[there], average="macro"))
    there = labels >= 0
    found = KINDS["single_label"].resampled(labels[there], predicted[there], weights[:, there])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_another_rate_is_chosen_only_where_it_is_clearly_better():
    scores, errors = np.full(len(RATES), 0.5), np.full(len(RATES), 0.02)
    assert _choice(scores, errors, "macro-F1")[0] == 3e-3
    scores[-1] = 0.539
    assert _choice(scores, errors, "macro-F1")[0] == 3e-3
    scores[-1] = 0.541
    rate, words = _choice(scores, errors, "macro-F1")
    assert rate == RATES[-1]
    assert words == "macro-F1 0.541 on validation, 0.500 with 0.003"


def test_scores_and_errors_are_those_of_the_trained_heads(open_settings, inputs, capsys):
    watch = MonitoringConfig(heartbeat=1e-9)
    run = PhaseRun(TrainConfig(**open_settings, workdir="", watch=watch), inputs)
    grid = Grid((0, 1), RATES, (0.01,), weights((1.0,), (1.0,)))
    heads, measured, validation = train_heads(run, grid)
    # A long sweep tells how far it is.
    *_, last = capsys.readouterr().err.splitlines()
    epochs = measured[-1]
    assert last == f"sweep of 4 settings of the heads: epoch {epochs} of {epochs}, about 0.0 s left"
    scores, errors = _compared(run, heads)
    # The best measurement of each is kept, and every validation text takes part.
    np.testing.assert_allclose(scores, validation[..., -1].mean(0), rtol=1e-5)
    assert errors[DEFAULT] == 0
    assert (np.delete(errors, DEFAULT) > 0).all()
    assert len(set(scores.tolist())) > 1


def test_rates_differ_from_what_the_texts_are_and_are_chosen_once(open_settings, inputs, capsys):
    run = PhaseRun(TrainConfig(**open_settings, workdir=""), inputs)
    assert run.plans[0].rate_is_open
    rate = chosen_head_rate(run)
    awaited, found = capsys.readouterr().err.splitlines()
    assert awaited == (
        "trying the head learning rates 0.001, 0.003, 0.01, 0.03 (--head-learning-rate sets one)"
    )
    assert found.startswith(f"head learning rate {rate:g}: ")
    other = PhaseRun(TrainConfig(**open_settings, workdir="", seed=5), inputs)
    assert chosen_head_rate(other) == rate
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"head_learning_rate": 3e-3},
        {"epochs": 2},
        {"scenario": "top_1"},
        {"scenario": "all_frozen"},
        {"prefix_cache": False},
        {"task_weights": ("sentiment=0.0",)},
        {"recipe": "sequential_heads"},
    ],
)
def test_where_the_rate_is_stated_or_no_matter_of_heads_alone_nothing_is_swept(
    open_settings, inputs, changes
):
    run = PhaseRun(TrainConfig(**open_settings | changes, workdir=""), inputs)
    assert not run.plans[0].rate_is_open
    assert not any(plan.rate_is_open for plan in run.plans)


def test_a_run_begins_with_the_chosen_rate_and_keeps_it(
    open_settings, inputs, tmp_path, monkeypatch
):
    key = rate_key(PhaseRun(TrainConfig(**open_settings, workdir=""), inputs))
    monkeypatch.setitem(inputs.head_rates, key, 0.02)
    whole, cut = (TrainConfig(**open_settings, workdir=str(tmp_path / n)) for n in ("a", "b"))
    expected = train(whole, inputs)
    assert rates_of(tmp_path / "a") == [0.02]
    (recorded,) = json.loads((tmp_path / "a" / "config.json").read_text())["phases"]
    texts = len(inputs.split("train").texts)
    assert recorded["weight_decay"] == head_weight_decay(texts)
    assert recorded["head_dropout"] == 0

    # Cut short after the first of its two measurements, and gone on with where a sweep would
    # choose otherwise.
    class CutError(Exception):
        pass

    def cut_short(*_, **__):
        raise CutError

    with monkeypatch.context() as patch:
        patch.setattr("mtl_jax.runs.seed_run.SeedRun.finish", cut_short)
        with pytest.raises(CutError):
            train(cut, inputs)
    monkeypatch.setitem(inputs.head_rates, key, 0.5)
    assert train(cut, inputs)["test"] == expected["test"]
    assert rates_of(tmp_path / "b") == [0.02]


def test_seeds_together_have_one_rate_and_a_recipe_only_its_first_phase(
    open_settings, inputs, tmp_path
):
    together = [
        TrainConfig(**open_settings, workdir=str(tmp_path / str(seed)), seed=seed)
        for seed in (3, 4)
    ]
    assert all(isinstance(outcome, dict) for outcome in train_seeds(together, inputs))
    first, second = (rates_of(tmp_path / str(seed)) for seed in (3, 4))
    assert first == second
    recipe = TrainConfig(**open_settings, recipe="lp_ft", workdir=str(tmp_path / "lp_ft"))
    train(recipe, inputs)
    probe, fine_tuning = rates_of(tmp_path / "lp_ft")
    assert probe in RATES
    assert fine_tuning == recipe.backbone_learning_rate
    phases = json.loads((tmp_path / "lp_ft" / "config.json").read_text())["phases"]
    texts = len(inputs.split("train").texts)
    settled = [(phase["weight_decay"], phase["head_dropout"]) for phase in phases]
    assert settled == [(head_weight_decay(texts), 0.0), (0.01, inputs.bert.head_dropout)]
    assert inputs.bert.head_dropout > 0


@pytest.mark.parametrize(
    ("texts", "decay"), [(12_000, 0.1), (2_400, 0.5), (1_000_000, 0.0012), (1_200, 1.0), (1, 1.0)]
)
def test_fewer_texts_are_decayed_more(texts, decay):
    assert head_weight_decay(texts) == pytest.approx(decay)


def test_few_texts_train_long_enough_without_any_flag(open_settings, tmp_path, capsys):
    short = {**open_settings, "epochs": None, "measure_every": None}
    config = TrainConfig(**short, workdir=str(tmp_path / "run"), head_min_steps=150)
    result = train(config)
    words = capsys.readouterr().err
    assert "instead of 15 epochs, " in words
    assert "to make at least 150 steps (--head-min-steps); --epochs sets another number" in words
    assert result["step"] >= 150
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in lines]
    assert 2 <= sum(record["event"] == "epoch" for record in log) <= 11
    assert "for comparison: TF-IDF with logistic regression reaches classifier accuracy" in words
    assert result["text_baseline"]["classifier"]["examples"] > 0


def test_what_learns_less_than_a_bag_of_words_is_told(open_settings, inputs, tmp_path, capsys):
    data: DataConfig = open_settings["data"]
    slow = {**open_settings, "head_learning_rate": 1e-9, "data": dataclasses.replace(data)}
    result = train(TrainConfig(**slow, workdir=str(tmp_path / "run")))
    worse = [
        task
        for task in ("classifier", "sentiment")
        if result["validation"][task]["macro_f1"] < inputs.text_baseline[task]["macro_f1"]
    ]
    assert worse
    warnings = [line for line in capsys.readouterr().err.splitlines() if "where TF-IDF" in line]
    assert [line.split(":")[1].strip() for line in warnings] == worse


def test_imbalanced_classes_are_evened_where_heads_alone_train_and_nothing_is_said(
    open_settings, inputs, tmp_path, capsys
):
    texts = [f"{'liked' if i % 5 else 'hated'} the film {i}" for i in range(100)]
    rows = [f"{text},{'up' if i % 5 else 'down'},{i % 2}" for i, text in enumerate(texts)]
    file = tmp_path / "train.csv"
    file.write_text("\n".join(["text,mood,half", *rows]))
    labels = ("mood=mood", "half=half")
    data = DataConfig(train_file=str(file), validation_file=str(file), label_columns=labels)
    settings = {**open_settings, "data": data, "epochs": 2, "measure_every": 2}
    folder = tmp_path / "run"
    result = train(TrainConfig(**settings, workdir=str(folder)))
    said = capsys.readouterr().err
    assert "mood: in training down weighs 1.42 and up 0.89, because classes are imbalanced" in said
    (recorded,) = json.loads((folder / "config.json").read_text())["phases"]
    # 20 and 80 texts: the cube roots of 1 / 20 and 1 / 80, and 1 in the mean.
    down, up = 20 ** (-1 / 3), 80 ** (-1 / 3)
    mean = (20 * down + 80 * up) / 100
    assert recorded["class_weights"].keys() == {"mood"}
    np.testing.assert_allclose(recorded["class_weights"]["mood"], [down / mean, up / mean])
    # Steps are those of weights that are stated; what is measured is not weighed.
    down, up = recorded["class_weights"]["mood"]
    other = tmp_path / "stated"
    stated = {"class_weights": (f'mood={{"down": {down}, "up": {up}}}',), "workdir": str(other)}
    same = train(TrainConfig(**settings, **stated))
    kernels = [best_parameters(Workdir(each))["mood"]["kernel"] for each in (folder, other)]
    np.testing.assert_array_equal(*kernels)
    losses = [found["validation"]["mood"]["loss"] for found in (result, same)]
    assert losses[0] != losses[1]
    whole = Inputs(TrainConfig(**settings, workdir=""))
    for changes in (
        {"class_weights": ("mood={}",)},
        {"class_weights": ("none",)},
        {"scenario": "top_1", "recipe": None},
        {"scenario": None, "recipe": "lp_ft"},
    ):
        config = TrainConfig(**{**settings, **changes, "workdir": ""})
        assert not any(plan.class_weights for plan in PhaseRun(config, whole).plans)
