"""Intervals of one number over test texts alone, such as a score of an ensemble."""

from __future__ import annotations

import math

import scipy.stats

from mtl_jax.studies.stats.intervals import Interval
from mtl_jax.studies.stats.measured import Measured


def text_interval(score: float, confidence: float = 0.95) -> Interval:
    """A score with its limits over other texts, for the seeds that it is of.

    With contributions u of the texts its standard error is ``sqrt(Σ u²)``, see ``measured``; the
    limits are normal.

    Args:
        score: A score or a difference of scores; of a plain number there are no limits.
        confidence: Coverage of the interval, in (0, 1).
    """
    if not isinstance(score, Measured):
        return Interval(score, None, None, 1)
    error = math.sqrt(sum(float(each @ each) for each in score.parts.values()))
    half = float(scipy.stats.norm.isf((1 - confidence) / 2)) * error
    return Interval(float(score), float(score) - half, float(score) + half, 1, over_texts=True)
