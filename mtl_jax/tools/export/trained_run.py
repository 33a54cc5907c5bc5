"""A run's folder, opened to be exported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np

from mtl_jax.config.data import DataConfig
from mtl_jax.config.extensions import paths_by_name
from mtl_jax.config.model import Pooling
from mtl_jax.core.errors import UserError
from mtl_jax.freezing.lora import merge_lora
from mtl_jax.freezing.partition import Params
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.heads import dense_layers
from mtl_jax.models.tokenizer import load_tokenizer
from mtl_jax.runs.best_checkpoint import best_parameters
from mtl_jax.runs.run_config import read_record
from mtl_jax.runs.workdir import Workdir

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class TaskHead:
    """A task to be exported.

    Attributes:
        name: Its name.
        kind: What its labels are, as of ``Task``.
        classes: The names of its classes; none of a regression.
        scale: Of a regression, what a logit is multiplied by and what is then added to it.
        own: The import path of a head of the user's own; None of Dense layers.
        params: The parameters of its head.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    scale: tuple[float, float]
    own: str | None
    params: Params

    @property
    def labels(self) -> tuple[str, ...]:
        """What each of its outputs is called."""
        return self.classes or (self.name,)

    def dense(self) -> Params:
        """The parameters of its Dense layers; of a regression in the unit of the labels.

        Raises:
            UserError: It has others.
        """
        if self.own:
            raise UserError(
                f"the task {self.name!r} has a head of your own ({self.own}), for which "
                "transformers has no class: use --format stablehlo, or --tasks for the others"
            )
        if self.kind != "regression":
            return self.params
        factor, offset = map(np.float32, self.scale)
        last = dense_layers(self.params)[-1]
        kernel, bias = (np.asarray(last[leaf]) for leaf in ("kernel", "bias"))
        scaled = {"kernel": kernel * factor, "bias": bias * factor + offset}
        return scaled if last is self.params else {**self.params, "output": scaled}


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """The best checkpoint of a run, and what its folder says of it.

    Attributes:
        record: Its ``config.json``.
        result: The last line of its ``metrics.jsonl``; None where it is not finished.
        config: The encoder's.
        pooling: How a text's token vectors become one.
        backbone: The parameters of the encoder; what LoRA has trained is in its kernels.
        heads: The tasks to be exported.
        files: The folder of the tokenizer's files.
        tokenizer: The tokenizer.
        max_length: Tokens of a text at most.
    """

    record: Mapping[str, Any]
    result: Mapping[str, Any] | None
    config: EncoderConfig
    pooling: Pooling
    backbone: Params
    heads: tuple[TaskHead, ...]
    files: Path
    tokenizer: PreTrainedTokenizerFast
    max_length: int

    @property
    def pair_tasks(self) -> frozenset[str]:
        """The names of the tasks of pairs of texts."""
        return frozenset(DataConfig(**self.record["settings"]["data"]).pair_columns)

    @property
    def pairs(self) -> bool:
        """Whether a task to be exported is one of pairs of texts."""
        return any(head.name in self.pair_tasks for head in self.heads)

    @property
    def token_types(self) -> bool:
        """Whether the encoder tells the texts of a pair apart by their token types."""
        return self.pairs and self.config.type_vocab_size > 1

    def plain_tokenizer(self) -> Tokenizer:
        """A copy of the tokenizer's inside, which neither cuts texts nor fills them up."""
        from tokenizers import Tokenizer

        own = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        own.no_truncation()
        own.no_padding()
        return own

    @classmethod
    def open(cls, folder: str | Path, tasks: Sequence[str] = ()) -> Self:
        """Opens the folder of a run.

        Args:
            folder: The folder.
            tasks: Those to be exported; all by default.

        Raises:
            UserError: There is no checkpoint of a run, or no such task.
        """
        workdir = Workdir(folder)
        record = read_record(workdir, "train one there first")
        classes = record["classes"]
        if unknown := [task for task in tasks if task not in classes]:
            raise UserError(
                f"--tasks names {unknown[0]!r}, which the run does not have: use "
                f"{' or '.join(classes)}"
            )
        workdir.check_tokenizer(record["tokenizer_sha256"])
        params = jax.tree.map(np.asarray, best_parameters(workdir))
        config, settings = EncoderConfig(**record["bert"]), record["settings"]
        length = DataConfig(**settings["data"]).max_length
        own = paths_by_name("--heads", settings.get("heads") or (), tuple(classes))
        heads = [
            TaskHead(
                task,
                record.get("kinds", {}).get(task, "single_label"),
                tuple(classes[task]),
                _scale(record, task),
                own.get(task),
                params[task],
            )
            for task in classes
            if not tasks or task in tasks
        ]
        return cls(
            record=record,
            result=workdir.result(),
            config=config,
            pooling=record["pooling"],
            backbone=merge_lora(params["backbone"]),
            heads=tuple(heads),
            files=workdir.tokenizer,
            tokenizer=load_tokenizer(workdir.tokenizer, "train one anew from its checkpoint"),
            max_length=min(length, config.max_length),
        )


def _scale(record: Mapping[str, Any], task: str) -> tuple[float, float]:
    """What a regression's logit is multiplied by, and what is added: labels are standardised."""
    scale = record.get("scales", {}).get(task, {})
    return scale.get("deviation", 1.0), scale.get("mean", 0.0)
