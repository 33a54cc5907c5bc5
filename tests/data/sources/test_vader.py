import collections
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mtl_jax.config.train import DataConfig
from mtl_jax.core import downloads
from mtl_jax.core.errors import UserError
from mtl_jax.data.corpus import load_corpus
from mtl_jax.data.sources import vader
from mtl_jax.data.sources.vader import Sentence

PREPARE = """
from mtl_jax.data.sources import vader as sentences
builder = sentences.prepare()
print({name: split.num_examples for name, split in builder.info.splits.items()})
"""
SIZES = {"train": 10_639, "validation": 1_199, "test": 11_865}


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    """A cache with the raw files and nothing prepared."""
    raw = downloads.sentences()
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / raw.name).symlink_to(raw)
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path))
    return tmp_path


def write_raw(folder: Path, source: str, truth: str, raters: str) -> None:
    for stem in vader.SOURCES.values():
        for kind in ("GroundTruth", "anonDataRatings"):
            (folder / f"{stem}_{kind}.txt").touch()
    stem = vader.SOURCES[source]
    (folder / f"{stem}_GroundTruth.txt").write_bytes(truth.encode())
    (folder / f"{stem}_anonDataRatings.txt").write_bytes(raters.encode())


@pytest.mark.parametrize(
    ("rating", "sentiment"),
    [
        (-4.0, "negative"),
        (-0.2, "negative"),
        (-0.19, "neutral"),
        (0.0, "neutral"),
        (0.19, "neutral"),
        (0.2, "positive"),
        (4.0, "positive"),
    ],
)
def test_thresholds_of_the_paper(rating, sentiment):
    assert Sentence("tweet", "1", "text", rating, 1.0).sentiment == sentiment


def test_every_field_of_a_known_sentence():
    builder = vader.prepare()
    records = list(builder.as_data_source("train"))  # pyright: ignore[reportCallIssue]
    (found,) = [r for r in records if (r["classifier"], r["id"]) == (2, b"176_3")]
    assert found["text"].startswith(b"there is much which has been said in other reviews")
    assert found["sentiment"] == 2
    assert found["rating"] == np.float32(2.4)
    assert found["rating_std"] == np.float32(0.66332)


def test_the_splits_and_classes_of_the_corpus():
    corpus = load_corpus(DataConfig())
    assert corpus.name == "sentences/1.0.0"
    assert corpus.splits == ("train", "validation", "test")
    assert corpus.classes == {
        "classifier": ("tweet", "movie_review", "product_review", "editorial"),
        "sentiment": ("negative", "neutral", "positive"),
    }
    counts = collections.Counter()
    for split, size in SIZES.items():
        examples = corpus.read(split)
        assert len(examples) == size
        assert examples.groups is not None
        names = np.asarray(corpus.classes["classifier"])
        np.testing.assert_array_equal(names[examples.labels["classifier"]], examples.groups)
        counts.update(examples.groups.tolist())
    assert counts == {
        "tweet": 4_200,
        "movie_review": 10_605,
        "product_review": 3_708,
        "editorial": 5_190,
    }
    train = corpus.read("train")
    assert np.bincount(train.labels["sentiment"]).tolist() == [4_589, 899, 5_151]
    assert corpus.notes == (
        "kept: rating differs from the mean of the raters listed (199 sentences)",
    )


def test_odd_lines_are_counted_by_reason(tmp_path):
    good = "1\t-0.5\tgood bye\r\n"
    bad = "2\t1.0\r\n3\tx\ttext\r\n4\t4.1\ttext\r\n5\t1\t \r\n1\t1\tagain\r\n6\t1\ttext\r\n"
    odd = "7\t1\tkept"
    raters = "\ufeff1\t-0.5\t0.25\t[0, -1]\r\n5\t1\t0\t[1]\r\n7\t2\t0.5\t[2]\r\n6\t1\r\n"
    write_raw(tmp_path, "product_review", good + bad + odd, raters)
    counts = collections.Counter()
    assert list(vader.read(tmp_path, counts)) == [
        Sentence("product_review", "1", "good bye", -0.5, 0.25, (0, -1)),
        Sentence("product_review", "7", "kept", 1.0, 0.5, (2,)),
    ]
    assert counts == {
        "dropped: not three fields": 1,
        "dropped: no rating in [-4, 4]": 2,
        "dropped: empty text": 1,
        "dropped: id seen before": 1,
        "dropped: no standard deviation": 1,
        "kept: rating differs from the mean of the raters listed": 1,
    }


def test_the_real_files_have_no_line_to_drop():
    counts = collections.Counter()
    assert len(list(vader.read(downloads.sentences(), counts))) == 23_703
    assert counts == {"kept: rating differs from the mean of the raters listed": 199}


def test_processes_that_prepare_at_once_get_the_same(fresh_cache):
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PREPARE],
            cwd=Path(__file__).parents[3],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    ends = [process.communicate(timeout=120) for process in processes]
    assert [said for said, _ in ends] == [f"{SIZES}\n"] * 2
    # On a slow machine one of them says whom it waits for.
    lines = [line for _, errors in ends for line in errors.splitlines()]
    assert all(line.startswith("waiting for another process that makes ") for line in lines)
    assert list(fresh_cache.glob("tfds/sentences/incomplete*")) == []


def test_what_a_killed_preparation_left_is_swept(fresh_cache):
    left = fresh_cache / "tfds" / "sentences" / "incomplete.ABC123_1.0.0"
    left.mkdir(parents=True)
    (left / "sentences-train.array_record-00000-of-00001").write_bytes(b"half")
    assert vader.prepare().info.splits["train"].num_examples == SIZES["train"]
    assert not left.exists()


def test_needs_no_network_once_the_files_are_there(fresh_cache):
    program = (
        "import socket\n"
        "def refuse(*args): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import sys\n"
        + PREPARE
        + "print(sorted({'tensorflow', 'torch', 'jax'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert (done.stdout, done.stderr) == (f"{SIZES}\n[]\n", "")


def test_other_features_of_the_corpus_can_be_named():
    corpus = load_corpus(DataConfig(label_columns=("sentiment=classifier",)))
    assert corpus.classes.keys() == {"sentiment"}
    assert corpus.classes["sentiment"] == ("tweet", "movie_review", "product_review", "editorial")
    with pytest.raises(UserError, match=r"no feature 'mood'; it has 'text', 'id', 'cl"):
        load_corpus(DataConfig(label_columns=("sentiment=mood",)))
