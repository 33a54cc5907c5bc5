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
from flax.traverse_util import flatten_dict

import mtl_jax
from mtl_jax.models.encoder_module import EncoderModule
from mtl_jax.models.pretrained import to_transformers
from tests import make_encoder_reference as reference

SCRIPT = Path(reference.__file__)
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
    found = {"states": np.asarray(states)} | ({"pooler": np.asarray(pooler)} if pooled else {})
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
    live, seed = tmp_path / "full.npz", int(np.random.SeedSequence().entropy % 10_000)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--full", str(live), "--seed", str(seed)],
        cwd=SCRIPT.parents[1],
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
        assert all(np.allclose(now[k], then[k], atol=1e-4) for k in now if now[k].dtype.kind == "f")
