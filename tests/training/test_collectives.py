"""Sums over devices: small leaves together, large ones apart or by rows, with the bits of psum."""

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.training.collectives import summed


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


def table(seed, rows=4000, read=50):
    """Gradients of a table on four devices, and the rows that each has read, some repeated."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(0, rows, (4, 2, read // 2)).astype(np.int32)
    ids[:, 0, :5] = 7
    values = np.zeros((4, rows, 96), np.float32)
    for gradient, own in zip(values, ids, strict=True):
        gradient[own] = draw.standard_normal((*own.shape, 96))
    return values, ids


def collectives(values, ids):
    """What is exchanged of one device's gradient: [(name, elements)]."""
    text = jax.make_jaxpr(of_table, axis_env=[("i", 4)])(
        jnp.asarray(values[0]), jnp.asarray(ids[0])
    )
    shown = ("psum", "psum_invariant", "all_gather")
    return [
        (one.primitive.name.partition("_inv")[0], int(np.prod(var.aval.shape)))
        for one in text.eqns
        if one.primitive.name in shown
        for var in one.invars
    ]


def of_table(gradient, ids):
    tree = {"backbone": {"word": gradient, "other": jnp.ones((3,))}}
    return summed(tree, "i", {"word": ids})["backbone"]


def test_a_table_is_summed_by_the_rows_that_were_read():
    values, ids = table(0)
    found = np.asarray(jax.pmap(of_table, "i")(values, ids)["word"])
    known = values[0] + values[1] + values[2] + values[3]
    for device in found:
        np.testing.assert_array_equal(device, known)
    assert sorted(collectives(values, ids)) == [
        ("all_gather", 50),
        ("all_gather", 50 * 96),
        ("psum", 3),
    ]


def test_a_table_of_which_most_is_read_is_summed_whole():
    values, ids = table(1, rows=3000, read=800)
    found = np.asarray(jax.pmap(of_table, "i")(values, ids)["word"])
    np.testing.assert_allclose(found[0], values.sum(0), rtol=1e-6, atol=1e-6)
    assert ("psum", 3000 * 96) in collectives(values, ids)


def test_a_row_that_nobody_read_and_the_last_one_are_right():
    values, ids = table(2)
    ids[...] = 3999
    values[...] = 0
    values[:, 3999] = np.arange(1, 5)[:, None]
    found = np.asarray(jax.pmap(of_table, "i")(values, ids)["word"])
    assert (found[:, 3999] == 10).all()
    assert not found[:, :3999].any()
