"""A split that has been read is not parsed again by the next process, until it is another."""

import json

import pytest

from mtl_jax.config.train import DataConfig
from mtl_jax.data import parsed_copy
from mtl_jax.data.corpus import load_corpus
from mtl_jax.data.pairs import Pair
from mtl_jax.data.sources import files as files_source
from tests.data.test_indexed_copy import all_of, config, files  # noqa: F401  (a fixture)


@pytest.fixture
def parsed(monkeypatch):
    """The names of the files that are parsed from here on."""
    names, rows = [], files_source._Table.delimited_rows

    def told(table, notes):
        names.append(table.path.name)
        yield from rows(table, notes)

    monkeypatch.setattr(files_source._Table, "delimited_rows", told)
    return names


def test_each_file_is_parsed_once(files, parsed, capsys):  # noqa: F811
    data = config(files, validation_file=str(files / "v.csv"), test_file=str(files / "v.csv"))
    first = all_of(load_corpus(data))
    # Two splits of the same file are one copy.
    assert parsed == ["t.csv", "v.csv"]
    assert all_of(load_corpus(data)) == first
    assert parsed == ["t.csv", "v.csv"]
    # A copy that is damaged, in any way, is noticed and made again.
    copies = sorted((files / "cache" / "tables").iterdir())
    assert len(copies) == 2
    whole = [copy.read_bytes() for copy in copies]
    copies[0].write_bytes(whole[0][:-1])
    copies[1].write_bytes(whole[1][:100] + b"x" + whole[1][101:])
    capsys.readouterr()
    assert all_of(load_corpus(data)) == first
    assert sorted(parsed) == ["t.csv", "t.csv", "v.csv", "v.csv"]
    said = "".join(capsys.readouterr().err.split())
    assert all("".join(f"note: {copy} is damaged".split()) in said for copy in copies)
    assert [copy.read_bytes() for copy in copies] == whole
    # Another content under the same name is another file.
    (files / "v.csv").write_text((files / "v.csv").read_text().replace("text 500 ", "else 500 "))
    changed = all_of(load_corpus(data))
    assert parsed[4:] == ["v.csv"]
    assert [text.startswith("else 500") for text in changed[0]["test"][0]].count(True) == 2


def test_pairs_and_places_come_back(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    rows = [{"a": f"premise {i}", "b": f"é\n{i}", "y": i % 2} for i in range(40)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(train_file=str(file), text_columns=("a", "b"), label_columns=("y=y",))
    first, again = (load_corpus(data).read("train") for _ in range(2))
    assert first.rows is not None
    assert again.rows is not None
    assert first.rows.tolist() == again.rows.tolist()
    assert len(again) > 20
    for row, text in zip(again.rows.tolist(), again.texts, strict=True):
        assert isinstance(text, Pair)
        assert (text.first, text.second) == (rows[row]["a"], rows[row]["b"])


def test_the_oldest_copies_make_room(files, monkeypatch):  # noqa: F811
    all_of(load_corpus(config(files)))
    (first,) = (files / "cache" / "tables").iterdir()
    monkeypatch.setattr(parsed_copy, "_MOST", int(first.stat().st_size * 1.5))
    all_of(load_corpus(config(files, validation_file=str(files / "v.csv"))))
    assert not first.exists()
    assert len(list((files / "cache" / "tables").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_done_without(files, parsed):  # noqa: F811
    (files / "cache").write_text("in the way")
    first = all_of(load_corpus(config(files)))
    assert all_of(load_corpus(config(files))) == first
    assert parsed == ["t.csv", "t.csv"]
