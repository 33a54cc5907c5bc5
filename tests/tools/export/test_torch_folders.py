"""Exported folders in PyTorch, and what PyTorch saved back here."""

import dataclasses
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
import scipy.special
from tokenizers import Tokenizer, normalizers, processors

import mtl_jax as mtl
from mtl_jax.core.errors import UserError
from mtl_jax.models.conversion import to_transformers
from mtl_jax.models.exported import read_head
from mtl_jax.models.pretrained import read_tensors
from mtl_jax.models.sentence_transformers import left_out
from mtl_jax.models.tokenizer import load_tokenizer
from mtl_jax.tools.export import card
from mtl_jax.tools.export.torch_folders import (
    as_dtype,
    encoder_fields,
    write_classifier,
    write_sentence_encoder,
    write_tokenizer,
)
from mtl_jax.tools.export.trained_run import TaskHead
from tests.test_docs import blocks
from tests.tools.export.conftest import (
    EXPORT_PAGE,
    TEXTS,
    arrays_of,
    assert_same_bits,
    expected_logits,
    expected_vectors,
    of,
    of_pairs,
    run_in_torch,
)

POOLINGS = ("mean", "cls", "pooler")
HALVES = ("bfloat16", "float16")
# The head of a regression, and what its labels were standardised by.
STARS = TaskHead(
    "stars",
    "regression",
    (),
    (2.0, 3.0),
    None,
    {
        "kernel": np.random.default_rng(0).standard_normal((16, 1), np.float32),
        "bias": np.array([0.5], np.float32),
    },
)


# One of two hidden layers.
DEEP = dataclasses.replace(
    STARS,
    params={
        name: {
            "kernel": np.random.default_rng(rows).standard_normal((rows, columns), np.float32),
            "bias": np.linspace(-1, 1, columns, dtype=np.float32),
        }
        for name, rows, columns in (("hidden_0", 16, 5), ("hidden_1", 5, 4), ("output", 4, 1))
    },
)


def written(run, folder, task="sentiment", dtype: Any = "float32"):
    """The folder of a task of a run."""
    folder.mkdir(parents=True)
    (head,) = (head for head in run.heads if head.name == task)
    write_classifier(run, head, folder, dtype)
    return folder


@pytest.fixture(scope="module")
def in_torch(pooled_by, tmp_path_factory):
    """Where they are, and what ``run_in_torch`` gives of them."""
    root, jobs = tmp_path_factory.mktemp("torch"), {}
    for pooling, run in pooled_by.items():
        job = {"folder": str(written(run, root / pooling)), "trusted": pooling != "pooler"}
        jobs[pooling] = job | {"further": str(root / f"{pooling} further")}
    jobs["untrusted"] = {"folder": str(root / "mean"), "trusted": False}
    for dtype in HALVES:
        folder = written(pooled_by["mean"], root / dtype, dtype=dtype)
        jobs[dtype] = {"folder": str(folder), "trusted": True}
    (root / "stars").mkdir()
    write_classifier(pooled_by["pooler"], STARS, root / "stars", "float32")
    jobs["stars"] = {"folder": str(root / "stars"), "trusted": False}
    for pooling in ("mean", "pooler"):
        (root / f"deep {pooling}").mkdir()
        write_classifier(pooled_by[pooling], DEEP, root / f"deep {pooling}", "float32")
        job = {"folder": str(root / f"deep {pooling}"), "trusted": True}
        jobs[f"deep {pooling}"] = job | {"further": str(root / f"deep {pooling} further")}
    program = blocks(EXPORT_PAGE, "python")[0]
    jobs["page"] = {"program": program.replace("exported/topic", str(root / "mean"))}
    use = card.classifier_use(str(root / "mean"), native=False, pairs=True)
    jobs["card of pairs"] = {"program": use.code}
    _, told, arrays = run_in_torch(root, jobs)
    return root, told, arrays


@pytest.mark.parametrize("pooling", POOLINGS)
def test_transformers_gives_the_logits_of_the_run(pooling, pooled_by, in_torch):
    _, told, arrays = in_torch
    said = told[pooling]
    native = "BertForSequenceClassification"
    assert said["class"] == (native if pooling == "pooler" else "PooledForSequenceClassification")
    assert said["keys"] == {}
    assert said["id2label"] == {"0": "neg", "1": "neu", "2": "pos"}
    assert said["label2id"] == {"neg": 0, "neu": 1, "pos": 2}
    assert said["problem_type"] == "single_label_classification"
    expected = expected_logits(pooled_by[pooling])["sentiment"]
    np.testing.assert_allclose(arrays[pooling, "logits"], expected, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 1e-3


def test_the_code_of_the_page_and_of_a_card_gives_the_logits_of_the_run(pooled_by, in_torch):
    _, _, arrays = in_torch
    expected = expected_logits(pooled_by["mean"], ["a text"])["sentiment"]
    np.testing.assert_allclose(arrays["page", "logits"], expected, atol=1e-4)
    of_both = expected_logits(of_pairs(pooled_by["mean"]), [("a text", "its other text")])
    np.testing.assert_allclose(arrays["card of pairs", "logits"], of_both["sentiment"], atol=1e-4)
    assert np.abs(of_both["sentiment"] - expected).max() > 1e-2


def test_a_folder_with_code_is_never_loaded_as_what_it_is_not(in_torch):
    _, told, _ = in_torch
    assert "trust_remote_code" in told["untrusted"]["refused"]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_weights_are_the_same_bits_there_and_back_after_a_step(pooling, in_torch):
    root, _, arrays = in_torch
    before, after = (of(arrays, pooling, when) for when in ("before", "after"))
    assert_same_bits(arrays_of(root / pooling), before)
    assert all(not np.array_equal(after[name], before[name]) for name in after)
    further = root / f"{pooling} further"
    assert_same_bits(arrays_of(further), after)
    model, params = mtl.load_exported(further)
    assert model.encoder.pooling == pooling
    ids = model.encoder.tokenizer(TEXTS[:1], return_tensors="np")["input_ids"]
    ours = model(params, ids)["sentiment"]
    np.testing.assert_allclose(ours, arrays[pooling, "logits after"][:1], atol=1e-5)


def test_a_folder_loads_with_its_heads_and_trains_on(opened, tmp_path, monkeypatch):
    folders = [written(opened, tmp_path / task, task) for task in ("classifier", "sentiment")]
    model, params = mtl.load_exported(*folders)
    page = blocks(EXPORT_PAGE, "python")[1].replace("101, 2023, 102", "2, 6, 3")
    page = page.replace("exported/topic", "classifier").replace("exported/mood", "sentiment")
    monkeypatch.chdir(tmp_path)
    exec(page.replace("topic", "classifier"), found := {})  # noqa: S102
    assert np.array_equal(found["logits"], model(params, np.array([[2, 6, 3]]))["classifier"])
    assert [(task.name, task.classes) for task in model.tasks] == [
        (head.name, head.classes) for head in opened.heads
    ]
    for head in opened.heads:
        assert_same_bits(params[head.name], head.params)
    partition = mtl.Partition(params, "backbone_frozen")
    optimizer = mtl.make_optimizer(partition, {"head": 1e-3}, 1)
    step = mtl.TrainStep(model, partition, optimizer)
    started = step.params(step.init(0, params))
    assert np.array_equal(started["sentiment"]["kernel"], params["sentiment"]["kernel"])


def test_encoders_that_differ_are_not_one(opened, tmp_path):
    folders = [written(opened, tmp_path / task, task) for task in ("classifier", "sentiment")]
    path = folders[1] / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["bert.embeddings.LayerNorm.bias"] = tensors["bert.embeddings.LayerNorm.bias"] + 1
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(UserError, match=r"encoders in .* differ"):
        mtl.load_exported(*folders)


def test_what_is_no_exported_folder_is_one_line(small, opened, tmp_path):
    with pytest.raises(UserError, match="that export --format huggingface wrote"):
        mtl.load_exported(small)
    with pytest.raises(UserError, match="needs a folder"):
        mtl.load_exported()
    folder = written(opened, tmp_path / "task")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"id2label": {"0": "one"}}))
    with pytest.raises(UserError, match=r"no classifier\.weight .* of 1 outputs"):
        mtl.load_exported(folder)


def test_only_the_module_file_of_an_export_is_passed_over(opened, tmp_path):
    folder = written(opened, tmp_path / "task")
    fields = json.loads((folder / "config.json").read_text())
    assert fields["model_type"] == "pooled_bert"
    mtl.load_encoder(folder)
    # A run that began with the folder is exported as any other.
    again = encoder_fields(dataclasses.replace(opened, files=folder))
    assert again == encoder_fields(opened)
    other = fields["auto_map"] | {"AutoConfig": "other.PooledConfig"}
    (folder / "config.json").write_text(json.dumps(fields | {"auto_map": other}))
    with pytest.raises(UserError, match="auto_map names code"):
        mtl.load_encoder(folder)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_halves_the_file(dtype, opened, tmp_path):
    whole = written(opened, tmp_path / "whole")
    half = written(opened, tmp_path / dtype, dtype=dtype)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (whole, half)]
    tensors = sum(array.nbytes for array in arrays_of(whole).values())
    assert sizes[0] - sizes[1] == pytest.approx(tensors / 2, abs=1000)
    back, exact = arrays_of(half), arrays_of(whole)
    for name, array in back.items():
        rounded = as_dtype(name, exact[name], dtype)
        assert np.array_equal(array, rounded.astype(np.float32)), name


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_what_transformers_computes_in(dtype, opened, in_torch):
    _, told, arrays = in_torch
    assert told[dtype]["dtype"] == f"torch.{dtype}"
    expected = expected_logits(opened)["sentiment"]
    np.testing.assert_allclose(arrays[dtype, "logits"], expected, atol=0.1)


def test_a_number_too_large_for_half_precision_is_told():
    numbers = np.array([1.0, 70_000.0], np.float32)
    with pytest.raises(UserError, match=r"^x has a number too large for float16: use --dtype b"):
        as_dtype("x", numbers, "float16")
    assert as_dtype("x", numbers, "bfloat16")[1] == 70144


def test_a_regression_is_in_the_unit_of_its_labels(pooled_by, in_torch):
    root, told, arrays = in_torch
    assert (told["stars"]["problem_type"], told["stars"]["outputs"]) == ("regression", 1)
    assert told["stars"]["id2label"] == {"0": "stars"}
    expected = expected_logits(dataclasses.replace(pooled_by["pooler"], heads=(STARS,)))["stars"]
    np.testing.assert_allclose(arrays["stars", "logits"], expected * 2 + 3, atol=1e-5)
    back = read_head(root / "stars", read_tensors(root / "stars"))
    assert (back.task, back.kind, back.classes) == ("stars", "regression", ())


@pytest.mark.parametrize("pooling", ["mean", "pooler"])
def test_an_mlp_is_in_the_module_file_and_comes_back(pooling, pooled_by, in_torch):
    root, told, arrays = in_torch
    name = f"deep {pooling}"
    assert told[name]["class"] == "PooledForSequenceClassification"
    assert told[name]["keys"] == {}
    run = dataclasses.replace(pooled_by[pooling], heads=(DEEP,))
    values = expected_vectors(run, TEXTS)
    for layer in DEEP.params.values():
        values = values @ layer["kernel"] + layer["bias"]
        if layer is not DEEP.params["output"]:
            values = values * scipy.special.ndtr(values)
    np.testing.assert_allclose(arrays[name, "logits"], values * 2 + 3, atol=1e-4)
    assert_same_bits(arrays_of(root / name), of(arrays, name, "before"))
    after = of(arrays, name, "after")
    assert not np.array_equal(after["hidden.1.bias"], DEEP.params["hidden_1"]["bias"])
    assert_same_bits(arrays_of(root / f"{name} further"), after)
    model, params = mtl.load_exported(root / f"{name} further")
    ids = model.encoder.tokenizer(TEXTS[:1], return_tensors="np")["input_ids"]
    ours = model(params, ids)["stars"]
    np.testing.assert_allclose(ours, arrays[name, "logits after"][:1], atol=1e-4)
    assert jax.tree.structure(model.init(0)) == jax.tree.structure(params)


def test_several_labels_are_told_to_transformers(opened, tmp_path):
    head = dataclasses.replace(opened.heads[0], kind="multi_label")
    (tmp_path / "task").mkdir()
    write_classifier(opened, head, tmp_path / "task", "float32")
    fields = json.loads((tmp_path / "task" / "config.json").read_text())
    assert fields["problem_type"] == "multi_label_classification"


def test_a_head_of_ones_own_has_no_class(opened):
    head = dataclasses.replace(opened.heads[0], own="module:Head")
    words = r"task 'classifier' has a head of your own \(module:Head\), .*: use --format stablehlo"
    with pytest.raises(UserError, match=words):
        head.dense()


def test_parameters_that_transformers_has_not_are_refused(opened, tmp_path):
    layer = opened.backbone["layer_0"]
    more = {**layer, "adapter": {"kernel": np.zeros((2, 2), np.float32)}}
    run = dataclasses.replace(opened, backbone={**opened.backbone, "layer_0": more})
    (tmp_path / "task").mkdir()
    with pytest.raises(UserError, match="parameters that transformers' has not"):
        write_classifier(run, run.heads[0], tmp_path / "task", "float32")


def loaded_by_transformers(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def encoder_folder(opened, tmp_path):
    """Writes a tokenizer beside the ``config.json`` that it came with."""

    def write(run):
        folder = tmp_path / "of the tokenizer"
        folder.mkdir()
        shutil.copy(run.files / "config.json", folder)
        write_tokenizer(run, folder)
        return folder

    return write


def test_the_tokenizer_is_copied_and_cuts_where_the_run_did(opened, encoder_folder):
    folder = encoder_folder(opened)
    assert (folder / "vocab.txt").read_bytes() == (opened.files / "vocab.txt").read_bytes()
    assert opened.max_length == 24
    ids = loaded_by_transformers(folder)(TEXTS, truncation=True)["input_ids"]
    assert ids == opened.tokenizer(TEXTS, truncation=True, max_length=24)["input_ids"]
    assert len(ids[-1]) == 24


def other_words(own):
    own.normalizer = normalizers.Sequence([normalizers.Replace("x", "film"), own.normalizer])


def pairs_as(template):
    def change(own):
        ends = [("[CLS]", 2), ("[SEP]", 3)]
        own.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", template, ends)

    return change


# What transformers' BertTokenizer would not make of the vocabulary alone.
OWN = {
    "words": other_words,
    "ids of pairs": pairs_as("[CLS] $A [SEP] [SEP] $B:1 [SEP]:1"),
    "types of pairs": pairs_as("[CLS] $A [SEP] $B [SEP]"),
}


@pytest.mark.parametrize("change", OWN)
def test_a_tokenizer_that_transformers_makes_anew_is_written_as_it_is(
    change, opened, encoder_folder, tmp_path
):
    files = shutil.copytree(opened.files, tmp_path / "files")
    own = Tokenizer.from_str(opened.tokenizer.backend_tokenizer.to_str())
    OWN[change](own)
    own.save(str(files / "tokenizer.json"))
    run = dataclasses.replace(opened, files=files, tokenizer=load_tokenizer(files))
    found = loaded_by_transformers(encoder_folder(run))
    for text, other in (("a x", None), ("a x", "the book")):
        encoded = own.encode(text, other)
        given = found(text, other, return_token_type_ids=True)
        assert (given["input_ids"], given["token_type_ids"]) == (encoded.ids, encoded.type_ids)
    assert found.model_max_length == 24


@pytest.fixture(scope="module")
def encoders(pooled_by, tmp_path_factory):
    """The folders for sentence-transformers, by their pooling."""
    root = tmp_path_factory.mktemp("encoders")
    for pooling, run in pooled_by.items():
        (root / pooling).mkdir()
        write_sentence_encoder(run, root / pooling, "float32")
    return {pooling: root / pooling for pooling in pooled_by}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_encoder_has_its_pooling_and_the_same_bits(pooling, pooled_by, encoders):
    folder = encoders[pooling]
    encoder = mtl.load_encoder(folder)
    assert encoder.pooling == pooling
    backbone = pooled_by[pooling].backbone
    assert_same_bits(to_transformers(encoder.params), to_transformers(backbone))
    modules = json.loads((folder / "modules.json").read_text())
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    assert kinds == ["Transformer", "Pooling", *(["Dense"] if pooling == "pooler" else [])]
    assert left_out(folder, vectors=True) == []


@pytest.mark.skipif(
    find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)
def test_sentence_transformers_gives_the_vectors_of_the_run(pooled_by, encoders, tmp_path):
    program = (
        "import json, sys, numpy, sentence_transformers as st\n"
        "folders, texts = json.load(sys.stdin); vectors = {}\n"
        "for name, folder in folders.items():\n"
        "    model = st.SentenceTransformer(folder, device='cpu')\n"
        "    assert model.max_seq_length == 24\n"
        "    vectors[name] = model.encode(texts)\n"
        "numpy.savez(sys.argv[1], **vectors)"
    )
    asked = {pooling: str(folder) for pooling, folder in encoders.items()}, TEXTS
    command = [sys.executable, "-c", program, str(tmp_path / "v.npz")]
    done = subprocess.run(
        command, input=json.dumps(asked), text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "v.npz") as vectors:
        for pooling, run in pooled_by.items():
            np.testing.assert_allclose(vectors[pooling], expected_vectors(run, TEXTS), atol=1e-5)
