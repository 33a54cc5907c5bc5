import itertools

import numpy as np

from mtl_jax.studies.stats.expected_validation import expected_validation


def test_it_is_the_mean_best_of_all_draws_with_replacement():
    scores = [0.7, 0.2, 0.5, 0.7]
    expected = [
        np.mean([max(drawn) for drawn in itertools.product(scores, repeat=n)]) for n in range(1, 5)
    ]
    np.testing.assert_allclose(expected_validation(scores), expected, rtol=1e-14)
    # Of two scores: their mean, then a quarter of the lower and three of the higher.
    np.testing.assert_array_equal(expected_validation([1.0, 0.0]), [0.5, 0.75])
    assert expected_validation([0.3]).tolist() == [0.3]
    assert len(expected_validation([])) == 0
