"""Texts that share a row are computed as if each were alone."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import mtl_jax
from mtl_jax.data.batches import TextSet, make_batch
from mtl_jax.data.packing.plan import Layout, Placement
from mtl_jax.data.tokens import Tokens
from mtl_jax.models.multitask import MultiTaskModule
from mtl_jax.training.losses import masked_cross_entropy
from tests.conftest import TASKS, head_sizes

POOLINGS = ("mean", "cls", "pooler")
CLASSES = (4, 3)
LENGTHS = np.array([5, 9, 3, 7, 4, 12, 1])
LAYOUT = Layout(7, ((1, 24),), slots=5)
# Two rows, of 4 and 3 texts in mixed order; the others and a slot of each stay empty.
PLACEMENT = Placement(
    texts=np.array([3, 0, 5, 1, 2, 4, 6]),
    rows=np.array([0, 0, 1, 1, 0, 0, 1]),
    starts=np.array([0, 7, 0, 12, 12, 15, 21]),
)
EACH_ALONE = Placement(np.arange(7), np.arange(7), np.zeros(7, np.int64))
# The same texts in the blocks of two rows: two in the first, one, one; then one, one, none.
BLOCKS = ((1, 12), (2, 9))
IN_BLOCKS = Placement(
    texts=np.array([3, 0, 5, 1, 2, 4, 6]),
    rows=np.array([0, 0, 1, 1, 0, 0, 0]),
    starts=np.array([0, 7, 0, 12, 12, 15, 21]),
)


def make_texts(seed=0):
    random = np.random.RandomState(seed)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    tokens = Tokens(random.randint(1, 41, offsets[-1]).astype(np.int32), offsets, 0, 0)
    labels = {
        "classifier": np.array([0, 3, -1, 1, 2, -1, 0], np.int32),
        "sentiment": np.array([2, -1, -1, 0, 1, 1, 2], np.int32),
    }
    return TextSet(tokens, labels)


PACKED = make_batch(make_texts(), LAYOUT, PLACEMENT)
UNPACKED = make_batch(make_texts(), LAYOUT, EACH_ALONE)
BLOCKED = make_batch(make_texts(), Layout(2, BLOCKS, slots=6), IN_BLOCKS)


@pytest.fixture(scope="module")
def loaded(double):
    """A checkpoint of two layers, and heads whose outputs are of the order of 1."""
    config, backbone = mtl_jax.load_backbone(double)
    model = MultiTaskModule(config, head_sizes(*CLASSES))
    return config, {"backbone": backbone} | model.init_heads(jax.random.key(1))


SETTLED = ("train", "depth", "frozen_depth", "method")


# One program in the place of one for each operation, and again for the same model and flags.
@functools.partial(jax.jit, static_argnums=0, static_argnames=SETTLED)
def applied(model, params, batch, **flags) -> Any:
    return model.apply({"params": params}, batch, **flags)


def run(model, params, batch, **flags) -> Any:
    batch = {name: array for name, array in batch.items() if name != "example"}
    return applied(model, params, batch, **flags)


def flat(tree) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")


def by_text(values, batch):
    """[rows, slots, ...] -> [texts, ...], in the order of the texts."""
    example = batch["example"]
    cells = [np.argwhere(example == i)[0] for i in range(len(LENGTHS))]
    return np.stack([np.asarray(values)[row, slot] for row, slot in cells])


def test_the_batches_are_what_they_are_meant_to_be():
    assert (PACKED["example"] >= 0).sum(1).tolist() == [4, 3, 0, 0, 0, 0, 0]
    assert (UNPACKED["example"] >= 0).sum(1).tolist() == [1] * 7
    assert PACKED["segment_ids"][0].max() == 4
    assert LENGTHS.sum() == (PACKED["segment_ids"] > 0).sum()


@pytest.mark.parametrize(("batch", "blocks"), [(PACKED, None), (BLOCKED, BLOCKS)])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_packed_logits_and_vectors_are_those_of_each_text_alone(pooling, batch, blocks, loaded):
    config, params = loaded
    alone_model = MultiTaskModule(config, head_sizes(*CLASSES), pooling)
    model = alone_model.clone(blocks=blocks)
    packed, alone = run(model, params, batch), run(alone_model, params, UNPACKED)
    for task, classes in zip(TASKS, CLASSES, strict=True):
        assert packed[task].shape == (*batch["example"].shape, classes)
        assert packed[task].dtype == jnp.float32
        found, expected = by_text(packed[task], batch), by_text(alone[task], UNPACKED)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
        assert np.abs(expected[0] - expected[1]).max() > 0.05
        assert np.isfinite(packed[task]).all()
    vectors = run(model, params, batch, method="pooled")
    expected = by_text(run(alone_model, params, UNPACKED, method="pooled"), UNPACKED)
    assert vectors.shape == (*batch["example"].shape, 16)
    np.testing.assert_allclose(by_text(vectors, batch), expected, rtol=0, atol=2e-5)
    for depth in (2, 3):
        states = run(model, params, batch, depth=depth, method="states")
        entered = run(
            model.clone(states_depth=depth), params, {**batch, "states": states}, method="pooled"
        )
        np.testing.assert_allclose(by_text(entered, batch), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_vector_is_what_the_pooling_says(pooling, loaded):
    config, params = loaded
    model = MultiTaskModule(config, head_sizes(*CLASSES), pooling)
    encoder = mtl_jax.EncoderModule(config)
    texts = make_texts()
    vectors = by_text(run(model, params, PACKED, method="pooled"), PACKED)
    encode = jax.jit(encoder.apply)
    for i in (0, 5):
        ids = texts.tokens.ids[texts.tokens.offsets[i] : texts.tokens.offsets[i + 1]]
        hidden = np.asarray(encode({"params": params["backbone"]}, ids[None]))[0]
        pooler = params["backbone"]["pooler"]
        expected = {
            "mean": hidden.mean(0),
            "cls": hidden[0],
            "pooler": np.tanh(hidden[0] @ pooler["kernel"] + pooler["bias"]),
        }
        np.testing.assert_allclose(vectors[i], expected[pooling], rtol=0, atol=2e-5)


@functools.partial(jax.jit, static_argnums=0)
@functools.partial(jax.value_and_grad, argnums=1)
def loss_and_gradient(model, params, batch):
    logits = run(model, params, batch)
    return sum(masked_cross_entropy(logits[task], batch[task])[0] for task in TASKS)


@pytest.mark.parametrize(("batch", "blocks"), [(PACKED, None), (BLOCKED, BLOCKS)])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_packed_gradients_are_those_of_each_text_alone(pooling, batch, blocks, loaded):
    config, params = loaded
    packed, alone = (
        flat(
            loss_and_gradient(
                MultiTaskModule(config, head_sizes(*CLASSES), pooling, blocks=blocks), params, batch
            )[1]
        )
        for batch, blocks in ((batch, blocks), (UNPACKED, None))
    )
    assert packed.keys() == alone.keys()
    for name, gradient in packed.items():
        found, expected = np.asarray(gradient), np.asarray(alone[name])
        assert np.isfinite(found).all(), name
        scale = np.abs(expected).max()
        if "pooler" in name and pooling != "pooler":
            assert not found.any(), name
        elif not name.endswith("key/bias"):  # of which the exact gradient is 0
            assert scale > 1e-4, name
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * scale, err_msg=name)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_neighbours_do_not_matter_to_the_last_bit(pooling, loaded):
    config, params = loaded
    model = MultiTaskModule(config, head_sizes(*CLASSES), pooling)
    other = {name: array.copy() for name, array in PACKED.items()}
    # Text 0 is the second of row 0, text 3 the first.
    mine = other["segment_ids"][0] == 2
    other["input_ids"][0, ~mine] = (other["input_ids"][0, ~mine] + 17) % 40
    base, changed = run(model, params, PACKED), run(model, params, other)
    for task in TASKS:
        one, two = by_text(base[task], PACKED), by_text(changed[task], PACKED)
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[[1, 5, 6]], two[[1, 5, 6]])
        assert (np.abs(one[[2, 3, 4]] - two[[2, 3, 4]]).max(-1) > 1e-3).all()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_batch_without_any_text_gives_zeros_and_no_nan(pooling, loaded):
    config, params = loaded
    model = MultiTaskModule(config, head_sizes(*CLASSES), pooling)
    fill = {"example": -1, "classifier": -1, "sentiment": -1}
    empty = {name: np.full_like(array, fill.get(name, 0)) for name, array in PACKED.items()}
    value, gradient = loss_and_gradient(model, params, empty)
    assert float(value) == 0.0
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run(model, params, empty)))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_cached_vectors_give_the_logits_of_the_tokens(pooling, loaded):
    config, params = loaded
    model = MultiTaskModule(config, head_sizes(*CLASSES), pooling)
    vectors = by_text(run(model, params, UNPACKED, method="pooled"), UNPACKED)
    texts = dataclasses.replace(make_texts(), pooled=vectors)
    cached = make_batch(texts, LAYOUT, PLACEMENT)
    heads = {task: params[task] for task in TASKS}
    # No backbone is needed.
    found, expected = run(model, heads, cached), run(model, params, PACKED)
    for task in TASKS:
        np.testing.assert_allclose(
            by_text(found[task], cached), by_text(expected[task], PACKED), rtol=0, atol=2e-5
        )


def head_inputs(config, params, key):
    """What reaches the heads in training, for vectors of ones."""
    model = MultiTaskModule(config, head_sizes(*CLASSES))
    _, state = model.apply(
        {"params": {task: params[task] for task in TASKS}},
        {"pooled": jnp.ones((50, 20, 16))},
        train=True,
        rngs={"dropout": jax.random.key(key)},
        capture_intermediates=lambda module, _: module.name == "dropout",
        mutable=["intermediates"],
    )
    return np.asarray(state["intermediates"]["dropout"]["__call__"][0])


@pytest.mark.parametrize(
    ("classifier_dropout", "hidden_dropout", "rate"),
    [(0.4, 0.1, 0.4), (None, 0.25, 0.25), (0.0, 0.5, 0.0), (1.0, 0.0, 1.0)],
)
def test_dropout_before_the_heads(classifier_dropout, hidden_dropout, rate, loaded):
    config, params = loaded
    config = dataclasses.replace(
        config, classifier_dropout=classifier_dropout, hidden_dropout_prob=hidden_dropout
    )
    kept = head_inputs(config, params, key=0)
    share = (kept == 0).mean()
    # 16,000 draws: five standard deviations.
    assert share == pytest.approx(rate, abs=5 * (rate * (1 - rate) / kept.size) ** 0.5)
    # The rate is rounded to a multiple of 2**-16.
    np.testing.assert_allclose(kept[kept != 0], 1 / (1 - min(rate, 0.99)), rtol=2e-5)
    np.testing.assert_array_equal(kept, head_inputs(config, params, key=0))
    assert np.array_equal(kept, head_inputs(config, params, key=1)) == (rate in (0.0, 1.0))


def test_both_heads_see_the_same_dropped_vector(loaded):
    config, _ = loaded
    same = {"kernel": np.eye(16, 3, dtype=np.float32), "bias": np.zeros(3, np.float32)}
    model = MultiTaskModule(dataclasses.replace(config, classifier_dropout=0.5), head_sizes(3, 3))
    batch = {"pooled": jnp.ones((4, 4, 16))}
    rngs = {"dropout": jax.random.key(0)}
    logits = run(model, dict.fromkeys(TASKS, same), batch, train=True, rngs=rngs)
    np.testing.assert_array_equal(logits["classifier"], logits["sentiment"])
    assert 0 < (np.asarray(logits["classifier"]) == 0).mean() < 1


def test_evaluation_has_no_dropout(loaded):
    config, params = loaded
    config = dataclasses.replace(config, classifier_dropout=0.9)
    np.testing.assert_array_equal(
        run(MultiTaskModule(config, head_sizes(*CLASSES)), params, PACKED)["sentiment"],
        run(MultiTaskModule(loaded[0], head_sizes(*CLASSES)), params, PACKED)["sentiment"],
    )


def test_a_frozen_backbone_and_no_head_dropout_train_as_they_evaluate(loaded):
    config, params = loaded
    config = dataclasses.replace(config, classifier_dropout=0.0, hidden_dropout_prob=0.5)
    model = MultiTaskModule(config, head_sizes(*CLASSES))
    rngs = {"dropout": jax.random.key(0)}
    trained = run(model, params, PACKED, train=True, frozen_depth=3, rngs=rngs)
    loose = run(model, params, PACKED, train=True, frozen_depth=2, rngs=rngs)
    exact = run(model, params, PACKED)
    for task in TASKS:
        np.testing.assert_array_equal(trained[task], exact[task])
        assert not np.array_equal(loose[task], exact[task])


def test_fresh_heads(loaded):
    config, _ = loaded
    config = dataclasses.replace(config, hidden_size=1024, initializer_range=0.05)
    model = MultiTaskModule(config, head_sizes(40, 30))
    heads = model.init_heads(jax.random.key(0))
    shapes = {path: leaf.shape for path, leaf in flat(heads).items()}
    assert shapes == {
        "classifier/kernel": (1024, 40),
        "classifier/bias": (40,),
        "sentiment/kernel": (1024, 30),
        "sentiment/bias": (30,),
    }
    for head in heads.values():
        assert not np.asarray(head["bias"]).any()
        assert float(head["kernel"].std()) == pytest.approx(0.05, rel=0.02)
        assert float(head["kernel"].mean()) == pytest.approx(0, abs=0.001)
    again, other = model.init_heads(jax.random.key(0)), model.init_heads(jax.random.key(1))
    for task in TASKS:
        np.testing.assert_array_equal(again[task]["kernel"], heads[task]["kernel"])
        assert not np.array_equal(other[task]["kernel"], heads[task]["kernel"])
    assert not np.array_equal(heads["classifier"]["kernel"][:, :30], heads["sentiment"]["kernel"])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_bfloat16_gives_float32_vectors_and_logits_near_the_exact(pooling, loaded):
    config, params = loaded
    exact = MultiTaskModule(config, head_sizes(*CLASSES), pooling)
    rough = MultiTaskModule(config, head_sizes(*CLASSES), pooling, jnp.bfloat16)
    vectors = run(rough, params, PACKED, method="pooled")
    assert vectors.dtype == jnp.float32
    for task in TASKS:
        found = run(rough, params, PACKED)[task]
        assert found.dtype == jnp.float32
        difference = by_text(found - run(exact, params, PACKED)[task], PACKED)
        assert 0 < np.abs(difference).max() < 0.3
        assert np.abs(difference).mean() < 0.03
