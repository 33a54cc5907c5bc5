"""An encoder from a checkpoint: the same numbers as the layers that training runs."""

import numpy as np
import pytest

import mtl_jax as mtl
from mtl_jax.core.errors import UserError
from mtl_jax.models.encoder_module import EncoderModule

IDS = np.array([[2, 5, 6, 9, 3], [2, 7, 3, 0, 0]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def test_hidden_states_of_every_layer(tiny):
    encoder = mtl.load_encoder(tiny)
    states = encoder.hidden_states(IDS, MASK)
    assert [each.shape for each in states] == [(2, 5, 16)] * (encoder.config.num_hidden_layers + 1)
    assert all(each.dtype == np.float32 for each in states)
    expected = EncoderModule(encoder.config).apply({"params": encoder.params}, IDS, MASK)
    np.testing.assert_allclose(states[-1], np.asarray(expected), atol=1e-6)
    np.testing.assert_array_equal(encoder(IDS, MASK), states[-1])


def test_token_types_and_padding_matter_where_they_should(tiny):
    encoder = mtl.load_encoder(tiny)
    plain = np.asarray(encoder(IDS, MASK))
    assert np.abs(plain - np.asarray(encoder(IDS, MASK, np.ones_like(IDS)))).max() > 1e-3
    other = IDS.copy()
    other[1, 3:] = 8
    np.testing.assert_allclose(np.asarray(encoder(other, MASK))[1, :3], plain[1, :3], atol=1e-6)


def test_what_it_is_made_of(tiny):
    encoder = mtl.load_encoder(str(tiny))
    assert (encoder.pooling, encoder.folder) == ("mean", tiny)
    assert "pooler" not in encoder.params
    assert "pooler" in mtl.load_encoder(tiny, "pooler").params
    ids = encoder.tokenizer(["a film"])["input_ids"]
    assert ids == [[2, 5, 10, 3]]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        mtl.load_encoder(tmp_path / "gone")
