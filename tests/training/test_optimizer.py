"""Schedule, AdamW by group, decay and clipping, against the published formulas."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import unflatten_dict

from mtl_jax.freezing.partition import Partition
from mtl_jax.training.optimizer import (
    OptimizerConfig,
    build_optimizer,
    carried,
    decayed,
    scale_by_adam,
)
from mtl_jax.training.schedules import layer_rates
from tests.training.test_step import flat, random_params

RATES = {"head": 0.1, "backbone": 0.01, "backbone/layer_1": 0.001}
CONFIG = OptimizerConfig(
    learning_rates=tuple(RATES.items()),
    total_steps=10,
    warmup_steps=0,
    weight_decay=0.5,
    clip_norm=1e9,
)
RULES = [
    ("backbone/layer_1/*", "backbone/layer_1"),
    ("backbone/embeddings/*", "frozen"),
    ("backbone/*", "backbone"),
    ("*", "head"),
]


@pytest.fixture(scope="module")
def params():
    return random_params()


def optimizer_and_trainable(params, config, rules=RULES):
    partition = Partition.from_rules(params, rules)
    return build_optimizer(partition, config), partition.split(params)[0]


def rate_of(path):
    """The peak rate of a leaf under RULES."""
    if not path.startswith("backbone/"):
        return RATES["head"]
    return RATES["backbone/layer_1" if path.startswith("backbone/layer_1/") else "backbone"]


def is_decayed(path):
    return path.endswith(("/kernel", "/embedding"))


def adamw(param, gradients, rates, decay):
    """Loshchilov & Hutter 2019, algorithm 2, with Adam's defaults, in float64."""
    value = np.asarray(param, np.float64)
    first = second = np.zeros_like(value)
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        first = 0.9 * first + (1 - 0.9) * gradient
        second = 0.999 * second + (1 - 0.999) * gradient**2
        step = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        value = value - rate * (step + decay * value)
    return value


def rate(peak, warmup, total, step, schedule: Any = "linear"):
    """The rate of a step, by the host and by a program that is given the numbers."""
    config = OptimizerConfig((("head", peak),), total, warmup, 0.0, 1.0, schedule)
    numbers: Any = config.numbers(["head"])
    value = numbers.ramps.rate(0, np.int32(step))
    # After the last step, which no step asks for, it is 0 but for what a fused product rounds.
    assert COMPILED_RATE(numbers, step) == pytest.approx(value, rel=1e-6, abs=1e-7 * peak)
    return float(value)


COMPILED_RATE = jax.jit(lambda numbers, step: numbers.ramps.rate(0, step))


def test_schedule_by_hand():
    expected = [0.2, 0.4, 0.6, 0.8, *(0.8 * (10 - t) / 7 for t in range(4, 10)), 0.0, 0.0]
    np.testing.assert_allclose([rate(0.8, 3, 10, t) for t in range(12)], expected, rtol=1e-6)
    assert rate(0.8, 3, 10, 3) == np.float32(0.8)


@pytest.mark.parametrize(
    ("warmup", "total", "expected"),
    [
        (0, 4, [1, 3 / 4, 2 / 4, 1 / 4, 0]),
        (1, 4, [1 / 2, 1, 2 / 3, 1 / 3, 0]),
        (0, 1, [1, 0]),
        (1, 1, [1, 0]),
        (4, 4, [1 / 5, 2 / 5, 3 / 5, 4 / 5, 0]),
    ],
)
def test_schedule_of_short_runs(warmup, total, expected):
    found = [rate(1.0, warmup, total, step) for step in range(total + 1)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_schedule_is_above_0_in_every_step_of_the_run():
    for total in range(1, 13):
        for warmup in range(total + 1):
            rates = [rate(1.0, warmup, total, t) for t in range(total)]
            assert min(rates) > 0
            assert max(rates) <= 1
            assert rates[:warmup] == sorted(rates[:warmup])
            assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_decay_applies_to_kernels_and_embeddings(params):
    mask = flat(decayed(params))
    assert mask == {path: is_decayed(path) for path in flat(params)}
    skipped = {path for path, on in mask.items() if not on}
    assert {path.rpartition("/")[2] for path in skipped} == {"bias", "scale"}
    assert {"backbone/layer_0/attention/layer_norm/scale", "classifier/bias"} <= skipped


def test_one_step_without_gradient_is_the_decay_alone(params):
    optimizer, trainable = optimizer_and_trainable(params, CONFIG)
    nothing = jax.tree.map(np.zeros_like, trainable)
    updates, _ = jax.jit(optimizer.update)(nothing, optimizer.init(trainable), trainable)
    before, after = flat(trainable), flat(optax.apply_updates(trainable, updates))
    for path, leaf in after.items():
        if is_decayed(path):
            expected = before[path] * (1 - rate_of(path) * CONFIG.weight_decay)
            np.testing.assert_allclose(leaf, expected, rtol=1e-6)
            assert not np.array_equal(leaf, before[path])
        else:
            assert np.array_equal(leaf, before[path])


@pytest.mark.parametrize("clip", [1e9, 0.25])
def test_steps_follow_the_formula_with_the_rate_of_each_group(params, clip):
    config = dataclasses.replace(CONFIG, warmup_steps=1, clip_norm=clip)
    optimizer, trainable = optimizer_and_trainable(params, config)
    draw = np.random.default_rng(0)
    gradients = [
        jax.tree.map(lambda p: draw.standard_normal(p.shape).astype(np.float32), trainable)
        for _ in range(3)
    ]
    # A gradient of 0 is not clipped, nor divided by.
    gradients.insert(1, jax.tree.map(np.zeros_like, trainable))
    state, value = optimizer.init(trainable), trainable
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, value)
        value = optax.apply_updates(value, updates)

    norms = [
        np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(g)))
        for g in gradients
    ]
    factors = [min(1.0, clip / norm) if norm else 1.0 for norm in norms]
    assert (min(factors) < 0.05) == (clip == 0.25)
    schedule = [1 / 2, 1, 8 / 9, 7 / 9]
    for path, leaf in flat(value).items():
        clipped = [flat(g)[path] * factor for g, factor in zip(gradients, factors, strict=True)]
        rates = [rate_of(path) * part for part in schedule]
        decay = CONFIG.weight_decay if is_decayed(path) else 0.0
        expected = adamw(flat(trainable)[path], clipped, rates, decay)
        np.testing.assert_allclose(leaf, expected, rtol=2e-4, atol=2e-6)
        # The rates are so far apart that another group's would show.
        moved = np.abs(leaf - flat(trainable)[path]).max()
        assert 0.1 < moved / rate_of(path) < 10


def test_the_frozen_leaves_do_not_count_in_the_clipped_norm(params):
    """What is clipped to norm 1 has norm 1 over the leaves that train, whatever the rest."""
    partition = Partition.from_rules(params, RULES)
    trainable, frozen = partition.split(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(frozen)) > 500
    config = dataclasses.replace(CONFIG, clip_norm=1.0)
    optimizer = build_optimizer(partition, config)
    ones = jax.tree.map(np.ones_like, trainable)
    _, state = optimizer.update(ones, optimizer.init(trainable), trainable)
    moments = [
        leaf
        for path, leaf in jax.tree.leaves_with_path(state)
        if any(getattr(key, "name", "") == "mu" for key in path)
    ]
    norm = np.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in moments))
    np.testing.assert_allclose(norm, 0.1, rtol=1e-5)


def test_slanted_triangle_by_hand():
    """Howard & Ruder 2018, equation 3: T = 10, cut_frac = 0.2, ratio = 32, peak 0.32."""
    cut, expected = 2, []
    for t in range(11):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / 0.2 - 1))
        expected.append(0.32 * (1 + p * 31) / 32)
    rates = [rate(0.32, 2, 10, t, "slanted_triangular") for t in range(11)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert [rates[t] for t in (0, 2, 10)] == pytest.approx([0.01, 0.32, 0.01])


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (1, 1), (0, 5), (5, 5)])
def test_a_short_slanted_triangle_stays_within_its_bounds(warmup, total):
    rates = [rate(1.0, warmup, total, t, "slanted_triangular") for t in range(total + 1)]
    assert all(1 / 32 <= rate <= 1 for rate in rates)


@pytest.mark.parametrize("total", [1, 2, 3, 5, 10])
def test_schedules_of_few_steps_start_at_the_peak_where_nothing_rises(total):
    """Every rate, of the warm-up that a tenth of the steps is."""
    warmup = round(0.1 * total)
    assert warmup == (total == 10)
    falls = [1 - t / (total - warmup) for t in range(total - warmup)]
    expected: dict[Any, list[float]] = {
        "linear": [*[1 / 2] * warmup, *falls],
        "slanted_triangular": [*[1 / 32] * warmup, *((1 + 31 * part) / 32 for part in falls)],
        "constant": [*[1 / 2] * warmup, *[1.0] * len(falls)],
    }
    for schedule, rates in expected.items():
        config = OptimizerConfig((("head", 1.0),), total, warmup, 0.0, 1.0, schedule)
        told = [config.rates(("head",), count)["head"] for count in range(total)]
        np.testing.assert_allclose(told, rates, rtol=1e-6, err_msg=schedule)


@pytest.mark.parametrize("schedule", ["linear", "slanted_triangular", "constant"])
def test_a_single_step_has_the_peak_rate_whatever_the_warm_up(schedule: Any):
    config = OptimizerConfig((("head", 0.25),), 1, 1, 0.0, 1.0, schedule)
    assert config.rates(("head",), 0) == {"head": 0.25}


def test_a_constant_rate_only_warms_up():
    expected = [0.2, 0.4, 0.6, 0.8, 0.8, 0.8]
    rates = [rate(0.8, 3, 10, t, "constant") for t in range(6)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_discriminative_rates():
    rates = dict(layer_rates((("head", 5.0), ("backbone", 8.0)), 0.5, 3))
    assert rates == {
        "head": 5.0,
        "backbone": 8.0,
        "backbone/layer_2": 8.0,
        "backbone/layer_1": 4.0,
        "backbone/layer_0": 2.0,
        "backbone/embeddings": 1.0,
    }
    own = layer_rates((("backbone", 8.0), ("backbone/layer_1", 7.0)), 0.5, 3)
    assert dict(own)["backbone/layer_1"] == 7.0
    assert dict(own)["backbone/layer_0"] == 2.0


def gradients_like(tree, seed):
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda p: draw.standard_normal(p.shape).astype(np.float32), tree)


def test_adam_is_that_of_optax_where_all_leaves_begin_together(params):
    ours, theirs = scale_by_adam(), optax.scale_by_adam()
    states = ours.init(params), theirs.init(params)
    for seed in range(3):
        gradient = gradients_like(params, seed)
        mine, state = jax.jit(ours.update)(gradient, states[0])
        other, states_of = jax.jit(theirs.update)(gradient, states[1])
        states = state, states_of
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def trained(optimizer, trainable, state, steps) -> Any:
    value = trainable
    for seed in steps:
        gradient = gradients_like(flat(value), seed)
        gradient = unflatten_dict(gradient, sep="/")
        updates, state = optimizer.update(gradient, state, value)
        value = optax.apply_updates(value, updates)
    return value, state


def test_moments_of_what_stays_trainable_are_carried_over(params):
    """From the heads and layer 1 to layers 0 and 1 and one head."""
    first = [("backbone/layer_1/*", "backbone"), ("backbone/*", "frozen"), ("*", "head")]
    second = [
        ("backbone/embeddings/*", "frozen"),
        ("classifier/*", "frozen"),
        ("sentiment/*", "head"),
        ("backbone/layer_1/*", "backbone/layer_1"),
        ("*", "backbone"),
    ]
    before, trainable = optimizer_and_trainable(params, CONFIG, first)
    _, old = trained(before, trainable, before.init(trainable), range(3))
    after, trainable = optimizer_and_trainable(params, CONFIG, second)
    fresh: Any = after.init(trainable)
    new: Any = carried(fresh, old)
    assert jax.tree.structure(new) == jax.tree.structure(fresh)
    stays = {path for path in flat(trainable) if "/layer_1/" in path or "sentiment" in path}
    for name in ("steps", "mu", "nu"):
        was, now = (flat(getattr(state["moments"], name)) for state in (old, new))
        assert now.keys() == flat(trainable).keys()
        for path, leaf in now.items():
            if path in stays:
                assert np.array_equal(leaf, was[path])
                assert np.any(np.asarray(leaf))
            else:
                assert not np.any(np.asarray(leaf))
    assert {int(count) for count in jax.tree.leaves(new["rates"])} == {0}
    assert {int(count) for count in jax.tree.leaves(carried(fresh, old, 7)["rates"])} == {7}


def test_a_leaf_that_begins_late_takes_the_step_of_a_first_one(params):
    """Adam's first step is the rate, whatever the gradient; others' steps must not change it."""
    rules = [("*", "head")]
    config = dataclasses.replace(CONFIG, weight_decay=0.0)
    heads = [("backbone/*", "frozen"), ("*", "head")]
    before, trainable = optimizer_and_trainable(params, config, heads)
    _, old = trained(before, trainable, before.init(trainable), range(5))
    after, trainable = optimizer_and_trainable(params, config, rules)
    value, _ = trained(after, trainable, carried(after.init(trainable), old), [9])
    start, end = flat(trainable), flat(value)
    for path in start:
        if path.startswith("backbone/"):
            moved = np.abs(end[path] - start[path])
            np.testing.assert_allclose(moved, RATES["head"], rtol=1e-3)


@pytest.mark.parametrize("schedule", ["linear", "slanted_triangular", "constant"])
def test_the_rates_that_are_told_are_those_that_are_applied(schedule, params):
    """In every step that is left of a schedule of which two have been taken before."""
    config = dataclasses.replace(CONFIG, schedule=schedule, warmup_steps=3, weight_decay=0.0)
    optimizer, trainable = optimizer_and_trainable(params, config)
    state = carried(optimizer.init(trainable), optimizer.init(trainable), schedule_steps=2)
    # Adam's updates are then the rate alone, but for the rounding of its corrections.
    gradient = jax.tree.map(np.ones_like, trainable)
    for count in range(2, 10):
        updates, state = optimizer.update(gradient, state, trainable)
        told = config.rates(tuple(RATES), count)
        peaks = {RATES[label]: rate for label, rate in told.items()}
        for path, update in flat(updates).items():
            np.testing.assert_allclose(-update, peaks[rate_of(path)], rtol=1e-4)


@pytest.mark.parametrize("schedule", ["linear", "slanted_triangular", "constant"])
def test_rates_of_billions_of_steps_take_no_memory(schedule):
    total = 2**31 - 1
    config = OptimizerConfig((("head", 1.0),), total, 10, 0.0, 1.0, schedule)
    for count in (0, 9, 4095, 4096, total // 2, total - 1):
        left = 1 - max(count - 10, 0) / (total - 10)
        first, last = {
            "linear": (1 / 11, 0),
            "slanted_triangular": (1 / 32, 1 / 32),
            "constant": (1 / 11, 1),
        }[schedule]
        expected = first + (1 - first) * count / 10 if count < 10 else last + (1 - last) * left
        # So many steps are counted in float32 when they are divided.
        told = config.rates(("head",), count)["head"]
        assert told == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_schedule_of_optax_has_the_rates_that_it_gives_step_by_step():
    """One that takes a step at a time, and can't be asked for many at once."""

    def one_cycle(peak, warmup, total):
        del warmup
        return optax.cosine_onecycle_schedule(total, peak)

    config = OptimizerConfig((("head", 0.5),), 10, 1, 0.01, 1.0, one_cycle)
    expected: Any = optax.cosine_onecycle_schedule(10, 0.5)
    for step in range(10):
        assert config.rates(["head"], step)["head"] == pytest.approx(
            float(np.asarray(expected(step))), rel=1e-5
        )
