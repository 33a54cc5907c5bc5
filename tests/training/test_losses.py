import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.training.losses import distillation, masked_cross_entropy


def test_by_hand():
    # The softmax of the logarithms of 1, 2, 5 is 1/8, 2/8, 5/8.
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0], [3.0, 1.0, 4.0]]))
    total, count = masked_cross_entropy(logits, jnp.array([2, 0, 1]))
    assert float(total) == pytest.approx(math.log(8 / 5) + math.log(8) + math.log(8), rel=1e-6)
    assert (float(count), total.dtype, count.dtype) == (3.0, jnp.float32, jnp.float32)
    assert total.shape == count.shape == ()


@pytest.mark.parametrize("missing", [-1, -100])
def test_a_missing_label_adds_nothing(missing):
    logits = jnp.log(jnp.array([[[1.0, 3.0], [9.0, 1.0]], [[1.0, 1.0], [2.0, 3.0]]]))
    total, count = masked_cross_entropy(logits, jnp.array([[1, missing], [missing, 0]]))
    assert float(total) == pytest.approx(math.log(4 / 3) + math.log(5 / 2), rel=1e-6)
    assert float(count) == 2.0


def test_no_labels_at_all():
    logits, labels = jnp.ones((3, 4)), jnp.full(3, -1)
    assert [float(value) for value in masked_cross_entropy(logits, labels)] == [0.0, 0.0]
    gradient = jax.grad(lambda x: masked_cross_entropy(x, labels)[0])(logits)
    np.testing.assert_array_equal(gradient, np.zeros((3, 4)))


def test_the_gradient_is_softmax_less_target_and_zero_where_missing():
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]))
    gradient = jax.grad(lambda x: masked_cross_entropy(x, jnp.array([2, -1]))[0])(logits)
    np.testing.assert_allclose(gradient[0], [1 / 8, 2 / 8, -3 / 8], rtol=1e-6)
    np.testing.assert_array_equal(gradient[1], np.zeros(3))


def test_extreme_logits_stay_finite():
    logits = jnp.array([[1e30, -1e30], [-1e30, 1e30], [1e30, -1e30]])
    labels = jnp.array([0, 0, -1])
    total, count = masked_cross_entropy(logits, labels)
    assert (float(total), float(count)) == (pytest.approx(2e30, rel=1e-6), 2.0)
    gradient = jax.grad(lambda x: masked_cross_entropy(x, labels)[0])(logits)
    np.testing.assert_array_equal(gradient, [[0, 0], [-1, 1], [0, 0]])


def test_sums_and_counts_of_parts_add_up():
    logits = jax.random.normal(jax.random.key(0), (10, 3))
    labels = jnp.array([0, -1, 2, 1, -1, -1, -1, 0, 2, 2])
    whole = masked_cross_entropy(logits, labels)
    parts = [masked_cross_entropy(logits[i : i + 5], labels[i : i + 5]) for i in (0, 5)]
    for i in range(2):
        assert float(whole[i]) == pytest.approx(float(parts[0][i] + parts[1][i]), rel=1e-6)


def test_distillation_is_the_divergence():
    """By hand, for (3/4, 1/4) against (1/2, 1/2); an empty slot adds nothing."""
    targets = np.array([[0.75, 0.25], [0.5, 0.5], [0.0, 0.0]], np.float32)
    logits = np.array([[1.0, 1.0], [7.0, 7.0], [0.0, 1.0]], np.float32)
    divergence = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    found = distillation(jnp.array(logits), jnp.array(targets))
    np.testing.assert_allclose(found, divergence, rtol=1e-5)
