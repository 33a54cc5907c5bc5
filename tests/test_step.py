"""The pure training step, and what its optimizer is given."""

import dataclasses

import conftest
import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from mtl_jax.config import TASKS
from mtl_jax.freeze import Freeze
from mtl_jax.model import MultiTaskModel
from mtl_jax.optim import OptimizerConfig, make_optimizer
from mtl_jax.scenarios import scenario_rules
from mtl_jax.step import Program, eval_step, pooled_step, train_step

CONFIG = dataclasses.replace(conftest.TINY, num_hidden_layers=2)
NO_DROPOUT = dataclasses.replace(
    CONFIG, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0
)
CLASSES = (3, 4)
RULES = scenario_rules("none_frozen", CONFIG.num_hidden_layers)
OPTIMIZER = OptimizerConfig(
    learning_rates=(("head", 1e-2), ("backbone", 1e-3)),
    total_steps=10,
    warmup_steps=2,
    weight_decay=0.1,
    clip_norm=0.5,
)


def random_batch(rows=4, length=12, slots=3, seed=0, **labels):
    """Rows of packed texts, the last of a row shorter, some labels missing or as given."""
    draw = np.random.default_rng(seed)
    segments = np.zeros((rows, length), np.int32)
    positions = np.zeros((rows, length), np.int32)
    for row in range(rows):
        end = 0
        for slot in range(slots):
            size = draw.integers(2, length // slots + 1)
            segments[row, end : end + size] = slot + 1
            positions[row, end : end + size] = np.arange(size)
            end += size
    words = draw.integers(5, CONFIG.vocab_size, (rows, length)).astype(np.int32)
    batch = {
        "input_ids": np.where(segments > 0, words, 0),
        "segment_ids": segments,
        "position_ids": positions,
    }
    for task, classes in zip(TASKS, CLASSES, strict=True):
        batch[task] = draw.integers(-1, classes, (rows, slots)).astype(np.int32)
        batch[task] = np.asarray(labels.get(task, batch[task]), np.int32)
    return batch


def random_params(config=CONFIG, seed=0):
    """The parameters of the tiny model, on the host; no leaf is all zeros."""
    shapes = jax.eval_shape(MultiTaskModel(config, CLASSES).init, jax.random.key(0), random_batch())
    draw = np.random.default_rng(seed)
    return jax.tree.map_with_path(
        lambda path, leaf: (
            (path[-1].key == "scale") + 0.3 * draw.standard_normal(leaf.shape)
        ).astype(np.float32),
        shapes["params"],
    )


def make_program(params, rules=RULES, config=CONFIG, optimizer=OPTIMIZER, weights=(1.0, 1.0)):
    """The partition and the program of a set of rules."""
    freeze = Freeze.from_rules(params, rules)
    depth = freeze.depth(config.num_hidden_layers)
    transform = make_optimizer(freeze, optimizer)
    return freeze, Program(MultiTaskModel(config, CLASSES), transform, depth, weights)


