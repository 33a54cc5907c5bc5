"""R-Drop: two passes of a text, and how far they are apart."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats

from mtl_jax.config.train import DataConfig, TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.freezing.partition import Partition
from mtl_jax.training.kinds.registry import KINDS
from mtl_jax.training.step import eval_step, train_step
from tests.conftest import TASKS
from tests.training.test_step import CONFIG, NO_DROPOUT, make_program, random_batch, random_params

ALPHA = 3.0


def logits_of(program, state, frozen, batch, key) -> Any:
    params = Partition.merge(state.trainable, frozen)
    depth = program.frozen_depth
    return program.model.apply(
        {"params": params}, batch, train=True, frozen_depth=depth, rngs={"dropout": key}
    )


def test_the_loss_is_the_mean_of_two_passes_and_their_divergence():
    params, batch = random_params(), random_batch(seed=5)
    partition, program = make_program(params, config=CONFIG)
    program = dataclasses.replace(program, r_drop=ALPHA)
    trainable, frozen = partition.split(params)
    state = program.init(trainable, 0)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), 0)
    passes: Any = [
        logits_of(program, state, frozen, batch, k) for k in (key, jax.random.fold_in(key, 1))
    ]
    _, metrics = train_step(program, state, frozen, batch)
    for task in TASKS:
        there = batch[task] >= 0
        labels = batch[task][there]
        p, q = (scipy.special.softmax(np.asarray(x[task])[there], -1) for x in passes)
        rows = np.arange(len(labels))
        entropies = -(np.log(p[rows, labels]) + np.log(q[rows, labels])) / 2
        apart = (scipy.stats.entropy(p, q, axis=-1) + scipy.stats.entropy(q, p, axis=-1)) / 2
        total, count = metrics["loss"][task]
        assert count == len(labels)
        assert apart.mean() > 1e-3
        assert total == pytest.approx((entropies + ALPHA * apart).sum(), rel=1e-4)


def test_without_dropout_the_passes_are_the_same():
    params, batch = random_params(), random_batch()
    partition, program = make_program(params, config=NO_DROPOUT)
    trainable, frozen = partition.split(params)
    _, plain = eval_step(program.model, params, batch)
    program = dataclasses.replace(program, r_drop=ALPHA)
    _, metrics = train_step(program, program.init(trainable, 0), frozen, batch)
    for task in TASKS:
        assert metrics["loss"][task][0] == pytest.approx(float(plain[task][0]), rel=1e-5)


def test_divergences_of_several_labels_and_of_values():
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(2, 5, 3)).astype(np.float32)
    p, q = (scipy.special.expit(x.astype(np.float64)) for x in (first, second))
    both = [
        scipy.special.rel_entr(a, b) + scipy.special.rel_entr(1 - a, 1 - b)
        for a, b in ((p, q), (q, p))
    ]
    expected = (both[0] + both[1]).mean(-1) / 2
    np.testing.assert_allclose(KINDS["multi_label"].apart(first, second), expected, rtol=1e-4)
    np.testing.assert_array_equal(KINDS["regression"].apart(first, second), np.zeros(5))


def test_of_regressions_alone_it_is_refused():
    data = DataConfig(label_columns=("stars=stars",), task_kinds=("stars=regression",))
    with pytest.raises(UserError, match=r"--r-drop 1\.0 is for tasks with classes"):
        TrainConfig(workdir="", data=data, r_drop=1.0)
    with pytest.raises(UserError, match=r"--r-drop 0\.0 must be above 0"):
        TrainConfig(workdir="", r_drop=0.0)
