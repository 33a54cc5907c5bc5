"""What this project is measured beside: the same fine-tuning in plain PyTorch and transformers.

It reads the same sentences and settings, and freezes the same parameters with
``requires_grad=False``. Batches are grouped by length and padded to their longest sentence,
as ``group_by_length`` of transformers' ``Trainer`` does.

    python -m experiments.benchmarks.pytorch_baseline DEVICE SETTINGS.json BEST.pt RESULT.json

It saves the best checkpoint where it is told a file for it, and else none.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]  (optional)
from torch import nn  # pyright: ignore[reportMissingImports]  (optional)
from transformers import BertModel
from transformers.optimization import get_linear_schedule_with_warmup
from transformers.trainer_pt_utils import get_length_grouped_indices

from mtl_jax.config.optimizer import EPOCHS, HEAD_LEARNING_RATE, WEIGHT_DECAY
from mtl_jax.config.train import DataConfig, TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.data.corpus import load_corpus
from mtl_jax.data.kinds import MISSING
from mtl_jax.data.tokens import Tokens, tokenize
from mtl_jax.freezing.rules import assign_labels
from mtl_jax.freezing.scenarios import FROZEN, scenario_rules
from mtl_jax.models.tokenizer import load_tokenizer
from mtl_jax.training.metrics import Metrics, mean_score, split_metrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mtl_jax.data.examples import Examples

Batch = tuple[np.ndarray, torch.Tensor, torch.Tensor]
"""int64 [batch] which texts these are, and int64 [batch, longest] ids and attention mask."""


class Model(nn.Module):
    """A ``BertModel`` with its default attention, mean pooling, and a linear head per task."""

    def __init__(self, folder: str, classes: Mapping[str, Sequence[str]]):
        super().__init__()
        self.backbone: Any = BertModel.from_pretrained(
            folder, add_pooling_layer=False, dtype=torch.float32, local_files_only=True
        )
        bert = self.backbone.config
        rate = bert.classifier_dropout
        self.dropout = nn.Dropout(bert.hidden_dropout_prob if rate is None else rate)
        self.tasks = tuple(classes)
        for task, names in classes.items():
            self.add_module(task, nn.Linear(bert.hidden_size, len(names)))
        for task in self.tasks:
            head: Any = self.get_submodule(task)
            nn.init.normal_(head.weight, std=bert.initializer_range)
            nn.init.zeros_(head.bias)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """int64 [batch, length] x 2 -> per task float32 [batch, classes]."""
        hidden = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[..., None].to(hidden.dtype)
        pooled = self.dropout((hidden * weights).sum(1) / weights.sum(1))
        return {task: self.get_submodule(task)(pooled) for task in self.tasks}


def freeze(model: Model, scenario: str) -> dict[str, str]:
    """Freezes what ``scenario`` freezes; returns the label of every parameter.

    Raises:
        UserError: No such scenario for a model of so many layers.
    """
    rules = scenario_rules(scenario, model.backbone.config.num_hidden_layers, model.tasks)
    paths = {_path(name): parameter for name, parameter in model.named_parameters()}
    labels = assign_labels(paths, rules)
    for path, parameter in paths.items():
        parameter.requires_grad = labels[path] != FROZEN
    return {name: labels[_path(name)] for name, _ in model.named_parameters()}


def _path(name: str) -> str:
    """``backbone.encoder.layer.3.output.dense.bias`` as the rules spell it: layers first."""
    return re.sub(r"^backbone\.encoder\.layer\.", "backbone.layer_", name).replace(".", "/")


def make_optimizer(
    model: Model, labels: Mapping[str, str], config: TrainConfig
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; biases and layer norms do not decay."""
    head_rate = config.head_learning_rate
    rates = {
        "head": HEAD_LEARNING_RATE if head_rate is None else head_rate,
        "backbone": config.backbone_learning_rate,
    }
    decay = WEIGHT_DECAY if config.weight_decay is None else config.weight_decay
    # As few groups as a Trainer makes, so that the update can batch its parameters.
    groups: dict[tuple[str, bool], list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((labels[name], parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": rates[label],
                "weight_decay": decay if decays else 0.0,
            }
            for (label, decays), parameters in groups.items()
        ]
    )


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of every tensor in the optimizer's state, step counters included."""
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


def grouped_order(tokens: Tokens, batch_size: int, generator: torch.Generator) -> list[int]:
    """A random order of the texts in which those of a batch are of about equal length."""
    lengths = tokens.lengths.tolist()
    return get_length_grouped_indices(lengths, batch_size, generator=generator)


def padded_batches(
    tokens: Tokens, order: Sequence[int], batch_size: int, pad: int, device: str
) -> Iterator[Batch]:
    """The texts in ``order``, each batch padded with ``pad`` to its longest text."""
    lengths = tokens.lengths
    for start in range(0, len(order), batch_size):
        texts = np.asarray(order[start : start + batch_size], np.int64)
        mask = np.arange(lengths[texts].max()) < lengths[texts][:, None]
        ids = np.full(mask.shape, pad, np.int64)
        spans = [tokens.ids[tokens.offsets[text] : tokens.offsets[text + 1]] for text in texts]
        ids[mask] = np.concatenate(spans)
        yield (
            texts,
            torch.from_numpy(ids).to(device),
            torch.from_numpy(mask.astype(np.int64)).to(device),
        )


def total_loss(
    logits: Mapping[str, torch.Tensor], labels: Mapping[str, torch.Tensor], config: TrainConfig
) -> torch.Tensor:
    """The weighted sum over tasks of the mean cross-entropy over that task's labels, in nats."""
    total = torch.zeros((), device=next(iter(labels.values())).device)
    for task, of_task in logits.items():
        summed = nn.functional.cross_entropy(
            of_task, labels[task], ignore_index=MISSING, reduction="sum"
        )
        total = total + config.weights[task] * summed / (labels[task] != MISSING).sum().clamp(min=1)
    return total


class FineTuning:
    """A model with its data, ready to be trained.

    Attributes:
        model: The model, its frozen parameters without ``requires_grad``.
        optimizer: AdamW over the others.
    """

    def __init__(self, config: TrainConfig, device: str):
        """Reads checkpoint and data.

        Args:
            config: The settings; ``backbone`` is a folder. All but ``pooling``,
                ``parallel``, ``checkpoint_every`` and ``workdir`` hold here too; bfloat16 is
                autocast's.
            device: ``cpu`` or ``cuda``.
        """
        torch.manual_seed(config.seed)
        self._config, self._device = config, device
        self._corpus = load_corpus(config.data)
        for task, kind in self._corpus.kinds.items():
            if kind != "single_label":
                raise UserError(f"{task} is {kind}, and this trains single_label tasks alone")
        self.model = Model(config.backbone, self._corpus.classes).to(device)
        bert = self.model.backbone.config
        self._pad, self._length = bert.pad_token_id, bert.max_position_embeddings
        self._tokenizer = load_tokenizer(config.backbone)
        self.optimizer = make_optimizer(self.model, freeze(self.model, config.name), config)
        self._splits: dict[str, tuple[Examples, Tokens]] = {}
        train, self.tokens = self._split("train")
        self._labels = {
            task: torch.from_numpy(labels.astype(np.int64)).to(device)
            for task, labels in train.labels.items()
        }
        steps = -(-len(train) // config.batch_size) * (config.epochs or EPOCHS)
        self._schedule = get_linear_schedule_with_warmup(
            self.optimizer, round(config.warmup_fraction * steps), steps
        )
        self._generator = torch.Generator().manual_seed(config.seed)

    def _split(self, name: str) -> tuple[Examples, Tokens]:
        if name not in self._splits:
            examples = self._corpus.read(name)
            length = min(self._config.data.max_length, self._length)
            self._splits[name] = examples, tokenize(self._tokenizer, examples.texts, length)
        return self._splits[name]

    def _logits(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        half = self._config.dtype == "bfloat16"
        with torch.autocast(self._device, torch.bfloat16, enabled=half):
            logits = self.model(ids, mask)
        return {task: of_task.float() for task, of_task in logits.items()}

    def epoch(self) -> float:
        """Trains on every text once; returns the mean loss of the steps, in nats."""
        size = self._config.batch_size
        trainable = [p for group in self.optimizer.param_groups for p in group["params"]]
        order = grouped_order(self.tokens, size, self._generator)
        losses = torch.zeros((), device=self._device)
        self.model.train()
        for texts, ids, mask in padded_batches(self.tokens, order, size, self._pad, self._device):
            labels = {task: values[texts] for task, values in self._labels.items()}
            loss = total_loss(self._logits(ids, mask), labels, self._config)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trainable, self._config.clip_norm)
            self.optimizer.step()
            self._schedule.step()
            losses += loss.detach()
        return losses.item() / -(-len(order) // size)

    def evaluate(self, split: str) -> Metrics | None:
        """``metrics.split_metrics`` of a split; None where there is no such split."""
        if split not in self._corpus.splits:
            return None
        examples, tokens = self._split(split)
        predicted = {task: np.zeros(len(examples), np.int64) for task in self.model.tasks}
        # In order of length there is next to no padding.
        order = np.argsort(tokens.lengths, kind="stable").tolist()
        size = self._config.batch_size
        self.model.eval()
        with torch.inference_mode():
            for texts, ids, mask in padded_batches(tokens, order, size, self._pad, self._device):
                for task, logits in self._logits(ids, mask).items():
                    predicted[task][texts] = logits.argmax(-1).cpu().numpy()
        return split_metrics(examples.labels, predicted, self._corpus.classes, examples.groups)


def fine_tune(config: TrainConfig, device: str, best: Path | None = None) -> dict[str, Any]:
    """Trains from settings to test metrics.

    Args:
        config: See ``FineTuning``.
        device: ``cpu`` or ``cuda``.
        best: The file of the best checkpoint by validation, which the test metrics are of then;
            by default they are of the last epoch, and nothing is written.

    Returns:
        ``seconds`` in all; ``train_seconds`` in training steps, batching included; ``test``
        metrics (those of validation where there is no test split); ``lengths``, int64 [n],
        tokens of each training text; ``optimizer_state_bytes``.
    """
    started = time.perf_counter()
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as jax multiplies on a GPU by default
    run = FineTuning(config, device)
    train_seconds, validation, highest = 0.0, None, -1.0
    for _ in range(config.epochs or EPOCHS):
        epoch_started = time.perf_counter()
        run.epoch()
        train_seconds += time.perf_counter() - epoch_started
        validation = run.evaluate("validation")
        if best is not None and validation is not None and mean_score(validation) > highest:
            highest = mean_score(validation)
            torch.save(run.model.state_dict(), best)
    if best is not None:
        run.model.load_state_dict(torch.load(best, weights_only=True))
    test = run.evaluate("test") or validation
    return {
        "seconds": time.perf_counter() - started,
        "train_seconds": train_seconds,
        "test": test,
        "lengths": run.tokens.lengths,
        "optimizer_state_bytes": state_bytes(run.optimizer),
    }


def main(device: str, settings: str, best: str, result: str) -> None:
    """Trains by the settings of a JSON file, and leaves what came of it in another."""
    fields = json.loads(Path(settings).read_text(encoding="utf-8"))
    fields |= {"data": DataConfig(**fields["data"])}
    del fields["watch"]
    found = fine_tune(TrainConfig(**fields), device, Path(best))
    del found["lengths"]
    Path(result).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
