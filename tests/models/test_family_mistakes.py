"""Damaged checkpoints of every family: one line that names the thing and the remedy, status 2."""

import json
import sys

import numpy as np
import pytest
import safetensors.numpy

from tests import forked
from tests import make_encoder_reference as reference


def without(name):
    return lambda tensors: tensors.pop(name)


def like(name, other):
    return lambda tensors: tensors.update({name: tensors[other]})


def cut(name):
    return lambda tensors: tensors.update({name: np.ascontiguousarray(tensors[name][:-1])})


ROTARY = {"full_attention": {"rope_type": "yarn", "rope_theta": 10.0}}
# A model, what its config.json says besides, what becomes of its tensors, and words of the line.
CASES = [
    ("roberta", {"pad_token_id": None}, None, "pad_token_id None must be a whole number"),
    ("roberta", {"pad_token_id": 40}, None, "max_position_embeddings 17 leaves no position"),
    ("roberta", {"is_decoder": True}, None, "is_decoder True is not supported"),
    ("roberta", {"type_vocab_size": 0}, None, "type_vocab_size 0 must be a whole number from 1"),
    ("roberta", {"type_vocab_size": 2}, None, "token_type_embeddings.weight is (1, 12), not (2"),
    ("roberta", {"model_type": "bert"}, without("pooler.dense.bias"), "missing: pooler.dense.bias"),
    (
        "xlm-roberta",
        {"max_position_embeddings": 15},
        None,
        "position_embeddings.weight is (17, 12), not (15, 12)",
    ),
    ("camembert", {"vocab_size": 32}, None, "word_embeddings.weight is (31, 12), not (32, 12)"),
    ("camembert", {"hidden_act": "mish"}, None, "hidden_act 'mish' is not supported"),
    ("distilbert", {"n_layers": "2"}, None, "n_layers '2' must be a whole number"),
    ("distilbert", {"n_layers": 7}, None, "says n_layers 7, the weights have 2 layers"),
    ("distilbert", {"n_heads": 5}, None, "dim 12 is not a multiple of n_heads 5"),
    ("distilbert", {"activation": None}, None, "activation None is not supported"),
    ("distilbert", {"dropout": 2}, None, "dropout 2 must be from 0 to 1"),
    (
        "distilbert",
        {},
        without("transformer.layer.1.ffn.lin2.weight"),
        "missing: transformer.layer.1.ffn.lin2.weight",
    ),
    ("electra", {"embedding_size": 0}, None, "embedding_size 0 must be a whole number"),
    ("electra", {"embedding_size": 12}, None, "unexpected: embeddings_project.bias"),
    ("electra", {}, cut("embeddings_project.weight"), "embeddings_project.weight is (11, 7)"),
    (
        "mpnet",
        {"relative_attention_num_buckets": 16},
        None,
        "relative_attention_num_buckets 16 must be a whole number of at least 32",
    ),
    ("mpnet", {}, without("encoder.relative_attention_bias.weight"), "missing: encoder.relative"),
    (
        "mpnet",
        {},
        like("encoder.layer.1.attention.attn.r.weight", "encoder.layer.1.attention.attn.q.weight"),
        "unexpected: encoder.layer.1.attention.attn.r.weight",
    ),
    ("modernbert", {"rope_parameters": ROTARY}, None, "rope_type 'yarn' is not supported"),
    ("modernbert", {"rope_parameters": [1]}, None, "rope_parameters [1] must hold an object"),
    ("modernbert", {"rope_scaling": {"factor": 2}}, None, "rope_scaling {'factor': 2} is not"),
    ("modernbert", {"global_rope_theta": -1}, None, "global_rope_theta -1 must be a number above"),
    ("modernbert", {"global_attn_every_n_layers": 0}, None, "global_attn_every_n_layers 0 must be"),
    ("modernbert", {"layer_types": ["full_attention"]}, None, "for each of 5 layers"),
    ("modernbert", {"num_attention_heads": 12}, None, "gives each of 12 heads an odd width"),
    ("modernbert", {"norm_bias": "no"}, None, "norm_bias 'no' must be true or false"),
    ("modernbert", {"local_attention": 1.5}, None, "local_attention 1.5 must be a whole number"),
    ("modernbert", {"classifier_pooling": "max"}, None, "classifier_pooling 'max' must be cls or"),
    ("modernbert", {}, cut("layers.2.attn.Wqkv.weight"), "Wqkv.weight is (35, 12), not (36, 12)"),
    ("modernbert", {}, without("final_norm.weight"), "missing: final_norm.weight"),
    ("deberta-v2", {"share_att_key": False}, None, "share_att_key False is not supported"),
    ("deberta-v2", {"conv_kernel_size": 3}, None, "conv_kernel_size 3 is not supported"),
    ("deberta-v2", {"pos_att_type": "c2p"}, None, "pos_att_type 'c2p' is not supported"),
    ("deberta-v2", {"position_buckets": -1}, None, "position_buckets -1 must be a whole number"),
    ("deberta-v2", {"max_relative_positions": "x"}, None, "max_relative_positions 'x' must be"),
    ("deberta-v2", {"position_buckets": 9}, None, "rel_embeddings.weight is (16, 12), not (18, 12"),
    ("deberta-v2", {}, without("encoder.LayerNorm.bias"), "missing: encoder.LayerNorm.bias"),
    ("modernbert", {"auto_map": {"AutoModel": "own.Own"}}, None, "auto_map names code"),
]


@pytest.mark.parametrize(("name", "fields", "change", "words"), CASES)
def test_a_damaged_checkpoint_ends_in_one_line(name, fields, change, words, tmp_path):
    with np.load(reference.STORED) as arrays:
        shapes = json.loads(str(arrays[f"{name}/shapes"]))
    told = {**reference.MODELS[name], **fields}
    folder = reference.write_model(told, shapes, tmp_path / "checkpoint")
    if change is not None:
        weights = folder / "model.safetensors"
        tensors = safetensors.numpy.load_file(weights)
        change(tensors)
        safetensors.numpy.save_file(tensors, weights)
    done = forked.run(
        [sys.executable, "-m", "mtl_jax", "extract", f"--backbone={folder}", "--output=v.npy"],
        input="a text\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = (line for line in done.stderr.splitlines() if not line.startswith("note: "))
    assert line.startswith("error: ")
    assert words in line
    assert ": " in line.partition(words)[2], "no remedy"
