"""Every scenario on the tree of a 12-layer model."""

import collections
import dataclasses
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mtl_jax.core.errors import UserError
from mtl_jax.freezing.rules import assign_labels
from mtl_jax.freezing.scenarios import FROZEN, scenario_rules
from mtl_jax.models.multitask import MultiTaskModule
from tests import conftest
from tests.conftest import TASKS, head_sizes

LAYERS = 12
# Leaves: word, position and token type; a scale and a bias. Six dense layers, two layer norms.
EMBEDDINGS, LAYER, POOLER, HEAD = 5, 16, 2, 2


@pytest.fixture(scope="module", params=["mean", "pooler"])
def paths(request):
    """The paths of the real model's parameters, without and with a pooler."""
    config = dataclasses.replace(conftest.TINY, num_hidden_layers=LAYERS)
    tokens = dict.fromkeys(("input_ids", "segment_ids", "position_ids"), np.ones((1, 2), np.int32))
    batch = {**tokens, "classifier": np.zeros((1, 1), np.int32)}
    model = MultiTaskModule(config, head_sizes(2, 2), request.param)
    return list(
        flatten_dict(jax.eval_shape(model.init, jax.random.key(0), batch)["params"], sep="/")
    )


def expected(name, path):
    """What DESIGN says of a path, in other words than the rules."""
    part = path.split("/")[1] if path.startswith("backbone/") else path.split("/")[0]
    group = "backbone" if path.startswith("backbone/") else "head"
    if name == "all_frozen":
        return FROZEN
    if name == "backbone_frozen":
        return FROZEN if group == "backbone" else group
    if name in ("classifier_frozen", "sentiment_frozen"):
        return FROZEN if part == name.removesuffix("_frozen") else group
    if name == "none_frozen" or group == "head":
        return group
    leaf = path.split("/")[-1]
    if name == "bias_only":
        return group if leaf == "bias" else FROZEN
    if name == "layer_norm_only":
        return group if "layer_norm" in path else FROZEN
    if name in BLOCKS:
        return group if part in [f"layer_{i}" for i in BLOCKS[name]] else FROZEN
    lowest = LAYERS - int(name.removeprefix("top_"))
    low = part == "embeddings" or (part.startswith("layer_") and int(part[6:]) < lowest)
    return FROZEN if low else group


NAMES = (
    "all_frozen",
    "backbone_frozen",
    "bias_only",
    "layer_norm_only",
    "classifier_frozen",
    "sentiment_frozen",
    "none_frozen",
)
BLOCKS = {
    "first_1": [0],
    "first_5": [0, 1, 2, 3, 4],
    "first_12": range(12),
    # Of 11 or 9 others one more is above.
    "middle_1": [5],
    "middle_2": [5, 6],
    "middle_3": [4, 5, 6],
    "middle_11": range(11),
    "middle_12": range(12),
    "only_0": [0],
    "only_7": [7],
    "only_11": [11],
}


@pytest.mark.parametrize("name", [*NAMES, *BLOCKS, *(f"top_{k}" for k in range(1, LAYERS + 1))])
def test_every_leaf_has_the_label_of_the_design(paths, name):
    labels = assign_labels(paths, scenario_rules(name, LAYERS, TASKS))
    assert labels == {path: expected(name, path) for path in paths}


@pytest.mark.parametrize(
    ("name", "frozen", "head", "backbone"),
    [
        ("all_frozen", EMBEDDINGS + 12 * LAYER + 2 * HEAD, 0, 0),
        ("backbone_frozen", EMBEDDINGS + 12 * LAYER, 2 * HEAD, 0),
        ("classifier_frozen", HEAD, HEAD, EMBEDDINGS + 12 * LAYER),
        ("sentiment_frozen", HEAD, HEAD, EMBEDDINGS + 12 * LAYER),
        ("none_frozen", 0, 2 * HEAD, EMBEDDINGS + 12 * LAYER),
        # A layer has six dense layers and two layer norms, the embeddings one.
        ("bias_only", EMBEDDINGS - 1 + 12 * (LAYER - 8), 2 * HEAD, 1 + 12 * 8),
        ("layer_norm_only", EMBEDDINGS - 2 + 12 * (LAYER - 4), 2 * HEAD, 2 + 12 * 4),
        ("first_2", EMBEDDINGS + 10 * LAYER, 2 * HEAD, 2 * LAYER),
        ("middle_5", EMBEDDINGS + 7 * LAYER, 2 * HEAD, 5 * LAYER),
        ("only_3", EMBEDDINGS + 11 * LAYER, 2 * HEAD, LAYER),
        ("top_1", EMBEDDINGS + 11 * LAYER, 2 * HEAD, LAYER),
        ("top_2", EMBEDDINGS + 10 * LAYER, 2 * HEAD, 2 * LAYER),
        ("top_12", EMBEDDINGS, 2 * HEAD, 12 * LAYER),
    ],
)
def test_number_of_leaves_per_label(paths, name, frozen, head, backbone):
    pooler = POOLER * ("backbone/pooler/kernel" in paths)
    counts = collections.Counter(assign_labels(paths, scenario_rules(name, LAYERS, TASKS)).values())
    if name == "bias_only":
        frozen, backbone = frozen + pooler // 2, backbone + pooler // 2
    elif name in (
        "all_frozen",
        "backbone_frozen",
        "layer_norm_only",
        *BLOCKS,
        "first_2",
        "middle_5",
        "only_3",
    ):
        frozen += pooler
    else:
        # The pooler goes with the top of the backbone.
        backbone += pooler
    assert counts == +collections.Counter({FROZEN: frozen, "head": head, "backbone": backbone})


def test_top_k_of_a_shallow_backbone_leaves_no_idle_rule():
    paths = ["backbone/embeddings/a", "backbone/layer_0/a", "classifier/a", "sentiment/a"]
    labels = assign_labels(paths, scenario_rules("top_1", 1, TASKS))
    assert list(labels.values()) == [FROZEN, "backbone", "head", "head"]


@pytest.mark.parametrize("kind", ["top", "first", "middle", "only"])
@pytest.mark.parametrize("number", [0, 12, 13, 100])
def test_a_number_off_the_layers_is_refused(kind, number):
    lowest, highest = (0, 11) if kind == "only" else (1, 12)
    if lowest <= number <= highest:
        assert scenario_rules(f"{kind}_{number}", LAYERS, TASKS)
        return
    message = (
        f"scenario '{kind}_{number}' does not fit the backbone's 12 layers: use {kind}_{lowest} to "
        f"{kind}_{highest}"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        scenario_rules(f"{kind}_{number}", LAYERS, TASKS)


def test_factors_have_a_rank():
    with pytest.raises(UserError, match="scenario 'lora_0' has factors of rank 0: use lora_1"):
        scenario_rules("lora_0", LAYERS, TASKS)
    # Of any number of layers.
    assert scenario_rules("lora_64", LAYERS, TASKS)[0] == ("backbone/*/lora_[ab]", "lora")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("backbone_forzen", "did you mean backbone_frozen? "),
        ("top1", "did you mean top_1? "),
        ("top_k", "did you mean top_1? "),
        ("top_-1", "did you mean top_1? "),
        ("biases_only", "did you mean bias_only? "),
        ("layernorm_only", "did you mean layer_norm_only? "),
        ("first_k", "did you mean first_1? "),
        ("midle_2", "did you mean middle_1? "),
        ("only_i", "did you mean only_0? "),
        ("lora_r", "did you mean lora_8? "),
        ("lora8", "did you mean lora_8? "),
        ("none", ""),
        ("xyz", ""),
        ("", ""),
    ],
)
def test_an_unknown_name_is_refused_with_the_closest(name, hint):
    with pytest.raises(UserError) as caught:
        scenario_rules(name, 6, TASKS)
    assert str(caught.value) == (
        f"unknown scenario {name!r}: {hint}use one of all_frozen, backbone_frozen, bias_only, "
        "layer_norm_only, classifier_frozen, sentiment_frozen, none_frozen, top_k, first_k or "
        "middle_k with k from 1 to 6, only_i with i from 0 to 5, or lora_r with r from 1 on"
    )


@pytest.mark.parametrize("name", ["lp_ft", "top_down_2"])
def test_a_recipe_in_the_place_of_a_scenario_is_told_by_its_flag(name):
    words = f"{name} is a recipe, not a scenario: name it with --recipe {name}"
    with pytest.raises(UserError, match=words):
        scenario_rules(name, 6, TASKS)


def test_a_json_file_holds_own_rules(tmp_path):
    file = tmp_path / "own.json"
    file.write_text('[["classifier/*", "frozen"], ["*/layer_1/*", "backbone/low"], ["*", "head"]]')
    assert scenario_rules(str(file), LAYERS, TASKS) == (
        ("classifier/*", FROZEN),
        ("*/layer_1/*", "backbone/low"),
        ("*", "head"),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is missing: correct the path, or put the file there"),
        ("[[", "is not valid JSON (Expecting value: line 1 column 3 (char 2)): write a JSON list"),
        ("\xff", "is not UTF-8 text ("),
        ("{}", "{} is not of type 'array': write a JSON list of pairs such as"),
        ("[]", "[] should be non-empty: write a JSON list of pairs such as"),
        ('[["*", "head"], ["*"]]', "[1]: ['*'] is too short: write a JSON list of pairs such as"),
        ('[["*", 1]]', "[0][1]: 1 is not of type 'string': write a JSON list of pairs such as"),
        ('["ab"]', "[0]: 'ab' is not of type 'array': write a JSON list of pairs such as"),
        ('[["*", "body"]]', "rule 1 has the label 'body': use frozen, head, backbone, or a sub"),
        ('[["*", "frozen/a"]]', "rule 1 has the label 'frozen/a': use frozen"),
    ],
)
def test_a_json_file_that_holds_no_rules_is_refused(tmp_path, text, words):
    file = tmp_path / "own.json"
    if text is not None:
        file.write_text(text, encoding="latin-1")
    with pytest.raises(UserError) as caught:
        scenario_rules(str(file), LAYERS, TASKS)
    assert str(caught.value).startswith(f"scenario file {file}")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
