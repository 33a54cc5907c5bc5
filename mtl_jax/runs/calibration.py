"""Whether probabilities mean what they say, and the temperature that would mend them.

Source: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.optimize
import scipy.special

from mtl_jax.runs.diagnosis import only_labelled
from mtl_jax.runs.predictions import TaskPredictions
from mtl_jax.training.kinds.registry import KINDS
from mtl_jax.training.prediction_counts import BINS, bins_of

# Probabilities are float32: what it rounds to 0 has no logarithm.
_LEAST = 1e-30
# Of a temperature, as of its logarithm: wider than any that means something.
_COLDEST, _HOTTEST = 0.05, 20.0


@dataclasses.dataclass(frozen=True)
class Bin:
    """The predictions whose confidence is in one of ``BINS`` bins of equal width.

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


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How calibrated a task's predictions are, and would be with a temperature.

    Attributes:
        ece: The expected calibration error, in [0, 1].
        log_loss: The mean negative log-likelihood of the labels, in nats.
        temperature: Fitted on validation; None without labels there, as are those below.
        ece_with_temperature: With logits divided by it.
        log_loss_with_temperature: Likewise.
    """

    ece: float | None
    log_loss: float | None
    temperature: float | None = None
    ece_with_temperature: float | None = None
    log_loss_with_temperature: float | None = None


def calibrated(found: TaskPredictions, validation: TaskPredictions | None) -> Calibration:
    """The calibration of predictions, and the temperature that mends it.

    Args:
        found: The predictions.
        validation: The same run's of validation, on which the temperature is fitted.
    """
    plain = Calibration(calibration_error(found), log_loss(found))
    temperature = None if validation is None else fitted_temperature(validation)
    if temperature is None:
        return plain
    mended = at_temperature(found, temperature)
    return dataclasses.replace(
        plain,
        temperature=temperature,
        ece_with_temperature=calibration_error(mended),
        log_loss_with_temperature=log_loss(mended),
    )


def confidences(found: TaskPredictions) -> tuple[np.ndarray, np.ndarray]:
    """How sure each prediction is, float [m], and whether it is right, bool [m].

    Of a ``single_label`` task the probability of the predicted class of each labelled text; of a
    ``multi_label`` one, for all classes of all labelled texts, that of what is predicted: that the
    text has the class, or that it has not.
    """
    asked = only_labelled(found)
    if asked.probabilities is None:
        raise ValueError(f"a {found.kind} has no probabilities")
    probabilities = np.asarray(asked.probabilities, np.float64)
    if asked.kind == "multi_label":
        marked = asked.predicted > 0
        sure = np.where(marked, probabilities, 1 - probabilities)
        return sure.ravel(), (marked == (asked.gold > 0)).ravel()
    chosen = np.take_along_axis(probabilities, asked.predicted[:, None].astype(np.intp), axis=1)
    return chosen[:, 0], asked.predicted == asked.gold


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[Bin]:
    """What is right of the predictions of like confidence; bins without any are left out.

    Args:
        confidence: Of m predictions, in [0, 1].
        right: Whether each is right, bool [m].
    """
    edges = np.linspace(0.0, 1.0, BINS + 1)
    numbers = bins_of(confidence)
    found = []
    for number in range(BINS):
        there = numbers == number
        if there.any():
            ends = float(edges[number]), float(edges[number + 1])
            means = float(confidence[there].mean()), float(right[there].mean())
            found.append(Bin(*ends, int(there.sum()), *means))
    return found


def calibration_error(found: TaskPredictions) -> float | None:
    """The expected calibration error (ECE) in [0, 1]; see ``TaskKind.calibration_error``."""
    asked = only_labelled(found)
    if not len(asked.gold) or asked.probabilities is None:
        return None
    return KINDS[asked.kind].calibration_error(asked.gold, asked.probabilities)


def log_loss(found: TaskPredictions) -> float | None:
    """The mean negative log-likelihood of the labels, in nats; None where no text has one.

    Of a ``multi_label`` task the mean over the classes, too.
    """
    asked = only_labelled(found)
    if not len(asked.gold) or asked.probabilities is None:
        return None
    return float(_negative_log(asked, 1.0))


def fitted_temperature(validation: TaskPredictions) -> float | None:
    """The temperature with which the log-loss is the least: above 1 where a run is too sure.

    Args:
        validation: The predictions to fit it on: never those that it is judged on.

    Returns:
        What logits are to be divided by; None where no text has a label.
    """
    asked = only_labelled(validation)
    if not len(asked.gold) or asked.probabilities is None:
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
        raise ValueError(f"a {found.kind} has no probabilities")
    probabilities = np.asarray(found.probabilities, np.float64)
    logs = np.log(np.maximum(probabilities, _LEAST))
    if found.kind == "multi_label":
        # float32 has no number between 1 and 1 - 6e-8.
        return logs - np.log(np.maximum(1 - probabilities, 2.0**-25))
    return logs


def _negative_log(asked: TaskPredictions, temperature: float) -> float:
    logits = _logits(asked) / temperature
    if asked.kind == "multi_label":
        return float(-np.mean(scipy.special.log_expit(np.where(asked.gold > 0, logits, -logits))))
    logs = scipy.special.log_softmax(logits, axis=-1)
    return float(-np.mean(np.take_along_axis(logs, asked.gold[:, None].astype(np.intp), axis=1)))
