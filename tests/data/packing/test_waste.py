"""Batches that are too small for their devices, and the size that mends it."""

import numpy as np
import pytest

from mtl_jax.data.packing.plan import PackingPlan
from mtl_jax.data.packing.waste import MOST_PADDING, mending_batch_size

# Of 128 tokens a few, of 20 most.
LENGTHS = np.where(np.arange(4096) % 64 == 0, 128, 20)


def test_padding_is_what_no_text_fills():
    plan = PackingPlan(np.array([8, 8, 4, 4]), 2, 1, 64)
    assert plan.steps * plan.layout.rows * plan.layout.length == 32
    assert plan.padding == pytest.approx(1 - 24 / 32)


def test_the_size_that_mends_it_is_the_next_that_does():
    by_size = {size: PackingPlan(LENGTHS, size, 16, 64).padding for size in (16, 32, 64, 128, 256)}
    assert by_size[16] > 0.8
    mended = mending_batch_size(LENGTHS, 16, 16, 64)
    assert mended == next(size for size, waste in by_size.items() if waste <= MOST_PADDING)


def test_too_few_texts_have_none():
    assert mending_batch_size(LENGTHS[:20], 16, 16, 64) is None
