import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from mtl_jax import assets
from mtl_jax.data.tokens import load_tokenizer, tokenize
from mtl_jax.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(assets.minilm())


def test_known_ids_and_counts(tokenizer):
    tokens = tokenize(tokenizer, ["Hello world", "", "hello " * 9, "hello hello hello"], 5)
    assert tokens.ids.tolist() == [
        *(101, 7592, 2088, 102),
        *(101, 102),
        *(101, 7592, 7592, 7592, 102),
        *(101, 7592, 7592, 7592, 102),
    ]
    assert tokens.offsets.tolist() == [0, 4, 6, 11, 16]
    assert tokens.lengths.tolist() == [4, 2, 5, 5]
    assert (tokens.ids.dtype, tokens.offsets.dtype) == (np.int32, np.int64)
    assert (len(tokens), tokens.truncated, tokens.empty) == (4, 1, 1)


def test_no_texts(tokenizer):
    tokens = tokenize(tokenizer, [], 8)
    assert (len(tokens), tokens.ids.tolist(), tokens.offsets.tolist()) == (0, [], [0])
    assert (tokens.ids.dtype, tokens.offsets.dtype) == (np.int32, np.int64)


def test_chunks_do_not_show(tokenizer):
    texts = [f"number {i}" for i in range(5000)]
    whole = tokenize(tokenizer, texts, 16)
    for i in (0, 4095, 4096, 4999):
        alone = tokenize(tokenizer, [texts[i]], 16)
        np.testing.assert_array_equal(whole.ids[whole.offsets[i] : whole.offsets[i + 1]], alone.ids)


def test_same_ids_before_and_after_a_truncation(tokenizer):
    long = "hello " * 600
    assert tokenize(tokenizer, [long], 512).lengths.tolist() == [512]
    assert tokenize(tokenizer, ["hello"], 3).ids.tolist() == [101, 7592, 102]
    assert tokenize(tokenizer, [long], 1000).truncated == 0


def test_a_length_without_room_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"--max-length 2 leaves no room .* use at least 3"):
        tokenize(tokenizer, ["hello"], 2)


def test_a_vocabulary_is_enough(tmp_path):
    for name in ("config.json", "vocab.txt", "tokenizer_config.json"):
        shutil.copy(assets.minilm() / name, tmp_path)
    tokens = tokenize(load_tokenizer(tmp_path), ["Hello world"], 8)
    assert tokens.ids.tolist() == [101, 7592, 2088, 102]


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(UserError, match="holds no tokenizer: name a checkpoint"):
        load_tokenizer(tmp_path)


def test_a_broken_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot load the tokenizer in "):
        load_tokenizer(tmp_path)


def test_says_nothing_when_there_is_no_pytorch():
    program = (
        "import sys, importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torch' else find(name, *a)\n"
        "from mtl_jax import assets\n"
        "from mtl_jax.data.tokens import load_tokenizer\n"
        "load_tokenizer(assets.minilm())\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
