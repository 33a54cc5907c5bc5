"""The examples of a split: texts, with a label for each task or none, and what is known of them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from mtl_jax.data.kinds import has_label
from mtl_jax.data.table import hashes_of
from mtl_jax.data.texts import SomeTexts, take

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of one split."""

    texts: Sequence[str]
    """n texts, a ``Pair`` where an example has two; of many only some may be known, or each is
    read when it is asked for"""
    labels: dict[str, np.ndarray]
    """per task one label to a text, as ``kinds`` tells: int32 [n], indices into its classes,
    MISSING where there is no label; int8 [n, classes]; or float64 [n]"""
    groups: np.ndarray | None = None
    """str [n]: where each example comes from, for metrics by source; None if unknown"""
    sources: np.ndarray | None = None
    """int32 [n]: which of the corpus's data sets each example is of; None where there is one"""
    hashes: np.ndarray | None = None
    """uint64 [n]: ``hashes_of`` the texts, where they have been worked out"""
    rows: np.ndarray | None = None
    """integers [n]: which row of its data set's split each example is, as they were read; of a
    validation split that was set aside, of the training split. None if unknown"""
    soft: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """of texts to train on per task that has some float32 [n, classes]: a distribution over its
    classes; all 0 where a text has none"""

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"<Examples: {len(self)} texts with labels for {', '.join(self.labels)}>"

    def take(self, indices: Sequence[int] | np.ndarray) -> Examples:
        """Picks examples.

        Args:
            indices: Integers [m]; the result has them in this order.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        return Examples(
            texts=take(self.texts, chosen),
            labels={task: labels[chosen] for task, labels in self.labels.items()},
            groups=None if self.groups is None else self.groups[chosen],
            sources=None if self.sources is None else self.sources[chosen],
            hashes=None if self.hashes is None else self.hashes[chosen],
            rows=None if self.rows is None else self.rows[chosen],
            soft={task: shares[chosen] for task, shares in self.soft.items()},
        )

    def sample(self, most: int | None = None) -> Examples:
        """Those whose texts are known, and of more than ``most`` as many, evenly spaced."""
        texts = self.texts
        known = texts.known if isinstance(texts, SomeTexts) else np.arange(len(texts))
        if most is not None and len(known) > most:
            known = known[np.linspace(0, len(known) - 1, most).round().astype(np.int64)]
        return self if len(known) == len(self) else self.take(known)

    @property
    def text_hashes(self) -> np.ndarray:
        """uint64 [n]: ``hashes_of`` the texts."""
        return hashes_of(self.texts) if self.hashes is None else self.hashes

    def labelled(self, tasks: Sequence[str] | None = None) -> np.ndarray:
        """Bool [n]: which examples have a label for at least one of ``tasks`` (all)."""
        tasks = tuple(self.labels) if tasks is None else tasks
        return np.any([has_label(self.labels[task]) for task in tasks], axis=0)


def index_type(rows: int) -> type[np.signedinteger]:
    """The type of numbers of so many rows."""
    return np.int32 if rows < 2**31 else np.int64
