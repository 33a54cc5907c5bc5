"""A finished folder in use: evaluation, prediction, extraction."""

import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from mtl_jax import pretrained
from mtl_jax.bert import BertEncoder
from mtl_jax.config import TASKS, TrainConfig
from mtl_jax.data.tokens import load_tokenizer
from mtl_jax.errors import UserError
from mtl_jax.train import train
from mtl_jax.trained import TrainedModel, checkpoint_encoder, read_lines, write_vectors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def model(settings, folder):
    train(TrainConfig(**settings, workdir=str(folder), scenario="none_frozen"))
    return TrainedModel(folder)


def test_evaluation_repeats_the_run(model, folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    result = json.loads(lines[-1])
    for split in ("train", "validation", "test"):
        assert model.evaluate(split) == result[split]


def test_evaluation_notices_other_classes(settings, reviews, tmp_path):
    copy = tmp_path / "train.csv"
    copy.write_text((reviews / "train.csv").read_text())
    data = type(settings["data"])(**{**vars(settings["data"]), "train_file": str(copy)})
    train(TrainConfig(**{**settings, "data": data}, workdir=str(tmp_path / "run")))
    copy.write_text(copy.read_text() + "a tweet,tweet,pos\n")
    with pytest.raises(UserError, match="has other classes now"):
        TrainedModel(tmp_path / "run").evaluate("test")


def test_predictions_are_in_order_and_probabilities(model):
    texts = [
        "the film was good !",
        "",
        "ein schöner Film",
        *["book " * (i % 9) for i in range(1500)],
    ]
    answers = list(model.predict(texts))
    assert [answer["text"] for answer in answers] == texts
    for answer in answers:
        assert set(answer) == {"text", *TASKS}
        assert all(set(answer[task]) == {"label", "probability"} for task in TASKS)
        assert answer["classifier"]["label"] in ("book", "film", "phone")
        assert answer["sentiment"]["label"] in ("neg", "neu", "pos")
    assert model.empty == 1 + 1500 // 9 + 1
    alone = next(model.predict(texts[:1]))
    read = model.reader(texts[:1], {task: np.array([-1], np.int32) for task in TASKS})
    logits, losses = model._evaluator.logits(model._params, read)
    assert losses == {"classifier": None, "sentiment": None}
    for task in TASKS:
        expected = float(jax.nn.softmax(logits[task][0]).max())
        assert alone[task]["probability"] == pytest.approx(expected, abs=1e-6)
        assert answers[0][task]["probability"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_extraction_is_the_pooled_encoder(tiny, pooling):
    texts = ["the film was good !", "a book", "", "we liked the phone very much ."]
    encoder = checkpoint_encoder(str(tiny), pooling, 128)
    vectors = np.concatenate(list(encoder.pooled(texts)))
    config, params = pretrained.load_backbone(tiny)
    tokenizer = load_tokenizer(tiny)
    for text, vector in zip(texts, vectors, strict=True):
        ids = np.array([tokenizer(text)["input_ids"]])
        hidden = np.asarray(BertEncoder(config).apply({"params": params}, ids))[0]
        expected = hidden.mean(0) if pooling == "mean" else hidden[0]
        if pooling == "pooler":
            kernel, bias = params["pooler"]["kernel"], params["pooler"]["bias"]
            expected = np.tanh(hidden[0] @ kernel + bias)
        np.testing.assert_allclose(vector, expected, atol=2e-6)


def test_vectors_stream_into_one_file(tmp_path):
    chunks = [np.full((k, 3), k, np.float32) for k in (4, 1, 120)]
    path = tmp_path / "v.npy"
    assert write_vectors(path, iter(chunks), 3) == 125
    np.testing.assert_array_equal(np.load(path), np.concatenate(chunks))
    assert write_vectors(path, iter([]), 3) == 0
    assert np.load(path).shape == (0, 3)


def test_a_failed_extraction_leaves_what_was_there(tmp_path):
    path = tmp_path / "v.npy"
    write_vectors(path, [np.ones((2, 3), np.float32)], 3)

    def failing():
        yield np.zeros((1, 3), np.float32)
        list(read_lines(io.BytesIO(b"fine\n\xff\xfe\n")))

    with pytest.raises(UserError, match="standard input, line 2: not valid UTF-8"):
        write_vectors(path, failing(), 3)
    assert [p.name for p in tmp_path.iterdir()] == ["v.npy"]
    np.testing.assert_array_equal(np.load(path), np.ones((2, 3)))


def test_lines_end_where_lines_end():
    stream = io.BytesIO("a\r\n\nb\u2028c\n".encode() + b"last")
    assert list(read_lines(stream)) == ["a", "", "b\u2028c", "last"]


def test_folders_that_are_no_run(tmp_path):
    with pytest.raises(UserError, match=r"is not the folder of a run \(no config\.json\)"):
        TrainedModel(tmp_path)


def test_a_checkpoint_is_no_run_though_it_has_a_config(tiny):
    with pytest.raises(UserError, match="is not the folder of a run"):
        TrainedModel(tiny)


@pytest.mark.parametrize("name", ["", ".", "/", "folder"])
def test_vectors_need_the_name_of_a_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"is a folder: name a \.npy file"):
        write_vectors(Path(name), iter([]), 3)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]
