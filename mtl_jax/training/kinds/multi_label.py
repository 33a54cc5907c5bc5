"""Each text has any number of classes: a sigmoid for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy

from mtl_jax.config.tasks import Task
from mtl_jax.data.kinds import has_label
from mtl_jax.models.multitask import Loss
from mtl_jax.training.kinds.base import SMALLEST, Metrics, TaskKind
from mtl_jax.training.kinds.single_label import UNDEFINED
from mtl_jax.training.prediction_counts import (
    by_class,
    f1_of,
    macro_f1_of_counts,
    marked_counts,
    resampled_macro_f1,
    without_each,
)


@dataclasses.dataclass(frozen=True)
class BinaryCrossEntropy:
    """Sigmoid cross-entropy of each class, averaged over the classes.

    The average, and not the sum, so that a task of many classes weighs as much as one of few.

    Attributes:
        weights: What the part of the texts that have a class is multiplied by, for each class;
            None for 1.
        smoothing: e: a class that a text has counts 1 - e / 2, another one e / 2.
    """

    weights: tuple[float, ...] | None = None
    smoothing: float = 0.0

    def __call__(self, logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See ``TaskKind.loss``."""
        present = has_label(labels)
        targets = jnp.where(present[..., None], labels, 0).astype(jnp.float32)
        if self.smoothing:
            targets = (1 - self.smoothing) * targets + self.smoothing / 2
        if self.weights is None:
            losses = optax.sigmoid_binary_cross_entropy(logits, targets)
        else:
            weights = jnp.asarray(self.weights, jnp.float32)
            losses = -weights * targets * jax.nn.log_sigmoid(logits)
            losses -= (1 - targets) * jax.nn.log_sigmoid(-logits)
        return jnp.where(present, losses.mean(-1), 0.0).sum(), present.sum().astype(jnp.float32)


THRESHOLD = 0.5
"""The probability from which on a text is given a class: that of a logit of 0."""


class MultiLabel(TaskKind):
    """Each text has any number of classes; one is predicted from ``THRESHOLD`` on."""

    name = "multi_label"
    metrics_in_words = (
        ("subset_accuracy", "subset accuracy"),
        ("micro_f1", "micro-F1"),
        ("macro_f1", "macro-F1"),
    )
    text_model = "one logistic regression a class"

    def loss(self, logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See ``TaskKind``: ``BinaryCrossEntropy``, in nats."""
        return BinaryCrossEntropy()(logits, labels)

    def make_loss(self, task: Task, weights: tuple[float, ...] | None, smoothing: float) -> Loss:
        """See ``TaskKind``."""
        del task
        return BinaryCrossEntropy(weights, smoothing)

    def balanced(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """See ``TaskKind``: of each class the texts without it for one with it.

        With these a class's two sides weigh alike. A class that no text has has the weight 1.
        """
        with_it = (labels[has_label(labels)] > 0).sum(0)
        without = int(has_label(labels).sum()) - with_it
        weights = np.where(with_it > 0, without / np.maximum(with_it, 1), 1.0)
        return np.where(weights > 0, weights, 1.0).reshape(classes)

    def predicted(self, logits: np.ndarray, mean: float = 0.0, deviation: float = 1.0) -> Any:
        """See ``TaskKind``: the classes whose probability is at least ``THRESHOLD``."""
        del mean, deviation
        return (logits >= 0).astype(np.int8)

    def probabilities(self, logits: np.ndarray) -> np.ndarray | None:
        """See ``TaskKind``."""
        return scipy.special.expit(logits)

    def logits(self, probabilities: np.ndarray) -> np.ndarray:
        """See ``TaskKind``."""
        inside = np.clip(probabilities, SMALLEST, 1 - np.finfo(np.float64).epsneg)
        return scipy.special.logit(inside).astype(np.float32)

    def answers(self, logits: np.ndarray, task: Task) -> list[dict[str, Any]]:
        """See ``TaskKind``: the labels, and the probability of every class."""
        found = []
        rows = zip(self.predicted(logits), scipy.special.expit(logits), strict=True)
        for marks, of_text in rows:
            values = [round(float(value), 6) for value in of_text]
            labels = [name for name, mark in zip(task.classes, marks, strict=True) if mark]
            probabilities = dict(zip(task.classes, values, strict=True))
            found.append({"labels": labels, "probabilities": probabilities})
        return found

    def named(self, values: np.ndarray, classes: Sequence[str]) -> list[Any]:
        """See ``TaskKind``: lists of names of classes."""
        return [
            None if -1 in marks else [classes[i] for i, mark in enumerate(marks) if mark]
            for marks in values.tolist()
        ]

    def metrics(self, labels: np.ndarray, predicted: np.ndarray, classes: int) -> Metrics:
        """See ``TaskKind``: ``subset_accuracy``, ``micro_f1``, ``macro_f1``, ``hamming_loss``.

        Subset accuracy is the part of the texts whose classes are all right, the Hamming loss the
        part of all marks that are wrong. Macro-F1 is the mean over the classes that occur or are
        predicted; where none does either, nothing could be missed and the F1 scores are 1.
        """
        from sklearn.metrics import accuracy_score, f1_score, hamming_loss

        present = has_label(labels)
        names = ("subset_accuracy", "micro_f1", "macro_f1", "hamming_loss")
        if not present.any():
            return {**dict.fromkeys(names), "examples": 0}
        true, guess = labels[present], predicted[present]
        there = np.flatnonzero((true + guess).sum(0))
        f1 = {"micro": 1.0, "macro": 1.0}
        for average in f1 if len(there) else ():
            f1[average] = float(
                f1_score(
                    true[:, there],
                    guess[:, there],
                    labels=np.arange(len(there)),
                    average=average,
                    zero_division=UNDEFINED,
                )
                if len(there) > 1
                else f1_score(true[:, there[0]], guess[:, there[0]], zero_division=UNDEFINED)
            )
        return {
            "subset_accuracy": float(accuracy_score(true, guess)),
            "micro_f1": f1["micro"],
            "macro_f1": f1["macro"],
            "hamming_loss": float(hamming_loss(true, guess)),
            "examples": int(present.sum()),
        }

    def weighted_f1(self, labels: np.ndarray, predicted: np.ndarray) -> float | None:
        """See ``TaskKind``."""
        from sklearn.metrics import f1_score

        if labels.shape[1] == 1:
            return float(f1_score(labels[:, 0], predicted[:, 0], zero_division=UNDEFINED))
        return float(f1_score(labels, predicted, average="weighted", zero_division=UNDEFINED))

    def per_class(
        self, labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]
    ) -> dict[str, dict[str, float]]:
        """See ``TaskKind``."""
        from sklearn.metrics import precision_recall_fscore_support

        # Of one class scikit-learn would take the marks for those of two.
        each = [
            precision_recall_fscore_support(
                labels[:, k], predicted[:, k], labels=[1], zero_division=UNDEFINED
            )
            for k in range(len(classes))
        ]
        return by_class(classes, list(np.array(each)[..., 0].T), (predicted > 0).sum(0))

    def confidences(
        self, labels: np.ndarray, probabilities: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """See ``TaskKind``: of each class that a text has it, or has it not."""
        marked = probabilities >= THRESHOLD
        return np.where(marked, probabilities, 1 - probabilities), marked == (labels > 0)

    def counts(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """See ``TaskKind``."""
        present = has_label(labels)[:, None]
        return marked_counts((logits >= 0) & present, (labels > 0) & present, logits)

    def score_of_counts(self, counts: np.ndarray) -> np.ndarray | None:
        """See ``TaskKind``."""
        return macro_f1_of_counts(counts)

    def resampled(
        self, labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        """See ``TaskKind``."""
        return resampled_macro_f1(labels > 0, predicted > 0, weights)

    def left_out(
        self, metric: str, labels: np.ndarray, predicted: np.ndarray, classes: int
    ) -> np.ndarray | None:
        """See ``TaskKind``: of all metrics."""
        del classes
        true, guess = labels > 0, predicted > 0
        if metric == "subset_accuracy":
            return without_each((true == guess).all(-1))
        if metric == "hamming_loss":
            return without_each((true != guess).mean(-1))
        of_text = (true & guess).astype(np.float64), true.astype(np.float64) + guess
        if metric == "micro_f1":
            of_text = tuple(each.sum(-1, keepdims=True) for each in of_text)
        hits, both = (each.sum(0) - each for each in of_text)
        scores = f1_of(hits, both)
        if metric == "micro_f1":
            return scores[:, 0]
        if metric == "macro_f1":
            return scores.sum(-1) / max(np.count_nonzero(of_text[1].sum(0)), 1)
        if metric == "weighted_f1":
            there = true.sum(0) - true
            return (there * scores).sum(-1) / np.maximum(there.sum(-1), 1)
        return None

    def divergence(self, before: np.ndarray, now: np.ndarray) -> float:
        """See ``TaskKind``: KL(before || now) of each class, averaged over the classes."""
        if not len(before):
            return 0.0
        old, new = (x.astype(np.float64) for x in (before, now))
        p, log = scipy.special.expit(old), scipy.special.log_expit
        of_classes = p * (log(old) - log(new)) + (1 - p) * (log(-old) - log(-new))
        return float(np.mean(of_classes))

    def apart(self, first: jax.Array, second: jax.Array) -> jax.Array:
        """See ``TaskKind``: the mean over the classes, as of the loss."""
        # Of two classes the difference of the log probabilities is that of the logits.
        difference = jax.nn.sigmoid(first) - jax.nn.sigmoid(second)
        return (difference * (first - second)).mean(-1) / 2

    def targets(self, logits: np.ndarray) -> np.ndarray:
        """See ``TaskKind``: probabilities, and a 1 behind them."""
        there = np.ones((len(logits), 1), np.float32)
        return np.concatenate([scipy.special.expit(logits), there], axis=1)

    def are_there(self, targets: jax.Array) -> jax.Array:
        """See ``TaskKind``."""
        return targets[..., -1] > 0

    def hold(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """See ``TaskKind``."""
        before, log = targets[..., :-1], jax.nn.log_sigmoid
        entropy = jax.scipy.special.xlogy(before, before)
        entropy += jax.scipy.special.xlogy(1 - before, 1 - before)
        losses = entropy - before * log(logits) - (1 - before) * log(-logits)
        return jnp.where(self.are_there(targets), losses.mean(-1), 0.0).sum()

    def constant(self, labels: np.ndarray, texts: int, classes: int) -> np.ndarray:
        """See ``TaskKind``: the classes that more than half of the texts have."""
        share = (labels > 0).mean(0) if len(labels) else np.zeros(classes)
        return np.tile((share > 0.5).astype(np.int8), (texts, 1))

    def can_learn(self, labels: np.ndarray) -> bool:
        """See ``TaskKind``."""
        return bool((labels != labels[:1]).any())

    def bag_of_words(self) -> Any:
        """See ``TaskKind``: that of ``SingleLabel`` for each class."""
        from sklearn.linear_model import SGDClassifier
        from sklearn.multiclass import OneVsRestClassifier

        each = SGDClassifier(loss="log_loss", class_weight="balanced", max_iter=50, random_state=0)
        return OneVsRestClassifier(each)

    def fitted(
        self, model: Any, vectors: Any, labels: np.ndarray, asked: Iterable[Any]
    ) -> np.ndarray:
        """See ``TaskKind``."""
        # scikit-learn takes a single class for a task of two.
        labels = labels[:, 0] if labels.shape[1] == 1 else labels
        found = super().fitted(model, vectors, labels, asked)
        return found.reshape(len(found), -1)

    def neighbours(self, count: int) -> Any:
        """See ``TaskKind``: a vote on each class."""
        from sklearn.neighbors import KNeighborsClassifier

        return KNeighborsClassifier(count, metric="cosine")
