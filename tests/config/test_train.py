import dataclasses
import math
from typing import Any

import pytest

from mtl_jax.config.model import DEFAULT_BACKBONE
from mtl_jax.config.train import DataConfig, TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.runs.workdir import Workdir


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("seed", -1),
        ("checkpoint_every", -1),
        *(
            (field, value)
            for field in (
                "head_learning_rate",
                "backbone_learning_rate",
                "weight_decay",
            )
            for value in (-1e-9, math.nan, math.inf, 1e39)
        ),
        ("layer_decay", math.inf),
        ("accumulate", 33),
        *(("head_dropout", value) for value in (-0.1, 1.0, math.nan)),
        *(("warmup_fraction", value) for value in (-0.1, 1.1, math.nan)),
        *(("clip_norm", value) for value in (0.0, -1.0, math.nan)),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_flag(field, value):
    flag = "--" + field.replace("_", "-")
    with pytest.raises(UserError) as caught:
        TrainConfig(workdir="run", **{field: value})
    assert str(caught.value).startswith(f"{flag} {value} must ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 1),
        ("batch_size", 1),
        ("seed", 0),
        ("checkpoint_every", 0),
        ("head_learning_rate", 0.0),
        ("backbone_learning_rate", 0.0),
        ("weight_decay", 0.0),
        ("warmup_fraction", 0.0),
        ("warmup_fraction", 1.0),
        ("clip_norm", 1e-9),
        ("clip_norm", math.inf),
    ],
)
def test_the_edge_of_a_range_is_accepted(field, value):
    assert getattr(TrainConfig(workdir="run", **{field: value}), field) == value


def test_a_dropout_that_drops_nothing_has_no_place():
    words = "--attention-dropout-on output drops nothing with --attention-dropout 0"
    with pytest.raises(UserError, match=words):
        TrainConfig(workdir="run", attention_dropout=0.0, attention_dropout_on="output")


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (("classifier=-1",), "--task-weights classifier=-1 must be a number of 0 or more"),
        (("classifier=nan",), "--task-weights classifier=nan must be a number of 0 or more"),
        (("classifier=much",), "--task-weights classifier=much must be a number of 0 or more"),
        (("classifier=inf",), "--task-weights classifier=inf must be a number of 0 or more"),
        (("topic=1",), "--task-weights names the task 'topic', which has no column: use classif"),
        (("classifier=1", "classifier=1"), "--task-weights names the task 'classifier' twice"),
        (("1",), "--task-weights '1' is not a pair: write task=weight"),
        (("classifier=",), "--task-weights 'classifier=' names nothing"),
    ],
)
def test_weights_without_a_meaning_are_refused(pairs, words):
    with pytest.raises(UserError) as caught:
        TrainConfig(workdir="run", task_weights=pairs)
    assert str(caught.value).startswith(words)


def test_a_task_weighs_one_unless_it_is_told_otherwise():
    data = DataConfig(label_columns=("topic=a", "mood=b", "queue=c"))
    config = TrainConfig(workdir="run", data=data, task_weights=("queue=0", "topic=0.5"))
    assert config.weights == {"topic": 0.5, "mood": 1.0, "queue": 0.0}


def test_rules_are_a_scenario_as_a_list_and_as_json():
    config = TrainConfig(workdir="run", scenario=[("backbone/*", "frozen"), ("*", "head")])
    text = '[["backbone/*", "frozen"], ["*", "head"]]'
    assert config == TrainConfig(workdir="run", scenario=text)
    assert config.absolute().scenario == text


@pytest.mark.parametrize("blank", ["", " "])
def test_a_folder_without_a_name_is_not_the_present_one(blank):
    with pytest.raises(UserError, match=f"--backbone '{blank}' names nothing: is a variable of"):
        TrainConfig(workdir="run", backbone=blank)
    with pytest.raises(UserError, match=f"--cache-folder '{blank}' names nothing"):
        TrainConfig(workdir="run", cache_folder=blank)
    with pytest.raises(UserError, match=f"--workdir '{blank}' names nothing"):
        Workdir(blank)


def test_files_hold_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/somebody")
    config = DataConfig(train_file="a.csv", test_file="~/b.csv").absolute()
    assert config.train_file == str(tmp_path / "a.csv")
    assert config.validation_file is None
    assert config.test_file == "/somebody/b.csv"
    assert config.absolute() == config
    assert DataConfig().absolute() == DataConfig()


def test_a_backbone_that_is_a_folder_holds_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    data = DataConfig(train_file="a.csv")
    config = TrainConfig(workdir="run", backbone="org/name", data=data).absolute()
    assert isinstance(config, TrainConfig)
    assert config.backbone == str(tmp_path / "org" / "name")
    assert config.data.train_file == str(tmp_path / "a.csv")
    assert TrainConfig(workdir="run", backbone="org/other").absolute().backbone == "org/other"
    assert TrainConfig(workdir="run").absolute().backbone == DEFAULT_BACKBONE


@pytest.mark.parametrize("value", ["-1e-9", "nan", "inf", "one"])
def test_a_task_weight_that_is_no_number_of_0_or_more_is_refused_by_its_task(value):
    with pytest.raises(UserError) as caught:
        TrainConfig(workdir="run", task_weights=(f"sentiment={value}",))
    assert str(caught.value) == f"--task-weights sentiment={value} must be a number of 0 or more"


def test_task_weights_are_those_of_the_tasks_and_1_where_none_is_given():
    data = DataConfig(label_columns=("topic=t", "mood=m", "queue=q"))
    config = TrainConfig(workdir="run", data=data, task_weights=("queue=0.5", "topic=0"))
    assert config.weights == {"topic": 0.0, "mood": 1.0, "queue": 0.5}
    for pairs, words in (
        (("stars=1",), "names the task 'stars', which has no column: use topic or mood or queue"),
        (("topic=1", "topic=2"), "names the task 'topic' twice"),
        (("topic=",), "'topic=' names nothing"),
        (("topic",), "'topic' is not a pair: write task=weight"),
    ):
        with pytest.raises(UserError, match=words):
            TrainConfig(workdir="run", data=data, task_weights=pairs)


KINDS = DataConfig(
    train_file="x.csv", label_columns=("topic=a", "stars=b"), task_kinds=("stars=regression",)
)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"class_weights": ("stars=balanced",)}, "--class-weights names stars, a regression"),
        ({"class_weights": ("topic=even",)}, "write balanced, or the weights of classes above 0"),
        ({"class_weights": ('topic={"a": -1}',)}, "write balanced, or the weights of classes"),
        ({"class_weights": ("mood=balanced",)}, "names the task 'mood', which has no column"),
        ({"class_weights": ("topic=balanced",), "loss": ("topic=m:f",)}, "has a loss of its own"),
        ({"label_smoothing": ("1",)}, "--label-smoothing '1' must be a number from 0 to below 1"),
        ({"label_smoothing": ("topic=x",)}, "--label-smoothing 'x' must be a number"),
        ({"label_smoothing": ("stars=0.1",)}, "--label-smoothing names stars, a regression"),
        ({"mlp_heads": ("0",)}, "--mlp-heads '0': name the units of each hidden layer"),
        ({"mlp_heads": ("topic=8;8",)}, "--mlp-heads '8;8': name the units"),
        ({"mlp_heads": ("topic=8",), "heads": ("topic=m:H",)}, "--heads both name topic"),
    ],
)
def test_settings_by_task_are_refused_in_one_line(settings, words):
    with pytest.raises(UserError) as error:
        TrainConfig(workdir="w", data=KINDS, **settings)
    assert words in str(error.value)


def test_settings_by_task_or_for_all():
    config = TrainConfig(
        workdir="w",
        data=KINDS,
        class_weights={"topic": {"rare": 2.5}},
        task_weights={"stars": 0.5},
        label_smoothing=("0.1",),
        mlp_heads=("64,32",),
    )
    assert config.class_weights == ('topic={"rare": 2.5}',)
    assert config.task_weights == ("stars=0.5",)
    assert config.weights_of_classes == {"topic": {"rare": 2.5}}
    # A regression has no classes to smooth.
    assert config.smoothing == {"topic": 0.1}
    assert config.hidden_units == {"topic": (64, 32), "stars": (64, 32)}


def test_settings_are_made_of_their_fields_again():
    data = DataConfig(train_file="train.csv", label_columns=("topic=topic",))
    config = TrainConfig(workdir="runs/mine", data=data, task_weights=("topic=2",))
    assert TrainConfig(**dataclasses.asdict(config)) == config
    wrong: Any = {"train": "train.csv"}
    with pytest.raises(UserError, match="data has the field 'train': use dataset, train_file"):
        TrainConfig(workdir="", data=wrong)
    wrong = "train.csv"
    with pytest.raises(UserError, match=r"data is 'train\.csv': give a DataConfig"):
        TrainConfig(workdir="", data=wrong)


def test_paths_are_names(tmp_path):
    cache = tmp_path / "cache"
    paths = TrainConfig(workdir=tmp_path, backbone=tmp_path, cache_folder=cache)
    names = TrainConfig(workdir=str(tmp_path), backbone=str(tmp_path), cache_folder=str(cache))
    assert paths == names
    mine = tmp_path / "mine.py"
    assert TrainConfig(workdir="", recipe=mine).recipe == str(mine)
    assert TrainConfig(workdir="", scenario=mine).scenario == str(mine)
