"""The freeze contract, for any rules and not for the scenarios alone."""

import functools
import re

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from mtl_jax.bert import BertEncoder
from mtl_jax.freeze import Freeze, certificate, digest, state_bytes
from mtl_jax.losses import masked_cross_entropy
from mtl_jax.optim import OptimizerConfig
from mtl_jax.scenarios import FROZEN, scenario_rules
from mtl_jax.step import train_step
from test_step import CLASSES, CONFIG, OPTIMIZER, make_program, random_batch, random_params

LAYERS = CONFIG.num_hidden_layers
PARAMS = random_params()
# A frozen -0.0 must not become 0.0.
PARAMS["classifier"]["bias"][0] = PARAMS["sentiment"]["bias"][0] = -0.0
for layer in range(LAYERS):
    PARAMS["backbone"][f"layer_{layer}"]["mlp"]["output"]["bias"][:2] = -0.0
FLAT = flatten_dict(PARAMS, sep="/")
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
    return jax.tree.map(lambda leaf: np.array(leaf), tree)


def raw(tree):
    """{path: bytes}."""
    return {path: np.asarray(leaf).tobytes() for path, leaf in flatten_dict(tree, sep="/").items()}


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
    key = jax.random.fold_in(jax.random.key(7), step)

    def loss(params):
        logits = program.model.apply(
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

    return flatten_dict(jax.grad(loss)(params), sep="/")


@settings(max_examples=15, deadline=None)
@given(rules=RULES, seed=st.integers(0, 99))
def test_the_contract_for_any_rules(rules, seed):
    optimizer = OptimizerConfig(
        (("head", 1e-1), ("backbone", 1e-2), ("backbone/layer_1", 1e-3)), 9, 1, 0.1, 0.05
    )
    freeze, program = make_program(copy(PARAMS), rules, optimizer=optimizer)
    trainable, frozen = freeze.split(jax.tree.map(jax.numpy.asarray, copy(PARAMS)))
    paths = {path for path, label in freeze.labels if label != FROZEN}
    if not paths:
        assert (freeze.groups, trainable, raw(frozen)) == ((), {}, raw(PARAMS))
        return
    state = program.init(trainable, 7)
    gradients = []
    for step in range(2):
        batch = random_batch(seed=seed + step)
        before = Freeze.merge(state.trainable, frozen)
        state, metrics = train_step(program, state, frozen, batch)
        whole = whole_gradient(program, before, batch, step)
        norm = np.sqrt(sum(float(np.sum(np.square(whole[p], dtype=np.float64))) for p in paths))
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
        gradients.append({p: np.asarray(whole[p]) * min(1, 0.05 / norm) for p in paths})

    # 1: what is frozen has its bytes.
    after = Freeze.merge(state.trainable, frozen)
    held = {path: data for path, data in raw(PARAMS).items() if path not in paths}
    assert raw(frozen) == held
    assert held.items() <= raw(after).items()
    assert list(flatten_dict(after, sep="/")).sort() == PATHS.sort()
    # So that this is no tautology: what is decayed or has a gradient has moved.
    moved = {path for path in PATHS if raw(after)[path] != raw(PARAMS)[path]}
    assert {p for p in paths if p.endswith(("kernel", "embedding"))} <= moved <= paths

    # 2: its state is two moments per trainable leaf and two counters per group, no more.
    moments = {}
    for path, leaf in jax.tree.leaves_with_path(state.opt_state):
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        field = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)][-1]
        moments.setdefault(field, {})["/".join(keys[1:])] = leaf
        assert keys[0] == dict(freeze.labels).get("/".join(keys[1:]), keys[0])
    assert moments["mu"].keys() == moments["nu"].keys() == paths
    assert moments.keys() == {"mu", "nu", "count"}
    leaves = jax.tree.leaves(state.opt_state)
    assert len(leaves) == 2 * len(paths) + 2 * len(freeze.groups)
    size = sum(FLAT[path].size for path in paths)
    assert state_bytes(state.opt_state) == 4 * (2 * size + 2 * len(freeze.groups))

    # 3: the moments are those of a gradient clipped as if the trainable part were all.
    for path in paths:
        first, second = (gradient[path] for gradient in gradients)
        np.testing.assert_allclose(
            moments["mu"][path], 0.09 * first + 0.1 * second, rtol=1e-3, atol=1e-7
        )

    # 4
    assert program.frozen_depth == depth_of(freeze.labels)
