"""Which data sets the settings name, and which settings have no meaning."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from mtl_jax.config.data import Origin
from mtl_jax.config.train import DataConfig
from mtl_jax.core.errors import UserError

BOTH = {"classifier": "classifier", "sentiment": "sentiment"}


def test_one_value_is_for_both_tasks_and_is_kept_as_it_was():
    config = DataConfig(train_file="a.csv", validation_file=("v.csv",), text_column="body")
    assert (config.train_file, config.validation_file, config.test_file) == ("a.csv", "v.csv", None)
    files = (("train", Path("a.csv")), ("validation", Path("v.csv")))
    assert config.origins == {Origin(files, "", "body"): BOTH}
    assert DataConfig().origins == {Origin((), "sentences", "text"): BOTH}


def test_a_value_for_each_task():
    config = DataConfig(
        train_file=("sentiment=b.csv", "classifier=a=1.csv"),
        test_file="sentiment=t.csv",
        text_column=("classifier=body", "sentiment=text"),
    )
    assert config.test_file == ("sentiment=t.csv",)
    assert list(config.origins.items()) == [
        (Origin((("train", Path("a=1.csv")),), "", "body"), {"classifier": "classifier"}),
        (
            Origin((("train", Path("b.csv")), ("test", Path("t.csv"))), "", "text"),
            {"sentiment": "sentiment"},
        ),
    ]


def test_a_file_stands_in_the_place_of_the_data_set_of_its_task():
    config = DataConfig(train_file="classifier=a.csv")
    assert list(config.origins.items()) == [
        (Origin((("train", Path("a.csv")),), "", "text"), {"classifier": "classifier"}),
        (Origin((), "sentences", "text"), {"sentiment": "sentiment"}),
    ]
    named = DataConfig(train_file="classifier=a.csv", dataset=("sentiment=sentences",))
    assert named.origins == config.origins
    alone = DataConfig(train_file="classifier=a.csv", label_columns=("classifier=topic",))
    assert list(alone.origins.values()) == [{"classifier": "topic"}]


def test_tasks_of_one_data_set_are_read_from_it_once():
    assert len(DataConfig(dataset=("classifier=ag_news", "sentiment=ag_news")).origins) == 1
    files = ("classifier=a.csv", "sentiment=./a.csv")
    assert list(DataConfig(train_file=files).origins.values()) == [BOTH]
    columns = ("classifier=headline", "sentiment=body")
    assert len(DataConfig(train_file=files, text_column=columns).origins) == 2


def test_a_record_gives_the_settings_again():
    config = DataConfig(
        train_file=("classifier=a.csv", "sentiment=b.csv"),
        label_fraction=("sentiment=0.5",),
        mixing_cap=3,
    )
    for each in (config, DataConfig(), DataConfig(train_file="a.csv")):
        record = json.loads(json.dumps(dataclasses.asdict(each)))
        assert DataConfig(**record) == each
        assert hash(DataConfig(**record)) == hash(each)
    old = {"dataset": "sentences", "train_file": "a.csv", "label_columns": ["sentiment=mood"]}
    assert DataConfig(**old) == DataConfig(train_file="a.csv", label_columns=("sentiment=mood",))


def test_settings_by_task_are_mappings_too():
    mappings = DataConfig(
        train_file={"topic": "a.csv", "stars": "b.csv"},
        text_columns={"topic": ("premise", "hypothesis")},
        label_columns={"topic": "label", "stars": "rating"},
        task_kinds={"stars": "regression"},
        label_fraction={"topic": 0.5},
    )
    assert mappings == DataConfig(
        train_file=("topic=a.csv", "stars=b.csv"),
        text_columns=("topic=premise", "topic=hypothesis"),
        label_columns=("topic=label", "stars=rating"),
        task_kinds=("stars=regression",),
        label_fraction=("topic=0.5",),
    )
    single = DataConfig(train_file=Path("a.csv"), label_columns="topic=label")
    assert single == DataConfig(train_file="a.csv", label_columns=("topic=label",))


def test_files_of_each_task_hold_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = DataConfig(train_file=("classifier=a.csv", "sentiment=/b.csv")).absolute()
    assert config.train_file == (f"classifier={tmp_path / 'a.csv'}", "sentiment=/b.csv")
    assert config.absolute() == config


def test_label_fractions():
    config = DataConfig(label_fraction=("sentiment=0.01", "classifier=1"))
    assert config.label_fractions == {"classifier": 1.0, "sentiment": 0.01}


FILES = ("classifier=a.csv", "sentiment=b.csv")
ONE = ("sentiment=mood",)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"label_fraction": ("mood=1",)},
            "--label-fraction names the task 'mood', which has no column: use",
        ),
        ({"label_fraction": ("0.5",)}, "'0.5' is not a pair: write task=fraction"),
        (
            {"label_fraction": ("sentiment=1", "sentiment=1")},
            "--label-fraction names the task 'sentiment' twice: name it once",
        ),
        *(
            (
                {"label_fraction": (f"sentiment={words}",)},
                f"--label-fraction sentiment={words} must be a number above 0 and at most 1",
            )
            for words in ("0", "-0.1", "1.01", "nan", "half")
        ),
        (
            {"label_columns": ONE, "label_fraction": ("classifier=1",)},
            "names the task 'classifier', which has no column: use sentiment, or add",
        ),
        (
            {"label_columns": ONE, "train_file": FILES},
            "--train-file names the task 'classifier', which has no column",
        ),
        (
            {"train_file": ("a.csv", "sentiment=b.csv")},
            "--train-file a.csv sentiment=b.csv: 'a.csv' is for all tasks: name it alone, or",
        ),
        ({"dataset": ("x", "y")}, "--dataset x y: 'x' is for all tasks"),
        *(
            (
                {name: value},
                f"--{name.replace('_', '-')} {blank!r} names nothing: is a variable of the shell "
                "unset? Give it a value, or leave the flag out",
            )
            for name in ("train_file", "validation_file", "test_file", "dataset", "text_column")
            for value, blank in (
                ("", ""),
                (" ", " "),
                (("a.csv", ""), ""),
                (("sentiment=", "classifier=a.csv"), "sentiment="),
            )
        ),
        ({"label_columns": ("",)}, "--label-columns '' names nothing: is a variable of the shell"),
        ({"label_columns": ("sentiment= ",)}, "--label-columns 'sentiment= ' names nothing: is a"),
        ({"label_fraction": ("sentiment=",)}, "--label-fraction 'sentiment=' names nothing: is a"),
        (
            {"train_file": ("sentiment=a.csv", "sentiment=b.csv")},
            "--train-file names the task 'sentiment' twice",
        ),
        (
            {"dataset": ("classifier=x",)},
            "--dataset names none for sentiment: add sentiment=..., or leave sentiment out",
        ),
        ({"dataset": ()}, "--dataset names none for classifier"),
        ({"text_column": ("classifier=x",)}, "--text-column names none for sentiment"),
        (
            {"train_file": "classifier=a.csv", "dataset": ("classifier=x", "sentiment=y")},
            "--dataset and --train-file both name one of classifier: leave one of them out",
        ),
        ({"validation_file": "v.csv"}, "--validation-file needs --train-file: name that one too"),
        (
            {"train_file": "classifier=a.csv", "test_file": "t.csv"},
            "--test-file needs --train-file: name that one too for sentiment, or write task=file",
        ),
        (
            {"train_file": "a.csv", "test_file": "sentiment=t.csv"},
            "several tasks are trained on the same file, but validated or tested on others",
        ),
        (
            {"mixing_cap": 10},
            "--mixing-cap 10 needs several data sets, and there is one: name one for each task",
        ),
        (
            {"mixing": "equal"},
            "--mixing equal needs several data sets, and there is one: name one for",
        ),
        (
            {"mixing": "temperature", "mixing_temperature": 3.0},
            "--mixing temperature needs several",
        ),
        (
            {"train_file": FILES, "mixing_temperature": 3.0},
            "--mixing-temperature 3.0 needs --mixing temperature, and it is size: add that, or",
        ),
        ({"train_file": FILES, "mixing_cap": 0}, "--mixing-cap 0 must be at least 1"),
        ({"mixing_temperature": 0.99}, "--mixing-temperature 0.99 must be at least 1"),
        ({"mixing_temperature": math.nan}, "--mixing-temperature nan must be at least 1"),
    ],
    ids=str,
)
def test_settings_without_a_meaning_are_refused_by_name(settings, words):
    with pytest.raises(UserError) as caught:
        DataConfig(**settings)
    assert str(caught.value).startswith(words) or words in str(caught.value)


def test_one_of_two_tasks():
    both = DataConfig(
        dataset=("classifier=one",),
        train_file=("sentiment=a.csv",),
        validation_file=("sentiment=b.csv",),
        text_column=("classifier=headline", "sentiment=body"),
        label_columns=("classifier=topic", "sentiment=mood"),
        label_fraction=("classifier=0.5", "sentiment=0.1"),
        mixing="temperature",
        mixing_temperature=3.0,
        mixing_cap=50,
        max_length=7,
    )
    assert both.of_task("sentiment") == DataConfig(
        train_file=("sentiment=a.csv",),
        validation_file=("sentiment=b.csv",),
        text_column=("sentiment=body",),
        label_columns=("sentiment=mood",),
        label_fraction=("sentiment=0.1",),
        max_length=7,
    )
    assert both.of_task("classifier") == DataConfig(
        dataset=("classifier=one",),
        text_column=("classifier=headline",),
        label_columns=("classifier=topic",),
        label_fraction=("classifier=0.5",),
        max_length=7,
    )
    one = DataConfig(train_file="a.csv", text_column="body")
    assert one.of_task("sentiment") == dataclasses.replace(
        one, label_columns=("sentiment=sentiment",)
    )
