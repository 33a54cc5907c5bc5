"""What is different from one kind of task to another, as one interface."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.config.tasks import SCORES, Kind, Task
from mtl_jax.models.multitask import Loss
from mtl_jax.training.prediction_counts import expected_calibration_error

Metrics = dict[str, Any]

SMALLEST = float(np.finfo(np.float32).tiny)
"""What a probability of 0 counts as where its logarithm is taken."""


class TaskKind(abc.ABC):
    """A kind of task: its loss, its predictions, and what these are measured by.

    Labels are arrays as ``data.kinds`` tells, predictions likewise: numbers of classes, int [n];
    1 where a text has a class, int8 [n, classes]; or values in the unit of the labels, float [n].

    Attributes:
        name: As of ``Task``.
        metrics_in_words: ``(metric, name for a reader)`` of the most telling, in their order.
        text_model: What ``bag_of_words`` is called.
    """

    name: ClassVar[Kind]
    metrics_in_words: ClassVar[tuple[tuple[str, str], ...]]
    text_model: ClassVar[str]

    @property
    def score(self) -> str:
        """The metric that a task is judged by."""
        return SCORES[self.name]

    # Training.

    @abc.abstractmethod
    def loss(self, logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The loss where nothing else is asked for.

        Args:
            logits: float32 [..., outputs].
            labels: Those of the texts, [...], or [..., classes] of several labels.

        Returns:
            The sum of the losses and the number of labels, float32 scalars.
        """

    def make_loss(self, task: Task, weights: tuple[float, ...] | None, smoothing: float) -> Loss:
        """The loss with weights of classes, or smoothed labels.

        Args:
            task: The task.
            weights: One for each class.
            smoothing: From 0 to below 1.

        Raises:
            UserError: The kind has no classes.
        """
        del task, weights, smoothing
        return self.loss

    def balanced(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """Weights with which all classes count alike, float64 [classes]."""
        del labels
        return np.ones(classes)

    def evened(self, labels: np.ndarray, classes: int) -> np.ndarray | None:
        """Weights with which rare classes count for more, float64 [classes].

        Args:
            labels: Those of the training texts.
            classes: How many classes there are.

        Returns:
            Over the labels they are 1 in the mean. None where classes are not imbalanced, or of a
            kind that has no such weights.
        """
        del labels, classes
        return None

    # Predictions.

    @abc.abstractmethod
    def predicted(self, logits: np.ndarray, mean: float = 0.0, deviation: float = 1.0) -> Any:
        """The predictions of n texts, from logits, float [n, outputs].

        Args:
            logits: The logits.
            mean: As of ``Task``.
            deviation: As of ``Task``.
        """

    def probabilities(self, logits: np.ndarray) -> np.ndarray | None:
        """Those of the classes, float32 [n, classes]; None of a kind without classes."""
        del logits
        return None

    def logits(self, probabilities: np.ndarray) -> np.ndarray:
        """The inverse of ``probabilities``: logits that give these, float32 [n, classes].

        Args:
            probabilities: Of the classes, float [n, classes]; 0 and 1 count as almost that.

        Raises:
            ValueError: The kind has no classes.
        """
        del probabilities
        raise ValueError(f"a {self.name} has no probabilities")

    @abc.abstractmethod
    def answers(self, logits: np.ndarray, task: Task) -> list[dict[str, Any]]:
        """What ``predict`` writes of each text, as JSON."""

    @abc.abstractmethod
    def named(self, values: np.ndarray, classes: Sequence[str]) -> list[Any]:
        """Labels or predictions as a reader has them; None where there is none.

        Args:
            values: n of them.
            classes: The names of the classes.
        """

    # Measurements.

    @abc.abstractmethod
    def metrics(self, labels: np.ndarray, predicted: np.ndarray, classes: int) -> Metrics:
        """The metrics over the texts that have a label, as JSON, with ``examples``, their number.

        What is not defined, as where no text has a label, is None.
        """

    def weighted_f1(self, labels: np.ndarray, predicted: np.ndarray) -> float | None:
        """Weighted F1 of labelled texts, for scores by source; None of a kind without classes."""
        del labels, predicted

    def per_class(
        self, labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]
    ) -> dict[str, dict[str, float]]:
        """Of each class ``precision``, ``recall``, ``f1``, ``support`` and ``predicted``.

        ``support`` are the texts that have it, ``predicted`` those that are given it.

        Args:
            labels: Of labelled texts.
            predicted: Their predictions.
            classes: The names of the classes; a kind without any gives nothing.
        """
        del labels, predicted, classes
        return {}

    def confidences(
        self, labels: np.ndarray, probabilities: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """How sure each prediction of labelled texts is, and whether it is right.

        Args:
            labels: Of n labelled texts.
            probabilities: Of the classes, float32 [n, classes].

        Returns:
            Float and bool [n, m], of m predictions for each text; None of a kind without classes.
        """
        del labels, probabilities

    def calibration_error(self, labels: np.ndarray, probabilities: np.ndarray) -> float | None:
        """The expected calibration error; None of a kind without classes."""
        found = self.confidences(labels, probabilities)
        return None if found is None else expected_calibration_error(*found)

    def in_words(self, metrics: Mapping[str, Any]) -> str:
        """The metrics of a task for a reader."""
        return ", ".join(
            f"{name} {'-' if (value := metrics[key]) is None else f'{value:.3f}'}"
            for key, name in self.metrics_in_words
        )

    # The score of many runs at once, and of many draws of the texts.

    @abc.abstractmethod
    def counts(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """What the score is made of, on the device; NaN where a logit is not finite.

        Args:
            logits: float32 [n, outputs].
            labels: As of ``loss``.
        """

    @abc.abstractmethod
    def score_of_counts(self, counts: np.ndarray) -> np.ndarray | None:
        """The ``score`` of many runs, float64 [...]; None where it is not defined.

        Args:
            counts: What ``counts`` gives of each, [..., a, b].
        """

    @abc.abstractmethod
    def resampled(
        self, labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        """The ``score`` with each row of weights, float64 [r].

        Args:
            labels: Those of n texts.
            predicted: Their predictions.
            weights: float32 [r, n], how often each text counts.
        """

    @abc.abstractmethod
    def left_out(
        self, metric: str, labels: np.ndarray, predicted: np.ndarray, classes: int
    ) -> np.ndarray | None:
        """A metric with each text left out, float64 [n]; None of one that this is not known of.

        A class that this leaves without a text or a prediction counts as before.

        Args:
            metric: One of ``metrics``, or ``weighted_f1``.
            labels: Those of n labelled texts, two at least.
            predicted: Their predictions.
            classes: Number of classes.
        """

    # How far predictions drift, and the term of the loss that holds them.

    @abc.abstractmethod
    def divergence(self, before: np.ndarray, now: np.ndarray) -> float:
        """Mean over texts of how far predictions are from what they were, in nats; 0 without texts.

        Args:
            before: Logits, float [n, outputs].
            now: Logits of the same texts.
        """

    def apart(self, first: jax.Array, second: jax.Array) -> jax.Array:
        """How far two predictions of texts are apart, as a loss: float32 [...]; 0 without classes.

        The mean of the KL divergences of either from the other, in nats.

        Args:
            first: Logits, float32 [..., outputs].
            second: Others of the same texts.
        """
        del second
        return jnp.zeros(first.shape[:-1])

    @abc.abstractmethod
    def targets(self, logits: np.ndarray) -> np.ndarray:
        """What ``hold`` holds the predictions at, float [n, width], 0 where there is no text."""

    @abc.abstractmethod
    def are_there(self, targets: jax.Array) -> jax.Array:
        """Where there is a text: bool [...] of targets [..., width]."""

    @abc.abstractmethod
    def hold(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """``divergence``, summed over the texts, as a loss."""

    # What needs no encoder.

    @abc.abstractmethod
    def constant(self, labels: np.ndarray, texts: int, classes: int) -> np.ndarray:
        """The best prediction that is the same for all texts.

        Args:
            labels: Of labelled training texts; maybe none.
            texts: How many texts are to be predicted.
            classes: Number of classes.
        """

    @abc.abstractmethod
    def can_learn(self, labels: np.ndarray) -> bool:
        """Whether the labels of these texts differ."""

    @abc.abstractmethod
    def bag_of_words(self) -> Any:
        """A scikit-learn estimator for TF-IDF vectors."""

    def fitted(
        self, model: Any, vectors: Any, labels: np.ndarray, asked: Iterable[Any]
    ) -> np.ndarray:
        """Fits ``bag_of_words`` or ``neighbours``, and predicts.

        Args:
            model: The estimator.
            vectors: n vectors, as scikit-learn takes them.
            labels: Their labels; none is missing.
            asked: The vectors to predict for, some at a time.
        """
        model.fit(vectors, labels)
        return np.concatenate([model.predict(some) for some in asked])

    @abc.abstractmethod
    def neighbours(self, count: int) -> Any:
        """A scikit-learn estimator that asks so many nearest neighbours."""
