"""Data that are not held in memory give what those in memory give."""

import numpy as np
import pytest

from mtl_jax.config.train import DataConfig
from mtl_jax.data.corpus import load_corpus
from mtl_jax.data.data_set import Keeping
from mtl_jax.data.texts import SomeTexts, StoredTexts


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two files with repeated texts, space, missing labels and NUL characters."""
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    for name, start in (("t.csv", 0), ("v.csv", 480)):
        lines = [
            f'"text {i % 600} {"é" * (i % 5)}","{("up", "down", "")[i % 3]}",{i % 2}\n\n'
            for i in range(start, start + 700)
        ]
        lines[5] = '" ",up,0\n'
        lines[6] = '"a\0b\nc",down,1\n'
        (tmp_path / name).write_text("text,mood,topic\n" + "".join(lines))
    return tmp_path


def config(files, **settings):
    labels = ("mood=mood", "topic=topic")
    return DataConfig(train_file=str(files / "t.csv"), label_columns=labels, **settings)


def all_of(corpus):
    """Everything that a run reads of it."""
    found = {}
    for split in corpus.splits:
        examples = corpus.read(split)
        labels = {task: of.tolist() for task, of in examples.labels.items()}
        found[split] = list(examples.texts), labels, examples.text_hashes.tolist()
    return found, corpus.classes, corpus.notes, corpus.check()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_train_examples": 50},
        {"max_train_examples": 50, "max_validation_examples": 20, "train_subset": 1},
        {"max_train_examples": 10_000, "max_validation_examples": 10_000},
        {"label_fraction": ("mood=0.1",)},
        {"label_fraction": ("mood=0.1", "topic=0.05"), "max_train_examples": 200},
    ],
    ids=str,
)
@pytest.mark.parametrize("other", [(), ("validation_file",), ("validation_file", "test_file")])
def test_nothing_depends_on_where_texts_are_kept(files, settings, other):
    data = config(files, **settings, **dict.fromkeys(other, str(files / "v.csv")))
    held = all_of(load_corpus(data))
    for _ in range(2):
        assert all_of(load_corpus(data, Keeping(in_memory=0))) == held


def test_several_data_sets_are_kept_alike(files):
    own = {"mood": str(files / "t.csv"), "topic": str(files / "v.csv")}
    data = DataConfig(
        train_file=tuple(f"{task}={file}" for task, file in own.items()),
        label_columns=("mood=mood", "topic=topic"),
        max_train_examples=90,
    )
    kept = load_corpus(data, Keeping(in_memory=0))
    assert all_of(kept) == all_of(load_corpus(data))
    assert not isinstance(kept.read("validation").texts, list)


def test_a_limit_needs_no_copy_and_the_copy_is_made_once(files, capsys):
    validation = {"validation_file": str(files / "v.csv"), "max_validation_examples": 20}
    limited = load_corpus(config(files, max_train_examples=30, **validation), Keeping(in_memory=0))
    assert isinstance(limited.read("train").texts, list)
    assert not (files / "cache").exists()
    whole = load_corpus(config(files, **validation), Keeping(in_memory=0))
    texts = whole.read("train").texts
    assert isinstance(texts, StoredTexts)
    assert "making an indexed copy of the texts in" in capsys.readouterr().err
    made = texts.path.stat().st_mtime_ns
    again = load_corpus(config(files, **validation), Keeping(in_memory=0)).read("train").texts
    assert isinstance(again, StoredTexts)
    assert again.path.stat().st_mtime_ns == made
    assert capsys.readouterr().err == ""
    (files / "t.csv").write_text((files / "t.csv").read_text() + "one more,up,1\n")
    other = load_corpus(config(files, **validation), Keeping(in_memory=0)).read("train").texts
    assert isinstance(other, StoredTexts)
    assert other.path != again.path


@pytest.mark.parametrize("name", ["stay-0", "aside-0", "rows.npz", "record.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_copy_is_made_again(files, name, damage, capsys):
    expected = all_of(load_corpus(config(files)))
    load_corpus(config(files), Keeping(in_memory=0))
    (path,) = (files / "cache" / "texts").glob(f"*/{name}")
    contents = path.read_bytes()
    middle = len(contents) // 2
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(contents[:middle])
    else:
        path.write_bytes(
            contents[:middle] + bytes([contents[middle] ^ 255]) + contents[middle + 1 :]
        )
    capsys.readouterr()
    assert all_of(load_corpus(config(files), Keeping(in_memory=0))) == expected
    assert f"note: {path.parent} is damaged: it is recreated from" in capsys.readouterr().err
    assert path.read_bytes() == contents or name in ("rows.npz", "record.json")


def test_what_a_look_keeps_is_a_sample_and_all_counts(files):
    held = load_corpus(config(files))
    looked = load_corpus(config(files), Keeping(in_memory=0, sample=25))
    texts = looked.read("train").texts
    assert isinstance(texts, SomeTexts)
    assert len(texts.known) == 25
    assert [texts[i] for i in texts.known] == [held.read("train").texts[i] for i in texts.known]
    assert looked.check() == held.check()
    assert looked.notes == held.notes
    some = looked.read("train").sample()
    assert len(some) == 25
    expected = held.read("train").labels["topic"][texts.known]
    np.testing.assert_array_equal(some.labels["topic"], expected)
