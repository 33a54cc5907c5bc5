"""Several finished runs put to use together: their probabilities, or values, are averaged."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.config.data import LongTexts
from mtl_jax.config.tasks import Task, tasks_in_words
from mtl_jax.core.errors import UserError
from mtl_jax.data.examples import Examples
from mtl_jax.runs.ensembles import mean_probabilities
from mtl_jax.tools.predict import Predictor
from mtl_jax.tools.text_encoder import CHUNK, refuse_other_texts
from mtl_jax.training.inputs import standardised
from mtl_jax.training.kinds.base import Metrics
from mtl_jax.training.kinds.registry import KINDS, kind_of


class Ensemble:
    """The best checkpoints of several runs of the same tasks, whose predictions are averaged.

        answers = mtl.Ensemble(["runs/seed0", "runs/seed1"]).predict(["a text"])

    It predicts as a ``Predictor`` does. Of a task with classes the probabilities are averaged, of a
    regression the values; the runs may have different backbones.

    Attributes:
        members: A predictor for each run.
        folder: The first run's.
        tasks: The tasks by name.
        classes: Per task the names of its classes.
        text_columns: As of ``Predictor``.
        columns: As of ``Predictor``.
        reader: That of the first run.
    """

    def __init__(
        self,
        folders: Sequence[str | Path],
        long_texts: LongTexts | None = None,
        *,
        trust: Sequence[str] = (),
    ):
        """Loads them.

        Args:
            folders: The runs', one at least.
            long_texts: As of ``Predictor``.
            trust: As of ``Predictor``.

        Raises:
            UserError: As of ``Predictor``; or the runs have not the same tasks and classes.
        """
        if isinstance(folders, str | os.PathLike):
            raise UserError(f"an ensemble takes a list of folders, and {str(folders)!r} is one")
        if not folders:
            raise UserError("an ensemble needs runs: name the folder of one at least")
        self.members = [Predictor(each, long_texts, trust=trust) for each in folders]
        first = self.members[0]
        for other in self.members[1:]:
            if _known(other) != _known(first):
                raise UserError(
                    f"{other.folder} has other tasks, classes or text columns than "
                    f"{first.folder}: an ensemble needs the same"
                )
        self.folder, self.tasks, self.classes = first.folder, first.tasks, first.classes
        self.text_columns, self.columns = first.text_columns, first.columns
        self.reader = first.reader

    def __repr__(self) -> str:
        folders = ", ".join(repr(str(each.folder)) for each in self.members)
        return f"<Ensemble of {folders}; {tasks_in_words(self.tasks.values())}>"

    @property
    def cut(self) -> int:
        """As of ``TextEncoder``."""
        return self.members[0].cut

    @property
    def empty(self) -> int:
        """As of ``TextEncoder``."""
        return self.members[0].empty

    def kept(self, split: str) -> Path | None:
        """As of ``Predictor``: there is none."""
        del split

    def predict(self, texts: Iterable[str | Sequence[str]]) -> list[dict[str, Any]]:
        """As of ``Predictor``."""
        return list(self.answers(texts))

    def answers(self, texts: Iterable[str | Sequence[str]]) -> Iterator[dict[str, Any]]:
        """As of ``Predictor``."""
        refuse_other_texts(texts)
        texts = iter(texts)
        while some := list(itertools.islice(texts, CHUNK)):
            found = [list(member.logits(some)) for member in self.members]
            for chunks in zip(*found, strict=True):
                lines = chunks[0][0]
                logits = self._together([of_member for _, of_member in chunks])
                yield from self.members[0].as_answers(lines, logits)

    def evaluate(self, split: str) -> Metrics:
        """As of ``Predictor``."""
        return self.measure(split)[0]

    def measure(
        self, split: str
    ) -> tuple[Metrics, Examples, dict[str, np.ndarray], tuple[str, ...]]:
        """As of ``Predictor``.

        Raises:
            UserError: As of ``Predictor``; or the runs have other texts in that split.
        """
        found = [member.measure(split) for member in self.members]
        _, examples, _, sources = found[0]
        for member, (_, own, *_) in zip(self.members, found, strict=True):
            if not np.array_equal(own.text_hashes, examples.text_hashes):
                raise UserError(
                    f"{member.folder} has other {split} texts than {self.folder}: an ensemble "
                    "is measured on what all have"
                )
        logits = self._together([of_member for _, _, of_member, _ in found])
        labels = standardised(examples.labels, self.tasks)
        losses = {task: _loss(labels[task], logits[task]) for task in self.tasks}
        metrics = self.members[0].metrics_of(examples, logits, losses)
        return metrics, examples, logits, sources

    def _together(self, logits: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Logits of the mean predictions, on the scale of the first run."""
        return {
            name: _mean_logits(
                task,
                [
                    (each.tasks[name], own[name])
                    for each, own in zip(self.members, logits, strict=True)
                ],
            )
            for name, task in self.tasks.items()
        }


def _known(model: Predictor) -> tuple[Any, ...]:
    kinds = {name: (task.kind, task.classes) for name, task in model.tasks.items()}
    return kinds, model.text_columns


def _mean_logits(task: Task, of_members: Sequence[tuple[Task, np.ndarray]]) -> np.ndarray:
    kind = KINDS[task.kind]
    if task.kind == "regression":
        values = [kind.predicted(own, each.mean, each.deviation) for each, own in of_members]
        mean = (np.mean(values, axis=0) - task.mean) / task.deviation
        return mean[:, None].astype(np.float32)
    return kind.logits(mean_probabilities([kind.probabilities(own) for _, own in of_members]))


def _loss(labels: np.ndarray, logits: np.ndarray) -> float | None:
    total, count = kind_of(labels).loss(logits, labels)  # pyright: ignore[reportArgumentType]
    return float(total / count) if count else None
