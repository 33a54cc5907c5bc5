"""A small result is computed once for all processes, and again where its file is damaged."""

import pytest

from mtl_jax.training.cache.facts import fact


def test_it_is_computed_once_and_again_where_it_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path))
    computed = []

    def compute():
        computed.append(1)
        return {"f1": 0.1 + 0.2, "none": None, "list": [1, "é"]}

    value = fact({"of": 1}, compute)
    assert fact({"of": 1}, compute) == value == {"f1": 0.1 + 0.2, "none": None, "list": [1, "é"]}
    assert len(computed) == 1
    assert fact({"of": 2}, compute) == value
    assert len(computed) == 2
    one, other = (tmp_path / "facts").iterdir()
    whole = one.read_text()
    one.write_text(whole.replace("[1,", "[2,"))
    other.write_text(whole[:-5])
    assert fact({"of": 1}, compute) == fact({"of": 2}, compute) == value
    assert len(computed) == 4
    assert one.read_text() == other.read_text() == whole


@pytest.mark.parametrize("in_the_way", ["facts", "facts/x"])
def test_a_cache_that_cannot_be_written_is_done_without(in_the_way, tmp_path, monkeypatch):
    cache = tmp_path / "facts"
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path if in_the_way == "facts" else cache))
    cache.write_text("in the way")
    assert [fact({}, lambda: 1), fact({}, lambda: 2)] == [1, 2]
