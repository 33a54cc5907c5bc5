"""How much of an epoch each of two data sets has, and which of its texts.

A batch has one shape for a whole run, so that the lengths of an epoch's texts must be known
before: an epoch is a fixed number of places, each for texts of about one length, and only
which of them is there differs from epoch to epoch.
"""

from __future__ import annotations

import numpy as np

from mtl_jax.config.data import Mixing


def rates(
    sizes: np.ndarray, mixing: Mixing, temperature: float = 1.0, cap: int | None = None
) -> np.ndarray:
    """The share of an epoch that each data set has, float64 [m], in all 1.

    With ``size``, r_m = min(e_m, K) / sum_n min(e_n, K) for e_m texts and the cap K; with
    ``temperature`` r_m to the power 1 / T, divided by their sum; ``equal`` is its limit for
    large T (Raffel et al. 2020, *Exploring the Limits of Transfer Learning with a Unified
    Text-to-Text Transformer*, arXiv:1910.10683, section 3.5.2).

    Args:
        sizes: int [m], e_m, each at least 1.
        mixing: Which of them.
        temperature: T, at least 1.
        cap: K; none by default.
    """
    capped = np.minimum(sizes, cap or np.inf).astype(np.float64)
    power = {"size": 1.0, "temperature": 1 / temperature, "equal": 0.0}[mixing]
    weights = (capped / capped.sum()) ** power
    return weights / weights.sum()


def apportion(shares: np.ndarray, places: int) -> np.ndarray:
    """Whole numbers in given proportions, by the largest remainders.

    Args:
        shares: float64 [m], in all 1.
        places: Their sum, at least m.

    Returns:
        int64 [m], each at least 1.
    """
    quotas = shares * places
    counts = np.floor(quotas).astype(np.int64)
    most = np.argsort(counts - quotas, kind="stable")[: places - int(counts.sum())]
    counts[most] += 1
    for empty in np.flatnonzero(counts == 0):
        counts[counts.argmax()] -= 1
        counts[empty] = 1
    return counts


class Mixture:
    """The places of an epoch, and the text that each has in any epoch.

    Of a data set of e texts that has c places, every text has c // e places of its own. The
    c % e others are a systematic sample of its texts in order of length, with an interval of
    e / (c % e) texts, so that the k-th is from the k-th of equally wide strata. The k-th goes
    round its stratum in an order of its own; over e epochs every text of the data set is met
    exactly c times.

    Attributes:
        lengths: int64 [places], tokens of the longest text that each place may have.
    """

    def __init__(self, lengths: np.ndarray, sources: np.ndarray, counts: dict[int, int]):
        """Lays out the places.

        Args:
            lengths: int [n], tokens of each text.
            sources: int [n], the data set of each.
            counts: Places of each data set in an epoch.
        """
        self._whole: list[np.ndarray] = []
        self._strata: list[_Strata] = []
        lengths_of_places = []
        for source, count in counts.items():
            own = np.flatnonzero(sources == source)
            copies, rest = divmod(count, len(own))
            self._whole.append(np.tile(own, copies))
            self._strata.append(_Strata(own[np.argsort(-lengths[own], kind="stable")], rest))
            longest = self._strata[-1].longest
            lengths_of_places += [lengths[self._whole[-1]], lengths[longest]]
        self.lengths = np.concatenate(lengths_of_places)

    def texts(self, seed: int, epoch: int) -> np.ndarray:
        """Which text each place has, int64 [places]: a function of seed and epoch alone."""
        parts = zip(self._whole, self._strata, strict=True)
        chosen = [
            part
            for index, (whole, strata) in enumerate(parts)
            for part in (whole, strata.texts(seed, index, epoch))
        ]
        return np.concatenate(chosen)


class _Strata:
    """c places, fewer than there are texts; see ``Mixture``.

    The offset u = 0 ... e - 1 of the systematic sample gives place k the text
    floor((k e + u) / c) of those in order of length: over all u, text i comes up c times, as
    k e + u takes every value from 0 to c e - 1 once. A round is the offsets with one
    remainder by c, through which a place meets different texts; places are shuffled within
    their rounds, each for itself, and the rounds of a cycle of e epochs for all.
    """

    def __init__(self, descending: np.ndarray, places: int):
        self._texts, self._places = descending, places
        self._firsts = np.arange(places, dtype=np.int64) * len(descending)

    @property
    def longest(self) -> np.ndarray:
        """int64 [places], the longest text that each may have."""
        return self._texts[self._firsts // max(self._places, 1)]

    def texts(self, seed: int, index: int, epoch: int) -> np.ndarray:
        """The text of each place, int64 [places]; ``index`` tells these from other strata."""
        if not self._places:
            return self._texts[:0]
        cycle, rest = divmod(epoch, len(self._texts))
        remainders = _random(seed, index, cycle).permutation(self._places)
        epochs = -((remainders - len(self._texts)) // self._places)
        ends = np.cumsum(epochs)
        turn = int(np.searchsorted(ends, rest, side="right"))
        # The ranks of random numbers are a shuffle of each row.
        chance = _random(seed, index, cycle, turn).random((self._places, int(epochs[turn])))
        order = chance.argsort(axis=1)
        step = order[:, rest - (ends[turn] - epochs[turn])]
        offsets = remainders[turn] + self._places * step
        return self._texts[(self._firsts + offsets) // self._places]


def _random(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
