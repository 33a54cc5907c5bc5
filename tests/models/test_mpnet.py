"""all-mpnet-base-v2 with its own weights, against PyTorch; with ``MTL_JAX_TEST_MPNET=1`` alone.

395 MB are fetched where the cache lacks them, and some minutes taken.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks.encoders import our_states
from mtl_jax.config.train import DataConfig
from mtl_jax.core import downloads
from mtl_jax.data.batches import TextSet
from mtl_jax.data.corpus import load_corpus
from mtl_jax.data.tokens import tokenize
from mtl_jax.models.encoder import load_encoder
from mtl_jax.training.evaluator import Evaluator, ModelSpec

pytestmark = pytest.mark.skipif(
    os.environ.get("MTL_JAX_TEST_MPNET") != "1", reason="MTL_JAX_TEST_MPNET is not 1"
)

NAME = "sentence-transformers/all-mpnet-base-v2"
SENTENCES, LONGEST = 64, 128
THEIRS = """
import sys
import numpy as np
from experiments.benchmarks.encoders import pytorch_states
with np.load(sys.argv[2]) as given:
    np.save(sys.argv[3], pytorch_states(sys.argv[1], given["ids"], given["mask"]))
"""


def test_64_real_sentences_packed_and_not(tmp_path):
    encoder = load_encoder(NAME)
    weights = (encoder.folder / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == downloads.MPNET.files["model.safetensors"][1]
    assert (encoder.pooling, encoder.notes) == ("mean", ())
    del weights
    texts = sorted(load_corpus(DataConfig()).read("train").texts, key=len)
    chosen = [texts[i] for i in np.linspace(0, len(texts) - 1, SENTENCES).astype(int)]
    tokens = tokenize(encoder.tokenizer, chosen, LONGEST)
    lengths = tokens.lengths
    assert lengths.max() > 60
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int32)
    ids = np.full(mask.shape, encoder.config.pad_token_id, np.int32)
    ids[mask == 1] = tokens.ids
    unpacked = our_states(encoder.folder, ids, mask)

    labels = {"task": np.full(SENTENCES, -1, np.int32)}
    spec = ModelSpec(encoder.config, (("task", 2),), "mean", "float32", LONGEST, "jit")
    evaluator = Evaluator(spec)
    assert evaluator.layout.rows * evaluator.layout.length < SENTENCES * LONGEST / 2
    packed = np.zeros((len(tokens.ids), encoder.config.hidden_size), np.float32)

    def write(start, states):
        packed[start : start + len(states)] = states

    depth = encoder.config.num_hidden_layers + 1
    params = evaluator.runner.replicate({"backbone": encoder.params})
    evaluator.states(params, TextSet(tokens, labels), depth, write)
    np.testing.assert_allclose(packed, unpacked[-1][mask == 1], rtol=0, atol=1e-5)

    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    given, found = tmp_path / "given.npz", tmp_path / "found.npy"
    np.savez(given, ids=ids, mask=mask)
    subprocess.run(
        [sys.executable, "-c", THEIRS, str(encoder.folder), str(given), str(found)],
        cwd=Path(__file__).parents[2],
        check=True,
    )
    theirs = np.load(found)
    assert theirs.shape == unpacked.shape
    for states, expected in zip(unpacked, theirs, strict=True):
        np.testing.assert_allclose(states[mask == 1], expected[mask == 1], rtol=0, atol=1e-4)
    np.testing.assert_allclose(packed, theirs[-1][mask == 1], rtol=0, atol=1e-4)
    print("largest differences", np.abs(packed - unpacked[-1][mask == 1]).max())
    print("from transformers", np.abs(unpacked - theirs)[:, mask == 1].max())
