"""The commands of ``python -m mtl_jax`` and their flags, as data."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from tyro.conf import Positional, subcommand

from mtl_jax.config.data import LongTexts
from mtl_jax.config.model import Dtype, Pooling
from mtl_jax.config.train import DEFAULT_DATA, DataConfig, Settings, TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.freezing.scenarios import usual_scenarios
from mtl_jax.studies.budget import Budget


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(TrainConfig):
    """Train one scenario or recipe."""

    json: bool = False
    """print the scores as JSON in a terminal, too"""
    tune: str | None = None
    """choose learning rates and passes on validation first, in the folder tuning of --workdir: a \
number of trials, such as 12, or of training FLOPs, such as 3e15FLOPs"""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.budget

    @property
    def budget(self) -> Budget | None:
        """What the trials may cost.

        Raises:
            UserError: ``tune`` is no budget.
        """
        return None if self.tune is None else Budget.parse(self.tune)

    def config(self) -> TrainConfig:
        """The run alone."""
        fields = {name: getattr(self, name) for name in TrainConfig.__dataclass_fields__}
        return TrainConfig(**fields)


@dataclasses.dataclass(frozen=True)
class Check:
    """Check the data before training: sizes, classes, lengths, duplicates, likely mistakes."""

    data: DataConfig = DEFAULT_DATA
    """Which texts and labels a run reads."""
    backbone: str | None = None
    """checkpoint whose tokenizer is used to count the tokens of a sample of texts; see train"""
    html: str | None = None
    """also write a page with the counts of all classes to this file"""
    json: bool = False
    """print JSON instead of lines"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Settings):
    """Print what scenarios or the phases of a recipe would cost in memory, FLOPs and time."""

    scenario: tuple[str, ...] | None = None
    """scenarios as in train; by default all_frozen, backbone_frozen, bias_only, lora_8, top_1, \
top_2, one with the head of each task frozen, and none_frozen"""
    recipe: str | None = None
    """recipe as in train, whose phases are planned instead of scenarios"""
    measure_seconds: float = 5.0
    """maximum number of seconds for measuring each scenario, without compilation"""
    json: bool = False
    """print one JSON line per scenario or phase instead of a table"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scenario == ():
            raise UserError("--scenario is empty: name at least one")
        if self.scenario is None:
            object.__setattr__(self, "scenario", usual_scenarios(self.data.tasks, adapters=True))
        if not self.measure_seconds >= 0:
            raise UserError(f"--measure-seconds {self.measure_seconds} must not be negative")


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate the best checkpoint of a run: scores by class, calibration, mistakes.

    Prints tables in a terminal and JSON when piped; --output also writes files.
    """

    workdir: tuple[str, ...]
    """folder of a run; of several, their predictions are averaged"""
    split: Literal["train", "validation", "test"] = "test"
    """split of its data to evaluate on"""
    output: str | None = None
    """also write report.html, CSV and JSON files and the predictions to this folder"""
    json: bool = False
    """print JSON in a terminal, too"""
    long_texts: LongTexts | None = None
    """what to do with texts longer than the --max-length of the training: truncate or refuse \
them; by default as in training"""
    trust: tuple[str, ...] = ()
    """modules with your own heads, losses or metrics that the run uses and that may be imported"""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Read texts, and write a JSON line for each: the label and probability, or value, per task."""

    workdir: tuple[str, ...]
    """folder of a run; of several, their predictions are averaged"""
    input: str | None = None
    """CSV, TSV, JSON Lines or Parquet file of texts, or a file with one text per line; by \
default standard input, with one text per line"""
    text_column: str | None = None
    """with --input: the column of the texts; by default as in training"""
    text_columns: tuple[str, ...] = ()
    """with --input: the two columns of pairs of texts; by default as in training"""
    long_texts: LongTexts | None = None
    """what to do with texts longer than the --max-length of the training: truncate or refuse \
them; by default as in training"""
    trust: tuple[str, ...] = ()
    """modules with your own heads, losses or metrics that the run uses and that may be imported"""


@dataclasses.dataclass(frozen=True)
class Extract:
    """Read texts, and write their pooled float32 vectors to a .npy or Parquet file."""

    output: str
    """file to write: .npy with one row per text, or .parquet with the columns text (for pairs: \
first, second) and vector"""
    input: str | None = None
    """CSV, TSV, JSON Lines or Parquet file of texts, or a file with one text per line; by \
default standard input, with one text per line"""
    text_column: str | None = None
    """with --input: the column of the texts; by default as in the training of --workdir, \
otherwise text"""
    text_columns: tuple[str, ...] = ()
    """with --input: the two columns of pairs of texts; by default as in the training of \
--workdir"""
    backbone: str | None = None
    """pre-trained checkpoint: a folder, or a name on the Hugging Face hub; by default \
sentence-transformers/all-MiniLM-L6-v2, unless --workdir is given"""
    workdir: str | None = None
    """folder of a run whose encoder is used, instead of --backbone"""
    layer: int | None = None
    """layer whose token vectors are pooled: 0 is the embeddings, 1 the lowest layer; by default \
the last"""
    pooling: Pooling | None = None
    """how the token vectors become one vector; by default as in the training of --workdir, \
otherwise as the checkpoint declares"""
    dtype: Dtype | None = None
    """precision of the encoder's matrix products; vectors are float32 all the same. By default as \
in the training of --workdir, otherwise float32"""
    max_length: int | None = None
    """with --backbone: maximum number of tokens per text, including special tokens; by default \
128"""
    long_texts: LongTexts | None = None
    """what to do with longer texts: truncate or refuse them; by default as in the training of \
--workdir, otherwise truncate"""
    trust: tuple[str, ...] = ()
    """with --workdir: modules with your own code that the run uses and that may be imported"""


@dataclasses.dataclass(frozen=True)
class Export:
    """Export the best checkpoint of a run for PyTorch, ONNX Runtime or plain JAX."""

    workdir: str
    """folder of a run"""
    output: str
    """folder to create"""
    format: Literal["huggingface", "sentence-transformers", "stablehlo", "onnx"] = "huggingface"
    """huggingface: one folder per task for transformers; sentence-transformers: the encoder with \
its pooling; stablehlo: one program for all tasks, which JAX loads; onnx: one folder per task for \
ONNX Runtime"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """precision of the weights in the files"""
    tasks: tuple[str, ...] = ()
    """tasks whose heads are exported; by default all"""
    push_to_hub: str | None = None
    """also upload to this repository on the Hugging Face hub; with several tasks each has its \
own, NAME-TASK"""
    private: bool = False
    """with --push-to-hub: make a new repository private"""
    trust: tuple[str, ...] = ()
    """modules with your own heads that the run uses and that may be imported (stablehlo only)"""


@dataclasses.dataclass(frozen=True)
class Study:
    """Run a built-in study or your own; without a name, list the built-in ones."""

    study: Positional[str]
    """name of a built-in study, import path of a module, or a .py file; the study's own flags \
follow"""


_TRAIN = (
    "Train one scenario or recipe. --config FILE.yaml reads settings whose keys are the names of "
    "these flags, and flags override it; the config.json of a run can be used as such a file."
)

Command = (
    Annotated[Train, subcommand("train", description=_TRAIN)]
    | Annotated[Check, subcommand("check")]
    | Annotated[Plan, subcommand("plan")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Predict, subcommand("predict")]
    | Annotated[Extract, subcommand("extract")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Study, subcommand("study")]
)
