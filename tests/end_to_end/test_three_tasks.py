"""Tasks of the user's own names through every command, without an edit of the library."""

import csv
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import mtl_jax as mtl
from experiments import freezing, heads
from mtl_jax.cli import commands
from mtl_jax.core.json_files import read_lines
from tests import forked
from tests.conftest import WORDS, metrics_of
from tests.training.test_train_step import EXAMPLES, TASKS, written

PAIRS = [f"{task}={column}" for task, column in TASKS.items()]
DEFAULTS = ("classifier", "sentiment")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    return {name: written(folder / f"{name}.csv", 48, i) for i, name in enumerate(["train", "dev"])}


@pytest.fixture(scope="module")
def three(files, small):
    """Flags of the tiny backbone of one layer and of three tasks; not to be changed."""
    return [
        f"--backbone={small}",
        f"--train-file={files['train']}",
        f"--validation-file={files['dev']}",
        f"--test-file={files['dev']}",
        "--label-columns",
        *PAIRS,
        "--epochs=2",
        "--batch-size=16",
        "--head-learning-rate=1e-2",
        "--parallel=jit",
    ]


@pytest.fixture
def called(capsys):
    """Runs a command line in this process: its answer, and what it said."""

    def call(*words, main=commands.run, status=0):
        capsys.readouterr()
        assert main([str(word) for word in words]) == status
        return capsys.readouterr()

    return call


@pytest.fixture
def refused(called):
    """The one line of a command line that is refused."""

    def call(*words, main=commands.run):
        out, err = called(*words, main=main, status=2)
        assert out == ""
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert err.splitlines()[-1] == line
        return line.removeprefix("error: ")

    return call


@pytest.fixture(scope="module")
def trained(three, tmp_path_factory):
    """The folder of a run of three tasks, one of whose heads is frozen; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = [f"--workdir={folder}", "--scenario=mood_frozen", *three]
    assert commands.run(["train", *words, "--task-weights", "topic=1", "mood=0.5"]) == 0
    return folder


def test_three_tasks_are_checked_and_planned(three, called):
    out, _ = called("check", *three[1:8])
    for task, classes in (("topic", "2 classes"), ("mood", "2 classes"), ("queue", "3 classes")):
        assert f"{task}: {classes}, texts in train / validation / test: " in out
    scenarios = ["--scenario", "top_1", "queue_frozen"]
    out, _ = called("plan", *three, *scenarios, "--json", "--measure-seconds=0")
    planned = {line["scenario"]: line for line in map(json.loads, out.splitlines())}
    # A head of 3 classes on vectors of 16.
    assert planned["queue_frozen"]["frozen_parameters"] == 3 * 16 + 3


def test_three_tasks_are_trained_evaluated_and_predicted(three, trained, called, tmp_path):
    result = read_lines(trained / "metrics.jsonl")[-1]
    assert result["untrained_heads"] == ["mood"]
    assert json.loads((trained / "config.json").read_text())["settings"]["task_weights"] == [
        "topic=1",
        "mood=0.5",
    ]
    out, _ = called("evaluate", f"--workdir={trained}")
    assert metrics_of(out, result["test"]) == result["test"]
    texts = tmp_path / "texts.txt"
    texts.write_text("the film was good\na book\n")
    out, _ = called("predict", f"--workdir={trained}", f"--input={texts}")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [list(answer) for answer in answers] == [["text", *TASKS]] * 2
    assert {answer["queue"]["label"] for answer in answers} <= {"0", "1", "2"}


def test_heads_one_after_the_other_in_the_order_given(three, called, tmp_path):
    folder, order = tmp_path / "run", ["queue", "topic", "mood"]
    words = [*three, "--label-columns", *(f"{task}={task}" for task in order), "--epochs=4"]
    called("train", f"--workdir={folder}", "--recipe=sequential_heads", *words)
    phases = json.loads((folder / "config.json").read_text())["phases"]
    alone = [
        [task for task in order if dict(phase["task_weights"])[task] > 0] for phase in phases[:3]
    ]
    assert alone == [["queue"], ["topic"], ["mood"]]
    certificates = json.loads((folder / "certificate.json").read_text())["phases"]
    assert all(each["frozen_digest_unchanged"] for each in certificates)


def test_a_sweep_of_heads_weighs_three_tasks(three, called, tmp_path):
    grid = ["--seeds", "0", "--learning-rates", "1e-2", "--weight-decays", "0.01"]
    weights = ["--task-weight-values", "queue=0.5,1"]
    called(
        *(f"--workdir={tmp_path / 'heads'}", *three, *grid, *weights),
        main=heads.main,
    )
    lines = read_lines(tmp_path / "heads" / "results.jsonl")
    found = [[line["setting"][f"{task}_weight"] for task in TASKS] for line in lines]
    assert found == [[1, 1, 0.5], [1, 1, 1]]
    assert [list(line["test"]) for line in lines if line["chosen"]] == [list(TASKS)]
    page = (tmp_path / "heads" / "report.html").read_text()
    assert all(task in page for task in TASKS)
    assert not any(name in page for name in DEFAULTS)


def test_a_study_of_three_tasks_names_them_and_no_others(three, called, refused, tmp_path):
    folder, file = tmp_path / "study", tmp_path / "rules.json"
    file.write_text('[["*/bias", "head"], ["*", "frozen"]]')
    rules = '[["backbone/*", "frozen"], ["*", "head"]]'
    arms = ["queue_frozen", "sequential_heads", str(file), rules, "none_frozen"]
    words = [f"--workdir={folder}", "--seeds", "0", *three, "--epochs=4"]
    out, _ = called(*words, "--arms", *arms, main=freezing.main)
    results = {line["arm"]: line for line in read_lines(folder / "results.jsonl")}
    assert list(results) == arms
    assert all(list(line["test"]) == list(TASKS) for line in results.values())
    assert results["queue_frozen"]["untrained_heads"] == ["queue"]
    # Of 7 classes: the biases of ten vectors of 16 below them; kernels of 16 rows.
    assert results[str(file)]["trainable_parameters"] == 10 * 16 + 7
    assert results[rules]["trainable_parameters"] == 16 * 7 + 7
    (head,) = [line for line in out.splitlines() if line.split()[:1] == ["arm"]]
    assert head.split() == ["arm", "mean", "macro-F1", *TASKS, "FLOPs"]
    assert rules in out
    for report in ("report.html", "report.md"):
        page = (folder / report).read_text()
        assert all(task in page for task in TASKS)
        assert not any(name in page for name in DEFAULTS)

    broken = [f"--workdir={tmp_path / 'other'}", "--seeds", "0", *three, "--arms"]
    for arm, words in (
        ('[["*", "head"]', "scenario is not valid JSON (Expecting ',' delimiter"),
        ('[["*", "body"]]', "scenario: rule 1 has the label 'body': use frozen"),
        ("sentiment_frozen", "unknown arm 'sentiment_frozen': did you mean"),
        ('[["mod/*", "frozen"], ["*", "head"]]', "rule 'mod/*' -> 'frozen' matches no parameter"),
    ):
        assert words in refused(*broken, "backbone_frozen", arm, main=freezing.main)
    # What comes first is not trained for nothing.
    assert not list((tmp_path / "other").rglob("metrics.jsonl"))


def test_rules_in_a_command_line(three, called, refused, tmp_path):
    folder = f"--workdir={tmp_path / 'run'}"
    for scenario, words in (
        ('[["*/bias", "head"]', "scenario is not valid JSON ("),
        ('[["*/bias"]]', "scenario: [0]: ['*/bias'] is too short: write a JSON list of pairs"),
        ('[["*/bias", "head"]]', "no rule matches parameter 'backbone/embeddings/"),
        ("gone.json", f"scenario file {Path.cwd() / 'gone.json'} is missing"),
    ):
        assert words in refused("train", folder, *three, "--scenario", scenario)
        assert not (tmp_path / "run").exists()
    called("train", folder, *three, "--scenario", '[["*/bias", "head"], ["*", "frozen"]]')
    file = tmp_path / "rules.json"
    file.write_text('[["*/bias", "head"], ["*", "frozen"]]')
    called("train", f"--workdir={tmp_path / 'b'}", *three, "--scenario", file)
    first, second = (read_lines(tmp_path / name / "metrics.jsonl")[-1] for name in ("run", "b"))
    assert first["test"] == second["test"]
    assert first["trainable_parameters"] == second["trainable_parameters"]


def test_one_task(three, called, refused, tmp_path):
    words = [word for word in three if word not in ("topic=topic", "mood=mood")]
    for recipe in ("sequential_heads", "scarce_head_last"):
        line = refused("train", f"--workdir={tmp_path / 'x'}", *words, f"--recipe={recipe}")
        assert line.startswith(f"recipe {recipe} needs several tasks, and there is one: name more")
    folder = tmp_path / "run"
    called("train", f"--workdir={folder}", "--recipe=lp_ft", *words)
    (answer,) = mtl.Predictor(folder).predict(["a film"])
    assert list(answer) == ["text", "queue"]
    study = tmp_path / "study"
    arms = ["--arms", "backbone_frozen", "queue_frozen", "lp_ft", "--seeds", "0"]
    called(f"--workdir={study}", *words, *arms, main=freezing.main)
    results = {line["arm"]: line for line in read_lines(study / "results.jsonl")}
    assert results["lp_ft"]["test"] == read_lines(folder / "metrics.jsonl")[-1]["test"]
    page = (study / "report.html").read_text()
    assert "queue macro-F1" in page
    assert not any(name in page for name in (*DEFAULTS, "topic", "mood"))


# What a Flax module, a tree of parameters, a batch, a log or a Python script calls its own things.
STRANGE = ("name", "config", "init", "loss", "step", "heads", "seed", "my-topic", "größe")
CLASSES = ("name", "params", "null", "a=b", "a/b.c", "two words")


def test_names_that_others_have_already(small, called, tmp_path):
    rows = [
        [WORDS[5 + i % 20], *(CLASSES[(i + j) % len(CLASSES)] for j in range(len(STRANGE)))]
        for i in range(48)
    ]
    with (tmp_path / "train.csv").open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([["text", *STRANGE], *rows])
    file, folder = tmp_path / "train.csv", tmp_path / "run"
    called(
        *("train", f"--workdir={folder}", f"--backbone={small}", "--scenario=name_frozen"),
        *(f"--train-file={file}", f"--test-file={file}", "--epochs=1", "--parallel=jit"),
        *("--label-columns", *(f"{name}={name}" for name in STRANGE), "--head-learning-rate=1e-2"),
        *("--task-weights", "my-topic=2"),
    )
    result = read_lines(folder / "metrics.jsonl")[-1]
    assert result["untrained_heads"] == ["name"]
    model = mtl.Predictor(folder)
    assert model.classes == dict.fromkeys(STRANGE, tuple(sorted(CLASSES)))
    assert model.evaluate("test") == result["test"]
    (answer,) = model.predict(["a book"])
    assert list(answer) == ["text", *STRANGE]


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("backbone=a", "'backbone' is taken by the model: call the task something else"),
        ("params=a", "'params' is taken by the model: call the task something else"),
        ("all=a", "'all' would make all_frozen ambiguous: call the task something else"),
        ("my topic=a", "'my topic' can't be the name of a task: use a letter, then"),
        ("my.topic=a", "'my.topic' can't be the name of a task: use a letter, then"),
        ("my/topic=a", "'my/topic' can't be the name of a task: use a letter, then"),
        ("=a", "'=a' is not a pair: write task=column"),
    ],
)
def test_a_name_that_can_not_be_is_refused_before_anything_is_read(pair, words, refused, tmp_path):
    common = ["--train-file=gone.csv", "--backbone=./gone", "--label-columns", "topic=topic", pair]
    for command in (["train", f"--workdir={tmp_path / 'run'}"], ["plan"]):
        assert f"--label-columns {words}" in refused(*command, *common)
    assert not (tmp_path / "run").exists()


def test_a_name_with_an_equals_sign_is_refused_in_a_script(small):
    encoder = mtl.load_encoder(small)
    with pytest.raises(mtl.UserError, match="tasks names the task 'a=b' can't be the name of a"):
        mtl.load_data(encoder=encoder, train="gone.csv", tasks={"a=b": "c"})


def test_three_tasks_of_two_data_sets(small, called, tmp_path):
    """Topics and queues stand in one file, with holes; moods in another."""
    draw, counts = np.random.default_rng(0), {"tickets": 48, "reviews": 24}
    texts = {
        name: [" ".join(draw.choice(WORDS[5:], 6)) for _ in range(count)]
        for name, count in counts.items()
    }
    rows = [
        [text, "ab"[i % 2] if i % 3 else "", "xyz"[i % 3] if i % 4 else "-1"]
        for i, text in enumerate(texts["tickets"])
    ]
    with (tmp_path / "tickets.csv").open("w", newline="") as opened:
        csv.writer(opened).writerows([["body", "topic", "queue"], *rows])
    (tmp_path / "reviews.jsonl").write_text(
        "".join(
            json.dumps({"text": text, "mood": ["up", "down"][i % 2]}) + "\n"
            for i, text in enumerate(texts["reviews"])
        )
    )
    tickets, reviews, folder = (tmp_path / n for n in ("tickets.csv", "reviews.jsonl", "run"))
    per_task = [
        *("--train-file", f"topic={tickets}", f"queue={tickets}", f"mood={reviews}"),
        *("--test-file", f"topic={tickets}", f"queue={tickets}", f"mood={reviews}"),
        *("--text-column", "topic=body", "queue=body", "mood=text"),
        *("--label-columns", *PAIRS, "--mixing=equal"),
    ]
    how = ["--epochs=2", "--batch-size=8", "--parallel=jit", "--scenario=queue_frozen"]
    called("train", f"--workdir={folder}", f"--backbone={small}", *per_task, *how)
    result = read_lines(folder / "metrics.jsonl")[-1]
    assert {task: result["test"][task]["examples"] for task in TASKS} == {
        "topic": sum(bool(row[1]) for row in rows),
        "queue": sum(row[2] != "-1" for row in rows),
        "mood": 24,
    }
    assert result["untrained_heads"] == ["queue"]
    model = mtl.Predictor(folder)
    assert model.text_columns is None
    assert model.evaluate("test") == result["test"]
    assert list(model.predict(["a book"])[0]) == ["text", *TASKS]


def test_settings_in_a_file_and_those_of_a_finished_run(trained, files, small, called, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(
        f"""
scenario: mood_frozen
backbone: {small}
train_file: {files["train"]}
validation-file: {files["dev"]}
test_file: {files["dev"]}
label_columns: {{topic: topic, mood: mood, queue: queue}}
task_weights: {{topic: 1, mood: 0.5}}
epochs: 2
batch_size: 16
head_learning_rate: 1e-2
parallel: jit
"""
    )
    expected = read_lines(trained / "metrics.jsonl")[-1]
    for name, settings in (("a", file), ("b", trained / "config.json")):
        called("train", f"--workdir={tmp_path / name}", "--config", settings)
        assert read_lines(tmp_path / name / "metrics.jsonl")[-1]["test"] == expected["test"]
    # A recipe stands for the scenario of the file.
    called(
        *("train", f"--workdir={tmp_path / 'c'}", f"--config={trained / 'config.json'}"),
        "--recipe=lp_ft",
    )
    settings = json.loads((tmp_path / "c" / "config.json").read_text())["settings"]
    assert (settings["recipe"], settings["scenario"]) == ("lp_ft", None)


def test_a_key_that_is_no_flag(refused, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("label_column: {topic: topic}\n")
    line = refused("train", f"--workdir={tmp_path / 'run'}", f"--config={file}")
    assert line == (
        f"{file}: there is no setting 'label_column': did you mean label_columns? see --help for "
        "all"
    )


def example(name):
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(EXAMPLES))


def test_the_example_that_predicts_runs(trained, capsys):
    example("predict_texts").main([str(trained), "the film was good", "a book"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["the film was good", "a book"]
    for line in lines:
        assert [part.split()[0] for part in line.partition(": ")[2].split(", ")] == list(TASKS)


def test_the_example_of_a_study_runs(three, double, called, tmp_path):
    study = example("own_study")
    words = [f"--workdir={tmp_path / 'warmup'}", *three, f"--backbone={double}", "--seeds", "0"]
    called(*words, "--epochs=1", main=study.main)
    arms = [line["arm"] for line in read_lines(tmp_path / "warmup" / "results.jsonl")]
    assert arms == list(study.ARMS)
    page = (tmp_path / "warmup" / "report.html").read_text()
    assert all(name in page for name in (*study.ARMS, *TASKS))


PARTS = """
import pathlib

import optax
from sklearn.metrics import cohen_kappa_score as kappa

pathlib.Path(__file__).with_name("imported").touch()


def schedule(peak, warmup, total):
    return optax.cosine_onecycle_schedule(total, peak)


def told(record):
    with pathlib.Path("told.txt").open("a") as opened:
        print(record["event"], file=opened)
"""


def test_parts_of_ones_own_need_trust_where_they_are_read_again(three, tmp_path):
    """Those of the example, in processes that find them in the folder they are called in."""
    for name, text in (("more", PARTS), ("own_parts", (EXAMPLES / "own_parts.py").read_text())):
        (tmp_path / f"{name}.py").write_text(text)

    def call(command, *words, stdin=""):
        return forked.run(
            [sys.executable, "-m", "mtl_jax", command, "--workdir=run", *words],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )

    named = {
        "heads": ["topic=own_parts:HiddenLayerHead"],
        "loss": ["topic=own_parts:focal_loss"],
        "metrics": ["kappa=more:kappa"],
        "schedule": ["more:schedule"],
        "callbacks": ["more:told"],
    }
    done = call("train", *three, *(w for name, v in named.items() for w in (f"--{name}", *v)))
    assert done.returncode == 0, done.stderr
    test = json.loads(done.stdout)
    assert all(test[task]["kappa"] is None or -1 <= test[task]["kappa"] <= 1 for task in TASKS)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    kept = {**record["settings"], **record["environment"]["limits"]}
    assert {**{name: kept[name] for name in named}, "schedule": [kept["schedule"]]} == named
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    told = (tmp_path / "told.txt").read_text().split()
    assert told == [line["event"] for line in lines]

    (tmp_path / "imported").unlink()
    trust = ["--trust", "own_parts", "more"]
    for command, words in (("predict", []), ("evaluate", ["--trust", "own_parts"])):
        refused = call(command, *words, stdin="a book\n")
        module = "more" if words else "own_parts"
        assert (refused.returncode, refused.stdout) == (2, "")
        (line,) = refused.stderr.splitlines()
        assert f"uses code of the module {module} (" in line
        assert f"if you trust it, add --trust {module} (" in line
    assert not (tmp_path / "imported").exists()
    assert metrics_of(call("evaluate", *trust).stdout, test) == test
    answered = call("predict", *trust, stdin="a book\n")
    assert answered.returncode == 0, answered.stderr
    assert list(json.loads(answered.stdout)) == ["text", *TASKS]

    # A file of settings that names code is such a folder, too.
    again = call("train", "--workdir=again", "--config=run/config.json")
    assert again.returncode == 2
    assert "if you trust it, add --trust own_parts" in again.stderr
