"""Half precision: where it rounds, and how near it comes, beside PyTorch's autocast."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.extend.core import jaxprs_in_params

from mtl_jax.models.conversion import to_transformers
from mtl_jax.models.dense_product import Dense, kernel_product, product
from mtl_jax.models.encoder_config import ACTIVATIONS, EncoderConfig
from mtl_jax.models.encoder_module import EncoderModule
from mtl_jax.models.layers import FeedForward
from mtl_jax.models.multitask import MultiTaskModule
from tests.conftest import head_sizes

HALF = jnp.bfloat16
INIT = nn.initializers.normal(0.1)


def drawn(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rounded(array):
    """What is left of an array in half precision, in float64."""
    return np.asarray(jnp.asarray(array).astype(HALF), np.float64)


SPEC = "bqhd,bkhd->bhqk"


@pytest.mark.parametrize("types", [(jnp.float32, HALF), (HALF, jnp.float32)])
def test_a_product_and_its_gradients_have_rounded_factors_and_float32_sums(types):
    left, right = (
        jnp.asarray(drawn((2, 5, 3, 64), seed)).astype(type_) for seed, type_ in enumerate(types)
    )
    cotangent = drawn((2, 3, 5, 5), 2)
    found, pull = jax.vjp(functools.partial(product, SPEC, HALF), left, right)
    of_left, of_right = pull(cotangent)
    assert (found.dtype, of_left.dtype, of_right.dtype) == (jnp.float32, *types)
    a, b, c = (rounded(array) for array in (left, right, cotangent))
    np.testing.assert_allclose(found, np.einsum(SPEC, a, b), atol=1e-5)
    for gradient, expected in (
        (of_left, np.einsum("bhqk,bkhd->bqhd", c, b)),
        (of_right, np.einsum("bhqk,bqhd->bkhd", c, a)),
    ):
        # Of half precision, only the last rounding.
        tolerance = 2.0**-8 if gradient.dtype == HALF else 1e-6
        found = np.asarray(gradient, np.float64)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("types", [(jnp.float32, HALF), (HALF, jnp.float32)])
def test_a_kernel_and_what_it_multiplies_have_the_gradients_of_rounded_factors(types):
    x, kernel = (
        jnp.asarray(drawn(shape, seed)).astype(type_)
        for seed, (shape, type_) in enumerate(zip([(3, 7, 24), (24, 10)], types, strict=True))
    )
    cotangent = drawn((3, 7, 10), 2)
    found, pull = jax.vjp(jax.jit(functools.partial(kernel_product, HALF, None)), x, kernel)
    of_x, of_kernel = pull(cotangent)
    assert (found.dtype, of_x.dtype, of_kernel.dtype) == (jnp.float32, *types)
    a, b, c = (rounded(array) for array in (x, kernel, cotangent))
    np.testing.assert_allclose(found, a @ b, atol=1e-5)
    for gradient, expected in (
        (of_x, c @ b.T),
        (of_kernel, np.einsum("btx,bty->xy", a, c)),
    ):
        tolerance = 2.0**-8 if gradient.dtype == HALF else 1e-6
        np.testing.assert_allclose(
            np.asarray(gradient, np.float64), expected, rtol=tolerance, atol=1e-5
        )


@pytest.mark.parametrize(
    "times",
    [functools.partial(kernel_product, dtype, None) for dtype in (HALF, jnp.float32)],
    ids=["half", "full"],
)
def test_a_frozen_factor_costs_no_product(times):
    def flops(wanted):
        def loss(left, right):
            return jnp.sum(times(left, right))

        gradient = jax.jit(jax.value_and_grad(loss, wanted))
        analysis: Any = gradient.lower(drawn((32, 64)), drawn((64, 128))).cost_analysis()
        return analysis["flops"]

    one = 2 * 32 * 64 * 128
    assert flops((0, 1)) == pytest.approx(3 * one, rel=0.05)
    assert flops(0) == pytest.approx(2 * one, rel=0.05)
    assert flops(1) == pytest.approx(2 * one, rel=0.05)


@pytest.mark.parametrize("precision", [None, jax.lax.Precision.HIGHEST])
def test_in_float32_it_is_flax_s_to_the_last_bit(precision):
    x = drawn((3, 7, 24))
    ours = Dense(10, jnp.float32, INIT, precision)
    theirs = nn.Dense(10, kernel_init=INIT, precision=precision)
    params = theirs.init(jax.random.key(3), x)
    both = []
    for module in (ours, theirs):

        def loss(params, x, module=module):
            y: Any = module.apply(params, x)
            return jnp.sin(y).sum()

        begun = module.init(jax.random.key(3), x)
        both.append((begun, module.apply(params, x), jax.grad(loss, (0, 1))(params, x)))
    jax.tree.map(np.testing.assert_array_equal, *both)


def test_a_bias_s_gradient_counts_every_token():
    """In half precision a sum of ones ends at 256."""
    dense = Dense(4, HALF, INIT)
    x = jnp.zeros((512, 128, 8), HALF)
    params = dense.init(jax.random.key(0), x)

    def loss(params):
        y: Any = dense.apply(params, x)
        return y.astype(HALF).astype(jnp.float32).sum()

    gradient: Any = jax.jit(jax.grad(loss))(params)
    assert gradient["params"]["bias"].tolist() == [512 * 128] * 4


def gelu(x):
    return x * scipy.special.ndtr(x), scipy.special.ndtr(x) + x * np.exp(-x * x / 2) / math.sqrt(
        2 * math.pi
    )


def tanh_gelu(x):
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    # 1 + tanh, which cancels far below 0.
    risen = 2 * scipy.special.expit(2 * inner)
    return 0.5 * x * risen, 0.5 * risen + 0.5 * x * slope / np.cosh(inner) ** 2


def silu(x):
    gate = scipy.special.expit(x)
    return x * gate, gate * (1 + x * (1 - gate))


# Values and slopes in float64.
EXACT = {
    "gelu": gelu,
    "gelu_new": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "relu": lambda x: (np.maximum(x, 0), np.where(x > 0, 1.0, 0.0)),
    "silu": silu,
    "swish": silu,
    "tanh": lambda x: (np.tanh(x), 1 / np.cosh(x) ** 2),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_in_half_precision_is_as_good_as_its_argument(name):
    """Over [-8, 8], and its slope: of bfloat16, GELU at -3 was 45 % off."""
    config = EncoderConfig(hidden_act=name)
    x = np.unique(rounded(np.linspace(-8, 8, 4001)))
    x = x[x != 0]  # ReLU has no slope there
    activated = FeedForward(config, HALF)._activated

    @jax.jit
    def both(x):
        values, pull = jax.vjp(activated, x)
        return values, *pull(jnp.ones_like(x))

    values, slopes = both(np.asarray(x, np.float32))
    value, slope = EXACT[name](x)
    # What is float32's own, with the tanh of the compiler that tests have: beside what they are
    # added to, values below it are nothing.
    np.testing.assert_allclose(values, value, rtol=1e-4, atol=2e-5)
    # The slope is that of an argument kept in half precision, and rounded once.
    np.testing.assert_allclose(slopes, slope, rtol=2.0**-8, atol=2e-5)


SUMS = {"dot_general", "reduce_sum", "add_any", "scatter-add", "scatter_add", "cumsum", "psum"}


def equations(jaxpr):
    """All of a jaxpr, those of what it calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def texts(rows, length, config, seed=0):
    """Token ids as frequent as words are, two texts in a row, no text in the last tenth of some.

    Returns:
        ``input_ids``, and of each text its first token and the one after its last.
    """
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, config.vocab_size + 1)
    ids = rng.choice(config.vocab_size, (rows, length), p=frequency / frequency.sum())
    half = length // 2
    ends = half - rng.integers(0, half // 10 + 1, (rows, 2))
    return ids.astype(np.int32), ends


def packed(ids, ends):
    """A batch of ``MultiTaskModule`` of two texts in each row."""
    rows, length = ids.shape
    position = np.broadcast_to(np.tile(np.arange(length // 2), 2), ids.shape)
    segment = np.repeat([[1, 2]], length // 2, axis=1)
    there = position < np.repeat(ends, length // 2, axis=1)
    labels = np.random.default_rng(1).integers(0, 3, (rows, 2)).astype(np.int32)
    return {
        "input_ids": ids,
        "position_ids": position.astype(np.int32),
        "segment_ids": np.where(there, segment, 0).astype(np.int32),
        "classifier": labels,
        "sentiment": labels,
    }


WIDE = EncoderConfig(
    vocab_size=2000,
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=512,
    initializer_range=0.05,
)
HEAD = drawn((WIDE.hidden_size, 3), 5)


@pytest.fixture(scope="module")
def backbone():
    """Random, with biases and scales that are not all alike."""
    init = jax.jit(EncoderModule(WIDE).init)
    params: Any = init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf + 0.02 * rng.standard_normal(leaf.shape), np.float32),
        params["params"],
    )


def loss(params, batch, dtype, **flags):
    """The mean cross-entropy of a fixed head, and the vectors that it is given."""
    model = MultiTaskModule(WIDE, head_sizes(3, 3), "mean", dtype, **flags)
    vectors: Any = model.apply({"params": {"backbone": params}}, batch, method="pooled")
    chances = jax.nn.log_softmax(vectors @ HEAD)
    of_labels = jnp.take_along_axis(chances, batch["classifier"][..., None], -1)
    return -of_labels.mean(), vectors


@pytest.mark.parametrize("flags", [{}, {"scan_layers": True}, {"remat": True}], ids=str)
def test_no_sum_of_either_pass_is_in_half_precision(flags, backbone):
    """Whatever the device: XLA sums in the type that it is given."""
    batch = packed(*texts(2, 64, WIDE))
    gradient = jax.value_and_grad(functools.partial(loss, dtype=HALF, **flags), has_aux=True)
    found = [*equations(jax.make_jaxpr(gradient)(backbone, batch).jaxpr)]
    sums = [equation for equation in found if equation.primitive.name in SUMS]
    assert {equation.primitive.name for equation in sums} >= {"dot_general", "reduce_sum"}
    assert any(equation.primitive.name.startswith("scatter") for equation in sums)
    assert not [equation for equation in sums if equation.outvars[0].aval.dtype == HALF]
    # And the factors are what matrix units take.
    halves = [equation for equation in sums if equation.invars[0].aval.dtype == HALF]
    assert {equation.primitive.name for equation in halves} == {"dot_general"}
    assert all(equation.invars[1].aval.dtype == HALF for equation in halves)


def error(found, exact):
    """The relative error of many arrays together."""
    found, exact = (np.concatenate([np.ravel(a) for a in arrays]) for arrays in (found, exact))
    return np.linalg.norm(found.astype(np.float64) - exact) / np.linalg.norm(exact)


def ours(backbone, batch, dtype):
    step = jax.jit(jax.value_and_grad(functools.partial(loss, dtype=dtype), has_aux=True))
    (_, vectors), gradient = step(backbone, batch)
    gradient = to_transformers(jax.tree.map(np.asarray, gradient))
    return np.asarray(vectors).reshape(-1, WIDE.hidden_size), gradient


def theirs(backbone, batch, half):
    """The same by transformers, one text in a row."""
    import transformers

    torch = pytest.importorskip("torch")
    config = transformers.BertConfig(
        vocab_size=WIDE.vocab_size,
        hidden_size=WIDE.hidden_size,
        num_hidden_layers=WIDE.num_hidden_layers,
        num_attention_heads=WIDE.num_attention_heads,
        intermediate_size=WIDE.intermediate_size,
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    tensors = {name: torch.tensor(array) for name, array in to_transformers(backbone).items()}
    model.load_state_dict(tensors, strict=False)
    ids, segments = (
        torch.tensor(batch[name]).reshape(-1, batch["input_ids"].shape[1] // 2).long()
        for name in ("input_ids", "segment_ids")
    )
    mask = (segments > 0).long()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        hidden = model(ids, attention_mask=mask).last_hidden_state
    vectors = (hidden.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    labels = torch.tensor(batch["classifier"]).reshape(-1).long()
    torch.nn.functional.cross_entropy(vectors @ torch.tensor(HEAD), labels).backward()
    gradient = {
        name: parameter.grad.numpy()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return vectors.detach().numpy(), gradient


def kinds(gradient, frequent):
    """Arrays of a gradient by what sums they are: rows of the embeddings, kernels, biases ..."""
    words = gradient["embeddings.word_embeddings.weight"]
    parts: dict[str, list[np.ndarray]] = {
        "token type": [gradient["embeddings.token_type_embeddings.weight"][0]],
        "position 0": [gradient["embeddings.position_embeddings.weight"][0]],
        "frequent words": [words[word] for word in frequent],
    }
    for name, array in gradient.items():
        # It shifts all scores of a query alike: its gradient is 0 but for rounding.
        if not name.endswith("key.bias"):
            layer = ".".join(part for part in name.split(".") if not part.isdigit())
            parts.setdefault(layer, []).append(array)
    return parts


def test_it_is_as_near_to_float32_as_pytorch_s_autocast(backbone):
    """Over 16,384 tokens: the more of them are summed, the more a rounded sum would lose."""
    pytest.importorskip("torch")
    batch = packed(*texts(128, 128, WIDE))
    there = batch["input_ids"][batch["segment_ids"] > 0]
    frequent = np.argsort(-np.bincount(there, minlength=WIDE.vocab_size))[:5]
    exact, half = (ours(backbone, batch, dtype) for dtype in (jnp.float32, HALF))
    torch_exact, torch_half = (theirs(backbone, batch, half) for half in (False, True))
    np.testing.assert_allclose(exact[0], torch_exact[0], atol=1e-5)
    # Both round the weights alike, which is most of the error: what is left may go either way.
    assert error([half[0]], [exact[0]]) < 1.05 * error([torch_half[0]], [torch_exact[0]])
    names = exact[1].keys() & torch_exact[1].keys()
    assert len(names) == 5 + 16 * WIDE.num_hidden_layers
    found, expected, torch_found, torch_expected = (
        kinds({name: each[1][name] for name in sorted(names)}, frequent)
        for each in (half, exact, torch_half, torch_exact)
    )
    for kind, arrays in found.items():
        own = error(arrays, expected[kind])
        assert 0 < own < 1.1 * error(torch_found[kind], torch_expected[kind]), kind
    whole = [
        error(*([each[name] for name in names] for each in pair))
        for pair in ((half[1], exact[1]), (torch_half[1], torch_exact[1]))
    ]
    assert whole[0] < whole[1]
