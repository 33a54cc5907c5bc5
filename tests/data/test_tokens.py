import numpy as np
import pytest

from mtl_jax.core import downloads
from mtl_jax.core.errors import UserError
from mtl_jax.data.pairs import Pair
from mtl_jax.data.tokens import lengths_of, tokenize
from mtl_jax.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(downloads.minilm())


def test_known_ids_and_counts(tokenizer):
    tokens = tokenize(tokenizer, ["Hello world", "", "hello " * 9, "hello hello hello"], 5)
    assert tokens.ids.tolist() == [
        *(101, 7592, 2088, 102),
        *(101, 102),
        *(101, 7592, 7592, 7592, 102),
        *(101, 7592, 7592, 7592, 102),
    ]
    assert tokens.offsets.tolist() == [0, 4, 6, 11, 16]
    assert tokens.lengths.tolist() == [4, 2, 5, 5]
    assert (tokens.ids.dtype, tokens.offsets.dtype) == (np.int32, np.int64)
    assert (len(tokens), tokens.truncated, tokens.empty) == (4, 1, 1)


def test_no_texts(tokenizer):
    tokens = tokenize(tokenizer, [], 8)
    assert (len(tokens), tokens.ids.tolist(), tokens.offsets.tolist()) == (0, [], [0])
    assert (tokens.ids.dtype, tokens.offsets.dtype) == (np.int32, np.int64)


def test_chunks_do_not_show(tokenizer):
    texts = [f"number {i}" for i in range(5000)]
    whole = tokenize(tokenizer, texts, 16)
    for i in (0, 4095, 4096, 4999):
        alone = tokenize(tokenizer, [texts[i]], 16)
        np.testing.assert_array_equal(whole.ids[whole.offsets[i] : whole.offsets[i + 1]], alone.ids)


def test_same_ids_before_and_after_a_truncation(tokenizer):
    long = "hello " * 600
    assert tokenize(tokenizer, [long], 512).lengths.tolist() == [512]
    assert tokenize(tokenizer, ["hello"], 3).ids.tolist() == [101, 7592, 102]
    assert tokenize(tokenizer, [long], 1000).truncated == 0


def test_a_length_without_room_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"--max-length 2 leaves no room .* use at least 3"):
        tokenize(tokenizer, ["hello"], 2)


def test_ids_in_a_file_are_those_in_memory(tokenizer, tmp_path):
    texts = [f"number {i}" for i in range(5000)] + ["", "hello " * 20]
    mapped = tokenize(tokenizer, texts, 16, tmp_path / "new")
    held = tokenize(tokenizer, texts, 16)
    assert isinstance(mapped.ids, np.memmap)
    assert mapped.digest == held.digest
    assert (mapped.truncated, mapped.empty) == (held.truncated, held.empty)
    some, _ = mapped.take(np.array([5001, 3]))
    np.testing.assert_array_equal(some.ids, held.take(np.array([5001, 3]))[0].ids)
    # The file ends with its reader, however the process ends.
    assert list((tmp_path / "new").iterdir()) == []
    assert len(tokenize(tokenizer, [], 16, tmp_path / "new")) == 0
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*/file"):
        tokenize(tokenizer, texts, 16, tmp_path / "file")


def test_pairs_have_types_in_a_file_as_in_memory(tokenizer, tmp_path):
    # The first pair comes after a chunk of single texts.
    texts = [f"number {i}" for i in range(5000)] + [Pair("hello world", "hello"), "", Pair("", "")]
    mapped = tokenize(tokenizer, texts, 16, tmp_path)
    held = tokenize(tokenizer, texts, 16)
    assert mapped.types is not None
    assert held.types is not None
    np.testing.assert_array_equal(mapped.types, held.types)
    assert mapped.digest == held.digest
    pair, _ = held.take(np.array([5000]))
    assert pair.ids.tolist() == [101, 7592, 2088, 102, 7592, 102]
    assert pair.types is not None
    assert pair.types.tolist() == [0, 0, 0, 0, 1, 1]
    assert held.types[: held.offsets[5000]].max() == 0
    assert held.empty == 2
    assert lengths_of(tokenizer, texts[-3:]).tolist() == [6, 2, 3]
    assert tokenize(tokenizer, texts, 16, types=False).types is None


def test_lengths_are_of_whole_texts(tokenizer):
    assert lengths_of(tokenizer, ["hello", "", "hello " * 600]).tolist() == [3, 2, 602]
    assert lengths_of(tokenizer, []).dtype == np.int64
