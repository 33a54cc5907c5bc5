"""Exported folders in PyTorch, and what PyTorch saved back here."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

import mtl_jax as mtl
from mtl_jax.core.errors import UserError
from mtl_jax.models.exported import read_head
from mtl_jax.models.pretrained import left_out, read_tensors, to_transformers
from mtl_jax.tools.export.torch_folders import (
    as_dtype,
    write_classifier,
    write_sentence_encoder,
    write_tokenizer,
)
from mtl_jax.tools.export.trained_run import TaskHead
from tests.tools.export.conftest import TEXTS, expected_logits

POOLINGS = ("mean", "cls", "pooler")


def written(run, folder, task="sentiment", dtype="float32"):
    """The folder of a task of a run, and how transformers is asked to load it."""
    folder.mkdir(parents=True)
    (head,) = (head for head in run.heads if head.name == task)
    write_classifier(run, head, folder, dtype)
    return folder, {} if run.pooling == "pooler" else {"trust_remote_code": True}


def arrays_of(folder):
    """An exported folder as it loads here, under the names of PyTorch."""
    model, params = mtl.load_exported(folder)
    (task,) = model.tasks
    encoder = to_transformers(params["backbone"])
    head = params[task.name]
    return {f"bert.{name}": array for name, array in encoder.items()} | {
        "classifier.weight": head["kernel"].T,
        "classifier.bias": head["bias"],
    }


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert array.dtype == expected[name].dtype == np.float32, name
        assert np.array_equal(array, expected[name]), name


def load(folder, **how):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    kind = transformers.AutoModelForSequenceClassification
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **how)
    model, told = kind.from_pretrained(folder, output_loading_info=True, **how)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return tokenizer, model.eval()


def logits_of(tokenizer, model, texts=TEXTS):
    import torch

    batch = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits.float().numpy()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_transformers_gives_the_logits_of_the_run(pooling, pooled_by, tmp_path):
    run = pooled_by[pooling]
    folder, how = written(run, tmp_path / "of a task")
    tokenizer, model = load(folder, **how)
    native = "BertForSequenceClassification"
    assert (type(model).__name__ == native) == (pooling == "pooler")
    found = logits_of(tokenizer, model)
    np.testing.assert_allclose(found, expected_logits(run)["sentiment"], atol=1e-5)
    assert model.config.id2label == {0: "neg", 1: "neu", 2: "pos"}
    assert model.config.label2id == {"neg": 0, "neu": 1, "pos": 2}
    assert model.config.problem_type == "single_label_classification"


def test_a_folder_with_code_is_never_loaded_as_what_it_is_not(opened, tmp_path, monkeypatch):
    folder, _ = written(opened, tmp_path / "task")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    monkeypatch.setattr("transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE", 0)
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ValueError, match="custom code"):
        transformers.AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_weights_are_the_same_bits_there_and_back_after_a_step(pooling, pooled_by, tmp_path):
    torch = pytest.importorskip("torch")
    folder, how = written(pooled_by[pooling], tmp_path / "task")
    tokenizer, model = load(folder, **how)

    def of_torch():
        return {name: value.detach().numpy() for name, value in model.state_dict().items()}

    before = {name: value.copy() for name, value in of_torch().items()}
    assert_same_bits(arrays_of(folder), before)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    batch = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="pt")
    model(**batch, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path / "further")
    tokenizer.save_pretrained(tmp_path / "further")
    after = of_torch()
    assert all(not np.array_equal(after[name], before[name]) for name in after)
    assert_same_bits(arrays_of(tmp_path / "further"), after)

    encoder = mtl.load_encoder(tmp_path / "further")
    assert encoder.pooling == pooling
    ids = tokenizer(TEXTS[0], return_tensors="np")["input_ids"]
    mtl_model, params = mtl.load_exported(tmp_path / "further")
    ours = mtl_model(params, ids)["sentiment"]
    np.testing.assert_allclose(ours, logits_of(tokenizer, model, TEXTS[:1]), atol=1e-5)


def test_a_folder_loads_with_its_heads_and_trains_on(opened, tmp_path):
    for task in ("classifier", "sentiment"):
        written(opened, tmp_path / task, task)
    model, params = mtl.load_exported(tmp_path / "classifier", tmp_path / "sentiment")
    assert [(task.name, task.classes) for task in model.tasks] == [
        (head.name, head.classes) for head in opened.heads
    ]
    for head in opened.heads:
        assert_same_bits(params[head.name], head.params)
    partition = mtl.Partition(params, "backbone_frozen")
    optimizer = mtl.make_optimizer(partition, {"head": 1e-3}, 1)
    step = mtl.TrainStep(model, partition, optimizer)
    started = step.params(step.init(0, params))
    assert_same_bits(started["sentiment"], params["sentiment"])


def test_encoders_that_differ_are_not_one(opened, tmp_path):
    written(opened, tmp_path / "classifier", "classifier")
    written(opened, tmp_path / "sentiment")
    path = tmp_path / "sentiment" / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["bert.embeddings.LayerNorm.bias"][0] += 1
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(UserError, match=r"encoders in .* differ"):
        mtl.load_exported(tmp_path / "classifier", tmp_path / "sentiment")


def test_what_is_no_exported_folder_is_one_line(small, opened, tmp_path):
    with pytest.raises(UserError, match="that export --format huggingface wrote"):
        mtl.load_exported(small)
    with pytest.raises(UserError, match="needs a folder"):
        mtl.load_exported()
    folder, _ = written(opened, tmp_path / "task")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"id2label": {"0": "one"}}))
    with pytest.raises(UserError, match=r"no classifier\.weight .* of 1 outputs"):
        mtl.load_exported(folder)


def test_only_the_module_file_of_an_export_is_passed_over(opened, tmp_path):
    folder, _ = written(opened, tmp_path / "task")
    fields = json.loads((folder / "config.json").read_text())
    assert fields["model_type"] == "pooled_bert"
    mtl.load_encoder(folder)
    other = fields["auto_map"] | {"AutoConfig": "other.PooledConfig"}
    (folder / "config.json").write_text(json.dumps(fields | {"auto_map": other}))
    with pytest.raises(UserError, match="auto_map names code"):
        mtl.load_encoder(folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_halves_the_file(dtype, opened, tmp_path):
    whole, _ = written(opened, tmp_path / "whole")
    half, how = written(opened, tmp_path / dtype, dtype=dtype)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (whole, half)]
    tensors = sum(array.nbytes for array in arrays_of(whole).values())
    assert sizes[0] - sizes[1] == pytest.approx(tensors / 2, abs=1000)
    back, exact = arrays_of(half), arrays_of(whole)
    for name, array in back.items():
        rounded = as_dtype(name, exact[name], dtype)
        assert np.array_equal(array, rounded.astype(np.float32)), name
    tokenizer, model = load(half, **how)
    assert str(model.dtype) == f"torch.{dtype}"
    expected = expected_logits(opened)["sentiment"]
    np.testing.assert_allclose(logits_of(tokenizer, model), expected, atol=0.1)


def test_a_number_too_large_for_half_precision_is_told():
    numbers = np.array([1.0, 70_000.0], np.float32)
    with pytest.raises(UserError, match=r"^x has a number too large for float16: use --dtype b"):
        as_dtype("x", numbers, "float16")
    assert as_dtype("x", numbers, "bfloat16")[1] == 70144


def test_a_regression_is_in_the_unit_of_its_labels(pooled_by, tmp_path):
    run = pooled_by["pooler"]
    rng = np.random.default_rng(0)
    params = {
        "kernel": rng.standard_normal((16, 1), np.float32),
        "bias": np.array([0.5], np.float32),
    }
    head = TaskHead("stars", "regression", (), (2.0, 3.0), None, params)
    folder = tmp_path / "stars"
    folder.mkdir()
    write_classifier(run, head, folder, "float32")
    tokenizer, model = load(folder)
    assert (model.config.problem_type, model.config.num_labels) == ("regression", 1)
    expected = expected_logits(dataclasses.replace(run, heads=(head,)))["stars"]
    np.testing.assert_allclose(logits_of(tokenizer, model), expected * 2 + 3, atol=1e-5)
    back = read_head(folder, read_tensors(folder))
    assert (back.task, back.kind, back.classes) == ("stars", "regression", ())


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
    deep = dataclasses.replace(head, own=None, params={"hidden": {}, "output": {}})
    with pytest.raises(UserError, match="a head that is no Dense layer"):
        deep.dense()


def test_parameters_that_transformers_has_not_are_refused(opened, tmp_path):
    layer = opened.backbone["layer_0"]
    more = {**layer, "adapter": {"kernel": np.zeros((2, 2), np.float32)}}
    run = dataclasses.replace(opened, backbone={**opened.backbone, "layer_0": more})
    (tmp_path / "task").mkdir()
    with pytest.raises(UserError, match="parameters that transformers' has not"):
        write_classifier(run, run.heads[0], tmp_path / "task", "float32")


def test_the_tokenizer_is_copied_and_cuts_where_the_run_did(opened, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder, _ = written(opened, tmp_path / "task")
    assert (folder / "vocab.txt").read_bytes() == (opened.files / "vocab.txt").read_bytes()
    assert opened.max_length == 24
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    ids = tokenizer(TEXTS, truncation=True)["input_ids"]
    assert ids == opened.tokenizer(TEXTS, truncation=True, max_length=24)["input_ids"]
    assert len(ids[-1]) == 24


def test_a_tokenizer_that_transformers_would_make_anew_is_written_as_it_is(opened, tmp_path):
    transformers = pytest.importorskip("transformers")
    files = shutil.copytree(opened.files, tmp_path / "files")
    own = type(opened.tokenizer.backend_tokenizer).from_str(
        opened.tokenizer.backend_tokenizer.to_str()
    )
    from tokenizers import normalizers

    # A BertTokenizer of the vocabulary would cut "goodbad" and leave "x" unknown.
    own.normalizer = normalizers.Sequence([normalizers.Replace("x", "film"), own.normalizer])
    own.save(str(files / "tokenizer.json"))
    from mtl_jax.models.tokenizer import load_tokenizer

    run = dataclasses.replace(opened, files=files, tokenizer=load_tokenizer(files))
    folder = tmp_path / "task"
    folder.mkdir()
    shutil.copy(files / "config.json", folder)
    write_tokenizer(run, folder)
    found = transformers.AutoTokenizer.from_pretrained(folder)
    assert found("a x")["input_ids"] == run.tokenizer("a x")["input_ids"] == [2, 5, 10, 3]
    assert found.model_max_length == 24


@pytest.mark.parametrize("pooling", POOLINGS)
def test_sentence_transformers_has_the_encoder_and_its_pooling(pooling, pooled_by, tmp_path):
    run, folder = pooled_by[pooling], tmp_path / "encoder"
    folder.mkdir()
    write_sentence_encoder(run, folder, "float32")
    encoder = mtl.load_encoder(folder)
    assert encoder.pooling == pooling
    assert_same_bits(to_transformers(encoder.params), to_transformers(run.backbone))
    modules = json.loads((folder / "modules.json").read_text())
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    assert kinds == ["Transformer", "Pooling", *(["Dense"] if pooling == "pooler" else [])]
    assert left_out(folder, vectors=True) == []
    sentence_transformers = pytest.importorskip("sentence_transformers")
    loaded = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert loaded.max_seq_length == 24
    vectors = loaded.encode(TEXTS)
    # The head is linear: of the vectors themselves it makes the logits.
    head = run.heads[0].params
    found = vectors @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(found, expected_logits(run)["classifier"], atol=1e-4)
