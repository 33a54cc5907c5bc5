"""Every source reads labels of every kind and pairs of texts, wherever the texts are kept."""

import csv
import json

import numpy as np
import pyarrow as pa
import pytest
import tensorflow_datasets as tfds
from pyarrow import parquet

from mtl_jax.config.data import DataConfig
from mtl_jax.core.errors import UserError
from mtl_jax.data.corpus import load_corpus
from mtl_jax.data.data_set import Keeping
from mtl_jax.data.pairs import Pair
from mtl_jax.data.texts import StoredTexts

COUNT = 40
ROWS = [
    {
        "premise": f"text {i}\nof é lines",
        "hypothesis": f"other {i % 7}" if i % 13 else " ",
        "mood": ("up", "down")[i % 2],
        "tags": (["a"], ["b", "a"], [], ["c"])[i % 4],
        "stars": (2.5, -1.0, 0.125, 4.0, 0.0)[i % 5],
    }
    for i in range(COUNT)
]


class ToyPairs(tfds.core.GeneratorBasedBuilder):
    """The same rows; TFDS keeps numbers as float32."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        lists = tfds.features.Sequence(tfds.features.ClassLabel(names=["a", "b", "c"]))
        features = {"premise": tfds.features.Text(), "hypothesis": tfds.features.Text()}
        features |= {"mood": tfds.features.Text(), "tags": lists, "stars": np.float64}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate(ROWS)


def delimited(path, delimiter):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(row | {"tags": json.dumps(row["tags"])} for row in ROWS)


def written(folder, kind):
    """The settings that name the rows in a source of this kind."""
    path = folder / f"train.{kind}"
    if kind == "tfds":
        return {"dataset": "toy_pairs"}
    if kind == "hub":
        datasets = pytest.importorskip("datasets")
        names = datasets.Sequence(datasets.ClassLabel(names=["a", "b", "c"]))
        features = {name: datasets.Value("string") for name in ("premise", "hypothesis", "mood")}
        features |= {"tags": names, "stars": datasets.Value("float64")}
        data = datasets.Dataset.from_list(ROWS, features=datasets.Features(features))
        data.to_parquet(str(folder / "hub" / "train-00000-of-00001.parquet"))
        return {"dataset": f"hub:{folder / 'hub'}"}
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        delimited(path, {"csv": ",", "tsv": "\t"}[kind])
    return {"train_file": str(path)}


SOURCES = ("csv", "tsv", "jsonl", "parquet", "tfds", "hub")
TASKS = {
    "label_columns": ("mood=mood", "tags=tags", "stars=stars"),
    "task_kinds": ("tags=multi_label", "stars=regression"),
    "text_columns": ("premise", "hypothesis"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return tmp_path


@pytest.mark.parametrize("source", SOURCES)
def test_labels_and_pairs_are_those_of_the_rows(folder, source):
    data = DataConfig(**written(folder, source), **TASKS)
    classes = {"mood": ("down", "up"), "tags": ("a", "b", "c"), "stars": ()}
    found = []
    for keeping in (Keeping(), Keeping(in_memory=0), Keeping(in_memory=0)):
        corpus = load_corpus(data, keeping)
        assert corpus.classes == classes
        texts = []
        for split in corpus.splits:
            examples = corpus.read(split)
            assert isinstance(examples.texts, StoredTexts) == (keeping.in_memory == 0)
            for i, text in enumerate(examples.texts):
                assert isinstance(text, Pair)
                row = next(r for r in ROWS if r["premise"] == text.first)
                assert text.second == row["hypothesis"]
                assert classes["mood"][examples.labels["mood"][i]] == row["mood"]
                marks = [int(name in row["tags"]) for name in classes["tags"]]
                assert examples.labels["tags"][i].tolist() == marks
                assert examples.labels["stars"][i] == row["stars"]
                texts.append(text.first)
        assert sorted(texts) == sorted(row["premise"] for row in ROWS)
        found.append((texts, list(map(str, corpus.notes)), list(map(str, corpus.check()))))
    assert found[0] == found[1] == found[2]
    assert any("pairs lack one of their texts" in note for note in found[0][1])


def test_lists_and_values_of_parquet_of_any_type(folder):
    tags = pa.array([["a", "b"], [], None, ["b"]] * 5, pa.large_list(pa.string()))
    stars = pa.array(["1.50", "2", None, "-1"] * 5).cast(pa.decimal128(6, 2))
    texts = [f"text {i}" for i in range(20)]
    parquet.write_table(
        pa.table({"text": texts, "tags": tags, "stars": stars}), folder / "t.parquet"
    )
    own = {"label_columns": ("tags=tags", "stars=stars"), "task_kinds": TASKS["task_kinds"]}
    corpus = load_corpus(DataConfig(train_file=str(folder / "t.parquet"), **own))
    train = corpus.read("train")
    assert train.rows is not None
    for i, row in enumerate((train.rows % 4).tolist()):
        assert train.labels["tags"][i].tolist() == [[1, 1], [0, 0], [-1, -1], [0, 1]][row]
        np.testing.assert_equal(train.labels["stars"][i], [1.5, 2.0, np.nan, -1.0][row])


@pytest.mark.parametrize(
    ("stars", "words"),
    [
        ([1.0, float("inf")], "row 2: 'stars' is too large: at most"),
        (["1", "x"], "row 2: 'stars' is 'x', and a regression needs a number"),
        ([True, False], "column 'stars' holds bool and can't be a label: name one of numbers, or"),
        ([[1.0], [2.0]], "can't be a label: name one of numbers, or strings that spell them with"),
    ],
)
def test_what_is_no_number_in_parquet_is_refused(folder, stars, words):
    parquet.write_table(pa.table({"text": ["a", "b"], "stars": stars}), folder / "t.parquet")
    config = DataConfig(
        train_file=str(folder / "t.parquet"),
        label_columns=("stars=stars",),
        task_kinds=("stars=regression",),
    )
    with pytest.raises(UserError) as caught:
        load_corpus(config)
    assert words in str(caught.value)
