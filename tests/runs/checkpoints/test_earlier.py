"""Folders that an earlier version left: opened as that one did, and not gone on from."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from mtl_jax.cli.commands import run
from mtl_jax.runs.checkpoints import arrays, manifest
from mtl_jax.runs.checkpoints.manifest import DamageError
from mtl_jax.runs.checkpoints.reader import CheckpointReader
from mtl_jax.tools.predict import Predictor

STORED = Path(__file__).parents[2] / "fixtures" / "earlier_runs.tar.xz"


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """The stored runs in the present folder, where they look for their data."""
    with tarfile.open(STORED) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(folder):
    """The files of a run, but for the locks that the system keeps in it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if not path.name.endswith(".lock")}


def same_answers(answer, told):
    assert answer["text"] == told["text"]
    for task in ("classifier", "sentiment"):
        assert answer[task]["label"] == told[task]["label"]
        assert answer[task]["probability"] == pytest.approx(told[task]["probability"], abs=2e-6)


def test_they_say_what_they_said(stored):
    texts = (stored / "told/texts.txt").read_text().splitlines()
    for name in ("finished", "killed"):
        predictor = Predictor(stored / name)
        told = (stored / f"told/{name}.jsonl").read_text().splitlines()
        for answer, line in zip(predictor.predict(texts), told, strict=True):
            same_answers(answer, json.loads(line))
    predictor = Predictor(stored / "finished")
    vectors = np.concatenate([found for _, found in predictor.pooled(texts)])
    np.testing.assert_allclose(vectors, np.load(stored / "told/vectors.npy"), atol=1e-6)
    # The limit on its examples had another name.
    told, found = (
        json.loads((stored / "told/evaluate.json").read_text()),
        predictor.evaluate("test"),
    )
    for task, of_task in told.items():
        assert found[task]["examples"] == of_task["examples"] == 20
        for metric in ("accuracy", "macro_f1", "loss"):
            assert found[task][metric] == pytest.approx(of_task[metric], rel=1e-6)


# The oldest transformers make the tokenizer in a way that tokenizers have given up.
@pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0:DeprecationWarning")
def test_they_are_exported(stored):
    made = ["--format", "huggingface", "--output", "made", "--tasks", "classifier"]
    assert run(["export", "--workdir", "finished", *made]) == 0
    params = CheckpointReader(stored / "finished/checkpoints").restore_params(12)
    tensors = safetensors.numpy.load_file(stored / "made/classifier/model.safetensors")
    (kernel,) = (value for name, value in tensors.items() if name.endswith("classifier.weight"))
    np.testing.assert_array_equal(kernel.T, params["classifier"]["kernel"])


def test_no_damage_goes_unnoticed(stored):
    folder = stored / "finished/checkpoints"
    known = arrays.digest(CheckpointReader(folder).restore_best())
    messages = []
    read = [*folder.glob("12/manifest/*"), *folder.glob("12/params/**/*")]
    for file in filter(Path.is_file, read):
        whole = file.read_bytes()
        changed = bytearray(whole)
        changed[len(whole) // 2] ^= 16
        for damaged in (bytes(changed), whole[: len(whole) // 2], None):
            file.unlink()
            if damaged is not None:
                file.write_bytes(damaged)
            try:
                found = CheckpointReader(folder).restore_best()
            except DamageError as error:
                messages.append(str(error))
            else:
                # What Orbax does not read of it.
                assert arrays.digest(found) == known
            file.write_bytes(whole)
    assert len(messages) >= 12
    remedy = "run train again on its --workdir with the earlier version of mtl_jax that saved it"
    assert all(remedy in message for message in messages)
    for part in ("manifest", "params"):
        shutil.move(folder / "12" / part, stored / "aside")
        with pytest.raises(DamageError):
            CheckpointReader(folder).restore_best()
        shutil.move(stored / "aside", folder / "12" / part)
    # Of before manifests had this name.
    (folder / "12/manifest/manifest.json").rename(folder / "12/manifest/seal.json")
    (folder / "12/manifest").rename(folder / "12/seal")
    assert arrays.digest(CheckpointReader(folder).restore_best()) == known
    assert manifest.read(folder / "12").frozen is None


def test_training_says_that_one_is_done_and_refuses_to_go_on_with_another(stored, capfd):
    before = content(stored)
    again = ["train", "--parallel", "jit"]
    assert run([*again, "--config", "finished/config.json", "--workdir", "finished"]) == 0
    printed = capfd.readouterr()
    assert "finished is done: the result is the last line of its metrics.jsonl" in printed.err
    assert run([*again, "--config", "killed/config.json", "--workdir", "killed"]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert "killed was begun by an earlier version of mtl_jax, and not finished" in last
    assert "start again in another --workdir with --config " in last
    own = [path for path in content(stored) if "cache" not in path.parts]
    assert {path: path.read_bytes() for path in own} == before
    (stored / "finished/checkpoints/12/manifest/manifest.json").write_text("{}")
    assert run([*again, "--config", "finished/config.json", "--workdir", "finished"]) == 2
    assert "12 is damaged (manifest/manifest.json can't be read)" in capfd.readouterr().err
