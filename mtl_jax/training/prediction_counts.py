"""Scores from counts of predictions: of many runs at once, of each class, of calibration."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def class_counts(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Per class how often it is hit, predicted and true, float32 [3, classes].

    Args:
        logits: [n, classes].
        labels: int32 [n], negative where there is none.

    Returns:
        The counts; not a number where a logit is not finite.
    """
    classes = jnp.arange(logits.shape[-1])
    predicted = logits.argmax(-1)[:, None] == classes
    true = labels[:, None] == classes
    predicted &= labels[:, None] >= 0
    return marked_counts(predicted, true, logits)


def marked_counts(predicted: jax.Array, true: jax.Array, logits: jax.Array) -> jax.Array:
    """The same of texts and classes that are marked, bool [n, classes], where they count."""
    counts = jnp.stack([(predicted & true).sum(0), predicted.sum(0), true.sum(0)])
    # What is not a number takes part in no comparison: the counts would hide it.
    return jnp.where(jnp.isfinite(logits).all(), counts.astype(jnp.float32), jnp.nan)


def macro_f1_of_counts(counts: np.ndarray) -> np.ndarray | None:
    """Macro-F1 of many runs, float64 [...]; None where no class has a label.

    Args:
        counts: What ``class_counts`` gives of each run, [..., 3, classes].
    """
    hits, predicted, true = np.moveaxis(np.asarray(counts, np.float64), -2, 0)
    if not true.any():
        return None
    # A class that neither occurs nor is predicted does not count. What is not a number is no 0.
    counted = predicted + true != 0
    each = np.divide(2 * hits, predicted + true, out=np.zeros_like(hits), where=counted)
    return each.sum(-1) / counted.sum(-1)


def resampled_macro_f1(true: np.ndarray, guess: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Macro-F1 over the classes that are there or predicted, with each row of ``weights``.

    Args:
        true: bool [n, classes].
        guess: bool [n, classes].
        weights: float32 [r, n], how often each text counts.

    Returns:
        float64 [r].
    """
    hits, both = weights @ (true & guess), weights @ true + weights @ guess
    scores = np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0)
    return scores.sum(-1) / np.maximum((both > 0).sum(-1), 1)


def f1_of(hits: np.ndarray, both: np.ndarray) -> np.ndarray:
    """F1, ``2 hits / both``, 0 where there is nothing; float64 of the arguments' shape.

    Args:
        hits: Texts that have a class and are given it.
        both: Texts that have it, and those that are given it.
    """
    return _ratio(2 * hits, both)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(whole.shape), where=whole > 0)


def without_each(values: np.ndarray) -> np.ndarray:
    """The mean of n values with each of them left out, float64 [n]."""
    return (values.sum() - values.astype(np.float64)) / (len(values) - 1)


def by_class(
    classes: Sequence[str], found: Sequence[np.ndarray], predicted: np.ndarray
) -> dict[str, dict[str, float]]:
    """What scikit-learn's ``precision_recall_fscore_support`` gives, under the classes' names.

    Args:
        classes: K names.
        found: What it gives, four arrays [K].
        predicted: How many texts are given each class, int [K].
    """
    precision, recall, f1, support = (np.asarray(each).tolist() for each in found)
    return {
        name: {
            "precision": precision[k],
            "recall": recall[k],
            "f1": f1[k],
            "support": int(support[k]),
            "predicted": int(predicted[k]),
        }
        for k, name in enumerate(classes)
    }


def class_scores_without_each(true: np.ndarray, guess: np.ndarray) -> dict[str, np.ndarray]:
    """``precision``, ``recall`` and ``f1`` of a class with each text left out, float64 [n].

    Args:
        true: Whether each text has the class, bool [n].
        guess: Whether it is given it, bool [n].
    """
    hits = np.count_nonzero(true & guess) - (true & guess).astype(np.float64)
    having, given = (np.count_nonzero(x) - x.astype(np.float64) for x in (true, guess))
    return {
        "precision": _ratio(hits, given),
        "recall": _ratio(hits, having),
        "f1": f1_of(hits, having + given),
    }


BINS = 15
"""of confidence, of equal width, that the calibration error is measured in"""


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray) -> float | None:
    """How far confidence is from accuracy, ``Σ_b |B_b| / n · |accuracy(B_b) - confidence(B_b)|``.

    The bins are ``(b / BINS, (b + 1) / BINS]``.

    Source: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
    section 2.

    Args:
        confidence: The probability of each prediction, float [...], one at least.
        right: Whether it is right, bool [...].

    Returns:
        None where a probability is not finite.
    """
    if not np.isfinite(confidence).all():
        return None
    places, apart = _in_bins(confidence.ravel(), right.ravel())
    return float(np.abs(np.bincount(places, apart, BINS)).sum() / confidence.size)


def _in_bins(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bin of each prediction, and how far its confidence is from what it came to."""
    confidence = confidence.astype(np.float64)
    return bins_of(confidence), right - confidence


def bins_of(confidence: np.ndarray) -> np.ndarray:
    """The bin of each prediction, int64 [...]: the first has 0, too.

    Args:
        confidence: In [0, 1], float64 [...].
    """
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def calibration_error_without_each(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``expected_calibration_error`` with each text left out, float64 [n].

    Args:
        confidence: The probabilities of the m predictions of each text, float [n, m], n at least 2.
        right: Whether they are right, bool [n, m].
    """
    places, apart = _in_bins(confidence, right)
    of_text = np.zeros((len(places), BINS))
    np.add.at(of_text, (np.arange(len(places))[:, None], places), apart)
    left = np.abs(of_text.sum(0) - of_text).sum(1)
    return left / (confidence.size - confidence.shape[1])
