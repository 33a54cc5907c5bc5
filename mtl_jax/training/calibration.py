"""Whether probabilities mean what they say, and the temperature that would mend them.

Source: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.optimize
import scipy.special

from mtl_jax.training.diagnosis import TaskPredictions

BINS = 15
"""of equal width between 0 and 1, as in the source"""

# Probabilities are float32: what it rounds to 0 has no logarithm.
_LEAST = 1e-30
# Of a temperature, as of its logarithm: wider than any that means something.
_COLDEST, _HOTTEST = 0.05, 20.0


@dataclasses.dataclass(frozen=True)
class Bin:
    """The predictions whose confidence is in one bin.

    Attributes:
        low: Where the bin begins, itself left out but for 0.
        high: Where it ends.
        count: How many there are.
        confidence: Their mean confidence.
        accuracy: Which part of them is right.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def confidences(found: TaskPredictions) -> tuple[np.ndarray, np.ndarray]:
    """How sure each prediction is, float [m], and whether it is right, bool [m].

    Of a ``single_label`` task the probability of the predicted class of each labelled text; of a
    ``multi_label`` one those of all classes of all labelled texts, and whether each is there.
    """
    asked = found.only_labelled()
    if asked.probabilities is None:
        raise ValueError(f"{found.name}, a {found.kind}, has no probabilities")
    probabilities = np.asarray(asked.probabilities, np.float64)
    if asked.kind == "multi_label":
        return probabilities.ravel(), asked.labels.ravel() > 0
    chosen = np.take_along_axis(probabilities, asked.predicted[:, None].astype(np.intp), axis=1)
    return chosen[:, 0], asked.predicted == asked.labels


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[Bin]:
    """What is right of the predictions of like confidence; bins without any are left out.

    Args:
        confidence: Of m predictions, in [0, 1].
        right: Whether each is right, bool [m].
        bins: How many, of equal width.
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    numbers = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, bins - 1)
    found = []
    for number in range(bins):
        there = numbers == number
        if there.any():
            ends = float(edges[number]), float(edges[number + 1])
            means = float(confidence[there].mean()), float(right[there].mean())
            found.append(Bin(*ends, int(there.sum()), *means))
    return found


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float | None:
    """The expected calibration error (ECE): the mean distance of confidence and accuracy.

    It is taken over ``reliability``, each bin with the weight of its predictions.

    Returns:
        It, in [0, 1]; None without predictions.
    """
    if not len(confidence):
        return None
    distances = (each.count * abs(each.accuracy - each.confidence) for each in reliability(
        confidence, right, bins
    ))
    return float(sum(distances) / len(confidence))


def log_loss(found: TaskPredictions) -> float | None:
    """The mean negative log-likelihood of the labels, in nats; None where no text has one.

    Of a ``multi_label`` task the mean over the classes, too.
    """
    asked = found.only_labelled()
    if not len(asked.labels) or asked.probabilities is None:
        return None
    return float(_negative_log(asked, 1.0))


def fitted_temperature(validation: TaskPredictions) -> float | None:
    """The temperature with which the log-loss is the least: above 1 where a run is too sure.

    Args:
        validation: The predictions to fit it on: never those that it is judged on.

    Returns:
        What logits are to be divided by; None where no text has a label.
    """
    asked = validation.only_labelled()
    if not len(asked.labels) or asked.probabilities is None:
        return None
    limits = np.log(_COLDEST), np.log(_HOTTEST)
    found = scipy.optimize.minimize_scalar(
        lambda log: _negative_log(asked, float(np.exp(log))), bounds=limits, method="bounded"
    )
    return float(np.exp(found.x))


def at_temperature(found: TaskPredictions, temperature: float) -> TaskPredictions:
    """The predictions with logits that are divided by a temperature; the classes stay the same."""
    logits = _logits(found) / temperature
    if found.kind == "multi_label":
        probabilities = scipy.special.expit(logits)
    else:
        probabilities = scipy.special.softmax(logits, axis=-1)
    return dataclasses.replace(found, probabilities=probabilities)


def _logits(found: TaskPredictions) -> np.ndarray:
    """Logits that give the probabilities: of a softmax all that differ by a constant do."""
    if found.probabilities is None:
        raise ValueError(f"{found.name}, a {found.kind}, has no probabilities")
    probabilities = np.asarray(found.probabilities, np.float64)
    logs = np.log(np.maximum(probabilities, _LEAST))
    if found.kind == "multi_label":
        # float32 has no number between 1 and 1 - 6e-8.
        return logs - np.log(np.maximum(1 - probabilities, 2.0**-25))
    return logs


def _negative_log(asked: TaskPredictions, temperature: float) -> float:
    logits = _logits(asked) / temperature
    if asked.kind == "multi_label":
        return float(-np.mean(scipy.special.log_expit(np.where(asked.labels > 0, logits, -logits))))
    logs = scipy.special.log_softmax(logits, axis=-1)
    return float(-np.mean(np.take_along_axis(logs, asked.labels[:, None].astype(np.intp), axis=1)))
