"""Each text has one class: softmax, accuracy, macro-F1."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from mtl_jax.config.tasks import Task
from mtl_jax.data.checks import UNEVEN
from mtl_jax.models.multitask import Loss
from mtl_jax.training.kinds.base import SMALLEST, Metrics, TaskKind
from mtl_jax.training.losses import distillation, masked_cross_entropy
from mtl_jax.training.prediction_counts import (
    by_class,
    class_counts,
    f1_of,
    macro_f1_of_counts,
    resampled_macro_f1,
    without_each,
)

# The precision of a class that is never predicted; scikit-learn's annotations know only "warn".
UNDEFINED: Any = 0


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy with weights of classes and smoothed labels.

    With smoothing e, a text of class y has 1 - e of that, and e / K of each of K classes
    (Szegedy et al. 2016, arXiv:1512.00567, section 7); each class's part of the loss is multiplied
    by its weight, as PyTorch's ``CrossEntropyLoss`` has it, but the sum is divided by the number
    of labels, and not by the sum of their weights.

    Attributes:
        weights: One for each class; None for 1.
        smoothing: e.
    """

    weights: tuple[float, ...] | None = None
    smoothing: float = 0.0

    def __call__(
        self, logits: jax.Array, labels: jax.Array, soft: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """See ``TaskKind.loss``; a text's distribution takes the place of its label.

        Args:
            logits: See there.
            labels: See there.
            soft: Distributions over the classes, float32 [..., classes]; all 0 where there is none.
        """
        present, classes = labels >= 0, logits.shape[-1]
        marked = jax.nn.one_hot(jnp.where(present, labels, 0), classes)
        if soft is not None:
            marked = jnp.where(soft.sum(-1, keepdims=True) > 0, soft, marked)
        targets = (1 - self.smoothing) * marked + self.smoothing / classes
        if self.weights is not None:
            targets = targets * jnp.asarray(self.weights, jnp.float32)
        losses = -(targets * jax.nn.log_softmax(logits)).sum(-1)
        return jnp.where(present, losses, 0.0).sum(), present.sum().astype(jnp.float32)


class SingleLabel(TaskKind):
    """Each text has one class."""

    name = "single_label"
    metrics_in_words = (("accuracy", "accuracy"), ("macro_f1", "macro-F1"))
    text_model = "logistic regression"

    def loss(self, logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See ``TaskKind``: softmax cross-entropy, in nats."""
        return masked_cross_entropy(logits, labels)

    def make_loss(self, task: Task, weights: tuple[float, ...] | None, smoothing: float) -> Loss:
        """See ``TaskKind``."""
        del task
        return CrossEntropy(weights, smoothing)

    def balanced(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """See ``TaskKind``: n / (K n_k) for n_k of n labels, as scikit-learn has it.

        Over the labels they are 1 in the mean. A class without a label has the weight 1.
        """
        there = labels[labels >= 0]
        counts = np.bincount(there, minlength=classes)
        occurring = np.count_nonzero(counts)
        return np.where(counts > 0, len(there) / (occurring * np.maximum(counts, 1)), 1.0)

    def evened(self, labels: np.ndarray, classes: int) -> np.ndarray | None:
        """See ``TaskKind``: as the cube root of 1 / n_k of n_k labels.

        That is a third of the way to ``balanced``, as exponents go. Macro-F1, by which models are
        chosen, and F1 weighted by class gain by it; the accuracy hardly changes.
        """
        there = labels[labels >= 0]
        counts = np.bincount(there, minlength=classes).astype(np.float64)
        occurring = counts[counts > 0]
        if not len(occurring) or occurring.max() < UNEVEN * occurring.min():
            return None
        weights = np.maximum(counts, 1) ** (-1 / 3)
        weights *= len(there) / (weights @ counts)
        return np.where(counts > 0, weights, 1.0)

    def predicted(self, logits: np.ndarray, mean: float = 0.0, deviation: float = 1.0) -> Any:
        """See ``TaskKind``: the most probable class."""
        del mean, deviation
        return logits.argmax(-1)

    def probabilities(self, logits: np.ndarray) -> np.ndarray | None:
        """See ``TaskKind``."""
        # On the host: a program for each number of texts would have to be compiled.
        # Of logits that are not finite there are none, which who measures them tells.
        with np.errstate(invalid="ignore"):
            return scipy.special.softmax(logits, axis=-1)

    def logits(self, probabilities: np.ndarray) -> np.ndarray:
        """See ``TaskKind``: their logarithms."""
        return np.log(np.maximum(probabilities, SMALLEST)).astype(np.float32)

    def answers(self, logits: np.ndarray, task: Task) -> list[dict[str, Any]]:
        """See ``TaskKind``: the label with its probability."""
        found = []
        for of_text in scipy.special.softmax(logits, axis=-1):
            label = int(of_text.argmax())
            probability = round(float(of_text[label]), 6)
            found.append({"label": task.classes[label], "probability": probability})
        return found

    def named(self, values: np.ndarray, classes: Sequence[str]) -> list[Any]:
        """See ``TaskKind``: names of classes."""
        return [classes[value] if value >= 0 else None for value in values.tolist()]

    def metrics(self, labels: np.ndarray, predicted: np.ndarray, classes: int) -> Metrics:
        """See ``TaskKind``: ``accuracy`` and ``macro_f1``.

        Macro-F1 is the mean over the classes that occur or are predicted, as scikit-learn's
        ``f1_score(labels, predicted, average="macro")`` is: one that does neither does not count.
        """
        present = labels >= 0
        if not present.any():
            return {"accuracy": None, "macro_f1": None, "examples": 0}
        from sklearn.metrics import accuracy_score, f1_score

        true, guess = labels[present], predicted[present]
        counts = np.bincount(true, minlength=classes) + np.bincount(guess, minlength=classes)
        there = np.flatnonzero(counts)
        return {
            "accuracy": float(accuracy_score(true, guess)),
            "macro_f1": float(
                f1_score(true, guess, labels=there, average="macro", zero_division=UNDEFINED)
            ),
            "examples": int(present.sum()),
        }

    def weighted_f1(self, labels: np.ndarray, predicted: np.ndarray) -> float | None:
        """See ``TaskKind``."""
        from sklearn.metrics import f1_score

        return float(f1_score(labels, predicted, average="weighted", zero_division=UNDEFINED))

    def per_class(
        self, labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]
    ) -> dict[str, dict[str, float]]:
        """See ``TaskKind``."""
        numbers = np.arange(len(classes))
        from sklearn.metrics import precision_recall_fscore_support

        found: Any = precision_recall_fscore_support(
            labels, predicted, labels=numbers, zero_division=UNDEFINED
        )
        return by_class(classes, found, np.bincount(predicted, minlength=len(classes)))

    def confidences(
        self, labels: np.ndarray, probabilities: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """See ``TaskKind``: of the class that is predicted."""
        right = probabilities.argmax(-1) == labels
        return probabilities.max(-1)[:, None], right[:, None]

    def counts(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """See ``TaskKind``."""
        return class_counts(logits, labels)

    def score_of_counts(self, counts: np.ndarray) -> np.ndarray | None:
        """See ``TaskKind``."""
        return macro_f1_of_counts(counts)

    def resampled(
        self, labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        """See ``TaskKind``."""
        classes = np.arange(max(labels.max(), predicted.max()) + 1)
        true, guess = (each[:, None] == classes for each in (labels, predicted))
        return resampled_macro_f1(true, guess, weights)

    def left_out(
        self, metric: str, labels: np.ndarray, predicted: np.ndarray, classes: int
    ) -> np.ndarray | None:
        """See ``TaskKind``: of the accuracy and the F1 scores."""
        right = labels == predicted
        if metric == "accuracy":
            return without_each(right)
        if metric not in ("macro_f1", "weighted_f1"):
            return None
        hits = np.bincount(labels[right], minlength=classes).astype(np.float64)
        true, guess = (np.bincount(x, minlength=classes) for x in (labels, predicted))
        both = (true + guess).astype(np.float64)
        before = f1_of(hits, both)
        # A text counts for the class that it has and for that which it is given.
        of_label = f1_of(hits[labels] - right, both[labels] - 1 - right)
        of_guess = np.where(right, before[predicted], f1_of(hits[predicted], both[predicted] - 1))
        if metric == "macro_f1":
            change = of_label - before[labels] + of_guess - before[predicted]
            return (before.sum() + change) / np.count_nonzero(both)
        change = (true[labels] - 1) * of_label - true[labels] * before[labels]
        change += true[predicted] * (of_guess - before[predicted])
        return (true @ before + change) / (len(labels) - 1)

    def divergence(self, before: np.ndarray, now: np.ndarray) -> float:
        """See ``TaskKind``: KL(before || now)."""
        if not len(before):
            return 0.0
        old, new = (scipy.special.log_softmax(x.astype(np.float64), axis=-1) for x in (before, now))
        return float(np.mean(np.sum(np.exp(old) * (old - new), axis=-1)))

    def apart(self, first: jax.Array, second: jax.Array) -> jax.Array:
        """See ``TaskKind``."""
        p, q = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
        # KL(p || q) + KL(q || p), whose entropies come together.
        return ((jnp.exp(p) - jnp.exp(q)) * (p - q)).sum(-1) / 2

    def targets(self, logits: np.ndarray) -> np.ndarray:
        """See ``TaskKind``: probabilities."""
        return scipy.special.softmax(logits, axis=-1)

    def are_there(self, targets: jax.Array) -> jax.Array:
        """See ``TaskKind``."""
        return targets.sum(-1) > 0.5

    def hold(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """See ``TaskKind``."""
        return distillation(logits, targets)

    def constant(self, labels: np.ndarray, texts: int, classes: int) -> np.ndarray:
        """See ``TaskKind``: the commonest class."""
        counts = np.bincount(labels, minlength=classes)
        return np.full(texts, counts.argmax(), np.int32)

    def can_learn(self, labels: np.ndarray) -> bool:
        """See ``TaskKind``."""
        return len(np.unique(labels)) > 1

    def bag_of_words(self) -> Any:
        """See ``TaskKind``: logistic regression.

        Classes count alike, for macro-F1 is what runs are chosen by. It is fitted by stochastic
        gradient descent, in a second where other solvers take a minute.
        """
        from sklearn.linear_model import SGDClassifier

        return SGDClassifier(loss="log_loss", class_weight="balanced", max_iter=50, random_state=0)

    def neighbours(self, count: int) -> Any:
        """See ``TaskKind``: a vote."""
        from sklearn.neighbors import KNeighborsClassifier

        return KNeighborsClassifier(count, metric="cosine")
