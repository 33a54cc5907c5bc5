"""Intervals over seeds and test texts together.

All seeds of a study are measured on the same test texts. What their scores have in common by the
draw of these texts is in no difference between seeds, so that an interval over seeds alone is too
narrow for any other texts: of arms that do not differ, it finds differences in a third of studies.

The variance of a mean over S seeds on N texts has three parts: what seeds do whatever the texts
are, what texts do whatever the seed is, and what a seed does with a text. The first and third are
in the variance s² between the seeds' scores; the second and third in the variance v over draws of
texts of the seeds' mean. The third, w, which both have, is that over draws of a seed's distance
from the mean. So

    SE² = s² / S + v - w / S

with ``s² / S`` known from S - 1 degrees of freedom, the rest from n - 1, and those of the sum after
Satterthwaite; n are the texts of the rarest class, on which macro-F1 leans. Texts are drawn by the
Bayesian bootstrap, which leaves no class out, and whose variance is that of a sample of n times
``(n - 1) / (n + 1)``. A bootstrap of
seeds, too, would be too narrow by ``sqrt((S - 1) / S)`` and by the normal quantile it stands for,
at the 4 to 10 seeds of a study; a mixed model of the texts' answers would need one for each metric,
where this takes any that weights of texts can be given to.

Sources: Satterthwaite, "An Approximate Distribution of Estimates of Variance Components",
Biometrics Bulletin 2(6), 1946; Rubin, "The Bayesian Bootstrap", Annals of Statistics 9(1), 1981;
the crossed design of raters and cases: Gallas, Bandos, Samuelson & Wagner, "A Framework for
Random-Effects ROC Analysis", Communications in Statistics 38(15), 2009.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
import scipy.stats

from mtl_jax.training.prediction_counts import resampled_macro_f1

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

DRAWS = 1000
"""of test texts; the standard error of v is then about 4.5 % of it"""


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the seeds of one arm have predicted for one task of the same texts.

    Attributes:
        gold: int [texts], -1 where a text has no label.
        predicted: int [seeds, texts].
        classes: How many classes there are.
    """

    gold: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    classes: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds, or over paired differences, and how sure it is.

    Attributes:
        mean: The mean.
        error: Its standard error over seeds and texts.
        freedom: Degrees of freedom of that.
        over_seeds: The standard error that other seeds alone would leave, ``s / sqrt(S)``.
        over_texts: The one that other texts alone would, ``sqrt(v)``.
    """

    mean: float
    error: float
    freedom: float
    over_seeds: float
    over_texts: float

    def limits(self, confidence: float = 0.95) -> tuple[float, float]:
        """Of the t interval."""
        half = float(scipy.stats.t.ppf((1 + confidence) / 2, self.freedom)) * self.error
        return self.mean - half, self.mean + half

    @property
    def p_value(self) -> float:
        """Two-sided, of the hypothesis that the mean is 0."""
        if self.error == 0:
            return float(self.mean == 0)
        return float(2 * scipy.stats.t.sf(abs(self.mean) / self.error, self.freedom))


def text_weights(texts: int, draws: int = DRAWS, seed: int = 0) -> Floats:
    """Weights of texts, float64 [1 + draws, texts], of mean 1; the first row is that of no draw.

    Draws for the arms of a study are the same ones, so that differences are paired by text.
    """
    drawn = np.random.default_rng(seed).exponential(size=(draws, texts))
    drawn *= texts / drawn.sum(axis=1, keepdims=True)
    return np.vstack((np.ones(texts), drawn))


def macro_f1(answers: Answers, weights: Floats) -> Floats:
    """Macro-F1 of each seed under each row of weights: [rows, seeds].

    As scikit-learn's ``f1_score`` with ``average="macro"`` and ``sample_weight``: the mean over the
    classes that have a text or a prediction.
    """
    there, classes = answers.gold >= 0, np.arange(answers.classes)
    true, weights = answers.gold[there, None] == classes, weights[:, there]
    guesses = answers.predicted[:, there, None] == classes
    return np.stack([resampled_macro_f1(true, guess, weights) for guess in guesses], axis=1)


def estimate(scores: Floats, rarest: int) -> Estimate | None:
    """The mean over seeds with its standard error over seeds and texts.

    Args:
        scores: Of each seed, or paired differences of scores, under each row of ``text_weights``,
            of the texts as found first: [1 + draws, seeds].
        rarest: Texts of the rarest class, 2 at least.

    Returns:
        None of fewer than two seeds.
    """
    seeds = scores.shape[1]
    if seeds < 2:
        return None
    found, drawn = scores[0], scores[1:]
    between = float(found.var(ddof=1)) / seeds
    means, factor = drawn.mean(axis=1), (rarest + 1) / (rarest - 1)
    over_texts = factor * float(means.var(ddof=1))
    apart = factor * (drawn - means[:, None]).var(axis=0, ddof=1).sum() / (seeds - 1)
    shared = max(over_texts - float(apart) / seeds, 0.0)
    variance = between + shared
    parts = between**2 / (seeds - 1) + shared**2 / (rarest - 1)
    return Estimate(
        mean=float(found.mean()),
        error=math.sqrt(variance),
        freedom=variance**2 / parts if parts else seeds - 1.0,
        over_seeds=math.sqrt(between),
        over_texts=math.sqrt(over_texts),
    )


def mean_macro_f1(tasks: Sequence[Answers], weights: Floats) -> Floats:
    """The mean over tasks of ``macro_f1``."""
    return np.mean([macro_f1(answers, weights) for answers in tasks], axis=0)
