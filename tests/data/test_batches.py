"""The arrays that the model is given, and the order in which they come."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_jax.core.distributed import part
from mtl_jax.data import batches as batches_module
from mtl_jax.data.batches import EpochOrder, TextSet, evaluation_batches, make_batch, train_batches
from mtl_jax.data.packing.plan import Layout, PackingPlan, Placement
from mtl_jax.data.tokens import Tokens
from tests.conftest import TASKS


def text_set(lengths, pooled=None):
    """Text ``i`` has the ids 100 i, 100 i + 1 ... and the labels i and -1 if odd, else i + 1."""
    lengths = np.asarray(lengths, np.int64)
    ids = [100 * i + np.arange(length) for i, length in enumerate(lengths)]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = Tokens(np.concatenate(ids).astype(np.int32), offsets, truncated=0, empty=0)
    index = np.arange(len(lengths), dtype=np.int32)
    labels = {"classifier": index, "sentiment": np.where(index % 2, -1, index + 1).astype(np.int32)}
    return TextSet(tokens, labels, pooled)


def unpacked(batch):
    """What a batch says of each of its texts, by index."""
    texts = {}
    for row, cells in enumerate(batch["example"]):
        for slot, example in enumerate(cells):
            labels = [int(batch[task][row, slot]) for task in TASKS]
            if example < 0:
                assert labels == [-1, -1]
                continue
            here = batch["segment_ids"][row] == slot + 1
            ids, positions = batch["input_ids"][row, here], batch["position_ids"][row, here]
            assert example not in texts
            texts[int(example)] = (ids.tolist(), positions.tolist(), *labels)
    padding = batch["segment_ids"] == 0
    assert not batch["input_ids"][padding].any()
    assert not batch["position_ids"][padding].any()
    return texts


def expected(lengths):
    return {
        i: ([100 * i + k for k in range(n)], list(range(n)), i, -1 if i % 2 else i + 1)
        for i, n in enumerate(lengths)
    }


PLACEMENT = Placement(
    texts=np.array([3, 0, 2, 1]), rows=np.array([1, 0, 1, 1]), starts=np.array([0, 0, 2, 6])
)


def test_a_batch_by_hand():
    batch = make_batch(text_set([2, 1, 3, 2]), Layout(2, ((1, 7),), 4), PLACEMENT)
    arrays = {
        "example": [[0, -1, -1, -1], [3, 2, 1, -1]],
        "classifier": [[0, -1, -1, -1], [3, 2, 1, -1]],
        "sentiment": [[1, -1, -1, -1], [-1, 3, -1, -1]],
        "input_ids": [[0, 1, 0, 0, 0, 0, 0], [300, 301, 200, 201, 202, 0, 100]],
        "segment_ids": [[1, 1, 0, 0, 0, 0, 0], [1, 1, 2, 2, 2, 0, 3]],
        "position_ids": [[0, 1, 0, 0, 0, 0, 0], [0, 1, 0, 1, 2, 0, 0]],
    }
    assert batch.keys() == arrays.keys()
    for name, array in arrays.items():
        assert batch[name].dtype == np.int32, name
        np.testing.assert_array_equal(batch[name], array, err_msg=name)


def test_a_batch_of_vectors_by_hand():
    vectors = np.arange(8, dtype=np.float32).reshape(4, 2) + 1
    texts = text_set([2, 1, 3, 2], vectors)
    batch = make_batch(texts, Layout(2, ((1, 7),), 3), PLACEMENT)
    assert batch.keys() == {"example", "classifier", "sentiment", "pooled"}
    expected = [[[1, 2], [0, 0], [0, 0]], [[7, 8], [5, 6], [3, 4]]]
    np.testing.assert_array_equal(batch["pooled"], np.array(expected, np.float32))
    assert batch["pooled"].dtype == np.float32
    np.testing.assert_array_equal(batch["sentiment"], [[1, -1, -1], [-1, 3, -1]])


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=50),
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(0, 2**32),
)
def test_every_epoch_holds_every_text_whole(lengths, batch_size, devices, seed):
    plan = PackingPlan(np.array(lengths), batch_size, devices, 16)
    batches = train_batches(text_set(lengths), plan, seed, 0, 2 * plan.steps)
    for _ in range(2):
        found = {}
        for _ in range(plan.steps):
            batch = next(batches)
            assert batch["input_ids"].shape == (plan.layout.rows, plan.layout.length)
            assert batch["example"].shape == (plan.layout.rows, plan.layout.slots)
            texts = unpacked(batch)
            assert not texts.keys() & found.keys()
            found |= texts
        assert found == expected(lengths)
    with pytest.raises(StopIteration):
        next(batches)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 16), max_size=50), st.integers(1, 4), st.integers(1, 8))
def test_evaluation_holds_every_text_whole(lengths, rows, slots):
    texts = (
        text_set(lengths)
        if lengths
        else TextSet(
            Tokens(np.zeros(0, np.int32), np.zeros(1, np.int64), 0, 0),
            {task: np.zeros(0, np.int32) for task in TASKS},
        )
    )
    found = {}
    for batch in evaluation_batches(texts, Layout(rows, ((1, 16),), slots)):
        found |= unpacked(batch)
    assert found == expected(lengths)


LENGTHS = np.random.RandomState(0).randint(3, 30, 60)


def orders(seed, epochs=3, lengths=LENGTHS):
    """The examples of each batch, [epochs, steps]."""
    plan = PackingPlan(lengths, 8, 1, 16)
    batches = train_batches(text_set(lengths), plan, seed, 0, epochs * plan.steps)
    found = [batch["example"].tolist() for batch in batches]
    return [found[i * plan.steps : (i + 1) * plan.steps] for i in range(epochs)]


def test_a_seed_is_an_order():
    assert orders(3) == orders(3)
    assert orders(3) != orders(4)
    # The first epochs do not depend on how many follow.
    assert orders(3, epochs=5)[:3] == orders(3)


@pytest.mark.parametrize("seed", [2**31, 2**32 - 1, 2**32, 2**40])
def test_any_seed_is_an_order(seed):
    assert sorted(np.ravel(orders(seed, epochs=1)).tolist())[-60:] == list(range(60))


def test_every_epoch_has_an_order_and_a_composition_of_its_own():
    epochs = [epoch for seed in range(3) for epoch in orders(seed, epochs=4)]
    assert len({json.dumps(epoch) for epoch in epochs}) == 12
    compositions = {
        frozenset(frozenset(np.ravel(batch).tolist()) for batch in epoch) for epoch in epochs
    }
    assert len(compositions) == 12
    # Long texts are not always first, nor in any one place.
    longest = int(LENGTHS.argmax())
    places = {next(i for i, b in enumerate(e) if longest in np.ravel(b)) for e in epochs}
    assert len(places) > 3


@pytest.mark.parametrize("count", [3, 5, 9])
def test_small_data_are_mixed_anew_too(count):
    plan = PackingPlan(np.arange(count) + 3, 2, 1, 16)
    batches = train_batches(text_set(np.arange(count) + 3), plan, 0, 0, 12 * plan.steps)
    sets = [frozenset(np.ravel(batch["example"]).tolist()) - {-1} for batch in batches]
    epochs = {frozenset(sets[i : i + plan.steps]) for i in range(0, len(sets), plan.steps)}
    assert len(epochs) > 2


def test_epochs_that_are_planned_ahead_are_those_planned_when_asked_for(monkeypatch):
    expected = orders(3)
    monkeypatch.setattr(batches_module, "_PLANNED_AHEAD", 1)
    plan = PackingPlan(LENGTHS, 8, 1, 16)
    order = EpochOrder(plan, 3)
    order.prepare(1)
    # Another one is asked for first.
    for epoch in (0, 1, 2):
        got = [placement.texts for placement in order.placements(epoch)]
        found = [[text for text in np.ravel(batch) if text >= 0] for batch in expected[epoch]]
        assert [sorted(each) for each in got] == [sorted(each) for each in found]
    assert orders(3) == expected


@pytest.mark.parametrize("done", [0, 1, 5, 8, 13, 20, 24])
def test_an_iterator_goes_on_from_its_saved_state(done):
    plan = PackingPlan(LENGTHS, 8, 1, 16)
    assert plan.steps == 8
    first = train_batches(text_set(LENGTHS), plan, 5, 0, 24)
    for _ in range(done):
        next(first)
    # As a checkpoint keeps it: through JSON.
    state = json.loads(json.dumps(first.get_state()))
    rest = list(first)
    assert len(rest) == 24 - done
    second = train_batches(text_set(LENGTHS), plan, 5, 0, 24)
    second.set_state(state)
    again = list(second)
    assert len(again) == len(rest)
    for one, other in zip(rest, again, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@given(
    lengths=st.lists(st.integers(3, 30), min_size=8, max_size=60),
    batch_size=st.integers(1, 24),
    processes=st.sampled_from([1, 2, 3, 4, 8]),
    devices=st.sampled_from([1, 2]),
    seed=st.integers(0, 3),
)
@settings(max_examples=15, deadline=None)
def test_the_processes_have_every_text_of_an_epoch_once(
    lengths, batch_size, processes, devices, seed
):
    texts = text_set(lengths)
    plan = PackingPlan(texts.tokens.lengths, batch_size, processes * devices, 64)
    rows = plan.layout.rows
    whole = list(train_batches(texts, plan, seed, 0, 2 * plan.steps))
    shards = [
        list(train_batches(texts, plan, seed, 0, 2 * plan.steps, part(rows, process, processes)))
        for process in range(processes)
    ]
    met = np.zeros(processes, int)
    for step, batch in enumerate(whole):
        own = [shard[step] for shard in shards]
        for name in batch:
            if name == "example":
                # Which texts the step has is known to all: what a step counts, it counts whole.
                assert all(np.array_equal(each[name], batch[name]) for each in own)
            else:
                together = np.concatenate([each[name] for each in own])
                np.testing.assert_array_equal(together, batch[name])
        of_process = [int((each["classifier"] >= 0).sum()) for each in own]
        met += of_process
        # In an epoch no process is ahead by more than one of its parts of a batch.
        if step + 1 == plan.steps:
            assert np.ptp(met) <= rows // processes * plan.layout.slots
            assert met.sum() == len(lengths)


def test_no_device_is_left_without_texts():
    """Long texts are packed first: one row would have most of every batch's short ones."""
    lengths = np.random.default_rng(0).integers(4, 60, 400)
    plan = PackingPlan(lengths, 32, 4, 64)
    each = plan.layout.rows // 4
    of_device = np.zeros(4, int)
    for placement in EpochOrder(plan, 0).placements(0):
        of_device += np.bincount(placement.rows // each, minlength=4)
    assert of_device.sum() == 400
    assert np.ptp(of_device) <= 4
