"""Macro-F1 of many runs at once, from counts made on the device."""

from __future__ import annotations

from collections.abc import Mapping

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
    counts = jnp.stack([(predicted & true).sum(0), predicted.sum(0), true.sum(0)])
    # What is not a number takes part in no comparison: the counts would hide it.
    return jnp.where(jnp.isfinite(logits).all(), counts.astype(jnp.float32), jnp.nan)


def score_of_counts(counts: Mapping[str, np.ndarray]) -> np.ndarray:
    """``metrics.mean_macro_f1`` of many runs, float64 [...].

    Args:
        counts: Per task what ``class_counts`` gives of each run, [..., 3, classes].
    """
    scores = []
    for of_task in counts.values():
        hits, predicted, true = np.moveaxis(np.asarray(of_task, np.float64), -2, 0)
        if true.any():
            # A class that neither occurs nor is predicted does not count. What is not a number
            # is no 0.
            counted = predicted + true != 0
            each = np.divide(2 * hits, predicted + true, out=np.zeros_like(hits), where=counted)
            scores.append(each.sum(-1) / counted.sum(-1))
    return np.mean(scores, axis=0) if scores else np.zeros(next(iter(counts.values())).shape[:-2])
