import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mtl_jax.config.train import DataConfig
from mtl_jax.core.errors import UserError
from mtl_jax.data.corpus import load_corpus
from mtl_jax.data.kinds import MISSING
from mtl_jax.data.pairs import Pair
from mtl_jax.data.sources import tfds as tfds_source

DIE = "TOY_REVIEWS_DIE"
OFFLINE = "TOY_REVIEWS_OFFLINE"


class ToyReviews(tfds.core.GeneratorBasedBuilder):
    """A data set with a feature of every kind."""

    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "mood": tfds.features.ClassLabel(names=["down", "up"]),
                    "stars": np.int64,
                    "kind": tfds.features.Text(),
                    "score": np.float32,
                    "liked": np.bool_,
                    "words": tfds.features.Sequence(tfds.features.Text()),
                    "numbers": tfds.features.Sequence(np.int64),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        if OFFLINE in os.environ:
            raise ConnectionError("no network")
        return {
            "train": self._generate_examples("train", 60),
            "test": self._generate_examples("test", 6),
        }

    def _generate_examples(self, split, count):
        for i in range(count):
            if DIE in os.environ and i == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            yield (
                i,
                {
                    "text": f"{split} é {i}",
                    "mood": (i % 3) - 1,
                    "stars": (-1, 9, 10)[i % 3],
                    "kind": ("", "short", "long")[i % 3],
                    "score": 0.5,
                    "liked": i % 3 == 0,
                    "words": (["é", "a"], [], ["a"])[i % 3],
                    "numbers": ([10], [9, 10], [])[i % 3],
                },
            )


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "tfds"


def load(name="toy_reviews", *pairs):
    return load_corpus(DataConfig(dataset=name, label_columns=pairs or ("sentiment=mood",)))


def test_a_builder_is_prepared_and_read(root, capfd):
    corpus = load()
    assert corpus.name == "toy_reviews/1.2.0"
    assert corpus.splits == ("train", "validation", "test")
    assert corpus.classes == {"sentiment": ("down", "up")}
    test = corpus.read("test")
    by_text = dict(zip(test.texts, test.labels["sentiment"].tolist(), strict=True))
    assert by_text == {f"test é {i}": (MISSING, 0, 1)[i % 3] for i in range(6)}
    assert test.groups is None
    train, validation = corpus.read("train"), corpus.read("validation")
    # A third has no label, and is not trained on.
    assert len(train) + validation.labelled().sum() == 40
    assert len(validation) > 0
    assert corpus.notes[0] == "validation: a tenth of the training texts, set aside by hash"
    assert capfd.readouterr().out == ""


def test_integer_and_string_labels_are_learned_from_train(root):
    corpus = load("toy_reviews", "sentiment=stars", "classifier=kind")
    assert corpus.classes == {"classifier": ("long", "short"), "sentiment": ("9", "10")}
    labels = corpus.read("test").labels
    assert sorted(labels["sentiment"].tolist()) == [-1, -1, 0, 0, 1, 1]
    np.testing.assert_array_equal(labels["classifier"] == 1, labels["sentiment"] == 0)


def test_booleans_are_labels_as_those_of_json_are(root, tmp_path):
    corpus = load("toy_reviews", "sentiment=liked")
    assert corpus.classes["sentiment"] == ("false", "true")
    rows = [{"text": f"text {i}", "liked": i % 3 == 0} for i in range(60)]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = DataConfig(train_file=str(path), label_columns=("sentiment=liked",))
    assert load_corpus(files).classes == corpus.classes
    test = corpus.read("test")
    found = dict(zip(test.texts, test.labels["sentiment"].tolist(), strict=True))
    assert found == {f"test é {i}": int(i % 3 == 0) for i in range(6)}
    # Without the code of the data set the types of its features are read from its files.
    alone = load(str(root / "toy_reviews" / "1.2.0"), "sentiment=liked", "number=stars")
    assert alone.classes == {"sentiment": ("false", "true"), "number": ("9", "10")}


def test_sequences_are_lists_of_classes_and_two_texts_a_pair(root):
    data = DataConfig(
        dataset="toy_reviews",
        text_columns=("text", "kind"),
        label_columns=("words=words", "numbers=numbers"),
        task_kinds=("words=multi_label", "numbers=multi_label"),
    )
    corpus = load_corpus(data)
    assert corpus.classes == {"words": ("a", "é"), "numbers": ("9", "10")}
    test = corpus.read("test")
    for i, text in enumerate(test.texts):
        assert isinstance(text, Pair)
        row = int(text.first.split()[-1])
        assert text.second == ("", "short", "long")[row % 3]
        assert test.labels["words"][i].tolist() == [[1, 1], [0, 0], [1, 0]][row % 3]
        assert test.labels["numbers"][i].tolist() == [[0, 1], [1, 1], [0, 0]][row % 3]


LEGACY = {"type": "own_features.Own", "content": {}}


def nest(feature, how):
    """A feature of another module, where TFDS would import it."""
    package = "tensorflow_datasets.core.features."
    own = {"pythonClassName": "own_features.Own", "jsonFeature": {"json": "{}"}}
    if how == "itself":
        return own
    if how == "in a sequence":
        name = package + "sequence_feature.Sequence"
        return {"pythonClassName": name, "sequence": {"feature": own, "length": "-1"}}
    # Older releases wrote JSON within JSON.
    content = json.dumps({"deep": LEGACY})
    name = package + "features_dict.FeaturesDict"
    return {"pythonClassName": name, "jsonFeature": {"json": content}}


@pytest.mark.parametrize("by", ["name", "folder"])
@pytest.mark.parametrize("how", ["itself", "in a sequence", "in JSON", "as the whole"])
def test_a_module_that_a_data_set_names_is_not_imported(how, by, root, tmp_path, monkeypatch):
    load()
    folder = root / "toy_reviews" / "1.2.0"
    # By a name that has no code here, so that TFDS reads the files alone.
    files = root / "stranger" / "1.2.0"
    shutil.copytree(folder, files)
    info = (files / "dataset_info.json").read_text().replace("toy_reviews", "stranger")
    (files / "dataset_info.json").write_text(info)
    features = json.loads((files / "features.json").read_text())
    if how == "as the whole":
        features = LEGACY
    else:
        features["featuresDict"]["features"]["more"] = nest(features, how)
    (files / "features.json").write_text(json.dumps(features))
    code = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
    (tmp_path / "own_features.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"names 'own_features\.Own', which is none of TFDS's own"):
        load("stranger" if by == "name" else str(files))
    assert not (tmp_path / "ran").exists()
    # What TFDS does for others is as it was.
    with pytest.raises(ValueError, match="Unrecognized"):
        tfds.features.FeatureConnector.cls_from_name("own_features.Own")
    assert (tmp_path / "ran").exists()
    sys.modules.pop("own_features")


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}'])
def test_a_damaged_description_is_one_line(content, name, root):
    load()
    folder = root / "toy_reviews" / "1.2.0"
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=rf"{folder}.*: prepare the data set "):
        load(str(folder))


def test_a_prepared_folder_is_read_where_it_lies(root, tmp_path):
    first = load()
    moved = tmp_path / "elsewhere"
    shutil.move(root / "toy_reviews" / "1.2.0", moved)
    second = load(str(moved))
    assert second.name == first.name
    assert second.fingerprint == first.fingerprint
    assert len(second.read("test")) == 6


def test_a_prepared_data_set_needs_neither_its_code_nor_a_network(root):
    load()
    program = (
        "import socket\n"
        "def refuse(*args): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from mtl_jax.config.data import DataConfig\n"
        "from mtl_jax.data.corpus import load_corpus\n"
        "config = DataConfig(dataset='toy_reviews', label_columns=('sentiment=mood',))\n"
        "print(len(load_corpus(config).read('test')))\n"
    )
    done = run(program)
    assert (done.stdout, done.stderr) == ("6\n", "")


def test_a_preparation_that_is_killed_half_way_harms_nothing(root, monkeypatch):
    monkeypatch.setenv(DIE, "1")
    program = "from tests.data.sources import test_tfds as t\nt.load()\n"
    assert run(program).returncode == -signal.SIGKILL
    left = list(root.glob("toy_reviews/incomplete.*_1.2.0"))
    assert len(left) == 1
    monkeypatch.delenv(DIE)
    assert len(load().read("test")) == 6
    assert [p.name for p in root.glob("toy_reviews/[!.]*")] == ["1.2.0"]


def test_a_builder_that_another_process_prepared_meanwhile(root):
    early = ToyReviews(data_dir=root, file_format=tfds_source.FILE_FORMAT)
    assert not early.data_path.exists()
    load()
    assert tfds_source.prepare(early).info.splits["test"].num_examples == 6


def test_the_cache_is_used_where_no_folder_is_set(tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path))
    load()
    assert (tmp_path / "tfds/toy_reviews/1.2.0/dataset_info.json").is_file()


@pytest.mark.parametrize(
    ("name", "pairs", "words"),
    [
        (
            "toy_review",
            (),
            r"no TFDS data set 'toy_review' \(did you mean toy_reviews.*\?\): name one",
        ),
        ("toy reviews", (), r"'toy reviews'.*: "),
        (
            "toy_reviews",
            ("sentiment=kinds",),
            r"no feature 'kinds'; it has 'text', 'mood', 'stars',",
        ),
        (
            "toy_reviews",
            ("sentiment=score",),
            r"'score' can't be a label of a single_label task: name one of classes, strings, whole",
        ),
    ],
)
def test_mistakes_name_the_remedy(root, name, pairs, words):
    with pytest.raises(UserError, match=words):
        load(name, *pairs)


def test_a_text_must_be_a_text(root):
    with pytest.raises(UserError, match="feature 'stars' is not a text: name another with --text"):
        load_corpus(
            DataConfig(
                dataset="toy_reviews", text_column="stars", label_columns=("sentiment=mood",)
            )
        )


def test_a_data_set_that_cannot_be_fetched(root, monkeypatch):
    monkeypatch.setenv(OFFLINE, "1")
    words = r"TFDS cannot prepare toy_reviews/1\.2\.0 \(ConnectionError: no network\): connect to"
    with pytest.raises(UserError, match=words):
        load()
    assert list(root.glob("toy_reviews/[!.]*")) == []


def test_files_of_another_format(root):
    load()
    described = root / "toy_reviews/1.2.0/dataset_info.json"
    described.write_text(described.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(
        UserError, match=r"TFDS cannot open .toy_reviews. \(.*array_record.*or set TFDS_DATA_DIR"
    ):
        load().read("test")


def test_a_damaged_file(root):
    load()
    (root / "toy_reviews/1.2.0/toy_reviews-test.array_record-00000-of-00001").unlink()
    with pytest.raises(
        UserError, match=r"cannot read toy_reviews/1\.2\.0 in .*: delete that folder"
    ):
        load().read("test")


def run(program):
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
