"""Exports of every family of encoders: random small ones, in PyTorch, StableHLO and back here."""

import dataclasses
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import unflatten_dict
from jax import export as export_of_jax

import mtl_jax as mtl
from mtl_jax.config.train import TrainConfig
from mtl_jax.freezing.lora import merge_lora
from mtl_jax.models.conversion import conversion_table, leaf_shape
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.encoder_module import EncoderModule
from mtl_jax.models.tokenizer import load_tokenizer
from mtl_jax.runs.best_checkpoint import best_parameters
from mtl_jax.runs.loop import train
from mtl_jax.runs.workdir import Workdir
from mtl_jax.tools.export.onnx import write_onnx
from mtl_jax.tools.export.stablehlo import write_stablehlo
from mtl_jax.tools.export.torch_folders import write_classifier, write_sentence_encoder
from mtl_jax.tools.export.trained_run import TrainedRun
from tests.conftest import WORDS
from tests.make_encoder_reference import MODELS
from tests.models.test_tokenizer import roberta_files
from tests.tools.export.conftest import TEXTS, arrays_of, assert_same_bits, of, run_in_torch

needs_flatbuffers = pytest.mark.skipif(
    find_spec("flatbuffers") is None, reason="flatbuffers is not installed"
)
LENGTH = 24
FAMILIES = (
    *("roberta", "xlm-roberta", "camembert", "distilbert"),
    *("electra", "mpnet", "modernbert", "deberta-v2"),
)
WITH_POOLER = ("roberta", "xlm-roberta", "camembert", "mpnet")
CASES = [
    (family, pooling)
    for family in FAMILIES
    for pooling in ("mean", "pooler" if family in WITH_POOLER else "cls")
]
NATIVE = {
    "roberta": "RobertaForSequenceClassification",
    "xlm-roberta": "XLMRobertaForSequenceClassification",
    "camembert": "CamembertForSequenceClassification",
    "mpnet": "MPNetForSequenceClassification",
}
_ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *WORDS[5:]]


def write_pieces(folder):
    """A ``tokenizer.json`` of SentencePiece's kind, as XLM-RoBERTa and CamemBERT have."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = [*_ROBERTA[:5], "\u2581", *(f"\u2581{word}" for word in _ROBERTA[5:])]
    own = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], 3))
    own.pre_tokenizer = pre_tokenizers.Metaspace()
    own.add_special_tokens(_ROBERTA[:5])
    own.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    own.save(str(folder / "tokenizer.json"))


def write_tokenizer_files(family, folder):
    """A small tokenizer of the kind that the family's checkpoints have."""
    said: dict[str, Any] = {}
    if family == "roberta":
        roberta_files(folder)
    elif family in ("xlm-roberta", "camembert"):
        write_pieces(folder)
        said = dict(
            zip(("cls_token", "pad_token", "sep_token", "unk_token"), _ROBERTA, strict=False)
        )
        said["tokenizer_class"] = "CamembertTokenizer" if family == "camembert" else None
    elif family == "mpnet":
        words = [*_ROBERTA[:3], "[UNK]", *_ROBERTA[4:]]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
        said = {"tokenizer_class": "MPNetTokenizer", "do_lower_case": True}
    else:
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        said = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    if said:
        (folder / "tokenizer_config.json").write_text(json.dumps(said))


def random_backbone(config, random):
    """Parameters of an encoder, with a pooler where its family has one."""
    table = conversion_table(config.num_hidden_layers, True, config.family)
    shapes = {entry.path: leaf_shape(entry.path, config) for entry in table}
    flat = {
        path: random.uniform(-0.5, 0.5, shape).astype(np.float32) + path.endswith("scale")
        for path, shape in shapes.items()
        if shape is not None
    }
    return unflatten_dict({path: np.float32(leaf) for path, leaf in flat.items()}, sep="/")


@pytest.fixture(scope="module")
def runs(opened, tmp_path_factory):
    """The run as it would be of another encoder, by family and pooling."""
    found, random = {}, np.random.default_rng(0)
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp("families") / family
        folder.mkdir()
        write_tokenizer_files(family, folder)
        counted = 2 if family in NATIVE else 0
        fields = {
            **MODELS[family],
            "vocab_size": 300,
            "max_position_embeddings": LENGTH + counted,
            "pad_token_id": 1 if counted else 0,
        }
        if family == "modernbert":
            # One layer of whole texts, one of near tokens.
            fields["num_hidden_layers"] = 2
        (folder / "config.json").write_text(json.dumps(fields))
        config = EncoderConfig.from_dict(fields)
        assert config.max_length == LENGTH
        backbone = random_backbone(config, random)
        heads = tuple(
            dataclasses.replace(
                head,
                params={
                    "kernel": random.standard_normal((12, 3)).astype(np.float32),
                    "bias": random.standard_normal(3).astype(np.float32),
                },
            )
            for head in opened.heads
        )
        for pooling in ("mean", "cls", "pooler"):
            used = {k: v for k, v in backbone.items() if pooling == "pooler" or k != "pooler"}
            found[family, pooling] = dataclasses.replace(
                opened,
                record={**opened.record, "bert": config.record(), "pooling": pooling},
                config=config,
                pooling=pooling,
                backbone=used,
                heads=heads,
                files=folder,
                tokenizer=load_tokenizer(folder),
                max_length=LENGTH,
            )
    return found


@pytest.fixture(scope="module")
def vectors(runs):
    """What the encoder itself makes of ``TEXTS``, by family and pooling: float32 [texts, 12]."""
    found = {}
    for family in FAMILIES:
        run = runs[family, "cls"]
        ids, mask = batch_of(run)
        encoder = EncoderModule(run.config)
        hidden = np.asarray(jax.jit(encoder.apply)({"params": run.backbone}, ids, mask))
        found[family, "cls"] = hidden[:, 0]
        found[family, "mean"] = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        if family in WITH_POOLER:
            pooler = runs[family, "pooler"].backbone["pooler"]
            found[family, "pooler"] = np.tanh(hidden[:, 0] @ pooler["kernel"] + pooler["bias"])
    return found


def batch_of(run):
    given = run.tokenizer(
        TEXTS, truncation=True, max_length=LENGTH, padding=True, return_tensors="np"
    )
    return (given[name].astype(np.int32) for name in ("input_ids", "attention_mask"))


def logits_of(head, vectors):
    return vectors @ head.params["kernel"] + head.params["bias"]


@pytest.fixture(scope="module")
def in_torch(runs, tmp_path_factory):
    root, jobs = tmp_path_factory.mktemp("torch"), {}
    for family, pooling in CASES:
        run, name = runs[family, pooling], f"{family} {pooling}"
        folder = root / name.replace(" ", "-")
        folder.mkdir()
        write_classifier(run, run.heads[1], folder, "float32")
        jobs[name] = {"folder": str(folder), "trusted": pooling != "pooler"}
        jobs[name]["further"] = f"{folder}-further"
    return run_in_torch(root, jobs)


@pytest.mark.parametrize(("family", "pooling"), CASES)
def test_each_family_has_its_logits_in_transformers_and_its_bits_back(
    family, pooling, runs, vectors, in_torch
):
    jobs, told, arrays = in_torch
    run, name = runs[family, pooling], f"{family} {pooling}"
    head, said = run.heads[1], told[name]
    native = pooling == "pooler"
    assert said["class"] == (NATIVE[family] if native else "PooledForSequenceClassification")
    assert said["keys"] == {}
    assert said["id2label"] == {"0": "neg", "1": "neu", "2": "pos"}
    expected = logits_of(head, vectors[family, pooling])
    assert np.ptp(expected, axis=0).min() > 1e-2
    np.testing.assert_allclose(arrays[name, "logits"], expected, rtol=0, atol=1e-4)

    before, after = (of(arrays, name, when) for when in ("before", "after"))
    assert_same_bits(arrays_of(jobs[name]["folder"]), before)
    _, params = mtl.load_exported(jobs[name]["folder"])
    assert_same_bits(params["sentiment"], head.params)
    assert jax.tree.structure(params["backbone"]) == jax.tree.structure(run.backbone)
    assert jax.tree.all(jax.tree.map(np.array_equal, params["backbone"], run.backbone))
    assert all(not np.array_equal(after[name], before[name]) for name in after)
    assert_same_bits(arrays_of(jobs[name]["further"]), after)
    assert mtl.load_encoder(jobs[name]["further"]).pooling == pooling


SEVERAL = [
    *(("roberta", "pooler"), ("mpnet", "mean"), ("modernbert", "cls"), ("deberta-v2", "mean"))
]


@pytest.mark.skipif(
    "MTL_JAX_TEST_ONNX" not in os.environ, reason="MTL_JAX_TEST_ONNX=1 takes some minutes"
)
@pytest.mark.parametrize(("family", "pooling"), CASES)
def test_onnx_runtime_gives_the_logits_of_each_family(family, pooling, runs, vectors, tmp_path):
    import onnxruntime  # pyright: ignore[reportMissingImports]  (optional)

    run = runs[family, pooling]
    write_onnx(run, run.heads[1], tmp_path, "run")
    ids, mask = (array.astype(np.int64) for array in batch_of(run))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    outputs: Any = session.run(None, {"input_ids": ids, "attention_mask": mask})
    expected = logits_of(run.heads[1], vectors[family, pooling])
    np.testing.assert_allclose(outputs[0], expected, atol=1e-4)


@needs_flatbuffers
@pytest.mark.parametrize(("family", "pooling"), SEVERAL)
def test_one_program_takes_texts_of_any_length(family, pooling, runs, vectors, tmp_path):
    run = runs[family, pooling]
    write_stablehlo(run, tmp_path, "float32", "run", ())
    program = export_of_jax.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    weights = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    ids, mask = batch_of(run)
    short = int(mask[:3].sum(1).max())
    assert short < LENGTH == mask.shape[1]
    for texts, length in ((4, LENGTH), (3, short)):
        found = program.call(weights, ids[:texts, :length], mask[:texts, :length])
        for head in run.heads:
            expected = logits_of(head, vectors[family, pooling])[:texts]
            np.testing.assert_allclose(found[head.name], expected, rtol=0, atol=1e-5)


def test_sentence_transformers_has_the_vectors(runs, vectors, tmp_path):
    for family, pooling in SEVERAL:
        run, folder = runs[family, pooling], tmp_path / family
        folder.mkdir()
        write_sentence_encoder(run, folder, "float32")
        encoder = mtl.load_encoder(folder)
        assert encoder.pooling == pooling
        assert jax.tree.all(jax.tree.map(np.array_equal, encoder.params, run.backbone))
    if find_spec("sentence_transformers") is None or find_spec("torch") is None:
        return
    program = (
        "import sys, numpy, sentence_transformers as st\n"
        "to, count, *rest = sys.argv[1:]; at, texts = rest[:int(count)], rest[int(count):]\n"
        "load = lambda folder: st.SentenceTransformer(folder, device='cpu')\n"
        "numpy.save(to, [load(folder).encode(texts) for folder in at])"
    )
    folders = [str(tmp_path / family) for family, _ in SEVERAL]
    to = str(tmp_path / "vectors.npy")
    command = [sys.executable, "-c", program, to, str(len(folders)), *folders, *TEXTS]
    subprocess.run(command, check=True, capture_output=True)
    for case, found in zip(SEVERAL, np.load(to), strict=True):
        np.testing.assert_allclose(found, vectors[case], rtol=0, atol=1e-4)


PHASES = [
    {"scenario": "backbone_frozen", "steps": 1},
    {"scenario": "lora_2", "steps": 2, "lora_alpha": 8, "lora_dropout": 0.1},
]


@pytest.mark.parametrize("kind", ["scenario", "recipe"])
def test_what_lora_has_trained_is_in_the_kernels(kind, small_settings, tmp_path):
    (tmp_path / "phases.json").write_text(json.dumps(PHASES))
    how = {"scenario": "lora_2"} if kind == "scenario" else {"recipe": tmp_path / "phases.json"}
    settings = {**small_settings, **{name: str(value) for name, value in how.items()}}
    folder = tmp_path / "run"
    train(TrainConfig(**{**settings, "epochs": 1, "lora_learning_rate": 0.1}, workdir=str(folder)))
    workdir = Workdir(folder)
    trained = best_parameters(workdir)["backbone"]
    query = trained["layer_0"]["attention"]["query"]
    assert {"lora_a", "lora_b"} <= query.keys()
    mtl.export(folder, tmp_path / "exported")
    model, params = mtl.load_exported(tmp_path / "exported" / "sentiment")
    kernel = params["backbone"]["layer_0"]["attention"]["query"]["kernel"]
    assert np.abs(kernel - query["kernel"]).max() > 1e-2
    merged = merge_lora(trained)["layer_0"]["attention"]["query"]["kernel"]
    assert_same_bits({"kernel": kernel}, {"kernel": merged})
    run = TrainedRun.open(folder)
    ids, mask = batch_of(run)
    expected = model({**params, "backbone": trained}, ids, mask)["sentiment"]
    found = model(params, ids, mask)["sentiment"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    # What predicts has the factors beside the kernels.
    answers = [answer["sentiment"] for answer in mtl.Predictor(folder).predict(TEXTS)]
    probabilities = np.asarray(jax.nn.softmax(found))
    np.testing.assert_allclose(
        [answer["probability"] for answer in answers], probabilities.max(1), rtol=0, atol=1e-5
    )
