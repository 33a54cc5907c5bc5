"""What arms are held against is measured on the same texts, and kept."""

import dataclasses
from typing import cast

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from mtl_jax.config.data import DataConfig
from mtl_jax.config.train import TrainConfig
from mtl_jax.core.json_files import append_line, read_lines
from mtl_jax.studies.baselines import gather_baselines, leave_baselines
from mtl_jax.studies.results_store import ResultsStore
from mtl_jax.studies.runner import _leave_baselines
from mtl_jax.studies.settings import Arm, Plan
from mtl_jax.training.inputs import Inputs, open_inputs


@pytest.fixture(scope="module")
def arm(small_settings):
    data = dataclasses.replace(small_settings["data"], max_train_examples=60, train_subset=3)
    config = TrainConfig(**{**small_settings, "data": data}, workdir="w", scenario="none_frozen")
    return Arm("none_frozen", config, {"sentences": 60})


def test_baselines_of_a_subset(arm, tmp_path):
    inputs = open_inputs(arm.config)
    leave_baselines(tmp_path, arm, inputs)
    # Another arm has the same texts.
    leave_baselines(tmp_path, dataclasses.replace(arm, name="top_1"), inputs)
    lines = gather_baselines(tmp_path)
    assert gather_baselines(tmp_path) == read_lines(tmp_path / "baselines.jsonl") == lines
    assert [line["baseline"] for line in lines] == ["tf_idf", "logistic_probe"]
    train, test = (inputs.split(name).examples for name in ("train", "test"))
    for line in lines:
        assert (line["train_subset"], line["train_examples"]) == (3, 60)
        assert line["setting"] == {"sentences": 60}
        (folder,) = (tmp_path / "baselines").glob(f"{line['baseline']}-*")
        kept = pq.read_table(folder / "predictions-test.parquet")
        assert test.rows is not None
        assert kept["example"].to_pylist() == test.rows.tolist()
        for task in ("classifier", "sentiment"):
            names = np.array(inputs.classes[task])
            labels = test.labels[task]
            gold = [names[label] if label >= 0 else None for label in labels]
            assert kept[f"{task}_gold"].to_pylist() == gold
            predicted = kept[f"{task}_predicted"].to_pylist()
            pairs = zip(predicted, gold, strict=True)
            right = np.mean([guess == true for guess, true in pairs if true is not None])
            assert line["test"][task]["accuracy"] == pytest.approx(right, abs=1e-12)
    # One of its models is what scikit-learn makes of the same texts.
    words = TfidfVectorizer(sublinear_tf=True)
    there = train.labels["classifier"] >= 0
    known = words.fit(train.texts).transform(np.array(train.texts)[there])
    predicted = [
        np.array(inputs.classes["classifier"])[
            LogisticRegression(C=strength, max_iter=300)
            .fit(known, train.labels["classifier"][there])
            .predict(words.transform(test.texts))
        ].tolist()
        for strength in (1, 10, 100, 1000)
    ]
    (folder,) = (tmp_path / "baselines").glob("tf_idf-*")
    kept = pq.read_table(folder / "predictions-test.parquet")
    assert kept["classifier_predicted"].to_pylist() in predicted


def test_texts_that_have_lines_or_were_tried_are_not_tried_again(arm, tmp_path, capsys):
    line = {"baseline": "tf_idf", "train_subset": 3, "setting": {"sentences": 60}}
    append_line(tmp_path / "baselines.jsonl", line)
    plan = Plan(
        workdir=str(tmp_path), record={}, groups=[[arm]], report=lambda at, *_: at, settings={}
    )
    store, no_inputs = ResultsStore(plan, tmp_path), cast("Inputs", None)
    _leave_baselines(arm, store, no_inputs)
    assert gather_baselines(tmp_path) == [line]
    assert capsys.readouterr().err == ""
    # What has failed once is not tried with every arm, and earlier lines are not read again.
    (tmp_path / "baselines.jsonl").write_text("no JSON\n")
    other = dataclasses.replace(arm, setting={"sentences": 50})
    for seed in range(3):
        config = dataclasses.replace(other.config, seed=seed)
        _leave_baselines(dataclasses.replace(other, config=config), store, no_inputs)
    assert capsys.readouterr().err.count("note: there are no baselines: ") == 1
    # A process by itself claims nothing.
    assert not (tmp_path / "baselines").exists()


def test_tasks_of_all_kinds(small, tmp_path):
    words = ("good", "bad", "fine", "awful")
    rows = (f"the {words[i % 4]} film {i},{'a|b' if i % 2 else 'b'},{i % 4},x" for i in range(80))
    (tmp_path / "t.csv").write_text("\n".join(["text,tags,stars,same", *rows]) + "\n")
    data = DataConfig(
        train_file=str(tmp_path / "t.csv"),
        label_columns=("tags=tags", "stars=stars", "same=same"),
        task_kinds=("tags=multi_label", "stars=regression"),
    )
    config = TrainConfig(workdir="w", backbone=str(small), data=data, scenario="backbone_frozen")
    config = dataclasses.replace(config, cache_folder=str(tmp_path / "cache"))
    leave_baselines(tmp_path, Arm("backbone_frozen", config), open_inputs(config))
    lines = gather_baselines(tmp_path)
    found = {line["baseline"]: line["validation"] for line in lines}
    assert found["tf_idf"]["stars"]["r2"] > 0.9
    assert found["tf_idf"]["tags"]["macro_f1"] == 1.0
    assert found["logistic_probe"]["same"]["accuracy"] == 1.0
