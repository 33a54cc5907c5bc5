"""The orders of epochs against Grain's, which gives them one index at a time."""

import grain
import numpy as np
import pytest

from mtl_jax.data.packing.shuffle import Shuffle


@pytest.mark.parametrize("size", [1, 2, 3, 255, 257, 65_535, 65_536, 65_538, 262_144])
@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_an_order_is_that_of_grain(size, seed):
    of_grain = grain.MapDataset.range(size).seed(seed).shuffle().repeat()
    places = [*range(min(size, 300)), size - 1]
    for epoch in (0, 3):
        order = Shuffle(size, seed).of(epoch)
        assert order[places].tolist() == [of_grain[epoch * size + place] for place in places]
        np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_where_grain_loses_a_number_none_is_lost():
    np.testing.assert_array_equal(np.sort(Shuffle(65_537, 0).of(0)), np.arange(65_537))
