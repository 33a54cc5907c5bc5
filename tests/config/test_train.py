import dataclasses
import json
import math
from typing import Any

import pytest

from mtl_jax.config.train import DEFAULT_BACKBONE, BertConfig, DataConfig, TrainConfig
from mtl_jax.core import downloads
from mtl_jax.core.errors import UserError
from mtl_jax.runs.workdir import Workdir

BERT = {"model_type": "bert"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "roberta"}, "model_type 'roberta'"),
        ({"model_type": ["bert"]}, "model_type ['bert']"),
        ({"architectures": ["BertModel", "RobertaModel"]}, "architectures ['BertModel', 'Rob"),
        ({"architectures": "RobertaModel"}, "architectures ['RobertaModel']"),
        (BERT | {"position_embedding_type": "relative_key"}, "'relative_key'"),
        (BERT | {"position_embedding_type": "relative_key_query"}, "'relative_key_query'"),
        (BERT | {"is_decoder": True}, "is_decoder True"),
        (BERT | {"add_cross_attention": True}, "add_cross_attention True"),
        (BERT | {"chunk_size_feed_forward": 8}, "chunk_size_feed_forward 8"),
    ],
    ids=str,
)
def test_what_the_encoder_does_not_compute_is_refused_by_name(fields, words):
    field = next(iter(fields.keys() - BERT.keys()), "model_type")
    with pytest.raises(UserError) as caught:
        BertConfig.from_dict(fields, origin="there/config.json")
    message = str(caught.value)
    assert message.startswith(f"there/config.json: {field} ")
    assert words in message
    assert "is not supported: use a checkpoint with" in message


@pytest.mark.parametrize("rest", [{}, {"architectures": ["BertForMaskedLM"]}, {"model_type": None}])
def test_a_config_of_2019_is_told_what_it_lacks(rest):
    with pytest.raises(UserError, match=r"^c: model_type is .*, add \"model_type\": \"bert\"$"):
        BertConfig.from_dict({"hidden_size": 384} | rest, origin="c")


def test_code_of_a_checkpoint_is_refused_by_name():
    own = {"AutoModel": "modeling_own.OwnModel"}
    with pytest.raises(UserError, match=r"^c: auto_map .*modeling_own.*: use a checkpoint without"):
        BertConfig.from_dict(BERT | {"auto_map": own}, origin="c")
    assert BertConfig.from_dict(BERT | {"auto_map": {}}) == BertConfig()


NAN, INFINITY = float("nan"), float("inf")
NO_RATES = (-1, -0.1, 1.1, 2, NAN, INFINITY, "0.1", True, [0.1])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("hidden_dropout_prob", value) for value in (*NO_RATES, None)),
        *(("attention_probs_dropout_prob", value) for value in (*NO_RATES, None)),
        *(("classifier_dropout", value) for value in NO_RATES),
        *(("initializer_range", value) for value in (-0.1, NAN, INFINITY, None, "0.02")),
        *(("layer_norm_eps", value) for value in (-1e-12, 0, 1, NAN, INFINITY, None)),
        *(("num_hidden_layers", value) for value in (True, 1.5, -1, NAN, 10**400)),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(field, value):
    words = rf"^c: {field} .* must be .*: correct the checkpoint's config\.json$"
    with pytest.raises(UserError, match=words):
        BertConfig.from_dict(BERT | {field: value}, origin="c")
    # A run's own record is read without from_dict.
    with pytest.raises(UserError, match=field):
        BertConfig(**{field: value})


@pytest.mark.parametrize(
    "field", ["model_type", "hidden_act", "position_embedding_type", "vocab_size", "auto_map"]
)
@pytest.mark.parametrize("value", ["x" * 700_000, ["x"] * 700_000], ids=["string", "list"])
def test_an_error_stays_short_whatever_a_config_holds(field, value):
    with pytest.raises(UserError, match=field) as caught:
        BertConfig.from_dict(BERT | {field: value}, origin="c")
    assert len(str(caught.value)) < 300


def test_an_unknown_activation_is_refused_with_those_there_are():
    with pytest.raises(UserError, match=r"hidden_act 'mish' .*: use one of gelu, gelu_new, gelu_"):
        BertConfig.from_dict(BERT | {"hidden_act": "mish"})


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(UserError, match=r"hidden_size 768 .* num_attention_heads 7: correct"):
        BertConfig.from_dict(BERT | {"num_attention_heads": 7})


def test_spelled_out_defaults_and_fields_without_effect_are_accepted():
    neutral = {
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "chunk_size_feed_forward": 0,
        "use_cache": True,
        "transformers_version": "4.8.2",
        "id2label": {"0": "LABEL_0"},
    }
    assert BertConfig.from_dict(BERT | neutral) == BertConfig()
    assert BertConfig.from_dict(BERT | dict.fromkeys(list(neutral)[:4])) == BertConfig()


def test_every_field_is_read():
    fields = {
        "vocab_size": 11,
        "hidden_size": 6,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "intermediate_size": 5,
        "hidden_act": "relu",
        "hidden_dropout_prob": 0.2,
        "attention_probs_dropout_prob": 0.3,
        "classifier_dropout": 0.4,
        "max_position_embeddings": 7,
        "type_vocab_size": 4,
        "initializer_range": 0.5,
        "layer_norm_eps": 1e-3,
        "pad_token_id": 9,
    }
    config = BertConfig.from_dict(BERT | fields)
    assert dataclasses.asdict(config) == fields
    defaults = dataclasses.asdict(BertConfig())
    assert all(defaults[name] != value for name, value in fields.items())


def test_the_default_checkpoint():
    config = BertConfig.from_dict(json.loads((downloads.minilm() / "config.json").read_text()))
    assert config == BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )


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
            for value in (-1e-9, math.nan)
        ),
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
    ],
)
def test_the_edge_of_a_range_is_accepted(field, value):
    assert getattr(TrainConfig(workdir="run", **{field: value}), field) == value


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
    rules = [("backbone/*", "frozen"), ("*", "head")]
    rules: Any = [("backbone/*", "frozen"), ("*", "head")]
    config = TrainConfig(workdir="run", scenario=rules)  # pyright: ignore[reportArgumentType]
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


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ([], "not a JSON object"),
        (BERT | {"hidden_size": "384"}, "hidden_size '384' must be a whole number"),
        (BERT | {"num_attention_heads": 0}, "num_attention_heads 0 must be a whole number"),
        (BERT | {"vocab_size": None}, "vocab_size None must be a whole number"),
    ],
    ids=str,
)
def test_a_damaged_config_is_refused_in_words(fields, words):
    with pytest.raises(UserError, match=words):
        BertConfig.from_dict(fields, origin="there/config.json")


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


def test_a_list_of_rules_is_a_scenario():
    rules: Any = [("backbone/*", "frozen"), ("*", "head")]
    config = TrainConfig(workdir="run", scenario=rules)
    assert config.scenario == '[["backbone/*", "frozen"], ["*", "head"]]'
    assert config.absolute().scenario == config.scenario
