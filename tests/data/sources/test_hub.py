"""Data sets that the package ``datasets`` loads."""

import io
import sys

import pytest

from mtl_jax.config.train import DataConfig
from mtl_jax.core.errors import UserError
from mtl_jax.data.corpus import load_corpus


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder as one of the hub's, with classes declared for a column."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "mood": datasets.ClassLabel(names=["down", "up"]),
            "stars": datasets.Value("int64"),
        }
    )
    for split, count in (("train", 60), ("test", 6)):
        rows = {
            "text": [f"text {i}" for i in range(count)],
            "mood": [i % 2 if split == "train" else -1 for i in range(count)],
            "stars": [None if i == 3 else i % 5 for i in range(count)],
        }
        data = datasets.Dataset.from_dict(rows, features=features)
        data.to_parquet(str(tmp_path / "hub" / f"{split}-00000-of-00001.parquet"))
    return tmp_path / "hub"


def config(folder, *labels, **settings):
    labels = labels or ("mood=mood", "stars=stars")
    return DataConfig(dataset=f"hub:{folder}", label_columns=labels, **settings)


def test_a_folder_is_read_as_data_of_the_hub(folder):
    corpus = load_corpus(config(folder))
    assert corpus.splits == ("train", "validation", "test")
    assert corpus.classes == {"mood": ("down", "up"), "stars": ("0", "1", "2", "3", "4")}
    train, validation, test = (corpus.read(split) for split in corpus.splits)
    assert sorted([*train.texts, *validation.texts]) == sorted(f"text {i}" for i in range(60))
    numbers = [int(text.split()[1]) for text in train.texts]
    assert train.labels["mood"].tolist() == [i % 2 for i in numbers]
    assert train.labels["stars"].tolist() == [-1 if i == 3 else i % 5 for i in numbers]
    # Labels that are kept back are numbered -1 there.
    assert test.labels["mood"].tolist() == [-1] * 6
    assert load_corpus(config(folder)).fingerprint == corpus.fingerprint
    assert load_corpus(config(folder, "mood=mood")).fingerprint != corpus.fingerprint


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"text_column": "body"}, "has no column 'body'; it has 'text', 'mood', 'stars': name"),
        ({"text_column": "stars"}, "train example 0: 'stars' is a number and not a string: put"),
    ],
)
def test_columns_that_do_not_fit_are_refused(folder, settings, words):
    with pytest.raises(UserError, match=words) as caught:
        load_corpus(config(folder, "mood=mood", **settings)).read("train")
    assert str(caught.value).startswith(f"hub:{folder}")


def test_what_can_not_be_loaded_is_refused(folder):
    with pytest.raises(UserError, match=r"cannot load hub:.*/nowhere \(.*: correct the name"):
        load_corpus(DataConfig(dataset=f"hub:{folder}/nowhere"))


def test_a_script_of_a_data_set_is_not_run_and_nobody_is_asked(folder, tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    (folder / f"{folder.name}.py").write_text(f"open({str(ran)!r}, 'w')\n")
    for file in folder.glob("*.parquet"):
        file.unlink()
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(UserError, match="cannot load hub:"):
        load_corpus(config(folder))
    assert sys.stdin.read() == "y\n"
    assert not ran.exists()


def test_without_the_package_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="--dataset hub:x needs the package datasets: pip install"):
        load_corpus(DataConfig(dataset="hub:x"))
