"""A finished folder in use: evaluation, prediction, extraction."""

import dataclasses
import io
import json
import shutil
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest

from mtl_jax.cli.commands import run
from mtl_jax.config.model import Dtype
from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.models import pretrained
from mtl_jax.models.encoder import load_encoder
from mtl_jax.models.encoder_module import EncoderModule
from mtl_jax.models.tokenizer import load_tokenizer
from mtl_jax.runs.loop import train
from mtl_jax.runs.workdir import Workdir
from mtl_jax.tools.input_texts import read_lines, read_texts
from mtl_jax.tools.predict import Predictor
from mtl_jax.tools.text_encoder import load_text_encoder
from tests.conftest import TASKS, write_record
from tests.training.weighting.test_train import interrupted_at


@pytest.fixture
def settings(small_settings):
    """Of one layer: what is tried here does not depend on how many there are."""
    return dict(small_settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(scope="module")
def trained_folder(small_settings, folder):
    train(TrainConfig(**small_settings, workdir=str(folder), scenario="none_frozen"))
    return folder


@pytest.fixture
def model(trained_folder):
    return Predictor(trained_folder)


def test_a_run_that_is_not_finished_is_told(settings, tmp_path, monkeypatch, capsys):
    """Its scores would else be taken for those of the run; a finished one is not spoken of."""
    config = TrainConfig(
        **settings, workdir=str(tmp_path / "run"), scenario="top_1", checkpoint_every=4
    )
    # An epoch is 6 steps, after which it is measured.
    for step in (5, 9):
        with monkeypatch.context() as patch:
            patch.setattr("mtl_jax.runs.loop.training_bar", interrupted_at(step))
            with pytest.raises(KeyboardInterrupt):
                train(config)
        if step == 5:
            with pytest.raises(UserError, match="run has not been measured yet: run train again"):
                Predictor(config.workdir)
    assert "what was saved before is there: run the same command again" in capsys.readouterr().err
    Predictor(config.workdir)
    told = capsys.readouterr().err
    assert "run has not finished training: this is the best of what it has saved up to step" in told
    train(config)
    capsys.readouterr()
    Predictor(config.workdir)
    assert "not finished" not in capsys.readouterr().err


def test_evaluation_repeats_the_run(model, folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    result = json.loads(lines[-1])
    for split in ("train", "validation", "test"):
        assert model.evaluate(split) == result[split]


def test_no_code_of_a_runs_own_folder_runs(trained_folder, tmp_path, monkeypatch):
    run = shutil.copytree(trained_folder, tmp_path / "run")
    path = run / "tokenizer" / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    code = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
    (run / "tokenizer" / "own.py").write_text(code + "class OwnTokenizer: pass\n")
    answers = io.StringIO("y\n" * 9)
    monkeypatch.setattr(sys, "stdin", answers)
    with pytest.raises(UserError, match="tokenizer"):
        Predictor(run)
    assert answers.tell() == 0
    assert not (run / "tokenizer" / "ran").exists()


def test_evaluation_notices_other_classes(settings, reviews, tmp_path):
    copy = tmp_path / "train.csv"
    copy.write_text((reviews / "train.csv").read_text())
    data = type(settings["data"])(**{**vars(settings["data"]), "train_file": str(copy)})
    train(TrainConfig(**{**settings, "data": data}, workdir=str(tmp_path / "run")))
    copy.write_text(copy.read_text() + "a tweet,tweet,pos\n")
    with pytest.raises(UserError, match="has other classes now"):
        Predictor(tmp_path / "run").evaluate("test")


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
    alone = model.predict(texts[:1])[0]
    read = model.reader(texts[:1], {task: np.array([-1], np.int32) for task in TASKS})
    logits, losses = model._evaluator.logits(model._params, read)
    assert losses == {"classifier": None, "sentiment": None}
    for task in TASKS:
        expected = float(jax.nn.softmax(logits[task][0]).max())
        assert alone[task]["probability"] == pytest.approx(expected, abs=1e-6)
        assert answers[0][task]["probability"] == pytest.approx(expected, abs=1e-5)


class Table(dict):
    """What a data frame has."""

    columns = ("text",)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (Table(text=["a film"]), "the texts have the type Table: give one of its columns, such as"),
        ("a film", "'a film' is one text: give a list of texts"),
        (3, "the list of texts has the type int"),
        ({"text": "a film"}, "the texts have the type dict: give one of its columns"),
        (["a film", None], "None is neither a text nor a pair of texts: give it one"),
        ([1.5], "1.5 is neither a text nor a pair"),
        ([{"text": "a film", "topic": "film"}], "is neither a text nor a pair"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(texts, words, model, tiny):
    with pytest.raises(UserError, match=words):
        model.predict(texts)
    with pytest.raises(UserError, match=words):
        list(load_text_encoder(tiny).pooled(texts))


# Nothing here takes this long, unless it would wait for ever.
PATIENCE = 60


@pytest.mark.parametrize("use", ["answers", "pooled"])
def test_the_next_texts_are_read_while_the_first_are_used_but_not_waited_for(use, model):
    served, read = threading.Event(), threading.Event()

    def texts():
        yield from ["a book"] * 1024
        # Whoever asks has the first answers before another line has come.
        assert served.wait(PATIENCE)
        yield from ["a film !"] * 1023
        read.set()
        yield "a film !"
        yield from ["a phone"] * 3

    answers = getattr(model, use)(texts())
    first = next(answers)
    served.set()
    assert read.wait(PATIENCE)
    rest = list(answers)
    if use == "answers":
        assert [answer["text"] for answer in (first, *rest)] == (
            ["a book"] * 1024 + ["a film !"] * 1024 + ["a phone"] * 3
        )
    else:
        assert [len(vectors) for _, vectors in (first, *rest)] == [1024, 1024, 3]


def test_what_is_counted_is_what_has_been_answered(model):
    read = threading.Event()

    def texts():
        yield from [""] * 1024
        yield from ["very " * 30] * 1023
        read.set()
        yield "a book"

    vectors = model.pooled(texts())
    next(vectors)
    assert read.wait(PATIENCE)
    assert (model.cut, model.empty) == (0, 1024)
    list(vectors)
    assert (model.cut, model.empty) == (1023, 1024)


def test_a_bad_line_is_told_after_the_answers_before_its_chunk(model):
    lines = [b"a book\n"] * 1500
    lines[1200] = b"\xff\n"
    answers = model.answers(read_lines(io.BytesIO(b"".join(lines))))
    assert {next(answers)["text"] for _ in range(1024)} == {"a book"}
    with pytest.raises(UserError, match="standard input, line 1201: not valid UTF-8"):
        next(answers)


LONG = ["a book", "very " * 30, "a film !", "very " * 23]


def test_long_texts_are_cut_and_counted_or_refused(trained_folder, tiny):
    assert Predictor(trained_folder).reader.max_length == 24
    encoders = (
        Predictor(trained_folder),
        Predictor(trained_folder, "cut"),
        load_text_encoder(str(tiny), None, 128),
    )
    for encoder in encoders:
        assert np.concatenate([found for _, found in encoder.pooled(LONG)]).shape == (4, 16)
        assert encoder.cut == 2
    refusing = Predictor(trained_folder, "refuse")
    words = (
        r"^lines 1025 to 1028: 2 of 4 texts are longer than 24 tokens: shorten them, train with "
        r"a larger --max-length, or use --long-texts cut$"
    )
    answers = refusing.answers(["a book"] * 1024 + LONG)
    assert {next(answers)["text"] for _ in range(1024)} == {"a book"}
    with pytest.raises(UserError, match=words):
        next(answers)
    words = r"^lines 1 to 4: 2 of 4 .*: shorten them, raise --max-length, or use --long-texts cut$"
    with pytest.raises(UserError, match=words):
        list(load_text_encoder(str(tiny), None, 128, "refuse").pooled(LONG))


def test_a_run_that_refused_long_texts_refuses_them_later_unless_told(settings, tmp_path, capsys):
    test_file = tmp_path / "test.csv"
    data = dataclasses.replace(settings["data"], test_file=str(test_file), long_texts="refuse")
    test_file.write_text("text,topic,mood\nthe film was good,film,pos\n")
    train(TrainConfig(**settings | {"data": data}, workdir=str(tmp_path / "run")))
    rows = "".join(f"{text},film,pos\n" for text in LONG)
    test_file.write_text(f"text,topic,mood\n{rows}")
    refusing = Predictor(tmp_path / "run")
    with pytest.raises(UserError, match="test: 2 of 4 texts are longer than 24 tokens: shorten"):
        refusing.evaluate("test")
    with pytest.raises(UserError, match="lines 1 to 4: 2 of 4 texts are longer"):
        refusing.predict(LONG)
    capsys.readouterr()
    cutting = Predictor(tmp_path / "run", "cut")
    assert cutting.evaluate("test")["classifier"]["examples"] == 4
    assert "test: 2 of 4 texts were cut to 24 tokens\n" in capsys.readouterr().err
    assert len(list(cutting.predict(LONG))) == 4


@pytest.mark.parametrize("length", [-5, 0, 2])
def test_an_encoder_needs_room_for_a_text(length, tiny):
    words = rf"^--max-length {length} leaves no room beside 2 special tokens: use at least 3$"
    with pytest.raises(UserError, match=words):
        load_text_encoder(str(tiny), None, length)


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_extraction_is_the_pooled_encoder(tiny, pooling):
    texts = ["the film was good !", "a book", "", "we liked the phone very much ."]
    encoder = load_text_encoder(str(tiny), pooling, 128)
    vectors = np.concatenate([of_chunk for _, of_chunk in encoder.pooled(texts)])
    config, params = pretrained.load_backbone(tiny)
    tokenizer = load_tokenizer(tiny)
    for text, vector in zip(texts, vectors, strict=True):
        ids = np.array([tokenizer(text)["input_ids"]])
        hidden = np.asarray(EncoderModule(config).apply({"params": params}, ids))[0]
        expected = hidden.mean(0) if pooling == "mean" else hidden[0]
        if pooling == "pooler":
            kernel, bias = params["pooler"]["kernel"], params["pooler"]["bias"]
            expected = np.tanh(hidden[0] @ kernel + bias)
        np.testing.assert_allclose(vector, expected, atol=2e-6)


@pytest.mark.parametrize(("layer", "pooling"), [(0, "mean"), (2, "cls"), (3, "mean")])
def test_any_layer_can_be_extracted(tiny, layer, pooling):
    texts = ["the film was good !", "a book", "we liked the phone very much ."]
    encoder = load_encoder(tiny)
    assert encoder.config.num_hidden_layers == 3
    found = load_text_encoder(str(tiny), pooling, 128, layer=layer).pooled(texts)
    vectors = np.concatenate([of_chunk for _, of_chunk in found])
    for text, vector in zip(texts, vectors, strict=True):
        states = encoder.hidden_states(np.array([encoder.tokenizer(text)["input_ids"]]))
        hidden = np.asarray(states[layer])[0]
        expected = hidden.mean(0) if pooling == "mean" else hidden[0]
        np.testing.assert_allclose(vector, expected, atol=2e-6)


def test_vectors_of_half_precision_are_float32_and_near(tiny, trained_folder):
    texts = ["the film was good !", "a book", "we liked the phone very much ."]
    encoders = [
        [load_text_encoder(str(tiny), "mean", 128, dtype=dtype) for dtype in get_args(Dtype)],
        [Predictor(trained_folder, dtype=dtype) for dtype in get_args(Dtype)],
    ]
    for of_source in encoders:
        whole, half = (next(encoder.pooled(texts))[1] for encoder in of_source)
        assert half.dtype == np.float32
        assert 1e-4 < np.abs(half - whole).max() < 0.02 * np.abs(whole).max()


def test_many_short_texts_have_the_vectors_that_each_has_alone(tiny):
    texts = [f"a {('film', 'book', 'phone')[i % 3]} {'very ' * (i % 5)}good !" for i in range(1024)]
    texts += ["the " * 20, texts[3]]
    encoder = load_text_encoder(str(tiny), "mean", 128)
    vectors = np.concatenate([of_chunk for _, of_chunk in encoder.pooled(texts)])
    # The first 1,024 texts have told how long the blocks of rows need be; a longer one fits.
    assert min(length for _, length in encoder.layout.blocks) < 24
    assert max(length for _, length in encoder.layout.blocks) == 24
    some = [texts[i] for i in (3, 500, 1024)]
    alone = load_text_encoder(str(tiny), "mean", 128)
    expected = np.concatenate([of_chunk for _, of_chunk in alone.pooled(some)])
    assert alone.layout.blocks == ((1, 24),)
    np.testing.assert_allclose(vectors[[3, 500, 1024]], expected, atol=2e-6)
    np.testing.assert_allclose(vectors[1025], vectors[3], atol=2e-6)


def test_a_layer_that_is_not_there_or_has_no_pooler_is_refused(tiny, trained_folder):
    for layer in (-1, 4):
        with pytest.raises(UserError, match=f"--layer {layer}: the encoder has 3 layers: use 0"):
            load_text_encoder(str(tiny), "mean", 128, layer=layer)
        with pytest.raises(UserError, match=f"--layer {layer}: the encoder has 1 layers: use 0"):
            Predictor(trained_folder, layer=layer)
    with pytest.raises(UserError, match="pooler is for the last layer, 3: add --pooling mean or c"):
        load_text_encoder(str(tiny), "pooler", 128, layer=1)
    with pytest.raises(UserError, match="was trained without a pooler: use --pooling mean or cls"):
        Predictor(trained_folder, pooling="pooler")


@pytest.fixture
def doubtful(tiny, tmp_path):
    """A checkpoint whose vocabulary has capitals, and whose vectors are made by a Dense layer."""
    folder = shutil.copytree(tiny, tmp_path / "doubtful")
    words = (folder / "vocab.txt").read_text().replace("film", "Film").replace("book", "Book")
    (folder / "vocab.txt").write_text(words)
    (folder / "tokenizer_config.json").unlink()
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": kind} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "Pooling").mkdir()
    (folder / "Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    return folder


def test_doubts_of_a_checkpoint_are_told_before_its_vectors(doubtful, capsys):
    with pytest.raises(UserError, match="choose one by --pooling"):
        load_text_encoder(str(doubtful), None, 128)
    capsys.readouterr()
    load_text_encoder(str(doubtful), "mean", 128)
    capitals, dense, unit = capsys.readouterr().err.splitlines()
    assert capitals.startswith("note: 2 of 41 tokens of the vocabulary have capitals")
    assert dense.startswith("note: what modules.json of the checkpoint has besides")
    assert unit.startswith("note: the vectors are pooled and not scaled to unit length")


def test_doubts_of_a_checkpoint_are_told_before_training(doubtful, settings, tmp_path, capsys):
    asked = {**settings, "backbone": str(doubtful), "epochs": 1}
    with pytest.raises(UserError, match="choose one by --pooling"):
        train(TrainConfig(**asked, workdir=str(tmp_path / "run")))
    capsys.readouterr()
    train(TrainConfig(**asked, workdir=str(tmp_path / "run"), pooling="cls"))
    said = capsys.readouterr().err
    assert said.startswith("note: 2 of 41 tokens of the vocabulary have capitals")
    assert "note: what modules.json of the checkpoint has besides" in said
    # Heads are trained on vectors of any length.
    assert "unit length" not in said


def test_folders_that_are_no_run(tmp_path):
    with pytest.raises(UserError, match=r"is not the folder of a run \(no config\.json\)"):
        Predictor(tmp_path)


def test_a_checkpoint_is_no_run_though_it_has_a_config(tiny):
    with pytest.raises(UserError, match="is not the folder of a run"):
        Predictor(tiny)


def test_predict_reads_a_file_and_warns_of_a_header(trained_folder, reviews, tmp_path, capsys):
    folder, file = f"--workdir={trained_folder}", str(reviews / "test.csv")
    assert run(["predict", folder, f"--input={file}"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["text"] for answer in answers] == list(read_texts(Path(file), ("text",), ()))
    assert run(["predict", folder, f"--input={file}", "--text-column=topic"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["text"] in ("film", "book", "phone")
    output = tmp_path / "v.npy"
    assert run(["extract", folder, f"--input={file}", f"--output={output}"]) == 0
    assert len(np.load(output)) == 32
    capsys.readouterr()
    for mistake, words in (
        (["--input=gone.csv"], "there is no such file"),
        ([f"--input={tmp_path}"], "is a folder: name a file"),
        ([f"--input={file}", "--text-column=x"], "no column 'x'"),
        (["--text-column=x"], "needs --input"),
    ):
        assert run(["predict", folder, *mistake]) == 2
        assert words in capsys.readouterr().err


def test_texts_are_not_written_over_nor_answers_read_as_texts(
    trained_folder, reviews, tmp_path, monkeypatch, capsys
):
    folder, file = f"--workdir={trained_folder}", tmp_path / "texts.txt"
    texts = "a film\n" * 2_000
    file.write_text(texts)
    link = tmp_path / "link.npy"
    link.hardlink_to(file)
    with file.open("rb") as stdin, file.open("a") as stdout:
        monkeypatch.setattr(sys, "stdin", stdin)
        for words in (["extract", f"--output={link}"], ["predict"]):
            for source in ([], [f"--input={file}"]):
                if words == ["predict"]:
                    monkeypatch.setattr(sys, "stdout", stdout)
                assert run([*words, folder, *source]) == 2
                assert "is the file that the texts are read from" in capsys.readouterr().err
    assert file.read_text() == texts
    data = tmp_path / "data.csv"
    data.write_text((reviews / "train.csv").read_text())
    monkeypatch.undo()
    columns = "--label-columns=mood=mood"
    assert run(["check", f"--train-file={data}", columns, f"--html={data}"]) == 2
    assert f"--html {data} is a file of the data" in capsys.readouterr().err
    assert data.read_text() == (reviews / "train.csv").read_text()


WRONG = (None, True, 5, -1.5, "x", "", [], [None], {}, {"x": 1})


def edits(record):
    """Every way to take a field of a record away, or to put something else there."""
    for name, value in record.items():
        yield name, {key: kept for key, kept in record.items() if key != name}
        for wrong in WRONG:
            if wrong != value:
                yield name, {**record, name: wrong}
        if isinstance(value, dict):
            for inner, other in value.items():
                yield (
                    f"{name}.{inner}",
                    {**record, name: {key: kept for key, kept in value.items() if key != inner}},
                )
                for wrong in WRONG:
                    if wrong != other:
                        yield f"{name}.{inner}", {**record, name: {**value, inner: wrong}}
            yield f"{name}.new", {**record, name: {**value, "new": 1}}
    yield "new", {**record, "new": 1}


@pytest.fixture
def edited(trained_folder, tmp_path):
    """A copy of the folder whose ``config.json`` is to be edited, and what it says."""
    shutil.copytree(trained_folder, tmp_path / "run")
    return tmp_path / "run", json.loads((tmp_path / "run" / "config.json").read_text())


def test_an_edited_config_is_refused_and_not_obeyed(edited):
    """Be it of a field that says how texts are read, or of one that nothing reads."""
    folder, record = edited
    for place, change in edits(record):
        (folder / "config.json").write_text(json.dumps(change, indent=2))
        # Where a run goes on this is what it is held against.
        for use in (lambda: Predictor(folder), lambda: Workdir(folder).refuse_another(record)):
            with pytest.raises(UserError, match=r"/run/config.json ") as caught:
                use()
            words = str(caught.value)
            gone = "sha256" not in change
            reason = "has no sha256, as those of" if gone else "has been changed since the run was"
            assert reason in words, place


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"[]", r"\[\] is not of type 'object'"),
        (b"5", "5 is not of type 'object'"),
        (b"null", "None is not of type 'object'"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"9" * 5_000, "is not valid JSON"),
    ],
)
def test_what_is_no_config_is_refused_by_every_command(content, reason, edited, settings):
    folder, _ = edited
    (folder / "config.json").write_bytes(content)
    config = TrainConfig(**settings, workdir=str(folder), scenario="none_frozen")
    for use in (lambda: Predictor(folder), lambda: train(config)):
        with pytest.raises(UserError, match=rf"config.json:? {reason}.*: put back what was there"):
            use()


def test_a_config_that_another_version_has_signed_is_refused_or_of_no_matter(edited):
    """With the digest that belongs to it: it is held against the checkpoint's manifest."""
    folder, record = edited
    opened = set()
    for place, change in edits(record):
        write_record(folder, change)
        try:
            Predictor(folder)
        except UserError:
            continue
        opened.add(place)
    # How the run was spread and where, no number depends on but by rounding.
    free = {"mtl_jax", "sha256", "environment.new"}
    assert opened <= free | {
        f"environment.{name}" for name in ("limits", "layout", "versions", "devices", "processes")
    }
    assert {"mtl_jax", "environment.processes"} <= opened


def test_a_config_tells_its_version_and_is_read_in_any_layout(edited):
    folder, record = edited
    assert record["mtl_jax"] == version("mtl-jax")
    assert len(record["id"]) == 32
    again = dict(sorted(record.items(), reverse=True))
    (folder / "config.json").write_text(json.dumps(again))
    assert list(Predictor(folder).predict(["the film was good !"]))
