"""What a run is made of, as frozen dataclasses. Nothing here imports jax."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from typing import Any, Literal, Self, TypeGuard, get_args

from mtl_jax.config.data import DataConfig, absolute_path, refuse_blank
from mtl_jax.config.extensions import FIELDS, as_paths, paths_by_name, refuse_schedule
from mtl_jax.config.monitoring import MonitoringConfig
from mtl_jax.config.scenario import is_inline, scenario_text
from mtl_jax.config.tasks import numbers_of, pairs_of
from mtl_jax.core.errors import UserError, no_trained_head
from mtl_jax.core.imported import import_path
from mtl_jax.core.paths import expanded

DEFAULT_DATA = DataConfig()
DEFAULT_WATCH = MonitoringConfig()
DEFAULT_SCENARIO = "backbone_frozen"
DEFAULT_BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"

Pooling = Literal["mean", "cls", "pooler"]
Parallel = Literal["auto", "jit", "pmap", "mesh"]
Schedule = Literal["linear", "slanted_triangular", "constant"]
OnDrift = Literal["warn", "stop", "back", "distill"]
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
# Measurements of a phase at most, where nothing says how often it is measured.
MEASUREMENTS = 10
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh")

# What a config.json may say without a change in the numbers that this encoder computes.
_SUPPORTED_ONLY: dict[str, tuple[object, ...]] = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "chunk_size_feed_forward": (0, None),
}

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)

_RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The fields of a transformers ``BertConfig`` that change the numbers."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        for name in _SIZES:
            size = getattr(self, name)
            if type(size) is not int or not 0 < size < 2**31:
                raise _wrong(name, size, f"a whole number from 1 to {2**31 - 1}")
        for name in _RATES:
            rate = getattr(self, name)
            right = _is_number(rate) and 0 <= rate <= 1  # a comparison with NaN is false
            if not right and (rate is not None or name != "classifier_dropout"):
                raise _wrong(name, rate, "from 0 to 1")
        if not (_is_number(self.initializer_range) and 0 <= self.initializer_range < math.inf):
            raise _wrong("initializer_range", self.initializer_range, "a number of at least 0")
        # Layer normalisation divides by its root where all numbers of a row are the same.
        if not (_is_number(self.layer_norm_eps) and 0 < self.layer_norm_eps < 1):
            raise _wrong("layer_norm_eps", self.layer_norm_eps, "above 0 and below 1")
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(
                f"hidden_act {reprlib.repr(self.hidden_act)} is not supported: use one of "
                f"{', '.join(ACTIVATIONS)}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}: correct the checkpoint's config.json"
            )

    @classmethod
    def from_dict(cls, fields: dict[str, Any], origin: str = "config.json") -> BertConfig:
        """Reads a transformers ``config.json``.

        Args:
            fields: The parsed JSON object. Fields that do not change the encoder's
                numbers are passed over.
            origin: What to call the file in an error.

        Raises:
            UserError: A field asks for something that this encoder does not compute.
        """
        if not isinstance(fields, dict):
            raise UserError(f"{origin} is not a JSON object: fetch the checkpoint again")
        if own_code := fields.get("auto_map"):
            raise UserError(
                f"{origin}: auto_map names code of the checkpoint's own "
                f"({reprlib.repr(own_code)}), and none is ever run: use a checkpoint without it"
            )
        _check_model_type(fields, origin)
        for name, supported in _SUPPORTED_ONLY.items():
            value = fields.get(name, supported[0])
            if value not in supported:
                raise UserError(
                    f"{origin}: {name} {reprlib.repr(value)} is not supported: use a checkpoint "
                    f"with {name} {supported[0]!r}"
                )
        known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        try:
            return cls(**known)
        except UserError as error:
            raise UserError(f"{origin}: {error}") from error


def _check_model_type(fields: dict[str, Any], origin: str) -> None:
    found, architectures = fields.get("model_type"), fields.get("architectures")
    if found == "bert":
        return
    # Configurations of 2019 have none.
    named = architectures if isinstance(architectures, list) else [architectures or "Bert"]
    if not found and all(str(name).startswith("Bert") for name in named):
        raise UserError(
            f"{origin}: model_type is missing: if the checkpoint is a BERT, as old ones without "
            'it are, add "model_type": "bert"'
        )
    name, value = ("model_type", found) if found else ("architectures", named)
    raise UserError(
        f"{origin}: {name} {reprlib.repr(value)} is not supported: use a checkpoint with "
        "model_type 'bert'"
    )


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong(name: str, value: object, right: str) -> UserError:
    return UserError(
        f"{name} {reprlib.repr(value)} must be {right}: correct the checkpoint's config.json"
    )


# A run may go on with others of these: what is kept and what is shown changes no number, and over
# how many devices a batch is spread changes their rounding only.
LIMITS = (
    "callbacks",
    "cache_memory",
    "cache_disk",
    "cache_folder",
    "checkpoint_every",
    "keep_latest",
    "keep_every",
    "parallel",
    "watch",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run and a study of many runs have in common."""

    backbone: str = DEFAULT_BACKBONE
    """checkpoint: a folder, or a name on the hub"""
    data: DataConfig = DEFAULT_DATA
    pooling: Pooling | None = None
    """how a sentence becomes one vector; by default what the checkpoint declares, else mean"""
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
    head_learning_rate: float | None = None
    """peak learning rate of the heads; by default 0.003, but where heads alone are trained \
first, the rate that does best on validation in a quick sweep, if it does clearly better"""
    backbone_learning_rate: float = 1e-4
    """peak learning rate of the trainable part of the backbone"""
    weight_decay: float = 0.01
    """AdamW's, for everything but biases and layer norms"""
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
    task_weights: tuple[str, ...] = ()
    """task=weight pairs: what a task's mean loss is multiplied by; 1 for those left out"""
    drift_limit: float = 0.1
    """how far the predictions of a frozen head that an earlier phase has trained may drift while \
the backbone trains, in nats"""
    on_drift: OnDrift = "warn"
    """what happens beyond: warn; stop the phase; go back to the last measurement within it, and \
stop; distill: hold the predictions by a term of the loss from there on"""
    distillation_weight: float = 1.0
    """weight of that term"""
    heads: tuple[str, ...] = ()
    """task=module:name pairs: a Flax module in the place of a task's Dense layer, or what makes \
one for a number of classes"""
    loss: tuple[str, ...] = ()
    """module:function, or task=module:function pairs, in the place of softmax cross-entropy: \
(logits, labels) -> (sum, count)"""
    metrics: tuple[str, ...] = ()
    """name=module:function pairs: further metrics, (labels, predicted) -> number"""
    callbacks: tuple[str, ...] = ()
    """module:function, called with every line of metrics.jsonl, a dict, as it is written"""
    weighting: WeightingName = "fixed"
    """what the task weights are multiplied by: 1; or, found in training, by uncertainty (Kendall \
2018), dynamic_average (Liu 2019), famo (Liu 2023), pcgrad (Yu 2020) or gradnorm (Chen 2018)"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """precision of the encoder's matrix products; all else is float32. With float32 GPUs \
compute them in TF32 and TPUs in bfloat16, unless JAX_DEFAULT_MATMUL_PRECISION=highest is set"""
    parallel: Parallel = "auto"
    """jit on one device, pmap or a jit mesh over all; auto: jit on one device, pmap on several"""
    attention_dropout: float | None = None
    """dropout of the attention weights; by default the checkpoint's; 0 lets training use cuDNN's \
fused attention"""
    fused_attention: bool = True
    """on GPUs in bfloat16, cuDNN's fused attention wherever attention weights have no dropout"""
    remat: bool = False
    """compute a layer's activations again in the backward pass: less memory, more time"""
    scan_layers: bool = False
    """run the layers as one scan, for deep models that take long to compile; steps take longer"""
    prefix_cache: bool = True
    """compute what the frozen bottom of the backbone makes of the texts once, and keep it"""
    cache_memory: float = 1.0
    """GiB of such activations kept in memory; larger ones go to files; inf: no limit"""
    cache_disk: float = 20.0
    """GiB of such files at most; the least recently used make room; inf: no limit"""
    cache_folder: str | None = None
    """folder of such files; by default activations in the cache folder of mtl_jax"""
    measure_every: int | None = None
    """epochs of a phase between two measurements on validation, each of which is saved; by \
default 1, and more in a phase of more than 10 epochs, which is measured 10 times at most"""
    checkpoint_every: int = 0
    """steps between checkpoints beside those; 0: none"""
    keep_latest: int = 2
    """how many of the last checkpoints are kept, beside the best and what going on from each may \
need; where one is damaged, the one before it is used"""
    keep_every: int = 0
    """keep those at multiples of so many steps, too; 0: none"""
    watch: MonitoringConfig = DEFAULT_WATCH

    def __post_init__(self) -> None:
        for name in ("backbone", "cache_folder"):
            if (value := getattr(self, name)) is not None:
                refuse_blank(name, [value])
        for name in ("epochs", "batch_size", "measure_every", "keep_latest"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{_flag(name)} {value} must be at least 1")
        for name in ("epochs", "min_steps", "head_min_steps"):
            value = getattr(self, name)
            if value is not None and value > MOST_STEPS:
                raise UserError(f"{_flag(name)} {value} must be at most {MOST_STEPS}")
        for name in (
            "head_learning_rate",
            "backbone_learning_rate",
            "weight_decay",
            "checkpoint_every",
            "keep_every",
            "cache_memory",
            "cache_disk",
            "distillation_weight",
            "min_steps",
            "head_min_steps",
        ):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"{_flag(name)} {value} must be a number of 0 or more")
        for name in FIELDS:
            object.__setattr__(self, name, as_paths(name, getattr(self, name)))
        schedule = self.schedule
        if not isinstance(schedule, str):
            object.__setattr__(self, "schedule", import_path(schedule, "--schedule"))
        refuse_schedule(self.schedule, get_args(Schedule))
        for name, every in (("heads", False), ("loss", True)):
            _ = paths_by_name(f"--{name}", getattr(self, name), self.data.tasks, every=every)
        object.__setattr__(self, "task_weights", tuple(self.task_weights))
        refuse_blank("task_weights", self.task_weights, paired=True)
        for task, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                given = pairs_of("--task-weights", self.task_weights, "weight")[task]
                raise UserError(f"--task-weights {task}={given} must be a number of 0 or more")
        if not 0 <= self.warmup_fraction <= 1:
            raise UserError(f"--warmup-fraction {self.warmup_fraction} must be between 0 and 1")
        if self.attention_dropout is not None and not 0 <= self.attention_dropout < 1:
            raise UserError(
                f"--attention-dropout {self.attention_dropout} must be at least 0 and below 1"
            )
        for name in ("clip_norm", "layer_decay", "drift_limit"):
            if not getattr(self, name) > 0:
                raise UserError(f"{_flag(name)} {getattr(self, name)} must be above 0")

    @property
    def weights(self) -> dict[str, float]:
        """What the mean loss of each task is multiplied by, in the order of the tasks."""
        given = numbers_of("--task-weights", self.task_weights, "weight", self.data.tasks)
        return {task: given.get(task, 1.0) for task in self.data.tasks}

    def absolute(self) -> Self:
        """The same, with file names that hold from any folder."""
        folder = expanded(self.backbone)
        return dataclasses.replace(
            self,
            data=self.data.absolute(),
            backbone=absolute_path(self.backbone) if folder.is_dir() else self.backbone,
            cache_folder=absolute_path(self.cache_folder) if self.cache_folder else None,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """One training run. Everything that is needed to repeat it."""

    workdir: str
    """folder for config, metrics, certificate and checkpoints; run again to resume"""
    scenario: str | None = None
    """what is frozen: all_frozen, backbone_frozen (the default), none_frozen, a task's head \
(classifier_frozen), top_1, top_2, ..., or [pattern, label] rules: a JSON file, or the list"""
    recipe: str | None = None
    """in the place of a scenario, several in turn: gradual_unfreezing, top_down_1, top_down_2, \
..., lp_ft, sequential_heads, scarce_head_last, auto, or a .json or .py file of phases"""
    seed: int = 0
    """seeds the heads, the order of the data and dropout"""
    distributed: bool = False
    """be one of several processes of this run, which JAX finds: under Slurm, on TPU pods, in \
Kubernetes, under Open MPI, or as ./launch.sh local starts them"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed {self.seed} must be between 0 and {2**32 - 1}")
        object.__setattr__(self, "scenario", scenario_text(self.scenario))
        if self.recipe is None and self.scenario is None:
            object.__setattr__(self, "scenario", DEFAULT_SCENARIO)
        elif self.recipe is not None and self.scenario is not None:
            raise UserError(
                f"--recipe {self.recipe} names its scenarios itself: leave --scenario "
                f"{self.scenario} out"
            )
        if self.on_drift != "warn" and self.recipe is None:
            why = f"--scenario {self.scenario} is one phase: use a --recipe"
            raise no_trained_head(self.on_drift, why)

    def absolute(self) -> Self:
        """See ``Settings.absolute``."""
        files = {
            name: absolute_path(value)
            for name in ("scenario", "recipe")
            if (value := getattr(self, name))
            and value.endswith((".json", ".py"))
            and not is_inline(value)
        }
        return dataclasses.replace(super().absolute(), **files)

    @property
    def name(self) -> str:
        """What the run is called: its scenario or its recipe."""
        return str(self.scenario if self.recipe is None else self.recipe)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
