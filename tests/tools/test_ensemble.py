"""Several runs together: the mean of what each predicts, also from kept predictions."""

import json
from typing import Any

import numpy as np
import pytest

import mtl_jax as mtl
from mtl_jax.cli.commands import run as cli
from mtl_jax.config.tasks import Task
from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.runs.ensembles import averaged
from mtl_jax.runs.loop import train
from mtl_jax.runs.predictions import Predictions, TaskPredictions, read_predictions
from mtl_jax.tools.ensemble import Ensemble, _mean_logits
from mtl_jax.training.inputs import Inputs

TEXTS = ["the film was good !", "the phone is bad", "a fine book"]


@pytest.fixture(scope="module")
def runs(small_settings, tmp_path_factory):
    """The folders of two seeds."""
    folder = tmp_path_factory.mktemp("ensemble")
    settings = small_settings | {"scenario": "none_frozen", "epochs": 1}
    inputs = Inputs(TrainConfig(**settings, workdir=""))
    for seed in (0, 1):
        train(TrainConfig(**settings, seed=seed, workdir=str(folder / f"seed{seed}")), inputs)
    return [folder / "seed0", folder / "seed1"]


def test_probabilities_are_averaged(runs, tmp_path, capsys):
    together = mtl.Ensemble(runs)
    (texts, _), *_ = together.members[0].logits(TEXTS)
    assert texts == TEXTS
    of_members = [next(iter(member.logits(TEXTS)))[1]["sentiment"] for member in together.members]
    shares = [np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in of_members]
    expected = np.mean(shares, axis=0)
    answers = together.predict(TEXTS)
    for answer, of_text in zip(answers, expected, strict=True):
        found = answer["sentiment"]
        assert found["label"] == together.classes["sentiment"][of_text.argmax()]
        assert found["probability"] == pytest.approx(of_text.max(), abs=2e-6)

    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS) + "\n")
    folders = ["--workdir", *map(str, runs)]
    assert cli(["predict", *folders, f"--input={file}"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == answers
    assert cli(["evaluate", *folders, f"--output={tmp_path / 'out'}"]) == 0
    printed = json.loads(capsys.readouterr().out)

    # What each has left of the test split makes the same.
    left: Any = [read_predictions(run / "predictions-test.parquet") for run in runs]
    for task, scores in averaged(left).metrics().items():
        assert printed[task]["macro_f1"] == scores["macro_f1"]
        assert printed[task]["ece"] == pytest.approx(scores["ece"], abs=1e-6)
    kept: Any = read_predictions(tmp_path / "out" / "predictions-test.parquet")
    np.testing.assert_allclose(
        kept.tasks["sentiment"].probabilities,
        np.mean([each.tasks["sentiment"].probabilities for each in left], 0),
        atol=1e-6,
    )
    report = (tmp_path / "out" / "report.md").read_text()
    assert ", ".join(map(str, runs)) in report
    one = mtl.Ensemble(runs[:1])
    assert one.predict(TEXTS) == one.members[0].predict(TEXTS)


def test_only_runs_of_the_same_tasks_are_one(runs, small_settings, reviews, tmp_path):
    data = mtl.DataConfig(
        train_file=str(reviews / "train.csv"), label_columns=("classifier=topic",)
    )
    settings = small_settings | {"data": data, "epochs": 1}
    mtl.train(TrainConfig(**settings, workdir=str(tmp_path / "other")))
    with pytest.raises(UserError, match=r"other has other tasks, classes or text columns than"):
        Ensemble([runs[0], tmp_path / "other"])
    with pytest.raises(UserError, match="takes a list of folders, and 'runs/one' is one"):
        Ensemble("runs/one")
    with pytest.raises(UserError, match="an ensemble needs runs: name the folder of one"):
        Ensemble([])


def test_of_several_labels_and_of_values():
    tags = Task("tags", "multi_label", classes=("a", "b"))
    logits = [np.array([[2.0, -1.0]], np.float32), np.array([[-2.5, -1.0]], np.float32)]
    shares = [1 / (1 + np.exp(-x)) for x in logits]
    found = _mean_logits(tags, [(tags, each) for each in logits])
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), np.mean(shares, 0), rtol=1e-5)
    # 1 and 5 in the unit of the labels, whose scales the runs have each their own.
    scales = [Task("stars", "regression", mean=m, deviation=d) for m, d in ((3.0, 2.0), (1.0, 4.0))]
    own = [np.array([[-1.0]], np.float32), np.array([[1.0]], np.float32)]
    (mean,) = _mean_logits(scales[0], list(zip(scales, own, strict=True)))
    assert mean == pytest.approx([0.0])
    gold = np.array([[1, 0]], np.int8)
    each = [
        TaskPredictions("multi_label", ("a", "b"), gold, gold, np.array([[p, 0.2]], np.float32))
        for p in (0.9, 0.2)
    ]
    values = [
        TaskPredictions("regression", (), np.array([2.0]), np.array([v]), None) for v in (1.0, 2.0)
    ]
    both = averaged(
        [
            Predictions(np.arange(1), None, None, {"tags": a, "stars": b})
            for a, b in zip(each, values, strict=True)
        ]
    )
    np.testing.assert_array_equal(both.tasks["tags"].predicted, [[1, 0]])
    assert both.tasks["stars"].predicted == [1.5]
    assert both.metrics()["stars"]["rmse"] == 0.5
