"""ONNX Runtime on an exported folder."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from mtl_jax.core.errors import UserError
from mtl_jax.models.exported import exported_pooling
from mtl_jax.tools.export.command import export
from mtl_jax.tools.export.onnx import write_onnx
from tests.tools.export.conftest import PAIRS, TEXTS, expected_logits, of_pairs

MISSING = [name for name in ("torch", "onnx", "onnxscript", "onnxruntime") if not find_spec(name)]


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}")
def test_onnx_runtime_gives_the_logits_of_any_batch_and_length(trained, opened, tmp_path):
    import onnxruntime  # pyright: ignore[reportMissingImports]  (optional)
    from transformers import AutoTokenizer

    folder = export(trained, tmp_path / "new", "onnx", tasks=["sentiment"]) / "sentiment"
    names = {"README.md", "config.json", "model.onnx", "tokenizer_config.json", "vocab.txt"}
    assert {path.name for path in folder.iterdir()} == names
    assert exported_pooling(folder) == "mean"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    expected = expected_logits(opened)["sentiment"]
    for texts in (slice(0, 4), slice(0, 1), slice(2, 4), slice(1, 2)):
        batch = tokenizer(TEXTS[texts], truncation=True, padding=True, return_tensors="np")
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        outputs: Any = session.run(None, inputs)
        np.testing.assert_allclose(outputs[0], expected[texts], atol=1e-4)


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}")
def test_the_texts_of_a_pair_are_told_apart_by_token_types(opened, tmp_path):
    import onnxruntime  # pyright: ignore[reportMissingImports]  (optional)
    from transformers import AutoTokenizer

    run = of_pairs(opened)
    write_onnx(run, run.heads[1], tmp_path, "run")
    batch = AutoTokenizer.from_pretrained(tmp_path)(
        *map(list, zip(*PAIRS, strict=True)), truncation=True, padding=True, return_tensors="np"
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    names = [each.name for each in session.get_inputs()]
    assert names == ["input_ids", "attention_mask", "token_type_ids"]
    outputs: Any = session.run(None, {name: batch[name] for name in names})
    expected = expected_logits(run, PAIRS)["sentiment"]
    np.testing.assert_allclose(outputs[0], expected, atol=1e-4)
    assert np.abs(outputs[0] - expected_logits(opened, PAIRS)["sentiment"]).max() > 1e-3


@pytest.mark.skipif(not MISSING, reason="all is installed")
def test_what_is_not_installed_is_named_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match=f"needs .*{MISSING[0]}.*: pip install"):
        export(tmp_path / "gone", tmp_path / "new", "onnx")
