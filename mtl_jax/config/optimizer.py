"""The settings of the updates: how many, at what rates, for which losses. Imports no jax."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

from mtl_jax.config.checks import above_0, at_least_0, at_least_1, flag, in_float32
from mtl_jax.config.data import refuse_blank
from mtl_jax.config.extensions import as_pairs, as_paths, refuse_schedule
from mtl_jax.core.errors import UserError
from mtl_jax.core.imported import import_path

Schedule = Literal["linear", "slanted_triangular", "constant"]
WeightingName = Literal["fixed", "uncertainty", "dynamic_average", "famo", "pcgrad", "gradnorm"]
# Optimizers and schedules count the steps of a run in int32.
MOST_STEPS = 2**31 - 1
# Passes over the training texts, and steps at least, of a phase where nothing says how long it
# takes. Few texts make few steps of a pass, and a backbone takes some 150 to leave where it was
# (Mosbach et al. 2021, arXiv:2006.04884, section 6.2). Where heads alone are trained on kept
# vectors a step takes a millisecond, and they are far from done after as few.
EPOCHS, HEAD_EPOCHS = 3, 15
MIN_STEPS, HEAD_MIN_STEPS = 150, 5000
# The rate of the heads where no sweep chooses it.
HEAD_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.01
# That of heads alone, with so many training texts; see ``head_weight_decay``.
_HEAD_WEIGHT_DECAY, _OF_TEXTS = 0.06, 10_000


def head_weight_decay(texts: int) -> float:
    """Returns AdamW's weight decay of heads that are trained alone, without dropout.

    It takes the place of dropout, and is the larger the fewer texts there are to learn from:
    0.06 for 10,000 of them, as the root of their number falls, and 1 at most. What AdamW decays by
    is no L2 penalty of the loss, for Adam divides the gradient, and not the decay, by the root of
    the gradient's mean square: a weight whose gradient is small from text to text, as all are
    where few texts are fitted closely, is held more.
    """
    return min(_HEAD_WEIGHT_DECAY * math.sqrt(_OF_TEXTS / max(texts, 1)), 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """How long training is, its learning rates, and what the losses of the tasks weigh."""

    epochs: int | None = None
    """passes over the training examples; by default 3, or 15 where heads alone are trained on \
kept vectors, and as many more as --min-steps and --head-min-steps ask for"""
    min_steps: int | None = None
    """steps at least of a phase that trains some of the backbone: few texts have more passes \
than --epochs; by default 150, or 0 where --epochs is given"""
    head_min_steps: int | None = None
    """the same of a phase that trains heads alone on kept vectors, where a step takes a \
millisecond; by default 5000, or 0 where --epochs is given"""
    batch_size: int = 32
    """examples per step at most, over all devices; they are spread evenly over the steps"""
    accumulate: int = 1
    """micro-batches that each batch is computed in, one after the other, to add up their \
gradients: as many times fewer activations in memory, and the same updates but for rounding and \
dropout's masks"""
    head_learning_rate: float | None = None
    """peak learning rate of the heads; by default 0.003, but where heads alone are trained \
first, the rate that does best on validation in a quick sweep, if it does clearly better"""
    backbone_learning_rate: float = 1e-4
    """peak learning rate of the trainable part of the backbone"""
    weight_decay: float | None = None
    """AdamW's, for everything but biases and layer norms; by default 0.01, or where heads alone \
are trained 0.06 times the root of 10,000 over the number of training texts, and 1 at most"""
    layer_decay: float = 1.0
    """each layer's learning rate is that of the layer above times this"""
    schedule: str = "linear"
    """how the learning rates fall after the warm-up: linear, to 0; slanted_triangular, to a 32nd; \
constant, not at all; or module:function, from peak rate, warm-up and total steps to an optax \
schedule"""
    warmup_fraction: float = 0.1
    """part of the steps in which the learning rates rise"""
    clip_norm: float = 1.0
    """largest global norm of the trainable part's gradient"""
    loss: tuple[str, ...] = ()
    """module:function, or task=module:function pairs, in the place of softmax cross-entropy, of \
sigmoid cross-entropy averaged over the classes of a multi_label task, and of the squared error of \
a regression: (logits, labels) -> (sum, count)"""
    class_weights: tuple[str, ...] = ()
    """task=balanced pairs: the classes of a task count alike in its loss; or task={"class": 2}, \
JSON, and 1 for those left out; by default 1, but where heads alone are trained on imbalanced \
classes as the cube root of one over their number"""
    label_smoothing: tuple[str, ...] = ()
    """part of each label that is spread evenly over the classes, such as 0.1: for all tasks with \
classes, or task=part pairs"""
    task_weights: tuple[str, ...] = ()
    """task=weight pairs: what a task's mean loss is multiplied by; 1 for those left out"""
    weighting: WeightingName = "fixed"
    """what the task weights are multiplied by: 1; or, found in training, by uncertainty (Kendall \
2018), dynamic_average (Liu 2019), famo (Liu 2023), pcgrad (Yu 2020) or gradnorm (Chen 2018)"""
    drift_limit: float = 0.1
    """how far the predictions of a frozen head that an earlier phase has trained may drift while \
the backbone trains, in nats, before a warning says so"""
    hold_frozen_heads: float = 0.0
    """weight of a term of the loss that holds such predictions where they were; 0: none"""

    def __post_init__(self) -> None:
        at_least_1(self, "epochs", "batch_size", "accumulate")
        if self.accumulate > self.batch_size:
            raise UserError(
                f"--accumulate {self.accumulate} must be at most --batch-size {self.batch_size}: "
                "each micro-batch has a text at least"
            )
        for name in ("epochs", "min_steps", "head_min_steps"):
            value = getattr(self, name)
            if value is not None and value > MOST_STEPS:
                raise UserError(f"{flag(name)} {value} must be at most {MOST_STEPS}")
        at_least_0(
            self,
            "head_learning_rate",
            "backbone_learning_rate",
            "weight_decay",
            "hold_frozen_heads",
            "min_steps",
            "head_min_steps",
        )
        above_0(self, "clip_norm", "layer_decay", "drift_limit")
        rates = "head_learning_rate", "backbone_learning_rate", "weight_decay", "layer_decay"
        in_float32(self, *rates, "hold_frozen_heads")
        if not isinstance(self.schedule, str):
            object.__setattr__(self, "schedule", import_path(self.schedule, "--schedule"))
        refuse_schedule(self.schedule, get_args(Schedule))
        object.__setattr__(self, "loss", as_paths("loss", self.loss))
        object.__setattr__(self, "task_weights", tuple(self.task_weights))
        refuse_blank("task_weights", self.task_weights, paired=True)
        for name in ("class_weights", "label_smoothing"):
            object.__setattr__(self, name, as_pairs(getattr(self, name)))
        refuse_blank("class_weights", self.class_weights, paired=True)
        refuse_blank("label_smoothing", self.label_smoothing)
        if not 0 <= self.warmup_fraction <= 1:
            raise UserError(f"--warmup-fraction {self.warmup_fraction} must be between 0 and 1")
