"""Every family of encoders against PyTorch, and in all the ways that an encoder is run."""

import dataclasses
import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import mtl_jax
from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.freezing.lora import merge_lora
from mtl_jax.freezing.partition import Partition
from mtl_jax.models.conversion import to_transformers
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.encoder_module import EncoderModule
from mtl_jax.models.multitask import MultiTaskModule
from mtl_jax.runs.loop import train
from mtl_jax.tools.predict import Predictor
from tests import make_encoder_reference as reference
from tests.conftest import TINY, write_checkpoint

ROOT = Path(reference.__file__).parents[1]
TOLERANCE = 1e-4
# Of the largest value of each parameter's gradient.
GRADIENT_TOLERANCE = 5e-4


def flat(tree) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")


def run(encoder, params, *args, **flags) -> Any:
    return encoder.apply({"params": params}, *args, **flags)


def stored(path, name) -> dict[str, Any]:
    with np.load(path) as arrays:
        names = [key for key in arrays.files if key.startswith(f"{name}/")]
        return {key.removeprefix(f"{name}/"): arrays[key] for key in names}


def load(fields, shapes, folder):
    reference.write_model(fields, json.loads(str(shapes)), folder)
    return mtl_jax.load_backbone(folder)


def states_and_pooler(encoder, with_pooler, ids, mask, types):
    views = encoder.views(mask)
    states = [encoder.embed(ids, types)]
    for i in range(encoder.config.num_hidden_layers):
        states.append(encoder.run_layers(states[-1], views, i, i + 1))
    return jnp.stack(states), encoder.pool(states[-1][:, 0]) if with_pooler else None


def computed(config, params, ids, mask, types):
    """What ``make_encoder_reference.reference`` gives, by the code on trial."""
    encoder, pooled = EncoderModule(config), "pooler" in params
    state_weights, pooler_weights = reference.loss_weights(mask, config.hidden_size)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        states, pooler = run(encoder, params, pooled, ids, mask, types, method=states_and_pooler)
        total = (states[-1] * state_weights).sum()
        return total + ((pooler * pooler_weights).sum() if pooled else 0), (states, pooler)

    (_, (states, pooler)), gradient = jax.jit(loss)(params)
    compared = reference.compared(np.asarray(states), {"model_type": config.family}, mask)
    found = {"states": compared} | ({"pooler": np.asarray(pooler)} if pooled else {})
    gradients = to_transformers(jax.tree.map(np.asarray, gradient), config.family)
    return found | {f"gradient/{name}": array for name, array in gradients.items()}


def assert_same(found, expected, scales):
    assert set(found) == set(expected) - {
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "shapes",
    }
    for name, array in found.items():
        other = expected[name]
        assert array.shape == other.shape, name
        limit = TOLERANCE
        if name.startswith("gradient/"):
            # A key's bias shifts all scores of a query alike: its exact gradient is 0, and what
            # rounding leaves is judged by that of the query's.
            query = {"attention.self.key.bias": "attention.self.query.bias"}
            query |= {"attn.k.bias": "attn.q.bias", "k_lin.bias": "q_lin.bias"}
            key = next((old for old in query if name.endswith(old)), None)
            scale = name if key is None else name.removesuffix(key) + query[key]
            limit = GRADIENT_TOLERANCE * max(np.abs(scales[scale]).max(), 1e-3)
        difference = np.abs(array.astype(np.float64) - other).max()
        assert difference <= limit, (name, difference, limit)


@pytest.mark.parametrize("name", reference.MODELS)
def test_equals_the_stored_numbers_of_pytorch(name, tmp_path):
    expected = stored(reference.STORED, name)
    config, params = load(reference.MODELS[name], expected["shapes"], tmp_path / "c")
    ids, mask, types = reference.inputs(reference.MODELS[name])
    np.testing.assert_array_equal(expected["input_ids"], ids)
    found = computed(config, params, ids, mask, types)
    assert_same(reference.thinned(found), expected, found)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_equals_pytorch_run_now_on_random_configurations(tmp_path):
    live, seed = tmp_path / "full.npz", 13
    done = subprocess.run(
        [sys.executable, "-m", reference.__name__, "--full", str(live), "--seed", str(seed)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name, fields in reference.drawn(seed).items():
        expected = stored(live, name)
        config, params = load(fields, expected["shapes"], tmp_path / name)
        found = computed(config, params, *reference.inputs(fields))
        assert_same(found, expected, found)
    # The committed file holds numbers of the same models.
    for name in reference.MODELS:
        now, then = reference.thinned(stored(live, name)), stored(reference.STORED, name)
        assert now.keys() == then.keys()
        for part in (part for part in now if now[part].dtype.kind == "f"):
            limit = TOLERANCE * max(1, np.abs(then[part]).max())
            np.testing.assert_allclose(now[part], then[part], rtol=0, atol=limit)


# The ways that an encoder is run.

LENGTHS = (9, 4, 12, 2, 6)
# Texts by block: a row of one long block and two short ones, and one of each.
BLOCKS = ((1, 12), (2, 6))
PLACES = {0: (0, 0), 3: (0, 9), 1: (0, 12), 4: (0, 18), 2: (1, 0)}


def packed_and_alone(config):
    """The same texts in two rows of blocks, and each in a row of its own."""
    random, pad = np.random.RandomState(3), config.pad_token_id
    draw = random.randint(0, config.vocab_size - 1, (len(LENGTHS), max(LENGTHS)))
    texts = draw + (draw >= pad)
    alone = np.where(np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None], texts, pad)
    rows = {name: np.zeros((2, 24), np.int32) for name in ("ids", "positions", "segments")}
    for text, (row, start) in PLACES.items():
        span = slice(start, start + LENGTHS[text])
        rows["ids"][row, span] = texts[text, : LENGTHS[text]]
        rows["positions"][row, span] = np.arange(LENGTHS[text])
        rows["segments"][row, span] = text + 1
    return rows, alone.astype(np.int32)


def of_texts(states, alone=False):
    """float32 [tokens, hidden] of all texts, one after the other."""
    spans = [
        states[text, : LENGTHS[text]]
        if alone
        else states[PLACES[text][0], PLACES[text][1] : PLACES[text][1] + LENGTHS[text]]
        for text in range(len(LENGTHS))
    ]
    return jnp.concatenate(spans)


def loss_of(config, rows, **flags):
    """A loss of the states of packed texts, in training."""
    encoder = EncoderModule(config, **flags)

    def loss(params):
        states = run(
            encoder,
            params,
            rows["ids"],
            position_ids=rows["positions"],
            segment_ids=rows["segments"],
            blocks=BLOCKS,
            train=True,
            rngs={"dropout": jax.random.key(0)},
        )
        return (of_texts(states) ** 3).sum(), of_texts(states)

    return loss


def without_dropout(config):
    names = (name for name in config.__dataclass_fields__ if name.endswith("dropout_prob"))
    rates = [name for name in names if getattr(config, name) is not None]
    return dataclasses.replace(config, **dict.fromkeys(rates, 0.0))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Of one of ``MODELS`` the configuration and parameters, by name; loaded once."""

    @functools.cache
    def loaded(name):
        folder = tmp_path_factory.mktemp("models") / "checkpoint"
        config, params = load(
            reference.MODELS[name], stored(reference.STORED, name)["shapes"], folder
        )
        return without_dropout(config), params

    return loaded


SEVERAL = ["roberta", "electra", "mpnet", "modernbert", "deberta-v2"]


@pytest.mark.parametrize("name", SEVERAL)
def test_packed_rows_keep_texts_apart_whichever_way_they_are_run(name, models):
    config, params = models(name)
    rows, alone = packed_and_alone(config)
    mask = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int32)
    whole = jax.jit(functools.partial(run, EncoderModule(config)))(params, alone, mask)
    expected = of_texts(whole, alone=True)
    gradients = {}
    for flags in ({}, {"scan_layers": True, "remat": True}, {"fused": "xla"}):
        if flags and name in ("roberta", "electra"):
            continue  # which in a layer have nothing of their own
        loss = jax.value_and_grad(loss_of(config, rows, **flags), has_aux=True)
        if "scan_layers" in flags:
            # As several seeds are trained at once.
            twice = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), params)
            both = jax.jit(jax.vmap(loss))(twice)
            (_, states), gradients[str(flags)] = jax.tree.map(lambda leaf: leaf[1], both)
        else:
            (_, states), gradients[str(flags)] = jax.jit(loss)(params)
        np.testing.assert_allclose(states, expected, rtol=0, atol=1e-5)
    plain, *others = (flat(gradient) for gradient in gradients.values())
    for path, value in plain.items():
        if path.startswith("pooler/"):
            continue
        assert np.abs(value).max() > 0, path
        for other in others:
            limit = 1e-5 + 1e-5 * np.abs(value).max()
            np.testing.assert_allclose(other[path], value, rtol=1e-4, atol=limit, err_msg=path)


@pytest.mark.parametrize("name", ["mpnet", "modernbert", "deberta-v2"])
def test_half_precision_is_near_float32(name, models):
    config, params = models(name)
    rows, _ = packed_and_alone(config)
    exact, rough = (
        np.asarray(jax.jit(loss_of(config, rows, dtype=dtype))(params)[1])
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).mean() < 0.03


@pytest.mark.parametrize("name", ["mpnet", "modernbert", "deberta-v2"])
def test_layers_above_kept_states_compute_the_whole(name, models):
    config, params = models(name)
    rows, _ = packed_and_alone(config)
    model = MultiTaskModule(config, (("task", 2),), blocks=BLOCKS)
    batch = {
        "input_ids": rows["ids"],
        "position_ids": rows["positions"],
        "segment_ids": rows["segments"],
        "task": np.full((2, 5), -1, np.int32),
    }
    backbone = {"backbone": params}
    expected = run(model, backbone, batch, method="pooled")
    # The last depth is of the whole stack: a norm after the last layer is in it.
    for depth in (1, 2, config.num_hidden_layers, config.num_hidden_layers + 1):
        states = run(model, backbone, batch, depth, method="states")
        kept = {**batch, "states": states}
        del kept["input_ids"]
        above = model.clone(states_depth=depth)
        found = run(above, backbone, kept, method="pooled")
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


MODERN = "modernbert of one layer"
# A model, its one rate above 0, where training begins, and what has no effect at a rate of 1.
DROPPED = [
    (MODERN, "embedding_dropout_prob", 0, ("embeddings/layer_norm/scale",)),
    (MODERN, "attention_probs_dropout_prob", 0, ("attention/value/kernel",)),
    (MODERN, "attention_output_dropout_prob", 0, ("attention/output/kernel",)),
    (MODERN, "mlp_dropout_prob", 0, ("mlp/output/kernel",)),
    # DistilBERT has none of what attention adds.
    ("distilbert", "hidden_dropout_prob", 1, ("mlp/output/kernel", "mlp/output/bias")),
    # DeBERTa has it of distances as well, in each layer that trains.
    (
        "deberta-v2",
        "hidden_dropout_prob",
        1,
        tuple(
            f"{module}/{leaf}"
            for module, *leaves in (
                ("distance_norm", "scale", "bias"),
                ("attention/output", "kernel", "bias"),
                ("mlp/output", "kernel", "bias"),
            )
            for leaf in leaves
        ),
    ),
]


@pytest.mark.parametrize(("name", "rate", "depth", "silent"), DROPPED)
def test_each_dropout_is_where_the_family_has_it_and_ends_at_the_frozen_part(
    name, rate, depth, silent, models
):
    config, params = models(name)
    if name == "distilbert":
        assert config.attention_output_dropout_prob == 0.0
    dropping = EncoderModule(dataclasses.replace(config, **{rate: 1.0}))
    ids = np.arange(2, 14).reshape(2, 6)
    given = {"train": True, "rngs": {"dropout": jax.random.key(0)}}
    found = run(dropping, params, ids, frozen_depth=depth, **given)
    zeroed = {k: np.zeros_like(v) if k.endswith(silent) else v for k, v in flat(params).items()}
    expected = run(EncoderModule(config), unflatten_dict(zeroed, sep="/"), ids)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    # Where all is frozen no random stream is asked for.
    frozen = run(dropping, params, ids, train=True, frozen_depth=1 + config.num_hidden_layers)
    np.testing.assert_array_equal(frozen, run(EncoderModule(config), params, ids))


@pytest.mark.parametrize("name", ["distilbert", "mpnet", MODERN, "deberta-v2"])
def test_factors_beside_every_kernel_train_and_are_merged(name, models):
    """Descent along the gradient through packed texts, in the families unlike BERT."""
    config, backbone = models(name)
    rows, _ = packed_and_alone(config)
    params = {"backbone": backbone, "topic": {"bias": np.zeros(2)}}
    kernels = [path for path in flat(backbone) if "layer_0" in path and path.endswith("/kernel")]
    targets = [kernel.removesuffix("/kernel").replace("layer_0", "layer_*") for kernel in kernels]
    partition = Partition(params, "lora_2", lora_targets=targets, lora_alpha=4)
    trainable, frozen = partition.split(partition.with_factors(params, jax.random.key(0)))
    loss = loss_of(config, rows)

    @jax.jit
    def stepped(trainable):
        def loss_and_states(trainable):
            return loss(Partition.merge(trainable, frozen)["backbone"])

        gradient, states = jax.grad(loss_and_states, has_aux=True)(trainable)
        # As large in every leaf, however steep it is there.
        sizes = jax.tree.map(lambda leaf: jnp.abs(leaf).max() + 1e-9, gradient)
        moved = jax.tree.map(lambda p, g, size: p - 0.1 * g / size, trainable, gradient, sizes)
        return states, moved

    before, moved = stepped(trainable)
    _, moved = stepped(moved)
    found = {path: leaf for path, leaf in flat(moved).items() if "lora" in path}
    assert len(found) == 2 * len(kernels) * config.num_hidden_layers
    # A moves from the second step on, when B is not 0.
    for path, leaf in found.items():
        assert np.abs(leaf - flat(trainable)[path]).max() > 0.01, path
    merged = merge_lora(Partition.merge(moved, frozen))
    assert flat(merged).keys() == flat(params).keys()
    _, states = jax.jit(loss)(merged["backbone"])
    np.testing.assert_allclose(states, stepped(moved)[0], rtol=0, atol=1e-5)
    assert np.abs(states - before).max() > 0.01


# What a scenario freezes.


def paths(config):
    encoder = EncoderModule(config)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), np.zeros((1, 4), np.int32))
    return {"backbone": shapes["params"], "topic": {"kernel": jnp.zeros((2, 2))}}


def test_what_belongs_to_no_layer_is_frozen_with_the_stage_that_owns_it():
    modern = EncoderConfig.from_dict(reference.MODELS["modernbert"])
    labels = dict(Partition(paths(modern), "top_1").labels)
    assert labels["backbone/layer_4/final_norm/scale"] == "backbone"
    assert labels["backbone/layer_3/attention/layer_norm/scale"] == "frozen"
    assert Partition(paths(modern), "top_1").depth(5) == 5
    factors = dict(Partition(paths(modern), "lora_2", lora_targets=["gate"]).labels)
    adapted = {path.rpartition("/")[0] for path, label in factors.items() if label == "lora"}
    assert adapted == {f"backbone/layer_{i}/mlp/gate" for i in range(5)}
    by_stage = dict(Partition(paths(modern), "none_frozen").by_stage().labels)
    assert by_stage["backbone/layer_4/final_norm/scale"] == "backbone/layer_4"
    mpnet = EncoderConfig.from_dict(reference.MODELS["mpnet"])
    table = "backbone/embeddings/relative_position/embedding"
    assert dict(Partition(paths(mpnet), "top_2").labels)[table] == "frozen"
    # Every layer reads the table: where it trains, nothing below may be kept.
    rules = [(table, "backbone"), ("backbone/*", "frozen"), ("*", "head")]
    assert Partition(paths(mpnet), rules).depth(2) == 0
    electra = EncoderConfig.from_dict(reference.MODELS["electra"])
    projection = "backbone/embeddings/projection/kernel"
    assert dict(Partition(paths(electra), "top_1").labels)[projection] == "frozen"
    for config in (modern, mpnet, electra):
        for scenario in ("all_frozen", "backbone_frozen", "topic_frozen", "none_frozen"):
            assert Partition(paths(config), scenario).labels


RUNS = {
    "mpnet": dataclasses.replace(
        TINY,
        family="mpnet",
        num_hidden_layers=2,
        type_vocab_size=0,
        max_position_embeddings=26,
        first_position=2,
        relative_attention_num_buckets=32,
    ),
    "modernbert": EncoderConfig.from_dict(
        {
            **reference.MODELS["modernbert"],
            "num_hidden_layers": 2,
            "vocab_size": TINY.vocab_size,
            "initializer_range": 0.3,
            "embedding_dropout": 0.1,
            "attention_dropout": 0.1,
            "mlp_dropout": 0.1,
        }
    ),
}


@pytest.mark.parametrize("family", RUNS)
def test_a_run_of_the_family(family, settings, tmp_path):
    config = RUNS[family]
    backbone = write_checkpoint(tmp_path / "checkpoint", config)
    folder = tmp_path / "run"
    encoder = mtl_jax.load_encoder(backbone)
    if family == "mpnet":
        with pytest.raises(UserError, match="has 0 token types, and none with the number 1: leave"):
            encoder(np.full((1, 3), 5), token_type_ids=np.ones((1, 3), np.int32))
        with pytest.raises(UserError, match="25 tokens are more than the encoder's 24 positions"):
            encoder(np.full((1, 25), 5))
    assert encoder.pooling == ("cls" if family == "modernbert" else "mean")
    own = {"backbone": str(backbone), "scenario": "top_1", "epochs": 1, "workdir": str(folder)}
    train(TrainConfig(**settings | own))
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate["frozen_digest_unchanged"]
    layer = sum(leaf.size for leaf in jax.tree.leaves(paths(config)["backbone"]["layer_1"]))
    assert certificate["labels"]["backbone"]["parameters"] == layer
    record = json.loads((folder / "config.json").read_text())
    assert record["bert"]["family"] == family
    assert EncoderConfig(**record["bert"]) == config
    (answer,) = Predictor(str(folder)).predict(["the film was very good !"])
    assert set(answer) >= {"classifier", "sentiment"}
