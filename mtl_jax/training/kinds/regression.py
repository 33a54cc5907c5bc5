"""Each text has a value: squared errors on standardised labels, predictions in their unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from mtl_jax.config.tasks import Task
from mtl_jax.core.errors import UserError
from mtl_jax.data.kinds import has_label
from mtl_jax.models.multitask import Loss
from mtl_jax.training.kinds.base import Metrics, TaskKind
from mtl_jax.training.prediction_counts import without_each

_NAMES = ("r2", "rmse", "mae", "pearson", "spearman")


class Regression(TaskKind):
    """Each text has a value.

    The model is trained on labels less the mean of those to train on, in units of their standard
    deviation, and its logits are in these: the loss does not depend on the unit of the labels.
    """

    name = "regression"
    metrics_in_words = (("r2", "R2"), ("rmse", "RMSE"), ("spearman", "Spearman"))
    text_model = "ridge regression"

    def loss(self, logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See ``TaskKind``: the squared error, of standardised labels."""
        present = has_label(labels)
        errors = logits[..., 0] - jnp.where(present, labels, 0.0)
        return jnp.where(present, errors**2, 0.0).sum(), present.sum().astype(jnp.float32)

    def make_loss(self, task: Task, weights: tuple[float, ...] | None, smoothing: float) -> Loss:
        """See ``TaskKind``."""
        del weights, smoothing
        raise UserError(
            f"{task.name} is a regression and has no classes: leave it out of --class-weights and "
            "--label-smoothing"
        )

    def predicted(self, logits: np.ndarray, mean: float = 0.0, deviation: float = 1.0) -> Any:
        """See ``TaskKind``."""
        return logits[:, 0].astype(np.float64) * deviation + mean

    def answers(self, logits: np.ndarray, task: Task) -> list[dict[str, Any]]:
        """See ``TaskKind``: the value."""
        values = self.predicted(logits, task.mean, task.deviation)
        return [{"value": float(f"{value:.7g}")} for value in values.tolist()]

    def named(self, values: np.ndarray, classes: Sequence[str]) -> list[Any]:
        """See ``TaskKind``: the values."""
        del classes
        return [value if value == value else None for value in values.tolist()]

    def metrics(self, labels: np.ndarray, predicted: np.ndarray, classes: int) -> Metrics:
        """See ``TaskKind``: ``r2``, ``rmse``, ``mae``, ``pearson`` and ``spearman``.

        R2 is not defined where labels do not vary, a correlation where labels or predictions do
        not, and nothing where a prediction is not finite.
        """
        from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

        del classes
        present = has_label(labels)
        result: Metrics = {**dict.fromkeys(_NAMES), "examples": int(present.sum())}
        true, guess = labels[present].astype(np.float64), predicted[present].astype(np.float64)
        if not len(true) or not np.isfinite(guess).all():
            return result
        result["rmse"] = float(root_mean_squared_error(true, guess))
        result["mae"] = float(mean_absolute_error(true, guess))
        if np.ptp(true) > 0:
            result["r2"] = float(r2_score(true, guess))
            if _varies(guess):
                correlations: Any = scipy.stats
                result["pearson"] = float(correlations.pearsonr(true, guess).statistic)
                result["spearman"] = float(correlations.spearmanr(true, guess).statistic)
        return result

    def counts(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """See ``TaskKind``: sums of squares of the errors and of the labels, float32 [1, 2]."""
        present = has_label(labels)
        there = jnp.where(present, labels, 0.0)
        mean = there.sum() / jnp.maximum(present.sum(), 1)
        sums = [
            jnp.where(present, each**2, 0.0).sum() for each in (logits[:, 0] - there, there - mean)
        ]
        return jnp.where(jnp.isfinite(logits).all(), jnp.stack(sums), jnp.nan)[None]

    def score_of_counts(self, counts: np.ndarray) -> np.ndarray | None:
        """See ``TaskKind``: R2."""
        errors, variation = np.moveaxis(np.asarray(counts, np.float64)[..., 0, :], -1, 0)
        if not (variation > 0).any() and not np.isnan(variation).any():
            return None
        return 1 - errors / variation

    def resampled(
        self, labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        """See ``TaskKind``: R2, 0 where the labels of a draw do not vary."""
        weights = weights.astype(np.float64)
        values, errors = labels - labels.mean(), labels - predicted
        total = np.maximum(weights.sum(-1), 1)
        variation = weights @ values**2 - (weights @ values) ** 2 / total
        there = variation > 1e-12 * np.maximum(weights @ values**2, 1e-300)
        part = np.divide(weights @ errors**2, variation, out=np.ones(len(weights)), where=there)
        return 1 - part

    def left_out(
        self, metric: str, labels: np.ndarray, predicted: np.ndarray, classes: int
    ) -> np.ndarray | None:
        """See ``TaskKind``: of all but the correlations."""
        del classes
        n, errors = len(labels), labels - predicted
        squares = (errors**2).sum() - errors**2
        if metric == "mae":
            return without_each(np.abs(errors))
        if metric == "rmse":
            return np.sqrt(np.maximum(squares, 0) / (n - 1))
        if metric != "r2":
            return None
        around = (labels - labels.mean()) ** 2
        # What is left varies about a mean of its own.
        variation = around.sum() - around * n / (n - 1)
        there = variation > 1e-12 * max(around.sum(), 1e-300)
        return 1 - np.divide(squares, variation, out=np.ones(n), where=there)

    def divergence(self, before: np.ndarray, now: np.ndarray) -> float:
        """See ``TaskKind``: half the squared difference of standardised predictions.

        That is the KL of two normal distributions about them of the labels' deviation.
        """
        if not len(before):
            return 0.0
        return float(np.mean((before.astype(np.float64) - now) ** 2 / 2))

    def targets(self, logits: np.ndarray) -> np.ndarray:
        """See ``TaskKind``: the standardised predictions, and a 1 behind each."""
        return np.concatenate([logits, np.ones((len(logits), 1), np.float32)], axis=1)

    def are_there(self, targets: jax.Array) -> jax.Array:
        """See ``TaskKind``."""
        return targets[..., -1] > 0

    def hold(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """See ``TaskKind``."""
        losses = (logits[..., 0] - targets[..., 0]) ** 2 / 2
        return jnp.where(self.are_there(targets), losses, 0.0).sum()

    def constant(self, labels: np.ndarray, texts: int, classes: int) -> np.ndarray:
        """See ``TaskKind``: the mean."""
        del classes
        return np.full(texts, labels.mean() if len(labels) else 0.0)

    def can_learn(self, labels: np.ndarray) -> bool:
        """See ``TaskKind``."""
        return len(labels) > 1 and bool(np.ptp(labels) > 0)

    def bag_of_words(self) -> Any:
        """See ``TaskKind``: ridge regression, its penalty scikit-learn's default."""
        from sklearn.linear_model import Ridge

        return Ridge(solver="sparse_cg")

    def neighbours(self, count: int) -> Any:
        """See ``TaskKind``: their mean."""
        from sklearn.neighbors import KNeighborsRegressor

        return KNeighborsRegressor(count, metric="cosine")


def _varies(values: np.ndarray) -> bool:
    """Whether a correlation with them means anything: more than the rounding of float32."""
    return bool(np.ptp(values) > 1e-6 * max(float(np.abs(values).max()), 1e-30))
