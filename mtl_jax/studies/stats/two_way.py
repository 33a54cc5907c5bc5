"""Errors over seeds and test texts together, and the tests that rest on them.

All seeds of a study are measured on the same test texts. What their scores have in common by the
draw of these texts is in no difference between seeds, so that an interval over seeds alone is too
narrow for any other texts: of arms that do not differ, it finds differences in a third of studies.

The variance of a mean over S seeds on N texts has three parts: what seeds do whatever the texts
are, what texts do whatever the seed is, and what a seed does with a text. The first and third are
in the variance s² between the seeds' scores; the second and third in the variance v over draws of
texts of the seeds' mean. The third, w, which both have, is that over draws of a seed's distance
from the mean. So

    SE² = s² / S + v - w / S

with ``s² / S`` known from S - 1 degrees of freedom, the rest from as many as the texts that matter
make: ``2 / (Σ u⁴ / (Σ u²)² - 1 / N)`` of contributions u, which is 2N / (kurtosis - 1), few
where the score leans on few texts, as macro-F1 on those of a rare class. From six seeds on the mean
over SE has Student's t with Satterthwaite's degrees of freedom of the sum. With fewer these claim
too much, in some 8 % of studies without any effect at a level of 5: where s² happens to be small,
it is both too small and taken to be well known. There quantiles are those of t of the two parts,
weighted by their parts of SE², after Cochran & Cox, which are a little too wide with more seeds.
``measured`` has v and w, by the jackknife. Where a seed draws its training texts, too, that draw
is in s².

A two-way bootstrap of seeds and texts would be too narrow by ``sqrt((S - 1) / S)`` and by the
normal quantile it stands for at the 3 to 10 seeds of a study; a mixed model of the texts' answers
would need a distribution of its own for each metric, where this takes any that can be computed with
a text left out, and whatever is the mean or the difference of such.

Sources: Cochran & Cox, "Experimental Designs", 2nd edition, 1957, section 4.14; Satterthwaite, "An
Approximate Distribution of Estimates of Variance Components", Biometrics Bulletin 2(6), 1946; the
crossed design of raters and cases: Gallas, Bandos, Samuelson & Wagner, "A Framework for
Random-Effects ROC Analysis", Communications in Statistics 38(15), 2009.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.optimize
import scipy.special

from mtl_jax.studies.stats.measured import Measured

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
"""the coverage of every interval"""

# Seeds from which on Satterthwaite's degrees of freedom hold.
_MANY_SEEDS = 6
# Degrees of freedom with which t is the normal distribution.
_MANY = 1e6
# Rounding alone is no spread, and no difference.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds, or over paired differences, and how sure it is.

    Attributes:
        mean: The mean.
        error: Its standard error over seeds and, where the scores are ``Measured``, over texts.
        seeds: How many there are.
        over_seeds: The standard error that other seeds alone would leave, ``s / sqrt(S)``.
        over_texts: The one that other texts alone would, ``sqrt(v)``; None where it is not known.
        shared: The part of v that is not in s², ``sqrt(v - w / S)``.
        text_freedom: Degrees of freedom of that; infinite without it.
        parts: What each text contributes to the mean, per set of texts.
    """

    mean: float
    error: float
    seeds: int
    over_seeds: float
    over_texts: float | None
    shared: float
    text_freedom: float
    parts: Mapping[str, Floats]

    def quantile(self, level: float) -> float:
        """Standard errors between the mean and a limit that it is beyond, on either side, so often.

        Args:
            level: How often, in (0, 1].
        """
        if self.seeds >= _MANY_SEEDS:
            return _critical_value(level, self._satterthwaite)
        of_seeds, of_texts = (_critical_value(level, freedom) for freedom in self._freedoms)
        part = 1.0 if self.error == 0 else min((self.over_seeds / self.error) ** 2, 1.0)
        return part * of_seeds + (1 - part) * of_texts

    @property
    def _freedoms(self) -> tuple[float, float]:
        # Without texts they have no part.
        return self.seeds - 1.0, min(self.text_freedom, _MANY)

    @property
    def _satterthwaite(self) -> float:
        of_seeds, of_texts = self._freedoms
        parts = self.over_seeds**4 / of_seeds + self.shared**4 / of_texts
        return self.error**4 / parts if parts else of_seeds

    @property
    def limits(self) -> tuple[float, float]:
        """Of the 95 % t interval."""
        half = self.quantile(1 - CONFIDENCE) * self.error
        return self.mean - half, self.mean + half

    @property
    def p_value(self) -> float:
        """Two-sided, of the hypothesis that the mean is 0: the level whose limits touch 0."""
        if self.error < _ROUNDING:
            return float(abs(self.mean) < _ROUNDING)
        found = abs(self.mean) / self.error
        if self.seeds >= _MANY_SEEDS or not self.shared:
            return _p_value(found, self._satterthwaite)
        low, high = sorted(_p_value(found, each) for each in self._freedoms)
        if self.quantile(low) <= found or self.quantile(high) >= found:
            return low if self.quantile(low) <= found else high
        level: Any = scipy.optimize.brentq(
            lambda level: self.quantile(level) - found, low, high, xtol=1e-12
        )
        return float(level)


# scipy.stats.t checks its arguments, which takes a hundred times as long as these functions.
def _critical_value(level: float, freedom: float) -> float:
    """The two-sided critical value of Student's t at a level in (0, 1]."""
    return float(abs(scipy.special.stdtrit(freedom, level / 2)))


def _p_value(statistic: float, freedom: float) -> float:
    """The two-sided p-value of a statistic of Student's t, which is not negative."""
    return 2 * float(scipy.special.stdtr(freedom, -statistic))


def estimate(scores: Collection[float]) -> Estimate | None:
    """The mean over seeds with its standard error over seeds and texts.

    Args:
        scores: One per seed, or one difference. With plain numbers it is Student's interval, over
            seeds alone; with ``Measured`` ones over seeds and texts.

    Returns:
        None of fewer than two seeds.
    """
    seeds = len(scores)
    if seeds < 2:
        return None
    mean = math.fsum(scores) / seeds
    between = math.fsum((float(score) - mean) ** 2 for score in scores) / (seeds - 1) / seeds
    known = all(isinstance(score, Measured) for score in scores)
    parts, own = _mean_parts(scores) if known else ({}, 0.0)
    of_mean = sum(float(each @ each) for each in parts.values())
    apart = (own - seeds * of_mean) / (seeds - 1)
    shared = max(of_mean - apart / seeds, 0.0)
    text_freedom = _freedom(parts) if shared > 0 else math.inf
    variance = between + shared
    return Estimate(
        mean=mean,
        error=math.sqrt(variance),
        seeds=seeds,
        over_seeds=math.sqrt(between),
        over_texts=math.sqrt(of_mean) if known else None,
        shared=math.sqrt(shared),
        text_freedom=text_freedom,
        parts=parts,
    )


def _mean_parts(scores: Collection[float]) -> tuple[dict[str, Floats], float]:
    """What each text contributes to the mean of scores, and the sum of squares over all scores."""
    found: dict[str, Floats] = {}
    own = 0.0
    for score in scores:
        for key, each in score.parts.items() if isinstance(score, Measured) else ():
            own += float(each @ each)
            found[key] = found[key] + each if key in found else each
    return {key: each / len(scores) for key, each in found.items()}, own


def _freedom(parts: Mapping[str, Floats]) -> float:
    """Degrees of freedom of the sum of squares of contributions."""
    squares = np.concatenate([each**2 for each in parts.values()])
    uneven = float(squares @ squares) / float(squares.sum()) ** 2 - 1 / len(squares)
    return max(2 / uneven, 1.0) if uneven > 0 else math.inf


def text_covariance(estimates: Sequence[Estimate]) -> Floats:
    """That of means over the texts they share, float64 [means, means]; its diagonal is ``shared²``.

    Args:
        estimates: Of the comparisons of a family.
    """
    keys = sorted({key for each in estimates for key in each.parts})
    found = np.zeros((len(estimates), len(estimates)))
    for key in keys:
        texts = next(len(each.parts[key]) for each in estimates if key in each.parts)
        rows = np.stack([each.parts.get(key, np.zeros(texts)) for each in estimates])
        found += rows @ rows.T
    scale = np.array(
        [each.shared / each.over_texts if each.over_texts else 0.0 for each in estimates]
    )
    return scale[:, None] * found * scale
