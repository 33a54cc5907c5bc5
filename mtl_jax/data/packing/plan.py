"""Several texts in one fixed-size row, so that one shape serves a whole run without padding.

The batches of an epoch have the same number of texts (but for one) and nearly the same
number of tokens; within a batch, texts are packed into the blocks of its rows.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mtl_jax.data.packing.bins import balance, best_fit
from mtl_jax.data.packing.blocks import Blocks, block_lengths, cheapest_blocks, row_length
from mtl_jax.data.packing.mixing import Mixture

# Neighbours in order of length that may take each other's place from epoch to epoch; the
# price is that each counts as long as the longest of them.
_EXCHANGED = 4

# A row of unknown texts has room for as many as it holds when each has this many tokens.
_SHORT_TEXT = 4

# Texts in a row, about: pooling costs texts x tokens of a row.
_ROW_TEXTS = 64


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shape of a batch: ``rows`` x ``length`` tokens, at most ``slots`` texts in a row.

    Attributes:
        rows: Rows.
        blocks: How each row is cut, from its start: ``(count, length)`` of equal blocks.
        slots: Texts in a row at most.
    """

    rows: int
    blocks: Blocks
    slots: int

    @property
    def length(self) -> int:
        """Tokens in a row."""
        return row_length(self.blocks)


@dataclasses.dataclass(frozen=True)
class Placement:
    """One batch of k texts.

    Attributes:
        texts: int [k], which texts.
        rows: int [k], the row of each.
        starts: int [k], where in its row each begins.
    """

    texts: np.ndarray
    rows: np.ndarray
    starts: np.ndarray

    def within(self, first: int, stop: int) -> Placement:
        """The part in the rows from ``first`` to before ``stop``, counted from ``first`` on."""
        here = (first <= self.rows) & (self.rows < stop)
        return Placement(self.texts[here], self.rows[here] - first, self.starts[here])


class PackingPlan:
    """Where every text of an epoch goes. The layout depends on the lengths alone.

    Attributes:
        layout: The shape that every batch of every epoch has, whatever the seed.
        steps: Batches in an epoch.
        places: Texts in an epoch.
        mixture: Which text has which place; None where an epoch holds every text once.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        devices: int,
        hidden_size: int,
        mixture: Mixture | None = None,
        room: np.ndarray | None = None,
    ):
        """Plans batches of ``batch_size`` texts.

        Args:
            lengths: int [n], tokens of each text.
            batch_size: Texts in a batch; the batches of an epoch differ by at most one.
            devices: Each has equally many rows.
            hidden_size: Of the backbone, to weigh attention's cost, quadratic in the length
                of a block, against the padding of short blocks.
            mixture: The places of an epoch, where it does not hold every text once.
            room: int [n], descending, tokens that the k-th longest text may have at most: the
                layout depends on these alone, so that sets of texts with equal ``room`` share one.
        """
        self.mixture, self._devices = mixture, devices
        lengths = lengths if mixture is None else mixture.lengths
        self.places = count = len(lengths)
        ranks = np.argsort(-lengths, kind="stable")
        descending = lengths[ranks] if room is None else room
        descending = descending[np.arange(count) // _EXCHANGED * _EXCHANGED]
        self._class = np.empty(count, np.int64)
        self._class[ranks] = descending
        self.steps = _round_up(count, batch_size) // batch_size
        self._members, padded = _dealt(descending, self.steps)
        rows = devices * max(round(padded.shape[1] / (devices * _ROW_TEXTS)), 1)
        blocks = cheapest_blocks(padded, rows, hidden_size)
        bins, before = best_fit(padded, block_lengths(blocks, rows))
        rows_and_starts = _in_rows(bins, before, blocks)
        self._rows, self._starts = (_cut(each, self._members) for each in rows_and_starts)
        slots = max(int(np.bincount(of_batch).max()) for of_batch in self._rows)
        self.layout = Layout(rows, blocks, slots)

    @staticmethod
    def has_room(lengths: np.ndarray, room: np.ndarray) -> bool:
        """Whether texts of these lengths, int [n], fit into ``room``, int [n], descending."""
        return len(lengths) == len(room) and bool((np.sort(lengths)[::-1] <= room).all())

    def epoch(
        self, order: np.ndarray, batches: np.ndarray, chosen: np.ndarray | None = None
    ) -> list[Placement]:
        """Places the texts of one epoch.

        Args:
            order: A random permutation of the texts, int [places]: decides which of the texts
                of about equal length go where.
            batches: A random permutation of the batches, int [steps].
            chosen: With a ``mixture``, the text of each place, int [places].
        """
        texts = order[np.argsort(-self._class[order], kind="stable")]
        texts = texts if chosen is None else chosen[texts]
        rows = _dealt_to_devices([self._rows[i] for i in batches], self.layout.rows, self._devices)
        return [
            Placement(texts[self._members[i]], its_rows, self._starts[i])
            for i, its_rows in zip(batches, rows, strict=True)
        ]


def _dealt_to_devices(batches: list[np.ndarray], rows: int, devices: int) -> list[np.ndarray]:
    """Which device has which part of a batch, so that all meet about as many texts in an epoch.

    Long texts are packed first, so that without this some devices would have few texts of
    every batch. The device with the fewest so far has the part with the most: at no step do
    two differ by more than the texts of such a part.

    Args:
        batches: Per batch, in their order, int [k], the row of each text.
        rows: Rows of a batch.
        devices: Each has equally many of them.
    """
    if devices == 1:
        return batches
    each, dealt = rows // devices, []
    met = np.zeros(devices, np.int64)
    for batch in batches:
        part, row = np.divmod(batch, each)
        texts = np.bincount(part, minlength=devices)
        device = np.empty(devices, np.int64)
        device[np.argsort(-texts, kind="stable")] = np.argsort(met, kind="stable")
        met[device] += texts
        dealt.append(device[part] * each + row)
    return dealt


def _dealt(descending: np.ndarray, batches: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Texts by length -> those of each batch, and their lengths, [batches, most], 0 beyond."""
    batch = balance(descending, batches)
    ends = np.cumsum(np.bincount(batch, minlength=batches))
    members = np.split(np.argsort(batch, kind="stable"), ends[:-1])
    padded = np.zeros((batches, max(map(len, members))), np.int64)
    for row, here in zip(padded, members, strict=True):
        row[: len(here)] = descending[here]
    return members, padded


def _cut(values: np.ndarray, members: list[np.ndarray]) -> list[np.ndarray]:
    return [row[: len(here)] for row, here in zip(values, members, strict=True)]


def _in_rows(bins: np.ndarray, before: np.ndarray, blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """Which block an item is in, and what is in it before -> its row, and its start there."""
    lengths = block_lengths(blocks, 1)
    row, block = np.divmod(bins, len(lengths))
    return row, before + (np.cumsum(lengths) - lengths)[block]


def evaluation_layout(max_length: int, tokens: int, devices: int, like: Layout | None) -> Layout:
    """A shape that takes every text of at most ``max_length`` tokens.

    Args:
        max_length: Tokens of the longest text that may come.
        tokens: Tokens of a batch, about.
        devices: Each has equally many rows.
        like: Of batches of texts that are about as long; by default nothing is known of the
            texts, and each row is one block.
    """
    length = _round_up(max_length, 8)
    blocks, slots = ((1, length),), max(length // _SHORT_TEXT, 1)
    if like:
        blocks = like.blocks if like.blocks[0][1] >= length else (*blocks, *like.blocks)
        # Twice the texts that there are in as many tokens of ``like``.
        slots = -(-2 * like.slots * row_length(blocks) // like.length)
    rows = max(tokens // row_length(blocks) // devices, 1) * devices
    return Layout(rows, blocks, slots)


def evaluation_plan(lengths: np.ndarray, layout: Layout) -> list[Placement]:
    """Places texts in about as few batches of a given shape as they need, in any order.

    Args:
        lengths: int [n], each at most as long as the longest block.
        layout: The shape of every batch.
    """
    if not len(lengths):
        return []
    ranks = np.argsort(-lengths, kind="stable")
    descending = lengths[ranks]
    capacities = block_lengths(layout.blocks, layout.rows)
    # More than half of the longest block has no room for a second one.
    half = capacities.max() // 2
    batches = max(
        -(-int(lengths.sum()) // int(capacities.sum())),
        -(-len(lengths) // (layout.rows * layout.slots)),
        -(-int((lengths > half).sum()) // int((capacities > half).sum())),
    )
    while True:
        members, padded = _dealt(descending, batches)
        bins, before = best_fit(padded, capacities)
        if (bins >= 0).all():
            rows, starts = (_cut(each, members) for each in _in_rows(bins, before, layout.blocks))
            if max(np.bincount(of_batch).max() for of_batch in rows) <= layout.slots:
                places = zip(members, rows, starts, strict=True)
                return [Placement(ranks[here], *rest) for here, *rest in places]
        batches += -(-batches // 50)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
