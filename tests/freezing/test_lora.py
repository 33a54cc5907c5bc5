"""Low-rank factors: where they stand, what they compute, and that nothing else moves."""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.config.lora import Lora
from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.freezing.lora import merge_lora, with_factors
from mtl_jax.freezing.partition import Partition, digest
from mtl_jax.freezing.phase import Phase
from mtl_jax.freezing.scenarios import FROZEN
from mtl_jax.models.multitask import MultiTaskModule
from mtl_jax.training.optimizer import OptimizerConfig, build_optimizer
from mtl_jax.training.program import Program
from mtl_jax.training.step import train_step
from tests import conftest
from tests.conftest import head_sizes
from tests.training.test_step import CLASSES, CONFIG, flat, random_batch, random_params

KEY = jax.random.key(5)
KERNELS = ("query", "key", "value", "output", "intermediate", "mlp_output")
EVERY = Lora(3, KERNELS, alpha=6.0, dropout=0.25)
PARAMS = random_params()
RATES = (("head", 1e-2), ("backbone", 1e-3), ("lora", 1e-2))
OPTIMIZER = OptimizerConfig(RATES, 10, 2, 0.1, 0.5)


def trained(params, seed=0):
    """The same with factors that change something."""
    draw = np.random.default_rng(seed)

    def moved(path, leaf):
        more = 0.3 * draw.standard_normal(leaf.shape) if path[-1].key == "lora_b" else 0
        return (leaf + more).astype(np.float32)

    return jax.tree.map_with_path(moved, params)


def logits(params, train=False, **model):
    module = MultiTaskModule(CONFIG, head_sizes(*CLASSES), **model)
    rngs = {"dropout": jax.random.key(1)} if train else None
    apply = jax.jit(
        lambda params: module.apply({"params": params}, random_batch(), train=train, rngs=rngs)
    )
    return {task: np.asarray(each) for task, each in apply(params).items()}


@pytest.mark.parametrize(
    ("train", "dtype"), [(False, "float32"), (True, "float32"), (True, "bfloat16")]
)
def test_fresh_factors_change_no_bit_of_a_logit(train, dtype):
    found, before = (
        logits(params, train, dtype=jnp.dtype(dtype))
        for params in (with_factors(PARAMS, EVERY, KEY), PARAMS)
    )
    for task, expected in before.items():
        assert found[task].tobytes() == expected.tobytes()


def test_merged_they_compute_the_same():
    params = trained(with_factors(PARAMS, EVERY, KEY))
    merged = merge_lora(params)
    assert flat(merged).keys() == flat(PARAMS).keys()
    base, found, expected = map(logits, (PARAMS, merged, params))
    for task in found:
        np.testing.assert_allclose(found[task], expected[task], atol=1e-5)
        assert np.abs(found[task] - base[task]).max() > 0.1
    kernel, leaves = "backbone/layer_1/mlp/output", flat(params)
    a, b = (leaves[f"{kernel}/lora_{each}"].astype(np.float64) for each in "ab")
    product = leaves[f"{kernel}/kernel"] + 2 * a @ b
    np.testing.assert_allclose(flat(merged)[f"{kernel}/kernel"], product, atol=1e-6)
    # A backbone by itself, and parameters without factors, are merged alike.
    assert digest(merge_lora(params["backbone"])) == digest(merged["backbone"])
    assert digest(merge_lora(PARAMS)) == digest(PARAMS)
    model: Any = "a model"
    with pytest.raises(UserError, match="params has the type str: give the parameters of a model"):
        merge_lora(model)


def test_a_loop_over_layers_and_half_precision_compute_the_same():
    params = trained(with_factors(PARAMS, dataclasses.replace(EVERY, dropout=0.0), KEY))
    expected, half = logits(params), logits(params, dtype=jnp.bfloat16)
    looped = logits(params, scan_layers=True, remat=True)
    for task in expected:
        np.testing.assert_allclose(looped[task], expected[task], atol=1e-5)
        np.testing.assert_allclose(half[task], expected[task], atol=0.3)
    # With keys for dropout, too, and layers that differ in what they have of factors.
    params = with_factors(params, Lora(2, ("layer_1/mlp/*",), dropout=0.5), KEY)
    again = logits(params, train=True, remat=True)
    for task, each in logits(params, train=True).items():
        np.testing.assert_allclose(again[task], each, atol=1e-5)


def test_dropout_is_of_what_the_factors_read_and_of_training_alone():
    without = trained(with_factors(PARAMS, dataclasses.replace(EVERY, dropout=0.0), KEY))
    params = with_factors(without, EVERY, KEY)
    assert flat(params).keys() - flat(without).keys() == {
        f"{path}/lora_dropout" for path in dense_with_factors(params)
    }
    for train, same in ((False, True), (True, False)):
        one, other = (logits(each, train)["classifier"] for each in (params, without))
        assert np.array_equal(one, other) is same


def dense_with_factors(params):
    return {path.removesuffix("/lora_a") for path in flat(params) if path.endswith("/lora_a")}


@pytest.mark.parametrize(
    ("targets", "within"),
    [
        (("query", "value"), {"attention/query", "attention/value"}),
        (("output",), {"attention/output"}),
        (("mlp_output", "intermediate"), {"mlp/output", "mlp/intermediate"}),
        (("layer_*/attention/*",), {f"attention/{each}" for each in KERNELS[:4]}),
    ],
)
def test_targets_are_kernels_of_every_layer(targets, within):
    found = dense_with_factors(with_factors(PARAMS, Lora(2, targets), KEY))
    assert found == {f"backbone/layer_{i}/{each}" for i in range(2) for each in within}


def test_a_pattern_may_leave_lower_layers_alone_and_they_are_the_frozen_prefix():
    partition = Partition(PARAMS, "lora_2", lora_targets=["layer_1/*/value", "layer_1/mlp/*"])
    assert partition.depth(2) == 2
    assert not partition.backbone_frozen
    assert Partition(PARAMS, "lora_2").depth(2) == 1


def test_fresh_factors_are_drawn_by_the_key_and_the_path_alone():
    one, more, other = (
        flat(with_factors(PARAMS, lora, key))
        for lora, key in ((Lora(2), KEY), (Lora(2, KERNELS), KEY), (Lora(2), jax.random.key(6)))
    )
    for path in one:
        if path.endswith("lora_b"):
            assert not one[path].any()
        if path.endswith("lora_a"):
            assert one[path].tobytes() == more[path].tobytes() != other[path].tobytes()
            # sqrt(3) standard deviations of 1 / sqrt(3 in).
            assert 0.5 / math.sqrt(16) < np.abs(one[path]).max() <= 1 / math.sqrt(16)
    assert one["backbone/layer_0/attention/query/lora_a"].shape == (16, 2)
    assert more["backbone/layer_0/mlp/output/lora_b"].shape == (2, 16)


def test_what_is_asked_for_goes_on_and_all_else_is_merged():
    params = trained(with_factors(PARAMS, Lora(2), KEY))
    again = with_factors(params, Lora(2, dropout=0.5), jax.random.key(9))
    for path, leaf in flat(params).items():
        assert flat(again)[path] is leaf
    plain = digest(merge_lora(params))
    assert digest(with_factors(params, None, KEY)) == plain
    for lora in (Lora(3), Lora(2, alpha=1.0), Lora(2, ("key",)), EVERY):
        renewed = with_factors(params, lora, KEY)
        assert not any(
            leaf.any() for path, leaf in flat(renewed).items() if path.endswith("lora_b")
        )
        assert digest(merge_lora(renewed)) == plain


def program_of(partition, config=CONFIG):
    return Program(
        MultiTaskModule(config, head_sizes(*CLASSES)),
        build_optimizer(partition, OPTIMIZER),
        partition.depth(config.num_hidden_layers),
        task_weights=(1.0, 1.0),
    )


def test_steps_move_the_factors_and_the_heads_and_no_other_bit():
    partition = Partition(PARAMS, "lora_3", lora_targets=KERNELS, lora_alpha=6, lora_dropout=0.25)
    assert partition.lora == EVERY
    start = partition.with_factors(PARAMS, KEY)
    trainable, frozen = partition.split(start)
    program = program_of(partition)
    step, state = jax.jit(functools.partial(train_step, program)), program.init(trainable, 0)
    for seed in range(2):
        state, _ = step(state, frozen, random_batch(seed=seed))
    labels = dict(partition.labels)
    paths = {path for path, label in labels.items() if label != FROZEN}
    assert set(labels.values()) == {"frozen", "head", "lora"}
    opt_state: Any = state.opt_state
    assert flat(opt_state["moments"].mu).keys() == flat(state.trainable).keys() == paths
    for path, leaf in flat(state.trainable).items():
        # The key's factor, too: A moves from the second step on, when B is not 0.
        assert not np.array_equal(leaf, flat(start)[path]), path
    held = {path: leaf for path, leaf in flat(frozen).items() if "lora" not in path}
    assert held.keys() == {path for path in flat(PARAMS) if path.startswith("backbone/")}
    assert all(leaf is flat(PARAMS)[path] for path, leaf in held.items())


def test_without_constants_the_frozen_leaves_are_those_of_the_checkpoint():
    partition = Partition(PARAMS, "lora_2")
    _, frozen = partition.split(partition.with_factors(PARAMS, KEY))
    assert digest(frozen) == digest({"backbone": PARAMS["backbone"]})


def shapes_of_products(jaxpr):
    """The shape of every matrix product in a jaxpr and whatever it calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.outvars[0].aval.shape
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from shapes_of_products(inner)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_gradient_of_a_kernel_is_formed(dtype):
    config = dataclasses.replace(conftest.TINY, hidden_size=28, intermediate_size=52)
    params = random_params(config)
    kernels = {
        leaf.shape for path, leaf in flat(params).items() if "layer_0" in path and leaf.ndim > 1
    }
    assert kernels == {(28, 28), (28, 52), (52, 28)}

    def formed(scenario, **options):
        partition = Partition(params, scenario, **options)
        trainable, frozen = partition.split(partition.with_factors(params, KEY))
        program = program_of(partition, config)
        model = program.model.clone(dtype=jnp.dtype(dtype))
        step = functools.partial(train_step, dataclasses.replace(program, model=model))
        traced = jax.make_jaxpr(step)(program.init(trainable, 0), frozen, random_batch())
        found = set(shapes_of_products(traced.jaxpr))
        # A product's gradient by its right factor may come with its sides in either order.
        return kernels & (found | {shape[::-1] for shape in found})

    assert formed("lora_3", lora_targets=KERNELS, lora_dropout=0.1) == set()
    assert formed("bias_only") == set()
    assert formed("none_frozen") == kernels


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        (
            Lora(2, ("layer_7/*",)),
            "lora_targets 'layer_7/*' is not a kernel of this backbone, whose",
        ),
        (Lora(2, ("gate",)), "use one of query, key, value, output, intermediate, mlp_output, or"),
        (Lora(2, ("query", "*/wqkv")), "or a pattern of paths such as layer_0/attention/key"),
        (Lora(17), "lora_17 is of a higher rank than the kernel of layer_0/attention/query, 16 x"),
    ],
)
def test_what_can_not_be_is_refused(lora, words):
    with pytest.raises(UserError, match=re.escape(words)):
        with_factors(PARAMS, lora, KEY)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lora_targets": ()}, "targets names nothing: give it kernels such as query value"),
        (
            {"lora_targets": (" ",)},
            "targets ' ' is not a kernel of a layer: use query, key, value, ",
        ),
        (
            {"lora_targets": ("quary",)},
            "targets 'quary' is not a kernel of a layer: did you mean que",
        ),
        (
            {"lora_targets": ("pooler",)},
            "targets 'pooler' is not a kernel of a layer: use query, key",
        ),
        ({"lora_alpha": 0.0}, "alpha 0.0 must be a number above 0"),
        ({"lora_alpha": math.nan}, "alpha nan must be a number above 0"),
        ({"lora_dropout": 1.0}, "dropout 1.0 must be at least 0 and below 1"),
    ],
)
def test_wrong_settings_are_refused_wherever_they_are_given(given, words):
    with pytest.raises(UserError, match=f"^--lora-{re.escape(words)}"):
        TrainConfig(workdir="", **given)
    if not any(value != value for value in given.values()):  # no JSON has it
        with pytest.raises(UserError, match=f"^lora_{re.escape(words)}"):
            Phase(scenario="lora_2", **given)
    with pytest.raises(UserError, match=f"^lora_{re.escape(words)}"):
        Partition(PARAMS, "lora_2", **given)


def test_settings_of_factors_are_for_factors():
    with pytest.raises(UserError, match="lora_alpha is for a scenario lora_r, and that of this ph"):
        Phase(scenario="top_1", lora_alpha=2.0)
    with pytest.raises(UserError, match="top_1 trains no low-rank factors: leave lora_targets"):
        Partition(PARAMS, "top_1", lora_alpha=2.0)
    with pytest.raises(UserError, match="--lora-learning-rate -1 must be a number of 0 or more"):
        TrainConfig(workdir="", lora_learning_rate=-1)
    with pytest.raises(UserError, match="no learning rate for the label 'lora': give it one"):
        build_optimizer(
            Partition(PARAMS, "lora_2"),
            dataclasses.replace(OPTIMIZER, learning_rates=RATES[:2]),
        )


def test_a_backbone_without_what_a_scenario_trains_is_refused():
    bare = {"backbone": {"layer_0": {"norm": {"scale": np.ones(2)}}}, "a": {"bias": np.ones(2)}}
    with pytest.raises(UserError, match="scenario 'bias_only' has nothing to train in this backb"):
        Partition(bare, "bias_only")
    assert (
        dict(Partition(bare, "layer_norm_only").labels)["backbone/layer_0/norm/scale"] == "backbone"
    )


def test_factors_are_float32_where_jax_has_64_bits():
    with jax.enable_x64(True):
        wide = with_factors(PARAMS, EVERY, KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {np.dtype(np.float32)}
    jax.tree.map(np.testing.assert_array_equal, wide, with_factors(PARAMS, EVERY, KEY))
