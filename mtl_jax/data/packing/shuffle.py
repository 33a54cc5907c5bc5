"""Shuffles that a seed names: an epoch's order can be had again, whole, in any process.

The order is that of Grain's ``MapDataset.shuffle``, which gives one index at a time: of ten million
texts that takes a minute and a half, and this some tenths of a second.
"""

from __future__ import annotations

import numpy as np

_ROUNDS = 4
_SHORTEST_BLOCK = 16
# Indices that are permuted at once: they stay in the processor's cache.
_CHUNK = 1 << 15
_WORDS = (np.uint8, np.uint16, np.uint32)


class Shuffle:
    """Permutations of the numbers from 0 to before ``size``, one to each epoch.

    A small cipher permutes all numbers of as many bits as ``size`` needs, again and again until
    each is less than ``size`` (Black & Rogaway 2002, *Ciphers with arbitrary finite domains*): four
    rounds of Simon (Beaulieu et al. 2013, eprint.iacr.org/2013/404), with its keys from the seed.
    """

    def __init__(self, size: int, seed: int):
        self._size = size
        # As Grain derives the seed of a shuffle that directly follows where one is set.
        self._seed = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])

    def of(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch, int64 [size]."""
        if self._size < 2:
            return np.zeros(self._size, np.int64)
        # Grain has two bits too few for 4^k + 1 numbers from 65,537 on, and loses the last of them.
        bits = (self._size - 1).bit_length()
        word = max(bits + bits % 2, _SHORTEST_BLOCK) // 2
        keys = [key & ((1 << word) - 1) for key in _words((self._seed + epoch) % 2**32, _ROUNDS)]
        walk = self._by_doubling if 2 * word == _SHORTEST_BLOCK else self._by_steps
        return walk(keys, word)

    def _by_doubling(self, keys: list[int], word: int) -> np.ndarray:
        # Of so few of the numbers one may be next to another after tens of thousands: each of
        # these jumps goes twice as far as the one before, but no further than to one of them.
        spare = np.arange(1 << 2 * word)
        jumps = _enciphered(spare, keys, word)
        found = jumps[: self._size].copy()
        jumps[: self._size] = spare[: self._size]
        while (found >= self._size).any():
            found = jumps[found]
            # Unless it may clip, take() buffers what it is to write.
            jumps, spare = np.take(jumps, jumps, out=spare, mode="clip"), jumps
        return found

    def _by_steps(self, keys: list[int], word: int) -> np.ndarray:
        found = np.empty(self._size, np.int64)
        for first in range(0, self._size, _CHUNK):
            numbers = np.arange(first, min(first + _CHUNK, self._size))
            numbers = _enciphered(numbers, keys, word)
            while (beyond := np.flatnonzero(numbers >= self._size)).size:
                numbers[beyond] = _enciphered(numbers[beyond], keys, word)
            found[first : first + len(numbers)] = numbers
        return found


def _enciphered(numbers: np.ndarray, keys: list[int], word: int) -> np.ndarray:
    """int64 [n] -> the same: two words of so many bits each."""
    # The fewest bits that hold a word: what a shift loses are bits that the mask takes away.
    kind = next(kind for kind in _WORDS if word <= np.iinfo(kind).bits)
    mask = kind((1 << word) - 1)
    left, right = (numbers >> word).astype(kind), numbers.astype(kind) & mask

    def mixed(x: np.ndarray) -> np.ndarray:
        once, eight, twice = (
            (x << kind(by)) | (x >> kind(word - by) if by < word else x) for by in (1, 8, 2)
        )
        return ((once & eight) ^ twice) & mask

    for first, second in zip(keys[::2], keys[1::2], strict=True):
        left = left ^ mixed(right) ^ kind(first)
        right = right ^ mixed(left) ^ kind(second)
    return (left.astype(np.int64) << word) | right


def _words(seed: int, count: int) -> list[int]:
    """What C++'s ``std::seed_seq`` of one number gives (ISO/IEC 14882, [rand.util.seedseq])."""
    bits = 2**32 - 1
    most = max(2, count)
    lag = (count - 1) // 2
    first, second = (count - lag) // 2, (count - lag) // 2 + lag
    words = [0x8B8B8B8B] * count

    def mixed(x: int) -> int:
        return (x ^ (x >> 27)) & bits

    for k in range(most):
        a, b, c = k % count, (k + first) % count, (k + second) % count
        number = 1664525 * mixed(words[a] ^ words[b] ^ words[(k - 1) % count]) & bits
        words[b] = (words[b] + number) & bits
        number += (1 if k == 0 else k % count + (seed if k == 1 else 0)) & bits
        words[c] = (words[c] + number) & bits
        words[a] = number & bits
    for k in range(most, most + count):
        a, b, c = k % count, (k + first) % count, (k + second) % count
        number = 1566083941 * mixed(words[a] + words[b] + words[(k - 1) % count] & bits) & bits
        words[b] ^= number
        number = (number - a) & bits
        words[c] ^= number
        words[a] = number
    return words
