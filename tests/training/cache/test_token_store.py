"""Token ids are made once for all processes, and again where anything they depend on differs."""

import numpy as np
import pytest

from mtl_jax.data.pairs import Pair
from mtl_jax.data.tokens import Tokens
from mtl_jax.training.cache.array_store import ArrayStore
from mtl_jax.training.cache.token_store import TokenStore

TEXTS = ["a b", "", "c", Pair("d", "e f")]
IDS = [np.array([1, 5, 6, 2]), np.array([1, 2]), np.array([1, 7, 2]), np.array([1, 8, 2, 9, 3, 2])]


def tokens(types):
    ids = np.concatenate(IDS).astype(np.int32)
    offsets = np.append(0, np.cumsum([len(each) for each in IDS]))
    return Tokens(ids, offsets, 1, 2, np.arange(len(ids), dtype=np.int32) % 2 if types else None)


class Kept:
    """A store as each process has its own, and how often it has had to make tokens."""

    def __init__(self, folder, size=2**20, tokenizer="t"):
        self.made = 0
        self.store = TokenStore(ArrayStore(size, folder), tokenizer)

    def get(self, texts=TEXTS, max_length=8, types=True):
        def make():
            self.made += 1
            return tokens(types)

        return self.store.get(texts, max_length, types=types, make=make)


def assert_same(found, expected):
    for name in ("ids", "offsets", "types"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        assert one is None or (one.dtype == other.dtype and one.tolist() == other.tolist())
    assert (found.truncated, found.empty) == (1, 2)
    assert found.digest == expected.digest


@pytest.mark.parametrize("types", [True, False])
def test_what_one_process_has_made_the_next_reads(types, tmp_path):
    for made in (1, 0):
        kept = Kept(tmp_path)
        assert_same(kept.get(types=types), tokens(types))
        assert kept.made == made


def test_anything_that_ids_depend_on_makes_others(tmp_path):
    Kept(tmp_path).get()
    # A pair is not its two texts in one, nor is one that ends elsewhere.
    others = [["a b", "", "c", last] for last in ("d\ne f", Pair("d\ne", "f"), "g")]
    changed = [Kept(tmp_path).get for _ in others]
    for get, texts in zip(changed, others, strict=True):
        get(texts)
    of_all = [Kept(tmp_path, tokenizer="u"), Kept(tmp_path), Kept(tmp_path)]
    of_all[0].get()
    of_all[1].get(max_length=9)
    of_all[2].get(types=False)
    assert [get.__self__.made for get in changed] + [kept.made for kept in of_all] == [1] * 6


def test_damage_is_noticed_and_no_room_is_done_without(tmp_path, capsys):
    Kept(tmp_path).get()
    (file,) = tmp_path.glob("*.tokens")
    whole = bytearray(file.read_bytes())
    whole[20] ^= 1
    for damaged in (bytes(whole), bytes(whole[:-4]), b"short"):
        file.write_bytes(damaged)
        kept = Kept(tmp_path)
        assert_same(kept.get(), tokens(types=True))
        assert kept.made == 1
        assert "is damaged: computing it again" in "".join(capsys.readouterr().err.split("\n"))
    (tmp_path / "in the way").touch()
    for folder, size in ((tmp_path / "in the way", 2**20), (tmp_path / "small", 10)):
        kept = Kept(folder, size)
        assert_same(kept.get(), tokens(types=True))
        assert_same(kept.get(), tokens(types=True))
        assert kept.made == 2
