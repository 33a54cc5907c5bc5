import json

import pytest

from mtl_jax.core import downloads
from mtl_jax.core.errors import UserError
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.families import FAMILIES
from tests import make_encoder_reference as reference

BERT = {"model_type": "bert"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
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
        EncoderConfig.from_dict(fields, origin="there/config.json")
    message = str(caught.value)
    assert message.startswith(f"there/config.json: {field} ")
    assert words in message
    assert "is not supported: use a checkpoint with" in message


@pytest.mark.parametrize("rest", [{}, {"architectures": ["BertForMaskedLM"]}, {"model_type": None}])
def test_a_config_of_2019_is_told_what_it_lacks(rest):
    with pytest.raises(UserError, match=r"^c: model_type is .*, add \"model_type\": \"bert\"$"):
        EncoderConfig.from_dict({"hidden_size": 384} | rest, origin="c")


def test_code_of_a_checkpoint_is_refused_by_name():
    own = {"AutoModel": "modeling_own.OwnModel"}
    with pytest.raises(UserError, match=r"^c: auto_map .*modeling_own.*: use a checkpoint without"):
        EncoderConfig.from_dict(BERT | {"auto_map": own}, origin="c")
    assert EncoderConfig.from_dict(BERT | {"auto_map": {}}) == EncoderConfig()


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
        EncoderConfig.from_dict(BERT | {field: value}, origin="c")
    # A run's own record is read without from_dict.
    with pytest.raises(UserError, match=field):
        EncoderConfig(**{field: value})


@pytest.mark.parametrize(
    "field", ["model_type", "hidden_act", "position_embedding_type", "vocab_size", "auto_map"]
)
@pytest.mark.parametrize("value", ["x" * 700_000, ["x"] * 700_000], ids=["string", "list"])
def test_an_error_stays_short_whatever_a_config_holds(field, value):
    with pytest.raises(UserError, match=field) as caught:
        EncoderConfig.from_dict(BERT | {field: value}, origin="c")
    assert len(str(caught.value)) < 300


def test_an_unknown_activation_is_refused_with_those_there_are():
    with pytest.raises(UserError, match=r"hidden_act 'mish' .*: use one of gelu, gelu_new, gelu_"):
        EncoderConfig.from_dict(BERT | {"hidden_act": "mish"})


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(UserError, match=r"hidden_size 768 .* num_attention_heads 7: correct"):
        EncoderConfig.from_dict(BERT | {"num_attention_heads": 7})


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
    assert EncoderConfig.from_dict(BERT | neutral) == EncoderConfig()
    assert EncoderConfig.from_dict(BERT | dict.fromkeys(list(neutral)[:4])) == EncoderConfig()


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
    config = EncoderConfig.from_dict(BERT | fields)
    assert config.record() == fields
    defaults = EncoderConfig().record()
    assert all(defaults[name] != value for name, value in fields.items())


def test_the_default_checkpoint():
    config = EncoderConfig.from_dict(json.loads((downloads.minilm() / "config.json").read_text()))
    assert config == EncoderConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )


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
        EncoderConfig.from_dict(fields, origin="there/config.json")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_config_lacks_is_what_transformers_takes_for_it(family):
    from transformers import AutoConfig

    # Of DeBERTa-v2 only what DeBERTa-v3 is is computed.
    own = {**reference.DISENTANGLED, "position_buckets": 256} if family == "deberta-v2" else {}
    own.pop("model_type", None)
    spelled = AutoConfig.for_model(family, **own).to_dict()
    short = EncoderConfig.from_dict({**own, "model_type": family})
    assert EncoderConfig.from_dict(spelled) == short
    assert short.family == family


@pytest.mark.parametrize("fields", [*reference.MODELS.values(), *reference.drawn(3).values()])
def test_a_configuration_is_written_as_it_is_read(fields):
    config = EncoderConfig.from_dict(fields)
    assert EncoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert EncoderConfig(**json.loads(json.dumps(config.record()))) == config


def test_the_record_of_a_bert_has_the_fields_that_it_always_had():
    assert list(EncoderConfig().record())[-1] == "pad_token_id"
    assert EncoderConfig(family="mpnet", type_vocab_size=0, relative_attention_num_buckets=32)
    with pytest.raises(UserError, match="family 'gpt2' is not supported: use one of bert, rob"):
        EncoderConfig(family="gpt2")


def test_positions_that_stand_for_padding_leave_room_for_fewer_tokens():
    fields = {"max_position_embeddings": 514, "type_vocab_size": 1}
    roberta = EncoderConfig.from_dict({"model_type": "roberta", **fields})
    assert (roberta.first_position, roberta.max_length) == (2, 512)
    modern = EncoderConfig.from_dict({"model_type": "modernbert"})
    assert (modern.max_length, modern.local_layers[:3]) == (8192, (1, 2, 4))
