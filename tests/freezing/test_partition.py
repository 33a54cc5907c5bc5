"""The freeze contract, for any rules and not for the scenarios alone."""

import functools
import json
import re
from typing import Any

import jax
import numpy as np
import optax
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mtl_jax.core.errors import UserError
from mtl_jax.freezing.partition import Partition, certificate, digest, state_bytes
from mtl_jax.freezing.scenarios import FROZEN, scenario_rules
from mtl_jax.models.encoder_module import EncoderModule
from mtl_jax.training.losses import masked_cross_entropy
from mtl_jax.training.optimizer import OptimizerConfig
from mtl_jax.training.program import stream
from mtl_jax.training.step import train_step
from tests.conftest import TASKS
from tests.training.test_step import (
    CLASSES,
    CONFIG,
    flat,
    make_program,
    random_batch,
    random_params,
)

LAYERS = CONFIG.num_hidden_layers
PARAMS = random_params()
# A frozen -0.0 must not become 0.0.
PARAMS["classifier"]["bias"][0] = PARAMS["sentiment"]["bias"][0] = -0.0
for layer in range(LAYERS):
    PARAMS["backbone"][f"layer_{layer}"]["mlp"]["output"]["bias"][:2] = -0.0
FLAT = flat(PARAMS)
PATHS = sorted(FLAT)
LABELS = (FROZEN, "head", "backbone", *(f"backbone/layer_{i}" for i in range(LAYERS)))


def patterns():
    """Patterns that match something: a path, a part of the tree, or a kind of leaf."""
    folders = sorted({path[: m.start()] for path in PATHS for m in re.finditer("/", path)})
    kinds = ["*/bias", "*/scale", "*/kernel", "*/embedding", "*/attention/*", "*/layer_norm/*"]
    return st.one_of(
        st.sampled_from(PATHS),
        st.sampled_from(folders).map(lambda folder: f"{folder}/*"),
        st.sampled_from([*kinds, "backbone/layer_?/*", "*r/kernel"]),
    )


RULES = st.builds(
    lambda rules, last: (*rules, ("*", last)),
    st.lists(st.tuples(patterns(), st.sampled_from(LABELS)), max_size=6),
    st.sampled_from(LABELS),
)


def copy(tree):
    return jax.tree.map(np.array, tree)


def raw(tree):
    """{path: bytes}."""
    return {path: np.asarray(leaf).tobytes() for path, leaf in flat(tree).items()}


def depth_of(labels):
    """The frozen prefix, said otherwise: stages of the stack up to the first that trains."""
    stages = ["embeddings", *(f"layer_{i}" for i in range(LAYERS))]
    trains = [
        any(label != FROZEN for path, label in labels if path.split("/")[1] == stage)
        for stage in stages
    ]
    return [*trains, True].index(True)


def whole_gradient(program, params, batch, step):
    """The gradient for every parameter, at the dropout of that step, without ``train_step``."""
    key = jax.random.fold_in(stream(7, "dropout"), step)

    def loss(params):
        logits: Any = program.model.apply(
            {"params": params},
            batch,
            train=True,
            frozen_depth=program.frozen_depth,
            rngs={"dropout": key},
        )
        means = []
        for task in ("classifier", "sentiment"):
            total, count = masked_cross_entropy(logits[task], batch[task])
            means.append(total / count)
        return sum(means)

    return flat(jax.grad(loss)(params))


# An example takes part of a second; to shrink a failure would take many minutes.
BRIEF = settings(max_examples=8, deadline=None, phases=(Phase.explicit, Phase.generate))


@BRIEF
@given(rules=RULES, seed=st.integers(0, 99))
def test_the_contract_for_any_rules(rules, seed):
    optimizer = OptimizerConfig(
        (("head", 1e-1), ("backbone", 1e-2), ("backbone/layer_1", 1e-3)), 9, 1, 0.1, 0.05
    )
    partition, program = make_program(copy(PARAMS), rules, optimizer=optimizer)
    trainable, frozen = partition.split(jax.tree.map(jax.numpy.asarray, copy(PARAMS)))
    paths = {path for path, label in partition.labels if label != FROZEN}
    if not paths:
        assert (partition.groups, trainable, raw(frozen)) == ((), {}, raw(PARAMS))
        return
    state = program.init(trainable, 7)
    gradients = []
    for step in range(2):
        batch = random_batch(seed=seed + step)
        before = Partition.merge(state.trainable, frozen)
        state, metrics = train_step(program, state, frozen, batch)
        whole = whole_gradient(program, before, batch, step)
        norm = np.sqrt(sum(float(np.sum(np.square(whole[p], dtype=np.float64))) for p in paths))
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
        gradients.append({p: np.asarray(whole[p]) * min(1, 0.05 / norm) for p in paths})

    # 1: what is frozen has its bytes.
    after = Partition.merge(state.trainable, frozen)
    held = {path: data for path, data in raw(PARAMS).items() if path not in paths}
    assert raw(frozen) == held
    assert held.items() <= raw(after).items()
    assert sorted(raw(after)) == PATHS
    # So that this is no tautology: what is decayed or has a gradient has moved.
    moved = {path for path in PATHS if raw(after)[path] != raw(PARAMS)[path]}
    assert {p for p in paths if p.endswith(("kernel", "embedding"))} <= moved <= paths

    # 2: its state is two moments and a counter per trainable leaf, one per group, no more.
    opt_state: Any = state.opt_state
    moments = {k: flat(v) for k, v in opt_state["moments"]._asdict().items()}
    assert moments["mu"].keys() == moments["nu"].keys() == moments["steps"].keys() == paths
    assert {int(steps) for steps in moments["steps"].values()} == {2}
    leaves = jax.tree.leaves(state.opt_state)
    assert len(leaves) == 3 * len(paths) + len(partition.groups)
    size = sum(FLAT[path].size for path in paths)
    assert state_bytes(state.opt_state) == 4 * (2 * size + len(paths) + len(partition.groups))

    # 3: the moments are those of a gradient clipped as if the trainable part were all.
    for path in paths:
        first, second = (gradient[path] for gradient in gradients)
        np.testing.assert_allclose(
            moments["mu"][path], 0.09 * first + 0.1 * second, rtol=1e-3, atol=1e-7
        )

    # 4
    assert program.frozen_depth == depth_of(partition.labels)


def lowered(scenario):
    """The jitted step of a scenario, its jaxpr and its FLOPs, neither compiled nor run."""
    partition, program = make_program(PARAMS, scenario_rules(scenario, LAYERS, TASKS))
    trainable, frozen = partition.split(PARAMS)
    arguments = program.init(trainable, 0), frozen, random_batch(rows=8)
    traced = jax.jit(functools.partial(train_step, program)).trace(*arguments)
    costs: Any = traced.lower().cost_analysis()
    return traced.jaxpr.jaxpr, costs["flops"]


def products(jaxpr):
    """The number of matrix products in a jaxpr and whatever it calls."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == "dot_general"
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            count += products(inner) if hasattr(inner, "eqns") else 0
    return count


def test_no_gradient_is_computed_for_what_is_frozen():
    # A layer has six dense products and two of attention; one pools; there are two heads.
    forward = 8 * LAYERS + 1 + 2
    # A dense product has a gradient by its kernel and one by its input, those of attention
    # and the pooling by what depends on a parameter; query, key and value of the lowest
    # trained layer need none by their input. A layer norm takes two sums as products.
    norm = 2
    head, layer = 2, 2 * 8 + 2 * norm
    backward = {
        "backbone_frozen": head,
        "top_1": 2 * head + 1 + layer - 3,
        "top_2": 2 * head + 1 + 2 * layer - 3,
        "classifier_frozen": 2 * head - 1 + 1 + 2 * layer + norm,
        "none_frozen": 2 * head + 1 + 2 * layer + norm,
    }
    found, flops = {}, {}
    for scenario in backward:
        jaxpr, flops[scenario] = lowered(scenario)
        found[scenario] = products(jaxpr) - forward
    assert found == backward
    order = ["backbone_frozen", "top_1", "top_2", "none_frozen"]
    assert sorted(order, key=flops.__getitem__) == order
    assert flops["backbone_frozen"] < 0.5 * flops["none_frozen"]


@pytest.mark.parametrize(
    ("rules", "depth"),
    [
        ([("*", FROZEN)], 3),
        ([("backbone/*", FROZEN), ("*", "head")], 3),
        ([("*", "backbone")], 0),
        ([("backbone/embeddings/layer_norm/bias", "backbone"), ("*", FROZEN)], 0),
        ([("backbone/embeddings/word/*", FROZEN), ("*", "backbone")], 0),
        ([("backbone/embeddings/*", FROZEN), ("*", "backbone")], 1),
        ([("backbone/layer_0/*", "backbone"), ("*", FROZEN)], 1),
        ([("backbone/layer_0/attention/query/bias", "backbone"), ("*", FROZEN)], 1),
        ([("backbone/layer_1/*", "backbone"), ("*", FROZEN)], 2),
        ([("backbone/layer_1/*", FROZEN), ("*", "head")], 0),
        ([("*/bias", "backbone"), ("*", FROZEN)], 0),
        ([("*r/bias", "head"), ("*", FROZEN)], 3),
    ],
)
def test_the_frozen_prefix_is_read_off_the_labels(rules, depth):
    partition = Partition.from_rules(PARAMS, rules)
    assert partition.depth(LAYERS) == depth == depth_of(partition.labels)
    trained = {path for path, label in partition.labels if label != FROZEN}
    assert partition.backbone_frozen == all(not path.startswith("backbone/") for path in trained)


def test_layer_10_is_not_below_layer_2():
    params = {"backbone": {name: {"a": 1} for name in ("embeddings", "layer_1", "layer_10")}}
    for trained, depth in (("layer_1", 2), ("layer_10", 11)):
        rules = [(f"backbone/{trained}/*", "backbone"), ("*", FROZEN)]
        assert Partition.from_rules(params, rules).depth(12) == depth


@pytest.fixture(scope="module")
def prefixes():
    """Per frozen depth the hidden states after every stage, under one dropout key."""
    encoder, batch = EncoderModule(CONFIG), random_batch()

    def states(train, depth):
        captured: Any
        _, captured = encoder.apply(
            {"params": PARAMS["backbone"]},
            batch["input_ids"],
            position_ids=batch["position_ids"],
            segment_ids=batch["segment_ids"],
            train=train,
            frozen_depth=depth,
            rngs={"dropout": jax.random.key(3)},
            capture_intermediates=lambda module, _: str(module.name).startswith(("emb", "layer_")),
        )
        stages = ("embeddings", *(f"layer_{i}" for i in range(LAYERS)))
        return [np.asarray(captured["intermediates"][s]["__call__"][0]) for s in stages]

    return states(False, 0), [states(True, depth) for depth in range(LAYERS + 2)]


@pytest.mark.parametrize("depth", range(LAYERS + 2))
def test_the_frozen_prefix_has_no_dropout_and_the_rest_has(prefixes, depth):
    still, by_depth = prefixes
    for stage in range(LAYERS + 1):
        same = by_depth[depth][stage].tobytes() == still[stage].tobytes()
        assert same == (stage < depth)


def test_the_step_runs_the_prefix_as_evaluation_does():
    """With the backbone frozen, tokens and the vectors that evaluation made give one step."""
    partition, program = make_program(PARAMS, scenario_rules("backbone_frozen", LAYERS, TASKS))
    trainable, frozen = partition.split(PARAMS)
    batch = random_batch()
    vectors: Any = program.model.apply({"params": PARAMS}, batch, method="pooled")
    cached = {task: batch[task] for task in ("classifier", "sentiment")} | {"pooled": vectors}
    state = program.init(trainable, 0)
    by_tokens, by_vectors = (train_step(program, state, frozen, b) for b in (batch, cached))
    assert jax.tree.map(float, by_tokens[1]) == jax.tree.map(float, by_vectors[1])
    assert raw(by_tokens[0].trainable) == raw(by_vectors[0].trainable)
    assert raw(by_tokens[0].trainable) != raw(trainable)


@settings(max_examples=60, deadline=None)
@given(rules=RULES)
def test_split_and_merge_are_inverse(rules):
    partition = Partition.from_rules(PARAMS, rules)
    trainable, frozen = partition.split(PARAMS)
    parts = [flat(part) for part in (trainable, frozen)]
    assert sorted([*parts[0], *parts[1]]) == PATHS
    assert {dict(partition.labels)[path] for path in parts[1]} <= {FROZEN}
    assert FROZEN not in {dict(partition.labels)[path] for path in parts[0]}
    merged = Partition.merge(trainable, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(PARAMS)
    assert all(
        a is b for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(PARAMS), strict=True)
    )
    assert jax.tree.structure(partition.tree) == jax.tree.structure(PARAMS)
    assert flat(partition.tree) == dict(partition.labels)
    assert partition.groups == tuple(sorted({label for _, label in partition.labels} - {FROZEN}))
    again = Partition.from_rules(PARAMS, rules)
    assert (partition, hash(partition)) == (again, hash(again))


def test_a_group_takes_the_transform_of_its_longest_prefix():
    rates = {"backbone": 2.0, "backbone/layer_1": 3.0, "head": 5.0}
    params = {name: np.ones(2, np.float32) for name in "abcdef"}
    labels = {
        "a": "backbone",
        "b": "backbone/layer_1",
        "c": "backbone/layer_1/attention",
        "d": "backbone/layer_10",
        "e": "head",
        "f": FROZEN,
    }
    partition = Partition.from_rules(params, list(labels.items()))
    transform = partition.multi_transform({name: optax.sgd(rate) for name, rate in rates.items()})
    trainable, _ = partition.split(params)
    updates, _ = transform.update(trainable, transform.init(trainable), trainable)
    expected = {"a": -2.0, "b": -3.0, "c": -3.0, "d": -2.0, "e": -5.0}
    assert jax.tree.map(lambda leaf: leaf.tolist(), updates) == {
        name: [value] * 2 for name, value in expected.items()
    }


@pytest.mark.parametrize("label", ["backbon", "headless", "heads/a", "/head"])
def test_a_label_without_a_transform_is_named(label):
    partition = Partition.from_rules({"a": 1}, [("*", label)])
    with pytest.raises(UserError, match=f"no learning rate for the label '{label}'"):
        partition.multi_transform({"head": optax.sgd(1.0), "backbone": optax.sgd(1.0)})


def test_rules_as_a_list_as_json_and_in_a_file_are_the_same(tmp_path):
    rules = [("*/bias", "head"), ("*", FROZEN)]
    (tmp_path / "rules.json").write_text(json.dumps(rules))
    partition = Partition(PARAMS, rules)
    assert partition == Partition.from_rules(PARAMS, rules)
    assert partition == Partition(PARAMS, json.dumps(rules))
    assert partition == Partition(PARAMS, str(tmp_path / "rules.json"))
    wrong: Any
    for wrong, words in (
        ([("*", "body")], "scenario: rule 1 has the label 'body': use frozen, head, backbone"),
        ([("*",)], "scenario: [0]: ['*'] is too short: write a JSON list of pairs such as"),
        ([], "scenario: [] should be non-empty: write a JSON list of pairs"),
        ([("mood/*", FROZEN), ("*", "head")], "rule 'mood/*' -> 'frozen' matches no parameter"),
        ('[["*", "head"]', "scenario is not valid JSON ("),
        ("mood_frozen", "unknown scenario 'mood_frozen': did you mean"),
        (None, "None is not a scenario: give a name, a file, or a list of rules"),
    ):
        with pytest.raises(UserError) as caught:
            Partition(PARAMS, wrong)
        assert words in str(caught.value)


def test_the_certificate():
    rules = [
        ("backbone/layer_1/*", "backbone/layer_1"),
        ("classifier/*", "head"),
        ("backbone/embeddings/word/*", "backbone"),
        ("*", FROZEN),
    ]
    partition, program = make_program(PARAMS, rules)
    trainable, frozen = partition.split(PARAMS)
    state = program.init(trainable, 0)
    before = digest(frozen)
    hidden, inner, words = CONFIG.hidden_size, CONFIG.intermediate_size, CONFIG.vocab_size
    layer = 4 * (hidden + 1) * hidden + 2 * hidden * inner + hidden + inner + 4 * hidden
    head = (hidden + 1) * CLASSES[0]
    total = sum(leaf.size for leaf in FLAT.values())
    trained = layer + head + words * hidden
    assert certificate(partition, PARAMS, state.opt_state, before) == {
        "labels": {
            "backbone": {"leaves": 1, "parameters": words * hidden},
            "backbone/layer_1": {"leaves": 16, "parameters": layer},
            "head": {"leaves": 2, "parameters": head},
            FROZEN: {"leaves": len(PATHS) - 19, "parameters": total - trained},
        },
        "trainable_parameters": trained,
        "optimizer_state_bytes": 4 * (2 * trained + 19 + 3),
        "frozen_digest_before": before,
        "frozen_digest_after": before,
        "frozen_digest_unchanged": True,
    }


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_one_flipped_bit_shows_in_the_certificate(data):
    partition = Partition.from_rules(PARAMS, scenario_rules("top_1", LAYERS, TASKS))
    before = digest(partition.split(PARAMS)[1])
    changed = copy(PARAMS)
    path = data.draw(st.sampled_from(PATHS))
    leaf = flat(changed)[path]
    bits = leaf.reshape(-1).view(np.uint32)
    bits[data.draw(st.integers(0, leaf.size - 1))] ^= np.uint32(1 << data.draw(st.integers(0, 31)))
    found = certificate(partition, changed, (), before)
    frozen = dict(partition.labels)[path] == FROZEN
    assert found["frozen_digest_unchanged"] == (not frozen)
    assert (found["frozen_digest_after"] == before) == (not frozen)


def test_the_digest_is_of_paths_shapes_types_and_bytes():
    value = np.arange(4, dtype=np.float32)
    tree = {"a": {"b": value, "c": value}, "d": value}
    same = {"d": jax.numpy.asarray(value), "a": {"c": value, "b": value}}
    assert digest(tree) == digest(same)
    others = [
        {"a": {"b": value, "e": value}, "d": value},
        {"a": {"b": value}, "c": value, "d": value},
        {"a": {"b": value.reshape(2, 2), "c": value}, "d": value},
        {"a": {"b": value.view(np.int32), "c": value}, "d": value},
        {"a": {"b": -value, "c": value}, "d": value},
        {},
    ]
    assert len({digest(tree), *map(digest, others)}) == 7
    # Zeros of either sign are equal as numbers.
    assert digest({"a": np.zeros(1)}) != digest({"a": -np.zeros(1)})
