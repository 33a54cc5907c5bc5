"""Tasks of every kind in one run: trained, measured, predicted, gone on with, and recomputed."""

import dataclasses
import importlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as sk

import mtl_jax as mtl
from mtl_jax.cli import commands
from mtl_jax.cli.summary import show_evaluation
from mtl_jax.config.train import DataConfig, TrainConfig
from mtl_jax.core.console import Terminal
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import read_lines
from mtl_jax.data.kinds import has_label
from mtl_jax.data.pairs import Pair
from mtl_jax.runs.head_sweep import Grid, sweep
from mtl_jax.runs.loop import train, train_seeds
from mtl_jax.tools.evaluate import evaluate
from mtl_jax.tools.input_texts import read_pairs
from mtl_jax.training.inputs import Inputs
from mtl_jax.training.metrics import mean_score
from mtl_jax.training.text_reader import TextReader
from tests.conftest import WORDS, metrics_of

TASKS = ("topic", "tags", "stars")
EXAMPLES = Path(__file__).parents[2] / "experiments" / "examples"
KINDS = ("tags=multi_label", "stars=regression")
NOUNS, GOOD = ("film", "book", "phone"), {"good": 1.0, "great": 2.0, "bad": -1.0, "awful": -2.5}


def rows_of(count):
    """Texts whose words tell a topic, tags and a value around 50."""
    draw = np.random.default_rng(count)
    for i in range(count):
        noun, word = NOUNS[i % 3], list(GOOD)[draw.integers(4)]
        very = int(draw.integers(3))
        tags = [name for name, there in (("long", very == 2), ("praise", GOOD[word] > 0)) if there]
        yield {
            "text": " ".join(["the", noun, "was", *["very"] * very, word]),
            "second": f"{word} {NOUNS[(i + 1) % 3]}",
            "topic": None if i % 11 == 0 else noun,
            "tags": None if i % 7 == 0 else tags,
            "stars": None if i % 5 == 0 else round(50 + 4 * GOOD[word] * (1 + very), 3),
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("kinds")
    for name, count in (("train", 90), ("validation", 41), ("test", 43)):
        lines = "".join(json.dumps(row) + "\n" for row in rows_of(count))
        (made / f"{name}.jsonl").write_text(lines)
    return made


@pytest.fixture(scope="module")
def settings(folder, small):
    files: Any = {f"{n}_file": str(folder / f"{n}.jsonl") for n in ("train", "validation", "test")}
    pairs = tuple(f"{task}={task}" for task in TASKS)
    return {
        "backbone": str(small),
        "data": DataConfig(**files, label_columns=pairs, task_kinds=KINDS),
        "epochs": 4,
        "batch_size": 16,
        "backbone_learning_rate": 1e-2,
        "head_learning_rate": 1e-2,
        "parallel": "jit",
    }


@pytest.fixture(scope="module")
def inputs(settings):
    return Inputs(TrainConfig(**settings, workdir=""))


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory):
    config = TrainConfig(
        **{**settings, "epochs": 20},
        measure_every=5,
        workdir=str(tmp_path_factory.mktemp("run")),
        scenario="none_frozen",
        class_weights=("topic=balanced", 'tags={"long": 2}'),
        label_smoothing=("topic=0.05",),
        mlp_heads=("stars=8",),
    )
    return config, train(config)


def test_every_kind_is_learned_and_measured_by_its_own_metrics(trained):
    _, result = trained
    found = {task: set(result["test"][task]) for task in TASKS}
    classes = {"macro_f1", "examples", "loss", "weighted_f1_by_source", "per_class", "ece"}
    assert found["topic"] == classes | {"accuracy"}
    assert found["tags"] == classes | {"subset_accuracy", "micro_f1", "hamming_loss"}
    assert found["stars"] == {"r2", "rmse", "mae", "pearson", "spearman", "examples", "loss"}
    train_scores = result["train"]
    assert train_scores["topic"]["accuracy"] > 0.9
    assert train_scores["tags"]["micro_f1"] > 0.8
    assert train_scores["stars"]["r2"] > 0.5


def test_the_best_epoch_is_that_of_the_mean_score(trained):
    config, result = trained
    epochs = [r for r in read_lines(Path(config.workdir, "metrics.jsonl")) if r["event"] == "epoch"]
    scores = [mean_score(record["validation"]) for record in epochs]
    by_hand = [
        np.mean([v["topic"]["macro_f1"], v["tags"]["macro_f1"], v["stars"]["r2"]])
        for v in (record["validation"] for record in epochs)
    ]
    np.testing.assert_allclose(scores, by_hand)
    assert result["best_epoch"] == epochs[int(np.argmax(scores))]["epoch"]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_number_can_be_computed_from_the_predictions(trained, folder, split):
    config, result = trained
    table = pq.read_table(f"{config.workdir}/predictions-{split}.parquet")
    about = json.loads(table.schema.metadata[b"mtl_jax"])["tasks"]
    rows = table.to_pylist()
    lines = (folder / f"{split}.jsonl").read_text().splitlines()
    source = [json.loads(line) for line in lines]
    known = {row["example"]: row for row in rows}
    for place, row in known.items():
        expected = source[place]["tags"]
        assert row["tags_gold"] == (expected if expected is None else sorted(expected))
        assert (row["topic_gold"], row["stars_gold"]) == (
            source[place]["topic"],
            source[place]["stars"],
        )
    own = result[split]
    there = [row for row in rows if row["topic_gold"] is not None]
    gold, predicted = ([row[f"topic_{n}"] for row in there] for n in ("gold", "predicted"))
    assert own["topic"]["accuracy"] == sk.accuracy_score(gold, predicted)
    assert own["topic"]["macro_f1"] == sk.f1_score(gold, predicted, average="macro")
    classes = about["topic"]["classes"]
    assert [classes[np.argmax(row["topic_probabilities"])] for row in there] == predicted
    there = [row for row in rows if row["tags_gold"] is not None]
    gold, predicted = (
        np.array([[name in row[f"tags_{n}"] for name in about["tags"]["classes"]] for row in there])
        for n in ("gold", "predicted")
    )
    assert own["tags"]["micro_f1"] == sk.f1_score(gold, predicted, average="micro")
    assert own["tags"]["subset_accuracy"] == sk.accuracy_score(gold, predicted)
    probabilities = np.array([row["tags_probabilities"] for row in there])
    assert ((probabilities >= 0.5) == predicted).all()
    there = [row for row in rows if row["stars_gold"] is not None]
    gold, predicted = ([row[f"stars_{n}"] for row in there] for n in ("gold", "predicted"))
    assert own["stars"]["r2"] == sk.r2_score(gold, predicted)
    assert own["stars"]["mae"] == sk.mean_absolute_error(gold, predicted)
    read = mtl.studies.read_predictions(f"{config.workdir}/predictions-{split}.parquet")
    assert [*map(int, read.examples)] == [row["example"] for row in rows]
    assert read.metrics() == {
        task: {name: value for name, value in of_task.items() if name != "loss"}
        for task, of_task in own.items()
    }


def test_evaluate_looks_closely_at_every_kind(trained, folder, tmp_path, capsys):
    config, result = trained
    commands.run(["evaluate", f"--workdir={config.workdir}", f"--output={tmp_path}"])
    printed = capsys.readouterr().out
    found = json.loads(printed)
    assert metrics_of(printed, result["test"]) == result["test"]
    added = {task: set(found[task]) - set(result["test"][task]) for task in TASKS}
    assert added["topic"] == {"confusion", "calibration", "mistakes"}
    assert added["tags"] == {"confusion", "calibration", "mistakes", "thresholds"}
    assert added["stars"] == {"residuals", "mistakes"}
    assert np.sum(found["topic"]["confusion"]["counts"]) == found["topic"]["examples"]
    assert found["topic"]["calibration"]["ece"] == found["topic"]["ece"]
    # The largest error is that of the predictions, and its text that of the file.
    (largest,) = found["stars"]["mistakes"][:1]
    rows = pq.read_table(f"{config.workdir}/predictions-test.parquet").to_pylist()
    errors = {
        row["example"]: row["stars_predicted"] - row["stars_gold"]
        for row in rows
        if row["stars_gold"] is not None
    }
    assert largest["example"] == max(errors, key=lambda example: abs(errors[example]))
    assert largest["error"] == errors[largest["example"]]
    source = (folder / "test.jsonl").read_text().splitlines()
    assert largest["text"] == json.loads(source[largest["example"]])["text"]
    # The files say the same.
    assert json.loads((tmp_path / "metrics.json").read_text()) == found
    kept = pq.read_table(tmp_path / "predictions-test.parquet").to_pylist()
    assert [row["topic_predicted"] for row in kept] == [row["topic_predicted"] for row in rows]
    pairs = (tmp_path / "confusion.csv").read_text().splitlines()
    assert len(pairs) == 1 + 3 * 3 + 2 * 4
    assert largest["text"] in (tmp_path / "report.html").read_text()
    for name in ("classes.csv", "reliability.csv", "mistakes.csv", "report.md", "values.png"):
        assert (tmp_path / name).stat().st_size > 20


def test_the_example_that_predicts_has_words_for_every_kind(trained, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    importlib.import_module("predict_texts").main([trained[0].workdir, "a film"])
    (line,) = capsys.readouterr().out.splitlines()
    number = r"-?\d+\.\d\d"
    assert re.fullmatch(rf"a film: topic \S+ \({number}\), tags .+, stars {number}", line)


def test_evaluate_fits_a_terminal(trained):
    config, _ = trained
    terminal = Terminal(width=80, color_system=None)
    with terminal.capture() as captured:
        show_evaluation(evaluate(mtl.Predictor(config.workdir), "validation"), terminal)
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    for name in (*TASKS, *NOUNS, "praise", "long", "Spearman", "temperature", "the largest errors"):
        assert any(name in line for line in lines)
    assert not any("…" in line for line in lines)
    # It says that what it is fitted on is what it is judged on.
    assert "flattered" in captured.get()


def test_a_folder_opens_again(trained, folder):
    config, result = trained
    model = mtl.Predictor(config.workdir)
    assert model.evaluate("test") == result["test"]
    rows = pq.read_table(f"{config.workdir}/predictions-test.parquet").to_pylist()
    source = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    answers = model.predict([source[row["example"]]["text"] for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        assert answer["topic"]["label"] == row["topic_predicted"]
        assert answer["tags"]["labels"] == row["tags_predicted"]
        assert list(answer["tags"]["probabilities"]) == ["long", "praise"]
        assert answer["stars"]["value"] == pytest.approx(row["stars_predicted"], rel=1e-4)
    record = json.loads(Path(config.workdir, "config.json").read_text())
    assert record["kinds"] == {
        "topic": "single_label",
        "tags": "multi_label",
        "stars": "regression",
    }
    assert record["classes"]["stars"] == []
    values = [row["stars"] for row in rows_of(90) if row["stars"] is not None]
    assert record["scales"]["stars"]["mean"] == pytest.approx(np.mean(values))
    assert record["scales"]["stars"]["deviation"] == pytest.approx(np.std(values))
    assert train(config) == result
    other = dataclasses.replace(config, class_weights=())
    with pytest.raises(UserError, match="class_weights"):
        train(other)


def test_a_library_loop_has_the_scores_of_a_run(settings, small, folder, tmp_path):
    how = {**settings, "parallel": "mesh"}
    result = train(TrainConfig(**how, workdir=str(tmp_path), scenario="top_1"))
    encoder = mtl.load_encoder(small)
    data = mtl.load_data(
        train=folder / "train.jsonl",
        validation=folder / "validation.jsonl",
        tasks={
            "topic": "topic",
            "tags": mtl.Task("tags", kind="multi_label"),
            "stars": mtl.Task("stars", kind="regression"),
        },
        encoder=encoder,
    )
    assert [(task.name, task.kind) for task in data.tasks] == [
        ("topic", "single_label"),
        ("tags", "multi_label"),
        ("stars", "regression"),
    ]
    model = mtl.MultiTaskModel(encoder, data.tasks)
    partition = mtl.Partition(model.params, "top_1")
    batches = data.train_batches(batch_size=16, epochs=result["best_epoch"], seed=0)
    whole = len(batches) // result["best_epoch"] * 4
    optimizer = mtl.make_optimizer(partition, {"head": 1e-2, "backbone": 1e-2}, total_steps=whole)
    step = mtl.TrainStep(model, partition, optimizer)
    state = step.init(seed=0)
    for batch in batches:
        state, _ = step(state, batch)
    scores = mtl.evaluate(model, step.params(state), data.validation)
    for task, expected in result["validation"].items():
        # Another layout of the batches rounds otherwise, and a regression shows it.
        for name, value in expected.items():
            if name == "per_class":
                assert list(scores[task][name]) == list(value)
                continue
            assert scores[task][name] == (value if value == {} else pytest.approx(value, rel=1e-4))


def test_a_sweep_scores_what_a_run_of_heads_does(settings, inputs, tmp_path):
    grid = Grid((0,), (1e-2,), (0.01,), tuple((task, (1.0,)) for task in TASKS))
    settings = {**settings, "weight_decay": 0.01}
    config = TrainConfig(**settings, workdir=str(tmp_path), scenario="backbone_frozen")
    swept = sweep(config, grid, inputs)
    result = train(config, inputs)
    epochs = [r for r in read_lines(tmp_path / "metrics.jsonl") if r["event"] == "epoch"]
    alone = [mean_score(record["validation"]) for record in epochs]
    np.testing.assert_allclose(swept.validation[0, 0], alone, atol=1e-5)
    assert swept.test[0]["stars"]["r2"] == pytest.approx(result["test"]["stars"]["r2"], abs=1e-4)


def test_seeds_at_once_leave_what_each_leaves_alone(settings, inputs, tmp_path):
    how = {**settings, "epochs": 1}
    configs = [
        TrainConfig(**how, workdir=str(tmp_path / str(seed)), scenario="none_frozen", seed=seed)
        for seed in (0, 1)
    ]
    for config, together in zip(configs, train_seeds(configs, inputs), strict=True):
        alone = dataclasses.replace(config, workdir=f"{config.workdir}_alone")
        expected = train(alone, inputs)
        assert isinstance(together, dict)
        for task, name in (("tags", "loss"), ("stars", "loss"), ("topic", "loss")):
            assert together["train"][task][name] == pytest.approx(
                expected["train"][task][name], rel=1e-3
            )


def test_heads_of_every_kind_are_held_where_they_were(settings, inputs, tmp_path):
    phases: list[dict[str, Any]] = [
        {"scenario": "backbone_frozen", "epochs": 2},
        {
            "scenario": [["topic/*", "head"], ["backbone/*", "backbone"], ["*", "frozen"]],
            "epochs": 1,
            "task_weights": {"topic": 1, "tags": 0, "stars": 0},
        },
    ]
    drift = {}
    for weight in (0.0, 30.0):
        phases[1]["hold_frozen_heads"] = weight
        recipe = tmp_path / f"recipe_{weight:g}.json"
        recipe.write_text(json.dumps(phases))
        folder = tmp_path / f"run_{weight:g}"
        train(TrainConfig(**settings, workdir=str(folder), recipe=str(recipe)), inputs)
        last = [r for r in read_lines(folder / "metrics.jsonl") if r["event"] == "epoch"][-1]
        drift[weight] = last["drift"]
    assert set(drift[0.0]) == {"tags", "stars"}
    assert all(drift[30.0][task] < drift[0.0][task] for task in ("tags", "stars"))


def test_all_frozen_has_a_probe_and_chance_of_every_kind(settings, inputs, tmp_path):
    result = train(TrainConfig(**settings, workdir=str(tmp_path), scenario="all_frozen"), inputs)
    assert result["chance"]["stars"]["r2"] <= 0
    assert result["probe"]["stars"]["r2"] > result["chance"]["stars"]["r2"]
    assert set(result["probe"]["tags"]) >= {"micro_f1", "macro_f1"}


def test_a_bag_of_words_of_every_kind(inputs):
    found = inputs.text_baseline
    assert found["topic"]["accuracy"] == 1.0
    assert found["tags"]["micro_f1"] > 0.8
    assert found["stars"]["r2"] > 0.5


def test_pairs_are_packed_and_kept_as_single_texts_are(settings, tmp_path, capsys):
    data = dataclasses.replace(
        settings["data"],
        text_columns=("text", "second"),
        label_columns=("topic=topic",),
        task_kinds=(),
    )
    config = {**settings, "data": data, "epochs": 1, "scenario": "top_1"}
    result = train(TrainConfig(**config, workdir=str(tmp_path / "kept")))
    assert result["test"]["topic"]["examples"] > 0
    again = train(TrainConfig(**config, workdir=str(tmp_path / "anew"), prefix_cache=False))
    assert result["train"]["topic"]["loss"] == pytest.approx(again["train"]["topic"]["loss"], 1e-3)
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["settings"]["data"][
        "text_columns"
    ] == ["text", "second"]
    model = mtl.Predictor(tmp_path / "kept")
    assert model.evaluate("test") == result["test"]
    pair = ("the film was good", "good book")
    (answer,) = model.predict([pair])
    assert answer["text"] == list(pair)
    with pytest.raises(UserError, match="was trained on pairs of texts, and 'a text' is one text"):
        model.predict(["a text"])
    (tmp_path / "new.csv").write_text(f"a,b\n{','.join(pair)}\n")
    flags = [f"--input={tmp_path / 'new.csv'}", "--text-columns", "a", "b"]
    assert commands.run(["predict", f"--workdir={tmp_path / 'kept'}", *flags]) == 0
    assert json.loads(capsys.readouterr().out) == answer


def test_a_pair_is_a_line_of_json():
    lines = ['["a", "b"]', '{"second": "d", "first": "c", "id": 3}']
    pairs = list(read_pairs(lines, ("first", "second")))
    assert [(pair.first, pair.second) for pair in pairs] == [("a", "b"), ("c", "d")]
    for line in ("a text", '["a"]', '["a", 3]', '{"first": "a"}', "null"):
        with pytest.raises(UserError, match=r"line 2, .* is not a pair of texts"):
            list(read_pairs([lines[0], line], ("first", "second")))


def test_pairs_have_token_types_and_lose_their_longer_text_first(small):
    encoder = mtl.load_encoder(small)

    def reader(length):
        return TextReader(encoder.tokenizer, encoder.config, length, "cut", pairs=True)

    texts: list[str] = [
        Pair("a film was good", "bad"),
        Pair("a", "the book was very fine"),
        Pair("a", "b"),
    ]
    tokens = reader(9)(texts, {}).tokens
    assert tokens.types is not None
    spans = list(itertools.pairwise(tokens.offsets.tolist()))
    ids = [tokens.ids[a:b].tolist() for a, b in spans]
    words = [[WORDS[i] for i in each] for each in ids]
    assert words[0] == "[CLS] a film was good [SEP] bad [SEP]".split()
    assert words[1] == "[CLS] a [SEP] the book was very fine [SEP]".split()
    types = [tokens.types[a:b].tolist() for a, b in spans]
    assert types[0] == [0] * 6 + [1] * 2
    assert tokens.truncated == 0
    cut = reader(6)(texts, {}).tokens
    assert [WORDS[i] for i in cut.ids[: cut.offsets[1]]] == "[CLS] a film [SEP] bad [SEP]".split()
    assert cut.truncated == 2
    with pytest.raises(UserError, match="--max-length 4 leaves no room beside 3 special tokens of"):
        reader(4)


def test_labels_that_are_missing_in_a_split_leave_no_number(inputs):
    examples = inputs.split("train").examples
    for task in TASKS:
        assert 0 < has_label(examples.labels[task]).sum() < len(examples)
    standard = inputs.split("train").texts.labels["stars"]
    assert standard.dtype == np.float32
    assert np.nanmean(standard) == pytest.approx(0, abs=1e-6)
    assert np.nanstd(standard) == pytest.approx(1, abs=1e-6)
