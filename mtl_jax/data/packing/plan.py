"""Several texts in one fixed-size row, so that one shape serves a whole run without padding.

The batches of an epoch have the same number of texts (but for one) and nearly the same
number of tokens; within a batch, texts are packed into the blocks of its rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import overload

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
        devices: Over which each batch is spread.
        padding: Which part of the tokens of an epoch's batches is padding.
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
        self.mixture, self.devices = mixture, devices
        lengths = lengths if mixture is None else mixture.lengths
        self.places = count = len(lengths)
        ranks = np.argsort(-lengths, kind="stable")
        descending = lengths[ranks] if room is None else room
        descending = descending[np.arange(count) // _EXCHANGED * _EXCHANGED]
        # Which of the different lengths a text has, the longest first.
        self._class = np.empty(count, _small(np.unique(descending).size))
        self._class[ranks] = np.cumsum(np.diff(descending, prepend=descending[:1]) != 0)
        self.steps = _round_up(count, batch_size) // batch_size
        self._dealt, padded = _dealt(descending, self.steps)
        rows = devices * max(round(padded.shape[1] / (devices * _ROW_TEXTS)), 1)
        blocks = cheapest_blocks(padded, rows, hidden_size)
        bins, before = best_fit(padded, block_lengths(blocks, rows))
        its_rows, starts = _in_rows(bins, before, blocks)
        self._rows = its_rows.astype(_small(rows))
        self._starts = starts.astype(_small(row_length(blocks)))
        slots = int(self._dealt.texts_of_groups(self._rows, rows).max())
        self.layout = Layout(rows, blocks, slots)
        self.padding = 1 - int(lengths.sum()) / (self.steps * rows * self.layout.length)

    @staticmethod
    def has_room(lengths: np.ndarray, room: np.ndarray) -> bool:
        """Whether texts of these lengths, int [n], fit into ``room``, int [n], descending."""
        return len(lengths) == len(room) and bool((np.sort(lengths)[::-1] <= room).all())

    def epoch(
        self, order: np.ndarray, batches: np.ndarray, chosen: np.ndarray | None = None
    ) -> Sequence[Placement]:
        """Places the texts of one epoch.

        Args:
            order: A random permutation of the texts, int [places]: decides which of the texts
                of about equal length go where.
            batches: A random permutation of the batches, int [steps].
            chosen: With a ``mixture``, the text of each place, int [places].
        """
        texts = order[np.argsort(self._class[order], kind="stable")]
        texts = texts if chosen is None else chosen[texts]
        texts = texts.astype(_small(int(texts.max()) + 1))
        devices = None
        if self.devices > 1:
            each = self.layout.rows // self.devices
            parts = self._dealt.texts_of_groups(self._rows // each, self.devices)
            devices = _dealt_to_devices(parts[batches])
        return _Epoch(self, texts, batches, devices)

    def placement(
        self, texts: np.ndarray, batch: int, devices: np.ndarray | None = None
    ) -> Placement:
        """Places the texts of one batch.

        Args:
            texts: The text of each rank, int [places].
            batch: Which one.
            devices: Which device has each part of it, int [devices]; by default in their order.
        """
        members = self._dealt.members_of(batch)
        rows, starts = (
            values[batch, : len(members)].astype(np.int64) for values in (self._rows, self._starts)
        )
        if devices is not None:
            each = self.layout.rows // len(devices)
            part, row = np.divmod(rows, each)
            rows = devices[part] * each + row
        return Placement(texts[members].astype(np.int64), rows, starts)


class _Epoch(Sequence[Placement]):
    """The batches of an epoch, each of which is made when it is asked for.

    Ten million texts as so many small arrays would take gigabytes and half a minute.
    """

    def __init__(
        self,
        plan: PackingPlan,
        texts: np.ndarray,
        batches: np.ndarray,
        devices: np.ndarray | None,
    ):
        self._plan, self._texts, self._batches = plan, texts, batches
        self._devices = devices

    def __len__(self) -> int:
        return len(self._batches)

    @overload
    def __getitem__(self, index: int) -> Placement: ...

    @overload
    def __getitem__(self, index: slice) -> list[Placement]: ...

    def __getitem__(self, index: int | slice) -> Placement | list[Placement]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        devices = None if self._devices is None else self._devices[index]
        return self._plan.placement(self._texts, int(self._batches[index]), devices)


def _dealt_to_devices(texts: np.ndarray) -> np.ndarray:
    """Which device has which part of a batch, so that all meet about as many texts in an epoch.

    Long texts are packed first, so that without this some devices would have few texts of
    every batch. The device with the fewest so far has the part with the most: at no step do
    two differ by more than the texts of such a part.

    Args:
        texts: int [steps, devices], of each batch, in their order, the texts of each part.

    Returns:
        The device of each part, int [steps, devices].
    """
    largest_first = np.argsort(-texts, axis=1, kind="stable")
    device = np.empty(texts.shape, _small(texts.shape[1]))
    met = np.zeros(texts.shape[1], np.int64)
    for of_batch, order, its_texts in zip(device, largest_first, texts, strict=True):
        of_batch[order] = met.argsort(kind="stable")
        met[of_batch] += its_texts
    return device


@dataclasses.dataclass(frozen=True)
class _Dealt:
    """Which texts, by their rank in order of length, each batch has.

    Attributes:
        members: int [batches, most], from the longest on; what is beyond is 0.
        sizes: int [batches], how many each has.
    """

    members: np.ndarray
    sizes: np.ndarray

    def members_of(self, batch: int) -> np.ndarray:
        """Those of one batch."""
        return self.members[batch, : self.sizes[batch]]

    def texts_of_groups(self, groups: np.ndarray, count: int) -> np.ndarray:
        """Of each batch, how many of its texts are in each group, int [batches, count].

        Args:
            groups: The group of each member, int [batches, most].
            count: How many groups there are.
        """
        batches, most = groups.shape
        found = np.zeros((batches, count), np.int64)
        for place in range(most):
            there = np.flatnonzero(self.sizes > place)
            found[there, groups[there, place]] += 1
        return found


def _dealt(descending: np.ndarray, batches: int) -> tuple[_Dealt, np.ndarray]:
    """Texts by length -> those of each batch, and their lengths, [batches, most], 0 beyond."""
    batch, place = balance(descending, batches)
    sizes = np.bincount(batch, minlength=batches)
    members = np.zeros((batches, int(sizes.max())), _small(len(descending)))
    members[batch, place] = np.arange(len(descending))
    padded = np.zeros(members.shape, _small(int(descending[0]) + 1))
    padded[batch, place] = descending
    return _Dealt(members, sizes), padded


def _small(values: int) -> type[np.signedinteger]:
    """The narrowest kind of signed numbers that has all from 0 to before ``values``.

    Of sixteen bits numpy sorts by counting, several times as fast as by comparing.
    """
    return next(k for k in (np.int16, np.int32, np.int64) if values - 1 <= np.iinfo(k).max)


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


def likely_layout(lengths: np.ndarray, max_length: int, tokens: int, hidden_size: int) -> Layout:
    """What ``evaluation_layout`` is told of texts of which some are known.

    Args:
        lengths: int [n], tokens of these.
        max_length: As of ``evaluation_layout``.
        tokens: As of ``evaluation_layout``.
        hidden_size: As of ``PackingPlan``.
    """
    # Beside the block for the longest text.
    left = max(tokens - max_length, tokens // 2)
    texts = min(max(int(left / lengths.mean()), 1), len(lengths), _ROW_TEXTS)
    return PackingPlan(lengths, texts, 1, hidden_size).layout


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
        dealt, padded = _dealt(descending, batches)
        bins, before = best_fit(padded, capacities)
        if (bins >= 0).all():
            rows, starts = _in_rows(bins, before, layout.blocks)
            if dealt.texts_of_groups(rows, layout.rows).max() <= layout.slots:
                return [
                    Placement(ranks[its], rows[i, : len(its)], starts[i, : len(its)])
                    for i, its in enumerate(map(dealt.members_of, range(batches)))
                ]
        batches += -(-batches // 50)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
