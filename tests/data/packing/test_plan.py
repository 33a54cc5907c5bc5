"""Where texts go, over random lengths and on the real ones."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtl_jax.config.train import DataConfig
from mtl_jax.core import downloads
from mtl_jax.data.corpus import load_corpus
from mtl_jax.data.packing.bins import balance, best_fit
from mtl_jax.data.packing.plan import (
    Layout,
    PackingPlan,
    evaluation_layout,
    evaluation_plan,
    likely_layout,
)
from mtl_jax.data.tokens import tokenize
from mtl_jax.models.tokenizer import load_tokenizer

examples = settings(max_examples=100, deadline=None, derandomize=True)
# Short texts and a few long ones, as in life; hypothesis alone prefers small numbers.
lengths_of = st.lists(
    st.one_of(st.integers(3, 12), st.integers(3, 12), st.integers(3, 128)), min_size=1, max_size=120
).map(lambda lengths: np.array(lengths, np.int64))
batch_sizes, device_counts = st.integers(1, 40), st.integers(1, 5)


@pytest.fixture(scope="module")
def real_lengths():
    texts = load_corpus(DataConfig()).read("train").texts
    return tokenize(load_tokenizer(downloads.minilm()), texts, 128).lengths


def epoch(plan, count, seed):
    random = np.random.default_rng(seed)
    return plan.epoch(random.permutation(count), random.permutation(plan.steps))


def sizes(placements):
    return [len(placement.texts) for placement in placements]


def assert_fits(placements, lengths, layout):
    """Every text once, within one block of the layout; no token of two."""
    cuts = np.cumsum([0, *(length for count, length in layout.blocks for _ in range(count))])
    placed = np.concatenate([placement.texts for placement in placements])
    np.testing.assert_array_equal(np.sort(placed), np.arange(len(lengths)))
    for placement in placements:
        assert len(placement.texts) == len(placement.rows) > 0
        assert placement.rows.min() >= 0
        assert placement.rows.max() < layout.rows
        ends = placement.starts + lengths[placement.texts]
        assert placement.starts.min() >= 0
        block = np.searchsorted(cuts, placement.starts, side="right")
        assert (ends <= cuts[block]).all()
        spans = np.stack([placement.rows * layout.length + at for at in (placement.starts, ends)])
        spans = spans[:, np.argsort(spans[0])]
        assert (spans[1, :-1] <= spans[0, 1:]).all()
        assert np.bincount(placement.rows).max() <= layout.slots


@examples
@example(np.array([44, 9, 6, 64, 6, 5, 5]), 3, 1, 0)  # the first batch has the fewest texts
@given(lengths_of, batch_sizes, device_counts, st.integers(0, 3))
def test_an_epoch_holds_every_text_once_within_the_layout(lengths, batch_size, devices, seed):
    plan = PackingPlan(lengths, batch_size, devices, 64)
    assert plan.steps == -(-len(lengths) // batch_size)
    assert plan.layout.rows == devices  # of fewer than 64 texts each
    assert all(length % 8 == 0 for _, length in plan.layout.blocks)
    placements = epoch(plan, len(lengths), seed)
    assert len(placements) == plan.steps
    assert_fits(placements, lengths, plan.layout)


@examples
@example(np.array([100] * 4 + [1] * 6), 4, 1)
@given(lengths_of, batch_sizes, device_counts)
def test_batches_differ_by_at_most_one_text(lengths, batch_size, devices):
    plan = PackingPlan(lengths, batch_size, devices, 64)
    found = sizes(epoch(plan, len(lengths), 0))
    assert max(found) - min(found) <= 1
    assert max(found) <= batch_size


@examples
@given(lengths_of, batch_sizes, device_counts, st.randoms(use_true_random=False))
def test_the_layout_depends_on_the_lengths_alone(lengths, batch_size, devices, random):
    shuffled = lengths.tolist()
    random.shuffle(shuffled)
    plans = [PackingPlan(np.array(these), batch_size, devices, 64) for these in (lengths, shuffled)]
    assert plans[0].layout == plans[1].layout
    assert plans[0].steps == plans[1].steps


@pytest.mark.parametrize("batch_size", [2, 3, 4])
@pytest.mark.parametrize("count", [5, 8, 12, 100])
def test_epochs_mix_the_texts_anew(count, batch_size):
    lengths = np.random.default_rng(0).permutation(count) + 3
    plan = PackingPlan(lengths, batch_size, 1, 64)
    compositions = {
        frozenset(frozenset(placement.texts.tolist()) for placement in epoch(plan, count, seed))
        for seed in range(12)
    }
    assert len(compositions) > (1 if count < 8 else 6)


def test_any_two_texts_of_a_real_size_can_meet():
    plan = PackingPlan(np.random.default_rng(0).integers(3, 60, 64), 16, 1, 64)
    together = np.zeros((64, 64), bool)
    for seed in range(300):
        for placement in epoch(plan, 64, seed):
            together[np.ix_(placement.texts, placement.texts)] = True
    assert together.mean() > 0.9


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_padding_of_the_real_corpus_is_at_most_a_twentieth(devices, real_lengths):
    plan = PackingPlan(real_lengths, 32, devices, 384)
    area = plan.steps * plan.layout.rows * plan.layout.length
    assert (len(real_lengths), plan.steps) == (10_639, 333)
    assert 0 < 1 - real_lengths.sum() / area <= 0.05
    placements = epoch(plan, len(real_lengths), 0)
    assert_fits(placements, real_lengths, plan.layout)
    assert set(sizes(placements)) == {31, 32}


def test_texts_of_one_length_have_a_block_each():
    # 64 texts of 8 tokens fit 1 block of 512 as well as 64 of 8: both without padding.
    lengths = np.full(640, 8)
    assert PackingPlan(lengths, 64, 1, 8).layout == Layout(1, ((64, 8),), 64)
    assert PackingPlan(lengths, 64, 1, 4096).layout == Layout(1, ((64, 8),), 64)
    # Four rows of two blocks, though two blocks stay empty.
    assert PackingPlan(np.full(6, 8), 6, 4, 64).layout == Layout(4, ((2, 8),), 2)


def test_a_few_long_texts_do_not_make_all_blocks_long():
    lengths = np.where(np.arange(640) % 32 == 0, 128, 16)
    layout = PackingPlan(lengths, 32, 1, 384).layout
    assert layout == Layout(1, ((1, 128), (31, 16)), 32)


@pytest.mark.parametrize("batch_size", [256, 1024])
def test_blocks_of_large_batches_are_chosen_from_a_part_of_their_texts(batch_size, real_lengths):
    plan = PackingPlan(real_lengths, batch_size, 2, 384)
    area = plan.steps * plan.layout.rows * plan.layout.length
    assert 1 - real_lengths.sum() / area <= 0.05
    assert plan.layout.rows == batch_size // 64
    assert plan.layout.slots < 128
    assert_fits(epoch(plan, len(real_lengths), 0), real_lengths, plan.layout)


def test_best_fit_by_hand():
    bins, before = best_fit(np.array([[6, 4, 3, 2, 2], [6, 6, 1, 0, 0]]), np.array([6, 7]))
    # 6 fills the first; 4 and 3 the second; 2 fits nowhere. 0 fits anywhere.
    np.testing.assert_array_equal(bins[0], [0, 1, 1, -1, -1])
    np.testing.assert_array_equal(before[0, :3], [0, 0, 4])
    np.testing.assert_array_equal(bins[1, :3], [0, 1, 1])
    np.testing.assert_array_equal(before[1, :3], [0, 0, 6])


@examples
@given(lengths_of, st.integers(1, 9), st.integers(1, 40), st.integers(0, 3), st.integers(1, 64))
def test_evaluation_holds_every_text_once_within_the_layout(lengths, rows, slots, count, short):
    longest = int(lengths.max())
    blocks = ((1, longest), (count, min(short, longest))) if count else ((1, longest),)
    layout = Layout(rows, blocks, slots + count)  # a text for each block at least
    placements = evaluation_plan(lengths, layout)
    assert_fits(placements, lengths, layout)


@pytest.mark.parametrize("like", [False, True])
@pytest.mark.parametrize("devices", [1, 4])
def test_evaluation_of_the_real_corpus_needs_few_batches(devices, like, real_lengths):
    training = PackingPlan(real_lengths, 32, devices, 384).layout
    layout = evaluation_layout(128, 1024, devices, training if like else None)
    assert layout.rows % devices == 0
    placements = evaluation_plan(real_lengths, layout)
    assert_fits(placements, real_lengths, layout)
    needed = real_lengths.sum() / (layout.rows * layout.length)
    assert len(placements) <= 1.07 * needed + 1


def test_short_blocks_hold_what_is_as_long_as_some_texts_are(real_lengths):
    known = likely_layout(real_lengths[:1024], 128, 1024, 384)
    layout = evaluation_layout(128, 1024, 1, known)
    assert layout.blocks[0][1] == 128
    assert 0.7 * 1024 <= layout.rows * layout.length <= 1.2 * 1024
    placements = evaluation_plan(real_lengths, layout)
    assert_fits(placements, real_lengths, layout)
    # Of whole rows attention looks at 128 tokens for each token.
    seen = sum(count * length**2 for count, length in layout.blocks) / layout.length
    assert seen < 0.7 * 128
    needed = real_lengths.sum() / (layout.rows * layout.length)
    assert len(placements) <= 1.07 * needed + 1
    assert likely_layout(np.array([5]), 128, 1024, 384) == Layout(1, ((1, 8),), 1)


def test_texts_of_more_than_half_a_block_have_one_each():
    layout = evaluation_layout(128, 1024, 1, None)
    placements = evaluation_plan(np.full(1000, 65), layout)
    assert [len(each.texts) for each in placements] == [8] * 125


def test_an_evaluation_takes_longer_texts_than_those_in_training():
    like = PackingPlan(np.full(320, 16), 32, 1, 384).layout
    assert like == Layout(1, ((32, 16),), 32)
    layout = evaluation_layout(100, 1024, 1, like)
    assert layout == Layout(1, ((1, 104), (32, 16)), 77)
    lengths = np.array([100, 90, 16, 16, 3])
    assert_fits(evaluation_plan(lengths, layout), lengths, layout)


def test_nothing_to_evaluate():
    assert evaluation_plan(np.zeros(0, np.int64), Layout(2, ((1, 8),), 2)) == []


@examples
@given(lengths_of, st.integers(1, 50))
def test_each_item_is_balanced_into_the_emptiest_bin_that_may_have_it(lengths, bins):
    descending = np.sort(lengths)[::-1]
    chosen, before = balance(descending, bins)
    fewest, larger = divmod(len(lengths), bins)
    totals, counts = [0] * bins, [0] * bins
    for length, own, count in zip(descending.tolist(), chosen, before, strict=True):
        may = [i for i in range(bins) if counts[i] < fewest + (larger > 0)]
        assert own == min(may, key=lambda i: (totals[i], counts[i], i))
        assert count == counts[own]
        larger -= counts[own] == fewest
        totals[own] += length
        counts[own] += 1
    assert max(counts) - min(counts) <= 1


def test_balance_by_hand():
    # 7 to bin 0; 5 to 1; 4 to 1 (9); 3 to 0 (10); 2 to 1 (11); 1 to 0 (11).
    assert balance(np.array([7, 5, 4, 3, 2, 1]), 2)[0].tolist() == [0, 1, 1, 0, 1, 0]
    # With two of the four, bin 1 is full.
    assert balance(np.array([7, 1, 1, 1]), 2)[0].tolist() == [0, 1, 1, 0]
