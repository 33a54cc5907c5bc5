"""Checkpoints of every kind that a name can lead to, on real files."""

import hashlib
import http.server
import json
import os
import pickle
import re
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

import mtl_jax
from mtl_jax.config.model import DEFAULT_BACKBONE
from mtl_jax.core import downloads
from mtl_jax.core.errors import UserError
from mtl_jax.freezing.partition import digest
from mtl_jax.models.conversion import from_transformers, to_transformers
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.encoder_module import EncoderModule
from mtl_jax.models.pretrained import (
    load_config,
    read_tensors,
    resolve_backbone,
    without_unused_pooler,
)
from mtl_jax.models.sentence_transformers import default_pooling, left_out
from tests import forked

ROOT = Path(__file__).parents[2]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def flat(tree) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")


def assert_same_bytes(found, expected):
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert array.dtype == expected[name].dtype, name
        assert array.shape == expected[name].shape, name
        assert array.tobytes() == expected[name].tobytes(), name


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the tiny checkpoint that may be changed."""
    return shutil.copytree(tiny, tmp_path / "checkpoint")


def rewrite(folder, change):
    """Rewrites the weights of ``folder`` with ``change`` applied to the dict of tensors."""
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    safetensors.numpy.save_file(change(tensors), folder / WEIGHTS)
    return folder


# The conversion table.


def test_there_and_back_is_the_tiny_checkpoint(tiny):
    raw = safetensors.numpy.load_file(tiny / WEIGHTS)
    config, params = mtl_jax.load_backbone(tiny)
    assert_same_bytes(to_transformers(params), raw)
    assert_same_bytes(flat(from_transformers(to_transformers(params), config)), flat(params))


def test_there_and_back_is_the_real_checkpoint():
    raw = safetensors.numpy.load_file(downloads.minilm() / WEIGHTS)
    raw.pop("embeddings.position_ids", None)
    _, params = mtl_jax.load_backbone(DEFAULT_BACKBONE)
    assert_same_bytes(to_transformers(params), raw)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 22_713_216


def test_every_leaf_of_the_model_is_in_the_tree_with_its_shape(tiny):
    config, params = mtl_jax.load_backbone(tiny)
    encoder = EncoderModule(config)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), np.zeros((1, 4), np.int32))
    expected = {name: leaf.shape for name, leaf in flat(shapes["params"]).items()}
    found = {name: leaf.shape for name, leaf in flat(params).items()}
    pooler = {"pooler/kernel": (16, 16), "pooler/bias": (16,)}
    assert found == expected | pooler
    assert all(leaf.flags.c_contiguous for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("tensor", "path"),
    [
        ("encoder.layer.1.attention.self.query.weight", "layer_1/attention/query/kernel"),
        ("encoder.layer.1.attention.output.dense.weight", "layer_1/attention/output/kernel"),
        ("encoder.layer.2.output.dense.weight", "layer_2/mlp/output/kernel"),
        ("pooler.dense.weight", "pooler/kernel"),
    ],
)
def test_a_kernel_is_the_transposed_weight(tensor, path, tiny):
    raw = safetensors.numpy.load_file(tiny / WEIGHTS)
    leaf = flat(mtl_jax.load_backbone(tiny)[1])[path]
    np.testing.assert_array_equal(leaf, raw[tensor].T)
    assert not np.array_equal(leaf[:16, :16], raw[tensor][:16, :16])


def test_every_problem_is_in_one_error(copy):
    def damage(tensors):
        del tensors["encoder.layer.0.output.dense.bias"]
        del tensors["embeddings.LayerNorm.weight"]
        tensors["encoder.layer.3.output.dense.bias"] = np.zeros(16, np.float32)
        tensors["embeddings.surprise"] = np.zeros(1, np.float32)
        tensors["encoder.layer.1.intermediate.dense.weight"] = np.zeros((16, 32), np.float32)
        tensors["pooler.dense.bias"] = np.zeros(15, np.float32)
        return tensors

    rewrite(copy, damage)
    with pytest.raises(UserError) as caught:
        mtl_jax.load_backbone(copy)
    assert str(caught.value) == (
        "the weights do not fit their config.json ("
        "missing: embeddings.LayerNorm.weight, encoder.layer.0.output.dense.bias; "
        "unexpected: embeddings.surprise, encoder.layer.3.output.dense.bias; "
        "wrongly shaped: encoder.layer.1.intermediate.dense.weight is (16, 32), not (32, 16), "
        "pooler.dense.bias is (15,), not (16,)): "
        "use the files of one and the same BERT checkpoint"
    )


@pytest.mark.parametrize(
    ("field", "value", "count"),
    [
        ("vocab_size", 42, 1),
        ("max_position_embeddings", 25, 1),
        ("type_vocab_size", 3, 1),
        ("intermediate_size", 33, 9),
        ("hidden_size", 20, 52),
    ],
)
def test_every_size_is_held_against_the_weights(field, value, count, copy):
    fields = json.loads((copy / "config.json").read_text()) | {field: value}
    (copy / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError) as caught:
        mtl_jax.load_backbone(copy)
    named = re.findall(r"(?:embeddings|encoder|pooler)\.[\w.]+", str(caught.value))
    assert len(named) == len(set(named)) == min(count, 10)
    more = re.findall(r" and (\d+) more\)", str(caught.value))
    assert more == [str(count - 10)] * (count > 10)


@pytest.mark.parametrize("layers", [4, 100_000_000, 2**31 - 1])
def test_layers_that_are_not_in_the_weights_are_told_at_once(layers, copy):
    fields = json.loads((copy / "config.json").read_text()) | {"num_hidden_layers": layers}
    (copy / "config.json").write_text(json.dumps(fields))
    start = time.perf_counter()
    words = rf"config\.json says num_hidden_layers {layers:,}, the weights have 3 layers: use the"
    with pytest.raises(UserError, match=words):
        mtl_jax.load_backbone(copy)
    assert time.perf_counter() - start < 1


def test_the_number_of_a_tensors_layer_makes_no_table(copy):
    fields = json.loads((copy / "config.json").read_text()) | {"num_hidden_layers": 10**9}
    (copy / "config.json").write_text(json.dumps(fields))
    rewrite(copy, lambda t: t | {"encoder.layer.999999999.x": np.zeros(1, np.float32)})
    with pytest.raises(UserError, match="the weights have 4 layers"):
        mtl_jax.load_backbone(copy)


def test_an_error_stays_short_whatever_the_weights_hold(copy):
    extra = {f"encoder.{'x' * 700}{i}": np.zeros(1, np.float32) for i in range(1000)}
    rewrite(copy, lambda tensors: tensors | extra)
    with pytest.raises(
        UserError, match=r"unexpected: encoder\.x+\.\.\., .* and 990 more"
    ) as caught:
        mtl_jax.load_backbone(copy)
    assert len(str(caught.value)) < 2000


def test_a_task_checkpoint_of_the_older_kind(copy, tiny):
    def older(tensors):
        names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        renamed = {}
        for name, tensor in tensors.items():
            for new, old in names.items():
                name = name.replace(new, old)
            renamed[f"bert.{name}"] = tensor
        assert any("LayerNorm.gamma" in name for name in renamed)
        return renamed | {
            "bert.embeddings.position_ids": np.arange(24)[None],
            "cls.predictions.bias": np.zeros(41, np.float32),
            "cls.predictions.transform.LayerNorm.gamma": np.ones(16, np.float32),
            "classifier.weight": np.zeros((2, 16), np.float32),
        }

    rewrite(copy, older)
    assert_same_bytes(flat(mtl_jax.load_backbone(copy)[1]), flat(mtl_jax.load_backbone(tiny)[1]))


def test_heads_beside_an_encoder_without_prefix_are_left_out(copy, tiny):
    names = ("classifier.weight", "cls.predictions.bias", "qa_outputs.bias", "linear.weight", "x")
    heads = {name: np.full(3, np.nan, np.float32) for name in names}
    rewrite(copy, lambda tensors: tensors | heads)
    assert_same_bytes(flat(mtl_jax.load_backbone(copy)[1]), flat(mtl_jax.load_backbone(tiny)[1]))


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize(
    "name", ["encoder.layer.0.attention.self.query.lora_A", "embeddings.extra", "pooler.extra"]
)
def test_what_is_more_in_the_encoder_itself_is_refused(name, prefix, copy):
    rewrite(
        copy,
        lambda tensors: {
            f"{prefix}{name}": value
            for name, value in (tensors | {name: np.zeros(1, np.float32)}).items()
        },
    )
    with pytest.raises(UserError, match=rf"unexpected: {re.escape(name)}\)"):
        mtl_jax.load_backbone(copy)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(value, dtype, copy):
    def spoil(tensors):
        tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
        tensors["encoder.layer.1.output.dense.weight"][3, 2] = value
        tensors["embeddings.LayerNorm.bias"][1] = value
        return tensors

    rewrite(copy, spoil)
    words = (
        r"NaN or infinite \(embeddings\.LayerNorm\.bias, encoder\.layer\.1\.output\.dense\.weight\)"
    )
    with pytest.raises(UserError, match=words):
        mtl_jax.load_backbone(copy)


def test_a_number_beyond_float32_is_infinite(copy):
    name = "pooler.dense.bias"
    rewrite(copy, lambda tensors: tensors | {name: np.full(16, 1e300)})
    with pytest.raises(UserError, match=r"NaN or infinite \(pooler\.dense\.bias\): fetch"):
        mtl_jax.load_backbone(copy)


def test_quantized_weights_are_refused(copy):
    name = "encoder.layer.0.output.dense.weight"
    rewrite(copy, lambda tensors: tensors | {name: tensors[name].astype(np.int8)})
    with pytest.raises(UserError, match=r"\(encoder.*weight is int8\): use a checkpoint that is "):
        mtl_jax.load_backbone(copy)


def test_quantized_weights_that_numpy_has_no_numbers_for_are_refused(copy):
    content = (copy / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    (name, told), *_ = (item for item in header.items() if item[0].endswith("output.dense.weight"))
    told["dtype"], told["shape"] = "F8_E4M3", [4 * told["shape"][0], *told["shape"][1:]]
    changed = json.dumps(header).encode()
    (copy / WEIGHTS).write_bytes(len(changed).to_bytes(8, "little") + changed + content[end:])
    with pytest.raises(UserError, match=rf"{re.escape(name)} is of F8_E4M3 numbers: use a check"):
        mtl_jax.load_backbone(copy)


def test_a_checkpoint_without_a_pooler(copy, tiny):
    rewrite(copy, lambda tensors: {k: v for k, v in tensors.items() if "pooler" not in k})
    params = mtl_jax.load_backbone(copy)[1]
    expected = mtl_jax.load_backbone(tiny)[1]
    expected.pop("pooler")
    assert_same_bytes(flat(params), flat(expected))
    with pytest.raises(UserError, match=r"backbone 'b' has no pooler: use --pooling mean or "):
        without_unused_pooler(params, "pooler", "b")
    assert without_unused_pooler(params, "mean", "b").keys() == params.keys()


def test_a_pooler_is_kept_for_the_pooling_that_runs_it(tiny):
    params = mtl_jax.load_backbone(tiny)[1]
    assert without_unused_pooler(params, "pooler", "b").keys() == params.keys()
    for pooling in ("mean", "cls"):
        kept = without_unused_pooler(params, pooling, "b")
        assert kept.keys() == params.keys() - {"pooler"}


def test_half_of_a_pooler_is_missing_the_other(copy):
    rewrite(copy, lambda tensors: {k: v for k, v in tensors.items() if k != "pooler.dense.bias"})
    with pytest.raises(UserError, match=r"\(missing: pooler\.dense\.bias\)"):
        mtl_jax.load_backbone(copy)


# Files.


def test_half_precision_becomes_float32(copy, tiny):
    rewrite(copy, lambda tensors: {k: v.astype(np.float16) for k, v in tensors.items()})
    found, exact = flat(mtl_jax.load_backbone(copy)[1]), flat(mtl_jax.load_backbone(tiny)[1])
    assert_same_bytes(found, {k: v.astype(np.float16).astype(np.float32) for k, v in exact.items()})


def test_bfloat16_becomes_float32(copy, tiny):
    # The format of a safetensors file: a length, a JSON header, the bytes.
    header, bodies, end = {}, [], 0
    for name, array in safetensors.numpy.load_file(tiny / WEIGHTS).items():
        # The upper half of a float32, the lower one cut off.
        bodies.append((array.view(np.uint32) >> 16).astype(np.uint16).tobytes())
        start, end = end, end + len(bodies[-1])
        shape = list(array.shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    (copy / WEIGHTS).write_bytes(len(head).to_bytes(8, "little") + head + b"".join(bodies))
    found, exact = flat(mtl_jax.load_backbone(copy)[1]), flat(mtl_jax.load_backbone(tiny)[1])
    cut = {k: (v.view(np.uint32) & 0xFFFF0000).view(np.float32) for k, v in exact.items()}
    assert_same_bytes(found, cut)


def shard(folder):
    """Splits the weights of ``folder`` into two files with an index."""
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    weight_map = {}
    for i, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_are_the_whole(copy, tiny):
    shard(copy)
    assert_same_bytes(flat(mtl_jax.load_backbone(copy)[1]), flat(mtl_jax.load_backbone(tiny)[1]))


def test_a_shard_gives_what_the_index_says_and_nothing_else(copy, tiny):
    shard(copy)
    second, first = (copy / f"model-0000{i}-of-00002.safetensors" for i in (2, 1))
    tensors = safetensors.numpy.load_file(second)
    other = safetensors.numpy.load_file(first)
    both = {**tensors, **{name: tensor + 1 for name, tensor in other.items()}}
    safetensors.numpy.save_file(both, second)
    assert_same_bytes(flat(mtl_jax.load_backbone(copy)[1]), flat(mtl_jax.load_backbone(tiny)[1]))
    name = max(tensors)
    safetensors.numpy.save_file({k: v for k, v in tensors.items() if k != name}, second)
    with pytest.raises(UserError, match=rf"{second.name} lacks {name}, which the index .* fetch"):
        mtl_jax.load_backbone(copy)


@pytest.mark.parametrize("left", ["index and shards", "index"])
def test_the_whole_file_is_read_where_an_older_index_was_left(left, copy, tiny):
    whole = shutil.copy(copy / WEIGHTS, copy.parent)
    shard(rewrite(copy, lambda tensors: {name: tensor + 1 for name, tensor in tensors.items()}))
    shutil.copy(whole, copy / WEIGHTS)
    if left == "index":
        for path in copy.glob("model-*"):
            path.unlink()
    assert_same_bytes(flat(mtl_jax.load_backbone(copy)[1]), flat(mtl_jax.load_backbone(tiny)[1]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "is not of type 'object'"),
        ("{}", "'weight_map' is a required property"),
        ('{"weight_map": []}', "weight_map"),
        ('{"weight_map": {}}', "weight_map"),
        ('{"weight_map": {"a": 3}}', "weight_map.a: 3 is not of type 'string'"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "does not match"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "does not match"),
        ("{", "is not valid JSON"),
    ],
)
def test_an_index_of_another_kind_is_one_line(content, words, copy):
    (copy / WEIGHTS).unlink()
    (copy / INDEX).write_text(content)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        mtl_jax.load_backbone(copy)
    assert str(caught.value).startswith(str(copy / INDEX))
    assert str(caught.value).endswith(": fetch the checkpoint again")


def test_weights_that_are_a_folder(copy):
    (copy / WEIGHTS).unlink()
    (copy / WEIGHTS).mkdir()
    with pytest.raises(UserError, match=r"read \(it is a folder\): there should be a file"):
        mtl_jax.load_backbone(copy)


def test_a_missing_shard_is_named(copy):
    shard(copy)
    (copy / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors is missing"):
        read_tensors(copy)


def test_weights_that_are_no_file_are_not_waited_for(copy):
    (copy / WEIGHTS).unlink()
    os.mkfifo(copy / WEIGHTS)
    with pytest.raises(UserError, match=r"model\.safetensors can't be read \(.*it is a pipe"):
        read_tensors(copy)


def test_weights_that_may_not_be_read_are_not_called_missing(copy):
    if os.geteuid() != 0:
        pytest.skip("only root may become another user and back")
    # pytest's own folders are closed to others.
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = Path(shutil.copytree(copy, Path(name) / "bert"))
        (folder / WEIGHTS).chmod(0)
        os.seteuid(65534)
        try:
            with pytest.raises(UserError, match=r"can't be read \(Permission denied\): give read"):
                read_tensors(folder)
        finally:
            os.seteuid(0)


def test_a_pickle_is_refused_without_being_opened(copy):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (copy / "exploded",))

    (copy / WEIGHTS).unlink()
    pickled = copy / "pytorch_model.bin"
    pickled.write_bytes(pickle.dumps(Bomb()))
    program = (
        "import sys, mtl_jax\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, args: event == 'open' and opened.append(str(args[0])))\n"
        "try:\n    mtl_jax.load_backbone(sys.argv[1])\n"
        "except mtl_jax.UserError as error:\n    print(error)\n"
        "print([name for name in opened if name.startswith(sys.argv[1])])\n"
    )
    done = python(program, str(copy))
    message, opened = done.stdout.splitlines()
    assert message.startswith(f"{copy / WEIGHTS} is missing: weights are read from safetensors")
    assert opened == repr([str(copy / "config.json")])
    assert not (copy / "exploded").exists()
    # It would have gone off.
    pickle.loads(pickled.read_bytes())  # noqa: S301
    assert (copy / "exploded").exists()


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_damaged_file_is_named(kept, copy):
    content = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(content[:kept])
    with pytest.raises(UserError, match=r"model\.safetensors can't be read \(.*\): fetch"):
        mtl_jax.load_backbone(copy)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "config.json is missing: correct the path, or put the file there"),
        (b"{", "config.json is not valid JSON ("),
        (b"\xff\xfe{}", "config.json is not UTF-8 text ("),
        (b"[]", "config.json: [] is not of type 'object': use the folder of a checkpoint"),
        (b'{"model_type": "gpt2"}', "config.json: model_type 'gpt2' is not supported"),
    ],
)
def test_a_wrong_config_is_named(content, words, copy):
    if content is None:
        (copy / "config.json").unlink()
    else:
        (copy / "config.json").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_config(copy)
    assert str(caught.value).startswith(f"{copy}/{words}")


@pytest.mark.parametrize(
    ("declared", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"embedding_dimension": 16, "pooling_mode": "cls", "include_prompt": True}, "cls"),
        ({"embedding_dimension": 16, "pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode": ["cls"]}, "cls"),
        ({"pooling_mode": "mean", "pooling_mode_mean_tokens": True}, "mean"),
        ({"word_embedding_dimension": 16}, "mean"),
        (None, "mean"),
    ],
)
def test_pooling_that_the_checkpoint_declares(declared, pooling, tmp_path):
    if declared is not None:
        declare(tmp_path, declared)
    assert default_pooling(tmp_path) == pooling


def declare(folder, pooling, place="1_Pooling"):
    (folder / place).mkdir(exist_ok=True)
    (folder / place / "config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        *(
            ({"pooling_mode_mean_tokens": False, f"pooling_mode_{name}": True}, f"['{name}']")
            for name in ("max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
        ),
        (
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            "['cls_token', 'mean_tokens']",
        ),
        ({"pooling_mode": "lasttoken"}, "['lasttoken']"),
        ({"pooling_mode": ["cls", "mean"]}, "['cls', 'mean']"),
        ({"pooling_mode": "cls", "pooling_mode_max_tokens": True}, "['max_tokens', 'cls']"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}, "no pooling"),
        ({"pooling_mode": "x" * 100_000}, "..."),
    ],
    ids=str,
)
def test_a_declared_pooling_that_is_not_computed_asks_for_another(declared, words, tmp_path):
    declare(tmp_path, declared)
    with pytest.raises(UserError, match=r"choose one by --pooling mean, cls or pooler") as caught:
        default_pooling(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/1_Pooling/config.json declares ")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "declared", [[], "mean", {"pooling_mode": 3}, {"pooling_mode_cls_token": "yes"}], ids=str
)
def test_a_declaration_of_another_kind_is_one_line(declared, tmp_path):
    declare(tmp_path, declared)
    with pytest.raises(UserError, match=r"1_Pooling/config\.json: .* again, or say --pooling$"):
        default_pooling(tmp_path)


def test_pooling_of_vectors_of_another_width(tmp_path):
    declare(tmp_path, {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 999})
    with pytest.raises(UserError, match="is for vectors of 999, and the encoder's have 16"):
        default_pooling(tmp_path, EncoderConfig(hidden_size=16, num_attention_heads=1))
    assert (
        default_pooling(tmp_path, EncoderConfig(hidden_size=999, num_attention_heads=1)) == "mean"
    )


def modules(folder, *kinds):
    names = ["Transformer", "Pooling", *kinds]
    content = [
        {"idx": i, "name": str(i), "path": f"{i}_{name}", "type": f"sentence_transformers.{name}"}
        for i, name in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(content))


def test_pooling_is_where_the_modules_say(tmp_path):
    declare(tmp_path, {"pooling_mode": "mean"})
    (tmp_path / "modules.json").write_text('[{"type": "st.Pooling", "path": "2_Pooling"}]')
    with pytest.raises(UserError, match=r"2_Pooling/config\.json is missing"):
        default_pooling(tmp_path)
    declare(tmp_path, {"pooling_mode": "cls"}, "2_Pooling")
    assert default_pooling(tmp_path) == "cls"
    modules = [{"type": "st.Pooling", "path": f"{number}_Pooling"} for number in (1, 2)]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match=r"modules\.json declares 2 poolings: choose one by"):
        default_pooling(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[1]", '[{"path": "x"}]', '[{"type": 1}]', "["])
def test_modules_of_another_kind_are_one_line(content, tmp_path):
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(UserError, match=r"modules\.json.*: fetch the checkpoint again$"):
        left_out(tmp_path, vectors=True)


def test_what_follows_the_pooling_is_told_where_it_matters(tmp_path):
    assert left_out(tmp_path, vectors=True) == []
    modules(tmp_path)
    assert left_out(tmp_path, vectors=True) == []
    modules(tmp_path, "Normalize")
    assert left_out(tmp_path, vectors=False) == []
    (unit,) = left_out(tmp_path, vectors=True)
    assert "not scaled to unit length" in unit
    modules(tmp_path, "Dense", "Normalize")
    (dense,) = left_out(tmp_path, vectors=False)
    assert "is left out ('Dense')" in dense
    assert left_out(tmp_path, vectors=True) == [dense, unit]


def test_what_others_do_to_texts_and_weights_is_told(tmp_path):
    def told(name, content):
        (tmp_path / name).write_text(json.dumps(content))
        return left_out(tmp_path, vectors=False)

    prompts = {"query": "query: ", "none": None}
    for default in (None, "none", "other"):
        of_none = {"prompts": prompts, "default_prompt_name": default}
        assert told("config_sentence_transformers.json", of_none) == []
    of_query = {"prompts": prompts, "default_prompt_name": "query"}
    (prompt,) = told("config_sentence_transformers.json", of_query)
    assert "puts 'query: ' before each text" in prompt
    assert told("sentence_bert_config.json", {"do_lower_case": False}) == [prompt]
    _, lower = told("sentence_bert_config.json", {"do_lower_case": True})
    assert "lower-cases each text" in lower
    *_, adapter = told("adapter_config.json", {})
    assert "is of an adapter, which is left out" in adapter
    with pytest.raises(UserError, match=r"default_prompt_name: 1 is not of type .*: fetch the"):
        told("config_sentence_transformers.json", {"default_prompt_name": 1})
    with pytest.raises(UserError, match=r"safetensors is missing: .*; merge the adapter into"):
        read_tensors(tmp_path)


def test_pooling_of_the_default_checkpoint():
    assert default_pooling(downloads.minilm()) == "mean"
    assert left_out(downloads.minilm(), vectors=False) == []


# Names.


def python(program, *args, **env):
    """Runs Python in a process without any settings of the hub but ``env``."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    strict = f"import warnings\nwarnings.simplefilter('error')\n{program}"
    done = forked.run(
        [sys.executable, "-c", strict, *args],
        cwd=ROOT,
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done


LOAD = """
import sys
import mtl_jax
from mtl_jax.freezing.partition import digest
from mtl_jax.models.pretrained import resolve_backbone
try:
    print(resolve_backbone(sys.argv[1]))
    print(digest(mtl_jax.load_backbone(sys.argv[1])[1]))
except mtl_jax.UserError as error:
    print("UserError", error)
"""


def test_a_folder(tiny, monkeypatch):
    assert resolve_backbone(str(tiny)) == tiny
    monkeypatch.setenv("HOME", str(tiny.parent))
    assert resolve_backbone("~/checkpoint") == tiny
    monkeypatch.chdir(tiny.parent)
    assert resolve_backbone("checkpoint") == resolve_backbone("./checkpoint") == Path("checkpoint")
    # A path works as well as a string.
    assert_same_bytes(
        flat(mtl_jax.load_backbone(tiny)[1]), flat(mtl_jax.load_backbone(str(tiny))[1])
    )


def test_a_name_of_the_default_checkpoint():
    assert resolve_backbone("sentence-transformers/all-MiniLM-L6-v2") == downloads.minilm()


@pytest.mark.parametrize("name", ["/not/there", "./not", "../not/there", "~/not-there", "a/b/c"])
def test_a_path_that_is_not_there_never_asks_the_hub(name, monkeypatch):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=r"no such folder: correct the path"):
        resolve_backbone(name)


# Nothing listens on port 9, discard.
OFFLINE, NO_NETWORK = {"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("name", "env"), [("somebody/tiny-bert", OFFLINE), ("tiny-bert", NO_NETWORK)]
)
def test_a_name_in_the_hubs_cache(name, env, tiny, tmp_path):
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = shutil.copytree(tiny, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    done = python(LOAD, name, HF_HOME=str(tmp_path), **env)
    expected = [str(snapshot), digest(mtl_jax.load_backbone(tiny)[1])]
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize("env", [OFFLINE, NO_NETWORK], ids=["offline", "no network"])
def test_a_name_that_is_not_in_the_cache(env, tmp_path):
    done = python(LOAD, "somebody/nothing", HF_HOME=str(tmp_path), **env)
    assert (done.stdout, done.stderr) == (
        "UserError backbone 'somebody/nothing' is neither a folder nor in the hub's cache, and "
        "the hub can't be reached: connect to the network once, or give the folder of a "
        "downloaded checkpoint\n",
        "",
    )


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub with one repository, ``somebody/here``, of the files in ``folder``."""

    folder: Path
    revision = "89abcdef0123456789abcdef0123456789abcdef"

    def do_GET(self):
        self.server.asked.append(self.path)  # pyright: ignore[reportAttributeAccessIssue]
        resolved = f"/somebody/here/resolve/{self.revision}/"
        api = "/api/models/somebody/here/"
        files = {str(p.relative_to(self.folder)): p for p in self.folder.rglob("*.*")}
        if self.path.startswith(f"{api}tree/"):
            kind = {"type": "file", "oid": "0" * 40}
            tree = [kind | {"path": name, "size": p.stat().st_size} for name, p in files.items()]
            self.answer(200, json.dumps(tree).encode())
        elif self.path.startswith(f"{api}revision/"):
            siblings = [{"rfilename": name} for name in files]
            info = {"id": "somebody/here", "sha": self.revision, "siblings": siblings}
            self.answer(200, json.dumps(info).encode())
        elif self.path.startswith(resolved):
            content = (self.folder / self.path.removeprefix(resolved)).read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            self.answer(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": self.revision})
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def do_HEAD(self):
        self.do_GET()

    def answer(self, status, content, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format, *args):  # noqa: A002
        pass


@pytest.fixture
def hub(copy):
    """A running hub that has ``copy``, and a pickle beside it."""
    (copy / "pytorch_model.bin").write_bytes(b"a pickle")
    (copy / "1_Pooling").mkdir()
    (copy / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    handler = type("Here", (Hub,), {"folder": copy})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked = []  # pyright: ignore[reportAttributeAccessIssue]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_name_on_the_hub_is_fetched_without_its_pickle(hub, tiny, tmp_path):
    env = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}"}
    done = python(LOAD, "somebody/here", **env, HF_HUB_DISABLE_PROGRESS_BARS="1")
    folder, weights = done.stdout.splitlines()
    assert weights == digest(mtl_jax.load_backbone(tiny)[1])
    names = {str(path.relative_to(folder)) for path in Path(folder).rglob("*.*")}
    pooling = "1_Pooling/config.json"
    assert names == {"config.json", pooling, WEIGHTS, "tokenizer_config.json", "vocab.txt"}
    assert default_pooling(Path(folder)) == "cls"
    assert hub.asked
    assert not any("pytorch_model" in path for path in hub.asked)
    hub.asked.clear()
    again = python(LOAD, "somebody/here", HF_HOME=str(tmp_path), **OFFLINE)
    assert (again.stdout, hub.asked) == (done.stdout, [])


def test_a_name_that_the_hub_does_not_know(hub, tmp_path):
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    done = python(LOAD, "somebody/nothing", HF_HOME=str(tmp_path), HF_ENDPOINT=endpoint)
    assert (done.stdout, done.stderr) == (
        "UserError unknown backbone 'somebody/nothing': name a folder, or a checkpoint on the hub "
        "(the default is sentence-transformers/all-MiniLM-L6-v2)\n",
        "",
    )
    assert hub.asked


def test_a_name_that_no_hub_can_have(tmp_path):
    done = python(LOAD, "not a name", HF_HOME=str(tmp_path))
    assert done.stdout.startswith("UserError unknown backbone 'not a name': name a folder, or ")
