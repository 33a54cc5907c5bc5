"""The encoder against PyTorch, and against itself run in parts."""

import dataclasses
import functools
import importlib.util
import operator
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import mtl_jax
from mtl_jax.core import downloads
from mtl_jax.models.conversion import to_transformers
from mtl_jax.models.dropout import Dropout
from mtl_jax.models.encoder_config import ACTIVATIONS, EncoderConfig
from mtl_jax.models.encoder_module import EncoderModule
from mtl_jax.models.fused_attention import attention as fused_attention
from mtl_jax.models.fused_attention import cudnn_can, of_seeds
from mtl_jax.models.layers import attention_bias
from mtl_jax.models.precision import default_dtype
from tests import make_bert_reference as reference

SCRIPT = Path(reference.__file__)
# Largest difference that two orders of summation in float32 may make: seen are 1e-5 at
# tokens. At padding attention is sharp and rounding grows with every layer: there PyTorch's
# own float32 is up to 2.3e-4 away from its float64 on the default checkpoint.
TOKEN_TOLERANCE = 3e-5
PADDING_TOLERANCE = 5e-4
# The same for gradients, relative to the largest value of each parameter's gradient.
GRADIENT_TOLERANCE = 5e-4
SYNONYMS = {"swish": "silu", "gelu_pytorch_tanh": "gelu_new"}
NAMES = [*reference.MODELS, reference.REAL]


def flat(tree) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")


def run(encoder, params, *args, **flags) -> Any:
    return encoder.apply({"params": params}, *args, **flags)


def run_compiled(encoder, params, *args, **flags) -> Any:
    """The same in one program, in the place of one for each operation."""
    return jax.jit(lambda params: run(encoder, params, *args, **flags))(params)


def states_and_pooler(encoder, ids, mask, types):
    """float32 [1 + layers, batch, length, hidden] and [batch, hidden], layer by layer."""
    views = encoder.views(mask)
    states = [encoder.embed(ids, types)]
    for i in range(encoder.config.num_hidden_layers):
        states.append(encoder.run_layers(states[-1], views, i, i + 1))
    return jnp.stack(states), encoder.pool(states[-1][:, 0])


def computed(folder, ids, mask, types):
    """What ``make_bert_reference.reference`` gives, by the code on trial."""
    config, params = mtl_jax.load_backbone(folder)
    encoder = EncoderModule(config)
    state_weights, pooler_weights = reference.loss_weights(mask, config.hidden_size)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        states, pooler = run(encoder, params, ids, mask, types, method=states_and_pooler)
        return (states[-1] * state_weights).sum() + (pooler * pooler_weights).sum(), (
            states,
            pooler,
        )

    (_, (states, pooler)), gradient = jax.jit(loss)(params)
    last = jax.jit(functools.partial(run, encoder))(params, ids, mask, types)
    np.testing.assert_allclose(last, states[-1], rtol=0, atol=PADDING_TOLERANCE)
    arrays = {"states": np.stack([*states[:-1], last]), "pooler": np.asarray(pooler)}
    gradients = to_transformers(jax.tree.map(np.asarray, gradient))
    return arrays | {f"gradient/{name}": array for name, array in gradients.items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Name to folder."""
    folder = tmp_path_factory.mktemp("reference")
    written = {name: reference.write_model(name, folder / name) for name in reference.MODELS}
    return written | {reference.REAL: downloads.minilm()}


@pytest.fixture(scope="module")
def ours(checkpoint):
    """What we compute on the inputs of the committed file, once per model."""
    found = {}

    def compute(name):
        if name not in found:
            stored = part_of(reference.STORED, name)
            given = [stored[k] for k in ("input_ids", "attention_mask", "token_type_ids")]
            found[name] = computed(checkpoint[name], *given)
        return found[name]

    return compute


def part_of(path, name):
    with np.load(path) as arrays:
        names = [key for key in arrays.files if key.startswith(f"{name}/")]
        return {key.removeprefix(f"{name}/"): arrays[key] for key in names}


def assert_same(found, expected, mask):
    """Every array of ``found`` is there, and within the tolerance of its kind."""
    inputs = {"input_ids", "attention_mask", "token_type_ids"}
    assert set(found) == set(expected) - inputs
    for name, array in found.items():
        other = expected[name]
        assert array.shape == other.shape, name
        assert array.dtype == other.dtype == np.float32, name
        difference = np.abs(array.astype(np.float64) - other)
        if name in ("states", "last_state"):
            tokens = mask[:: len(mask) // array.shape[-3], :, None]
            limit = np.where(tokens, TOKEN_TOLERANCE, PADDING_TOLERANCE)
        elif name == "pooler":
            limit = TOKEN_TOLERANCE
        elif name.endswith("attention.self.key.bias"):
            # It shifts all scores of a query alike, so the exact gradient is 0 and the
            # rounding that is left is judged by the gradient that it is a residue of.
            scale = expected[name.replace("key.bias", "query.bias")]
            limit = GRADIENT_TOLERANCE * np.abs(scale).max()
        else:
            limit = GRADIENT_TOLERANCE * np.abs(other).max()
        assert (difference <= limit).all(), (name, difference.max(), np.max(limit))


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_stored_numbers_of_pytorch(name, ours):
    found = ours(name)
    expected = part_of(reference.STORED, name)
    found = reference.thinned(found) if name == reference.REAL else found
    assert_same(found, expected, expected["attention_mask"])


def test_the_stored_inputs_exercise_what_they_should():
    for name in reference.MODELS:
        stored = part_of(reference.STORED, name)
        for array, given in zip(
            (stored["input_ids"], stored["attention_mask"], stored["token_type_ids"]),
            reference.inputs(name),
            strict=True,
        ):
            np.testing.assert_array_equal(array, given)
        assert len(np.unique(stored["token_type_ids"])) == reference.MODELS[name].type_vocab_size
        assert stored["attention_mask"].sum(1).min() == 1
    acts = {config.hidden_act for config in reference.MODELS.values()}
    assert acts | SYNONYMS.keys() == set(ACTIVATIONS)
    real = part_of(reference.STORED, reference.REAL)
    lengths = real["attention_mask"].sum(1)
    assert real["input_ids"].shape == (16, 128)
    assert (lengths.min(), lengths.max()) == (3, 128)
    assert len(set(lengths.tolist())) > 10


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_equals_pytorch_run_now_in_every_number(tmp_path, ours):
    live = tmp_path / "full.npz"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--full", str(live)],
        cwd=SCRIPT.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        expected = part_of(live, name)
        mask = expected["attention_mask"]
        assert_same(ours(name), expected, mask)
        # The committed file holds numbers of the same models and inputs.
        stored = part_of(reference.STORED, name)
        for given in ("input_ids", "attention_mask", "token_type_ids"):
            np.testing.assert_array_equal(expected[given], stored[given])
        kept = reference.thinned(expected) if name == reference.REAL else expected
        assert_same({k: v for k, v in kept.items() if v.dtype == np.float32}, stored, mask)
    assert part_of(live, reference.REAL)["states"].shape == (7, 16, 128, 384)


TINY_IDS = np.array([[2, 5, 8, 12, 3], [2, 9, 3, 0, 0]], np.int32)
TINY_MASK = (TINY_IDS != 0).astype(np.int32)
TINY_TYPES = np.array([[0, 0, 0, 1, 1], [0, 1, 1, 0, 0]], np.int32)


@pytest.fixture(scope="module")
def model(tiny):
    """The tiny checkpoint's configuration and parameters."""
    return mtl_jax.load_backbone(tiny)


def encode(config, params, dropout=None, dtype=jnp.float32, **flags):
    """The last hidden state of the tiny inputs, one operation after the other."""
    rngs = None if dropout is None else {"dropout": jax.random.key(dropout)}
    encoder = EncoderModule(config, dtype)
    given = (TINY_IDS, TINY_MASK, TINY_TYPES)
    return np.asarray(run(encoder, params, *given, **flags, rngs=rngs))


@pytest.mark.parametrize("i", range(4))
def test_two_ranges_of_layers_are_the_whole_bit_for_bit(i, model):
    config, params = model
    assert config.num_hidden_layers == 3

    def in_two(encoder):
        views = encoder.views(jnp.asarray(TINY_MASK))
        hidden = encoder.embed(TINY_IDS, TINY_TYPES)
        return encoder.run_layers(encoder.run_layers(hidden, views, 0, i), views, i, 3)

    parts = run(EncoderModule(config), params, method=in_two)
    np.testing.assert_array_equal(parts, encode(config, params))


@pytest.fixture(scope="module")
def real():
    """The default checkpoint's encoder and parameters, some texts, their states and mask."""
    config, params = mtl_jax.load_backbone(downloads.minilm())
    encoder = EncoderModule(config)
    stored = part_of(reference.STORED, reference.REAL)
    ids, mask = stored["input_ids"][::4, :40], stored["attention_mask"][::4, :40]
    return encoder, params, ids, mask, jax.jit(functools.partial(run, encoder))(params, ids, mask)


@pytest.mark.parametrize("i", [0, 1, 3, 6])
def test_two_compiled_ranges_are_the_whole_on_the_real_checkpoint(i, real):
    encoder, params, ids, mask, whole = real

    @jax.jit
    def lower(params):
        hidden = run(encoder, params, ids, method="embed")
        views = run(encoder, params, jnp.asarray(mask), method="views")
        return run(encoder, params, hidden, views, 0, i, method="run_layers")

    @jax.jit
    def upper(params, hidden):
        views = run(encoder, params, jnp.asarray(mask), method="views")
        return run(encoder, params, hidden, views, i, method="run_layers")

    found = upper(params, lower(params))
    np.testing.assert_allclose(found, whole, rtol=0, atol=PADDING_TOLERANCE)
    np.testing.assert_allclose(found[mask == 1], whole[mask == 1], rtol=0, atol=TOKEN_TOLERANCE)


def test_defaults_are_no_padding_and_one_type_and_positions_in_order(model):
    config, params = model
    encoder = EncoderModule(config)
    short = run(encoder, params, TINY_IDS)
    positions = np.broadcast_to(np.arange(5), (2, 5))
    ones, zeros = np.ones_like(TINY_IDS), np.zeros_like(TINY_IDS)
    spelled = run(encoder, params, TINY_IDS, ones, zeros, positions)
    np.testing.assert_array_equal(short, spelled)
    moved = run(encoder, params, TINY_IDS, ones, zeros, positions + 1)
    assert np.abs(moved - short).min() > 0


def test_padding_does_not_matter_to_tokens(model):
    config, params = model
    encoder = EncoderModule(config)
    base = encode(config, params)
    ids = np.where(TINY_MASK, TINY_IDS, 7)
    other = np.asarray(run(encoder, params, ids, TINY_MASK, TINY_TYPES))
    np.testing.assert_array_equal(base[TINY_MASK == 1], other[TINY_MASK == 1])
    assert np.abs(base[TINY_MASK == 0] - other[TINY_MASK == 0]).min() > 0


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 2},
        {"layer_norm_eps": 1e-2},
        *({"hidden_act": act} for act in ("gelu_new", "relu", "silu", "tanh")),
    ],
    ids=str,
)
def test_a_field_changes_the_numbers(change, model):
    config, params = model
    base = encode(config, params)
    assert np.abs(encode(dataclasses.replace(config, **change), params) - base).max() > 1e-5


@pytest.mark.parametrize(("name", "other"), SYNONYMS.items())
def test_two_names_of_one_activation(name, other, model):
    config, params = model
    one, two = (
        encode(dataclasses.replace(config, hidden_act=act), params) for act in (name, other)
    )
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("field", "path", "axis"),
    [
        ("vocab_size", "embeddings/word/embedding", 0),
        ("max_position_embeddings", "embeddings/position/embedding", 0),
        ("type_vocab_size", "embeddings/token_type/embedding", 0),
        ("hidden_size", "layer_0/attention/query/kernel", 0),
        ("intermediate_size", "layer_2/mlp/intermediate/kernel", 1),
    ],
)
def test_a_field_is_a_size(field, path, axis, model):
    config, _ = model
    size = getattr(config, field) * 2
    encoder = EncoderModule(dataclasses.replace(config, **{field: size}))
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), TINY_IDS)["params"]
    assert flat(shapes)[path].shape[axis] == size


def test_layers_and_initial_spread_follow_the_configuration(model):
    config, _ = model
    wide = dataclasses.replace(
        config, num_hidden_layers=2, hidden_size=96, intermediate_size=384, initializer_range=0.07
    )
    params = jax.jit(EncoderModule(wide).init)(jax.random.key(0), TINY_IDS)["params"]
    assert set(params) == {"embeddings", *(f"layer_{i}" for i in range(2))}
    for path, leaf in flat(params).items():
        if leaf.size >= 96 * 96:
            assert float(leaf.std()) == pytest.approx(0.07, rel=0.05), path
            assert abs(float(leaf.mean())) < 0.004, path
        if path.endswith("bias"):
            assert not leaf.any(), path
        if path.endswith("scale"):
            assert (np.asarray(leaf) == 1).all(), path


HIDDEN, ATTENTION = "hidden_dropout_prob", "attention_probs_dropout_prob"


def with_rates(config, hidden, attention):
    return dataclasses.replace(config, **{HIDDEN: hidden, ATTENTION: attention})


def test_dropout_follows_its_key_and_is_off_without_train(model):
    config, params = model
    config = with_rates(config, 0.2, 0.3)
    plain = encode(config, params)
    np.testing.assert_array_equal(plain, encode(config, params, dropout=1))
    first = encode(config, params, dropout=1, train=True)
    np.testing.assert_array_equal(first, encode(config, params, dropout=1, train=True))
    assert not np.array_equal(first, encode(config, params, dropout=2, train=True))
    assert not np.array_equal(first, plain)
    off = with_rates(config, 0.0, 0.0)
    np.testing.assert_array_equal(encode(off, params, dropout=1, train=True), plain)


@pytest.mark.parametrize("rates", [(0.3, 0.0), (0.0, 0.6)])
def test_every_dropout_drops_at_the_rate_of_its_field(rates, model):
    config, params = model
    config = with_rates(config, *rates)
    encoder = EncoderModule(config)
    ids = np.random.RandomState(0).randint(1, config.vocab_size, (48, 24))

    def outputs(train):
        _, state = run_compiled(
            encoder,
            params,
            ids,
            train=train,
            rngs={"dropout": jax.random.key(3)},
            capture_intermediates=lambda module, _: "dropout" in (module.name or ""),
            mutable=["intermediates"],
        )
        return flat(state["intermediates"])

    dropped, kept = outputs(train=True), outputs(train=False)
    sites = {"dropout", "attention/weights_dropout", "attention/dropout", "mlp/dropout"}
    assert {name.split("/", 1)[1].removesuffix("/__call__") for name in dropped} == sites
    assert len(dropped) == 1 + 3 * config.num_hidden_layers
    for name, (values,) in dropped.items():
        rate = rates[1] if "weights_dropout" in name else rates[0]
        share = float((np.asarray(values) == 0).mean())
        assert share == pytest.approx(rate, abs=4 * (0.25 / values.size) ** 0.5), name
    # What is kept is scaled up; only the first site still has the undisturbed input.
    first = (
        "embeddings/dropout/__call__"
        if rates[0]
        else ("layer_0/attention/weights_dropout/__call__")
    )
    values, (before,) = np.asarray(dropped[first][0]), kept[first]
    np.testing.assert_allclose(
        values[values != 0],
        np.asarray(before)[values != 0] / (1 - max(rates)),
        rtol=1e-6,
    )
    masks = [np.asarray(values) == 0 for (values,) in dropped.values() if values.ndim == 3]
    assert all(not np.array_equal(a, b) for a in masks for b in masks if a is not b) or not rates[0]


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_draws_every_element_anew(rate):
    count = 50_000
    ones = jnp.ones((count, 5))
    found = Dropout(rate).apply({}, ones, False, rngs={"dropout": jax.random.key(0)})
    found = np.asarray(found)
    assert set(np.unique(found).tolist()) == {0.0, float(np.float32(1) / np.float32(1 - rate))}
    dropped = found == 0
    for i in range(5):
        for j in range(i, 5):
            both = rate if i == j else rate**2
            share = (dropped[:, i] & dropped[:, j]).mean()
            assert share == pytest.approx(both, abs=5 * (both * (1 - both) / count) ** 0.5)


def silenced(params, *endings):
    leaves = flat(params)
    zeroed = {k: np.zeros_like(v) if k.endswith(endings) else v for k, v in leaves.items()}
    assert any(not np.array_equal(zeroed[k], v) for k, v in leaves.items())
    return unflatten_dict(zeroed, sep="/")


@pytest.mark.parametrize("on", ["weights", "output"])
def test_attention_dropout_acts_on_the_weights_or_on_what_they_mix(on, model):
    config, params = model
    dropped = dataclasses.replace(with_rates(config, 0.0, 1.0), attention_dropout_on=on)
    everything = encode(dropped, params, dropout=0, train=True)
    nothing = silenced(params, "attention/value/kernel", "attention/value/bias")
    np.testing.assert_array_equal(everything, encode(config, nothing))


def test_hidden_dropout_acts_on_both_updates_and_not_on_the_residual(model):
    config, params = model
    everything = encode(with_rates(config, 1.0, 0.0), params, dropout=0, train=True, frozen_depth=1)
    nothing = silenced(params, "output/kernel", "output/bias")
    np.testing.assert_array_equal(everything, encode(config, nothing))
    embedded = run(
        EncoderModule(with_rates(config, 1.0, 0.0)),
        params,
        TINY_IDS,
        train=True,
        method="embed",
        rngs={"dropout": jax.random.key(0)},
    )
    assert not np.asarray(embedded).any()


@pytest.mark.parametrize("depth", range(5))
def test_the_frozen_prefix_has_no_dropout(depth, model):
    config, params = model
    encoder = EncoderModule(with_rates(config, 0.5, 0.5))
    stages = ["embeddings", "layer_0", "layer_1", "layer_2"]

    def outputs(rngs, **flags):
        _, state = run(
            encoder,
            params,
            *(TINY_IDS, TINY_MASK, TINY_TYPES),
            **flags,
            rngs=rngs,
            capture_intermediates=lambda module, _: module.name in stages,
            mutable=["intermediates"],
        )
        return {name: state["intermediates"][name]["__call__"][0] for name in stages}

    # Where everything is frozen, no random stream is asked for.
    rngs = {"dropout": jax.random.key(5)} if depth < 4 else {}
    trained = outputs(rngs, train=True, frozen_depth=depth)
    exact = outputs({}, train=False)
    for stage in stages[:depth]:
        np.testing.assert_array_equal(trained[stage], exact[stage], err_msg=stage)
    for stage in stages[depth:]:
        assert not np.array_equal(trained[stage], exact[stage]), stage


def test_bfloat16_is_near_float32(model):
    config, params = model
    exact = encode(config, params)
    rough = encode(config, params, dtype=jnp.bfloat16)
    assert rough.dtype == np.float32
    difference = np.abs(rough - exact)
    # A bfloat16 has 8 bits; values are of the order of 1.
    assert 0 < difference.max() < 0.1
    assert difference.mean() < 0.015


def test_attention_bias_of_a_mask():
    low = np.finfo(np.float32).min
    (bias,) = attention_bias(jnp.array([[1, 1, 0], [1, 0, 0]]))
    assert (bias.shape, bias.dtype) == ((2, 1, 1, 3), jnp.float32)
    np.testing.assert_array_equal(bias[:, 0, 0], [[0, 0, low], [0, low, low]])


def test_attention_bias_of_segments():
    low = np.finfo(np.float32).min
    segments = jnp.array([[1, 1, 2, 0], [3, 3, 3, 3]])
    (bias,) = attention_bias(jnp.ones((2, 4)), segments)
    assert (bias.shape, bias.dtype) == ((2, 1, 4, 4), jnp.float32)
    expected = [[0, 0, low, low], [0, 0, low, low], [low, low, 0, low], [low, low, low, 0]]
    np.testing.assert_array_equal(bias[0, 0], expected)
    assert not bias[1].any()
    # Segments say all that a mask would: it is not looked at beside them.
    np.testing.assert_array_equal(attention_bias(jnp.zeros((2, 4)), segments)[0], bias)


def test_attention_bias_of_blocks():
    segments = jnp.array([[1, 1, 2, 0, 3, 4], [1, 1, 1, 2, 3, 3]])
    long, short = attention_bias(segments, segments, ((1, 2), (2, 2)))
    (whole,) = attention_bias(segments, segments)
    np.testing.assert_array_equal(long, whole[:, :, :2, :2])
    spans = (slice(2, 4), slice(4, 6))
    blocks = [whole[row, :, span, span] for row in range(2) for span in spans]
    np.testing.assert_array_equal(short, np.stack(blocks))


def test_a_segment_is_encoded_as_if_alone(model):
    config, params = model
    encoder = EncoderModule(config)
    row = np.array([[2, 5, 8, 3, 2, 9, 3, 0]], np.int32)
    packed = run_compiled(
        encoder,
        params,
        row,
        position_ids=np.array([[0, 1, 2, 3, 0, 1, 2, 0]]),
        segment_ids=np.array([[1, 1, 1, 1, 2, 2, 2, 0]]),
    )
    for span in (slice(0, 4), slice(4, 7)):
        alone = run_compiled(encoder, params, row[:, span])
        np.testing.assert_allclose(packed[:, span], alone, rtol=0, atol=1e-6)


def test_a_text_of_padding_alone_gives_numbers(model):
    config, params = model
    ids = np.zeros((1, 4), np.int32)
    for given in ({"attention_mask": ids}, {"segment_ids": ids}):
        assert np.isfinite(run_compiled(EncoderModule(config), params, ids, **given)).all()


def test_a_default_configuration_is_bert_base():
    config = EncoderConfig()
    shapes = jax.eval_shape(EncoderModule(config).init, jax.random.key(0), TINY_IDS)["params"]
    # bert-base-uncased has 109,482,240 with its pooler of 768 x 768 + 768.
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 109_482_240 - 768 * 769


SMALL = EncoderConfig(
    vocab_size=12,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=8,
)


@functools.cache
def small_params():
    init = jax.jit(EncoderModule(SMALL).init)
    return init(jax.random.key(0), jnp.zeros((2, 6), jnp.int32))["params"]


def with_flags(**flags):
    """A loss of every parameter, and its gradients, in training."""
    ids = jnp.arange(12).reshape(2, 6)
    config = dataclasses.replace(SMALL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    params, encoder = small_params(), EncoderModule(config, **flags)

    def loss(params) -> Any:
        rngs = {"dropout": jax.random.key(3)}
        return (run(encoder, params, ids, train=True, rngs=rngs) ** 3).sum()

    program = str(jax.make_jaxpr(loss)(params))
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    return program, {"value": value, **flat(gradient)}


@pytest.mark.parametrize("remat", [False, True])
def test_scanned_layers_compute_the_same(remat):
    program, expected = with_flags()
    scanned_program, scanned = with_flags(scan_layers=True, remat=remat)
    assert ("scan[" in program, "scan[" in scanned_program) == (False, True)
    assert scanned.keys() == expected.keys()
    for path, value in expected.items():
        # Gradients of some hundreds, whose sums leave little in places.
        rounding = 1e-5 + 1e-6 * np.abs(value).max()
        np.testing.assert_allclose(scanned[path], value, rtol=1e-5, atol=rounding, err_msg=path)


def test_scanned_layers_draw_dropout_of_their_own():
    encoder = EncoderModule(dataclasses.replace(SMALL, hidden_dropout_prob=0.5), scan_layers=True)
    # Two layers without effect but for their dropout: the same mask twice would go unseen in one.
    hidden = jnp.ones((1, 6, 8))
    params = jax.tree.map(np.zeros_like, small_params())
    for layer in ("layer_0", "layer_1"):
        params[layer]["mlp"]["output"]["bias"] = np.arange(8, dtype=np.float32)
        params[layer]["mlp"]["layer_norm"]["scale"] = np.ones(8, np.float32)
    views = run(encoder, params, jnp.ones((1, 6)), method="views")

    @jax.jit
    def draw(key):
        flags = {"train": True, "rngs": {"dropout": key}, "method": "run_layers"}
        return run(encoder, params, hidden, views, **flags)

    drawn = [draw(jax.random.key(key)) for key in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    still = run_compiled(encoder, params, hidden, views, method="run_layers")
    assert not np.array_equal(drawn[0], still)


def test_rematerialised_layers_compute_the_same_gradients():
    ids = jnp.arange(12).reshape(2, 6)
    params, gradients = small_params(), []
    for remat in (False, True):
        encoder = EncoderModule(SMALL, remat=remat)

        def loss(params, encoder=encoder) -> Any:
            rngs = {"dropout": jax.random.key(3)}
            return (run(encoder, params, ids, train=True, rngs=rngs) ** 2).sum()

        assert ("prevent_cse" in str(jax.make_jaxpr(jax.grad(loss))(params))) == remat
        gradients.append(flat(jax.jit(jax.grad(loss))(params)))
    for path, gradient in gradients[0].items():
        np.testing.assert_allclose(gradients[1][path], gradient, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("train", [False, True])
def test_fused_attention_computes_the_plain_one_where_weights_have_no_dropout(train):
    config = dataclasses.replace(SMALL, attention_probs_dropout_prob=0.0)
    ids = jnp.arange(16).reshape(2, 8) % 12
    segments = jnp.array([[1, 1, 1, 2, 2, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 2]])

    def value_and_gradient(fused):
        @jax.jit
        @jax.value_and_grad
        def gradient_of(params):
            states = run(
                EncoderModule(config, fused=fused),
                params,
                ids,
                segment_ids=segments,
                train=train,
                rngs={"dropout": jax.random.key(3)},
            )
            return (jnp.where(segments[..., None] > 0, states, 0) ** 3).sum()

        value, gradient = gradient_of(small_params())
        return {"value": value, **flat(gradient)}

    fused = value_and_gradient("xla")
    for path, expected in value_and_gradient(None).items():
        np.testing.assert_allclose(fused[path], expected, rtol=2e-5, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("remat", [False, True])
def test_fused_attention_of_seeds_at_once_is_that_of_each_by_itself(remat):
    config = dataclasses.replace(SMALL, attention_probs_dropout_prob=0.0)
    ids = jax.random.randint(jax.random.key(5), (3, 2, 8), 0, 12)
    segments = jnp.array([[1, 1, 1, 2, 2, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 2]])
    # The last one has other texts in its rows.
    segments = jnp.stack([segments, segments, segments[::-1]])
    keys = jax.random.split(jax.random.key(0), 3)
    init = jax.vmap(lambda key: EncoderModule(config).init(key, ids[0])["params"])
    params = jax.jit(init)(keys)

    def gradient(fused):
        def loss(params, ids, segments):
            module = EncoderModule(config, fused=fused, remat=remat)
            rngs = {"dropout": jax.random.key(3)}
            states = run(module, params, ids, segment_ids=segments, train=True, rngs=rngs)
            return (jnp.where(segments[..., None] > 0, states, 0) ** 2).mean()

        return jax.value_and_grad(loss)

    together = jax.jit(jax.vmap(gradient(of_seeds("xla"))))(params, ids, segments)
    of_one = jax.jit(gradient("xla"))
    for seed in range(3):
        own = jax.tree.map(operator.itemgetter(seed), (params, ids, segments))
        alone = jax.tree.leaves_with_path(of_one(*own))
        for (path, expected), found in zip(alone, jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(found[seed], expected, 2e-5, 1e-5, err_msg=str(path))


def test_seeds_at_once_come_to_the_kernel_as_one_batch(monkeypatch):
    """Of masks that all of its heads share, which cuDNN's own mapping refuses."""
    shapes, kernel = [], jax.nn.dot_product_attention

    def noted(query, *args, mask, **flags):
        shapes.append((query.shape, mask.shape))
        return kernel(query, *args, mask=mask, **flags)

    monkeypatch.setattr(jax.nn, "dot_product_attention", noted)
    query = jnp.ones((5, 2, 8, 4, 8))
    mask = jnp.ones((2, 1, 8, 8), bool)
    fused = functools.partial(fused_attention, fused="xla_of_seeds")
    mixed = jax.vmap(fused, (0, 0, 0, None))(query, query, query, mask)
    assert mixed.shape == query.shape
    assert shapes[-1] == ((10, 8, 4, 8), (10, 1, 8, 8))


def test_fused_attention_is_given_a_mask_of_every_query(monkeypatch):
    """Since cuDNN's check of it refuses any other; no card runs it here."""
    shapes, attention = [], jax.nn.dot_product_attention

    def noted(*args, mask, **flags):
        shapes.append(mask.shape)
        return attention(*args, mask=mask, **flags)

    monkeypatch.setattr(jax.nn, "dot_product_attention", noted)
    config = dataclasses.replace(SMALL, attention_probs_dropout_prob=0.0)
    ids = jnp.ones((2, 8), jnp.int32)
    jax.eval_shape(EncoderModule(config, fused="xla").init, jax.random.key(0), ids, ids)
    assert shapes == [(2, 1, 8, 8)] * 2


def a_card(version="PJRT C API\ncuda 12090", capability="9.0"):
    client = SimpleNamespace(platform_version=version)
    return SimpleNamespace(client=client, compute_capability=capability, platform="gpu")


@pytest.mark.parametrize(
    ("changes", "dtype", "card", "expected"),
    [
        ({}, "bfloat16", a_card(), True),
        ({"num_attention_heads": 3}, "bfloat16", a_card(capability="8.0"), True),
        ({}, "float32", a_card(), False),
        ({"num_attention_heads": 32}, "bfloat16", a_card(), False),
        ({"num_attention_heads": 2}, "bfloat16", a_card(), False),
        ({}, "bfloat16", a_card("PJRT C API\nrocm 60300", "gfx942"), False),
        ({}, "bfloat16", a_card(capability="7.5"), False),
        ({}, "bfloat16", None, False),
    ],
    ids=["right", "large", "float32", "heads of 12", "heads of 192", "rocm", "old", "cpu"],
)
def test_cudnn_is_for_what_it_can_compute(changes, dtype, card, expected):
    config = dataclasses.replace(SMALL, **{"hidden_size": 384, "num_attention_heads": 12} | changes)
    assert cudnn_can(config, dtype, card) is expected


def test_what_a_device_multiplies_in_by_default():
    assert default_dtype() == "float32"
    assert default_dtype(SimpleNamespace(platform="tpu")) == "bfloat16"
    for version, capability, expected in (
        ("cuda 12090", "9.0", "bfloat16"),
        ("cuda 12090", "8.0", "bfloat16"),
        ("cuda 12090", "7.5", "float32"),
        ("rocm 60300", "gfx942", "float32"),
    ):
        assert default_dtype(a_card(f"PJRT C API\n{version}", capability)) == expected


@pytest.mark.parametrize("on", ["weights", "output"])
def test_dropout_of_attention_is_never_left_out(on):
    """The kernel drops no weights, so that it is used in training where the output is dropped."""
    ids = jnp.arange(16).reshape(2, 8) % 12
    config = dataclasses.replace(SMALL, attention_dropout_on=on)
    states = [
        run_compiled(
            EncoderModule(config, fused=fused),
            small_params(),
            ids,
            train=True,
            rngs={"dropout": jax.random.key(3)},
        )
        for fused in ("xla", None)
    ]
    np.testing.assert_allclose(*states, rtol=0, atol=0 if on == "weights" else 1e-5)
