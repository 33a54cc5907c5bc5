"""Texts that are nearly the same, found by MinHash and locality-sensitive hashing.

Broder 1997, *On the resemblance and containment of documents*, doi:10.1109/SEQUEN.1997.666900.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtl_jax.data.findings import Finding, by_share

THRESHOLD = 0.8
"""Of the Jaccard similarity of two texts' pieces, from which on they are nearly the same."""
PIECE = 5
"""Characters of a piece."""

_PERMUTATIONS, _SEED = 64, 1
_AT_ONCE = 512
# Of the texts that may be like one: where there are many, a few show it.
_MOST_CANDIDATES = 50
_MOST_EXAMPLES = 3


@dataclasses.dataclass(frozen=True)
class NearDuplicates:
    """What was found in some texts of each split.

    Attributes:
        compared: Per split how many distinct texts were compared.
        counts: Per pair of splits how many texts of the first one are nearly, but not quite, the
            same as another one of the second.
        examples: Per pair of splits some of them, each with the other text.
    """

    compared: dict[str, int]
    counts: dict[tuple[str, str], int]
    examples: dict[tuple[str, str], list[tuple[str, str]]]

    def findings(self) -> list[Finding]:
        """The same in words."""
        return [
            by_share(
                count,
                self.compared[split],
                f"{split}: {count:,} of {self.compared[split]:,} texts compared are nearly the "
                f"same as {'another' if split == other else 'one'} of {other}",
            )
            for (split, other), count in self.counts.items()
            if count
        ]


def near_duplicates(texts: Mapping[str, Sequence[str]]) -> NearDuplicates:
    """Compares texts within each split and between splits.

    Candidates are found by MinHash; of these the ones whose pieces of ``PIECE`` characters have a
    Jaccard similarity of at least ``THRESHOLD`` count. Case, and what is neither letter nor digit,
    does not. Of pairs at the threshold hardly any is missed.

    Args:
        texts: Per split, in the order of the splits; all of them are in memory at once.
    """
    from datasketch import MinHashLSH

    # Lower than what counts: of pairs at its own threshold an index misses a half.
    index = MinHashLSH(threshold=THRESHOLD - 0.2, num_perm=_PERMUTATIONS)
    distinct = [(split, text) for split, of in texts.items() for text in dict.fromkeys(of)]
    found: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    examples: defaultdict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    compared: Counter[str] = Counter()
    for number, signature in _signatures([text for _, text in distinct]):
        split, text = distinct[number]
        compared[split] += 1
        candidates: list[Any] = index.query(signature)
        mine = pieces(text) if candidates else set()
        for other in sorted(candidates)[:_MOST_CANDIDATES]:
            of_other, known = distinct[other]
            if known.strip() == text.strip() or _similarity(mine, pieces(known)) < THRESHOLD:
                continue
            pair = (split, of_other)
            if len(examples[pair]) < _MOST_EXAMPLES:
                examples[pair].append((text, known))
            found[pair].add(number)
            if split == of_other:
                found[pair].add(other)
        index.insert(number, signature, check_duplication=False)
    pairs = [*zip(texts, texts, strict=True)]
    pairs += [(split, other) for other, split in itertools.combinations(texts, 2)]
    return NearDuplicates(
        compared={split: compared[split] for split in texts},
        counts={pair: len(found[pair]) for pair in pairs},
        examples={pair: examples[pair] for pair in pairs if examples[pair]},
    )


def pieces(text: str) -> set[str]:
    """The overlapping pieces of a text's letters and digits, folded; none of a text without any."""
    folded = " ".join(re.findall(r"\w+", text.casefold()))
    return {folded[i : i + PIECE] for i in range(max(len(folded) - PIECE + 1, 1))} - {""}


def _similarity(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


def _signatures(texts: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """The MinHash of each text that has pieces, with its place."""
    from datasketch import MinHash

    for start in range(0, len(texts), _AT_ONCE):
        some = [pieces(text) for text in texts[start : start + _AT_ONCE]]
        there = [i for i, of_text in enumerate(some) if of_text]
        encoded = [[piece.encode() for piece in some[i]] for i in there]
        made = MinHash.bulk(encoded, num_perm=_PERMUTATIONS, seed=_SEED, hashfunc=zlib.crc32)
        yield from zip((start + i for i in there), made, strict=True)
