"""Sums over devices: small leaves together, large ones apart, and the same bits as one by one."""

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.reduction import summed


def tree(seed):
    draw = np.random.default_rng(seed)
    large = draw.standard_normal((4, 600, 512)).astype(np.float32)
    return {
        "large": large,
        "bias": draw.standard_normal((4, 7)).astype(np.float32),
        "count": draw.integers(0, 9, 4).astype(np.int32),
        "pair": (draw.standard_normal((4, 2, 3)).astype(np.float32), np.float32(draw.random(4))),
    }


def test_the_sums_are_those_of_each_leaf():
    given = tree(0)
    found = jax.pmap(lambda leaves: summed(leaves, "i"), "i")(given)
    known = jax.pmap(lambda leaves: jax.lax.psum(leaves, "i"), "i")(given)
    assert jax.tree.structure(found) == jax.tree.structure(known)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(known), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_array_equal(ours, theirs)
    assert int(found["count"][0]) == given["count"].sum()


def test_small_leaves_share_a_collective():
    text = jax.make_jaxpr(lambda leaves: summed(leaves, "i"), axis_env=[("i", 4)])(
        jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), tree(1))
    )
    reductions = [one for one in text.eqns if one.primitive.name.startswith("psum")]
    sizes = [int(np.prod(var.aval.shape)) for one in reductions for var in one.invars]
    # All of float32 that is small, the counts, and what is large enough by itself.
    assert sorted(sizes) == [1, 14, 600 * 512]
