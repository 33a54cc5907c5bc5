"""ONNX Runtime on an exported folder."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from mtl_jax.core.errors import UserError
from mtl_jax.models.exported import exported_pooling
from mtl_jax.tools.export.command import export
from tests.tools.export.conftest import TEXTS, expected_logits

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


@pytest.mark.skipif(not MISSING, reason="all is installed")
def test_what_is_not_installed_is_named_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match=f"needs .*{MISSING[0]}.*: pip install"):
        export(tmp_path / "gone", tmp_path / "new", "onnx")
