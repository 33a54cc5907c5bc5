"""The settings of the updates: how many, at what rates, for which losses. Imports no jax."""

from __future__ import annotations

import dataclasses
import math
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from mtl_jax.config.checks import above_0, at_least_0, at_least_1, flag, in_float32
from mtl_jax.config.data import refuse_blank
from mtl_jax.config.extensions import as_pairs, as_paths, refuse_schedule
from mtl_jax.core.converted import ByTask, Code, CodeByName, Converted, default
from mtl_jax.core.errors import UserError
from mtl_jax.core.imported import import_path

Schedule = Literal["linear", "slanted_triangular", "constant"]
# Each method is a file there, whose name is the method's: to add one, add a file.
_METHODS = Path(__file__).parents[1] / "training" / "weighting" / "methods"
WEIGHTINGS = tuple(sorted(module.name for module in pkgutil.iter_modules([str(_METHODS)])))
if TYPE_CHECKING:
    WeightingName = str
else:
    WeightingName = Literal[WEIGHTINGS]
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
# Training texts up to which the weight decay of heads alone is 1; see ``head_weight_decay``.
_FEW_TEXTS = 1200


def head_weight_decay(texts: int) -> float:
    """Returns AdamW's weight decay of heads that are trained alone, without dropout.

    It takes the place of dropout, and is the larger the fewer texts there are to learn from: 1 for
    1,200 of them and fewer, and as one over their number for more, as the weight of a Gaussian
    prior against a mean loss falls. What AdamW decays by is no L2 penalty of the loss, for Adam
    divides the gradient, and not the decay, by the root of the gradient's mean square: a weight
    whose gradient is small from text to text, as all are where few texts are fitted closely, is
    held more.
    """
    return min(_FEW_TEXTS / max(texts, 1), 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """How long training is, its learning rates, and what the losses of the tasks weigh."""

    epochs: int | None = None
    """passes over the training examples; by default 3, or 15 if only heads are trained on cached \
vectors, and more if --min-steps or --head-min-steps require it"""
    min_steps: int | None = None
    """minimum number of steps of a phase that trains parts of the backbone; few texts then get \
more passes than --epochs. By default 150, or 0 if --epochs is given"""
    head_min_steps: int | None = None
    """minimum number of steps of a phase that trains only heads on cached vectors, where a step \
takes a millisecond; by default 5000, or 0 if --epochs is given"""
    batch_size: int = 32
    """maximum number of examples per step, over all devices; examples are spread evenly over the \
steps"""
    accumulate: int = 1
    """number of micro-batches per batch, computed one after the other with their gradients added \
up: needs less memory for activations and gives the same updates up to rounding and dropout masks"""
    head_learning_rate: float | None = None
    """peak learning rate of the heads; by default 0.003, or, if the first phase trains only \
heads, a rate from a quick sweep if its validation score is clearly better"""
    backbone_learning_rate: float = 1e-4
    """peak learning rate of the trained part of the backbone"""
    weight_decay: float | None = None
    """weight decay of AdamW, for everything except biases and layer norms; by default 0.01, or, \
if only heads are trained, 1200 / training texts, at most 1"""
    layer_decay: float = 1.0
    """factor from the learning rate of each layer to that of the layer below it"""
    schedule: Converted[Code, str] = default("linear")
    """how the learning rates fall after the warm-up: linear (to 0), slanted_triangular (to 1/32 \
of the peak), constant, or module:function, which is called with the peak rate, warm-up steps and \
total steps and returns an optax schedule"""
    warmup_fraction: float = 0.1
    """fraction of the steps during which the learning rates rise"""
    clip_norm: float = 1.0
    """maximum global norm of the gradient of the trained parameters"""
    ema: float | None = None
    """decay of an exponential moving average of the trained parameters, such as 0.999. The \
average is measured, kept and exported; each phase of a recipe starts from that of the one before"""
    r_drop: float | None = None
    """weight of R-Drop (Liang 2021): each text is passed twice with different dropout masks, and \
the KL divergences of the two predictions are added to the loss of each task with classes"""
    loss: Converted[CodeByName, tuple[str, ...]] = default(())
    """module:function or task=module:function pairs: (logits, labels) -> (sum, count), instead \
of softmax cross-entropy (single_label), sigmoid cross-entropy averaged over the classes \
(multi_label) or the squared error (regression)"""
    class_weights: Converted[ByTask, tuple[str, ...]] = default(())
    """task=balanced pairs: give all classes of a task the same influence on its loss; or \
task={"class": 2}, in JSON, with 1 for classes that are not named. By default 1, or, if only heads \
are trained and classes are imbalanced, the cube root of one over their number; none: always 1"""
    label_smoothing: Converted[ByTask | float, tuple[str, ...]] = default(())
    """fraction of each label that is spread evenly over the classes, such as 0.1; for all tasks \
with classes, or task=fraction pairs"""
    task_weights: Converted[ByTask, tuple[str, ...]] = default(())
    """task=weight pairs: factors of the mean loss of each task; 1 for tasks that are not named"""
    weighting: WeightingName = "fixed"
    """method that adapts further task weights during training: uncertainty (Kendall 2018), \
dynamic_average (Liu 2019), famo (Liu 2023), pcgrad (Yu 2020) or gradnorm (Chen 2018); fixed: \
none"""
    drift_limit: float = 0.1
    """warn when the predictions of a frozen head that an earlier phase has trained drift further \
than this, in nats, while the backbone trains"""
    hold_frozen_heads: float = 0.0
    """weight of a loss term that keeps these predictions as they were at the start of the phase; \
0: no such term"""

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
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"--ema {self.ema} must be above 0 and below 1")
        if self.r_drop is not None and not 0 < self.r_drop < math.inf:
            raise UserError(f"--r-drop {self.r_drop} must be above 0: leave it out for none")
        if not isinstance(self.schedule, str):
            object.__setattr__(self, "schedule", import_path(self.schedule, "--schedule"))
        refuse_schedule(self.schedule, get_args(Schedule))
        object.__setattr__(self, "loss", as_paths("loss", self.loss))
        for name in ("task_weights", "class_weights", "label_smoothing"):
            object.__setattr__(self, name, as_pairs(getattr(self, name)))
        refuse_blank("task_weights", self.task_weights, paired=True)
        refuse_blank("class_weights", self.class_weights, paired=True)
        refuse_blank("label_smoothing", self.label_smoothing)
        if not 0 <= self.warmup_fraction <= 1:
            raise UserError(f"--warmup-fraction {self.warmup_fraction} must be between 0 and 1")
