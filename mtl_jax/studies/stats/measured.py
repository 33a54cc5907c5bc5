"""Scores that know what each text has to do with them, so that their errors can be told together.

How far a score would move with other texts is told by the jackknife: by what it is with each text
left out. With ``s_i`` the score without text i of n and ``s`` their mean, the contribution of the
text is ``u_i = sqrt((n - 1) / n) (s - s_i)``, and the variance of the score over draws of n texts
is ``Σ_i u_i²``. Contributions of a sum are sums of contributions: the difference of two arms on the
same texts has those of the one minus those of the other, and what all arms find hard is gone
from it. The jackknife takes no random numbers, no text is left out of a rare class by chance, and
all texts of an arm take one pass; of a smooth score it is the delta method and the bootstrap of the
texts to first order, and it is never too small in the mean (Efron & Stein).

Sources: Tukey, "Bias and confidence in not-quite large samples", Annals of Mathematical Statistics
29, 1958; Efron & Stein, "The Jackknife Estimate of Variance", Annals of Statistics 9(3), 1981.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Parts = Mapping[str, Floats]


class Measured(float):
    """A score, or what sums and differences of scores make, with what each text contributes.

    Whatever else is computed with it is a plain number, also a sum with a plain score: what texts
    contribute to that is not known. Whole numbers are constants.

    Attributes:
        parts: Per set of texts the contribution of each, float64 [n]; worked out when asked for.
    """

    _parts: Callable[[], Parts]

    def __new__(cls, value: float, parts: Callable[[], Parts]) -> Measured:
        """A score with what gives the contributions."""
        found = super().__new__(cls, value)
        found._parts = parts
        return found

    def __getnewargs__(self) -> Any:
        return float(self), self._parts

    @property
    def parts(self) -> Parts:
        """What each text contributes."""
        return self._parts()

    def __add__(self, other: float) -> float:
        return _sum(self, other, 1)

    __radd__ = __add__

    def __sub__(self, other: float) -> float:
        return _sum(self, other, -1)

    def __rsub__(self, other: float) -> float:
        return -self + other

    def __neg__(self) -> float:
        return self * -1.0

    def __mul__(self, factor: float) -> float:
        value = float(self) * float(factor)
        if isinstance(factor, Measured):
            return value
        return Measured(value, lambda: {key: factor * each for key, each in self.parts.items()})

    __rmul__ = __mul__

    def __truediv__(self, factor: float) -> float:
        value = float(self) / float(factor)
        if isinstance(factor, Measured):
            return value
        return Measured(value, lambda: {key: each / factor for key, each in self.parts.items()})


def _sum(one: Measured, other: float, sign: int) -> float:
    value = float(one) + sign * float(other)
    if not isinstance(other, Measured):
        return Measured(value, one._parts) if isinstance(other, int) else value

    def parts() -> Parts:
        found = dict(one.parts)
        for key, each in other.parts.items():
            found[key] = found[key] + sign * each if key in found else sign * each
        return found

    return Measured(value, parts)


def contributions(left_out: Floats) -> Floats:
    """What each text contributes to a score, float64 [n].

    Args:
        left_out: The score with each text left out, n at least 2.
    """
    n = len(left_out)
    return np.sqrt((n - 1) / n) * (left_out.mean() - left_out)
