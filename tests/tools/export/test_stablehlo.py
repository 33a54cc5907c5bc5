"""The exported program in a process that has no mtl_jax."""

import dataclasses
import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.numpy
from jax import export as export_of_jax

from mtl_jax.core.errors import UserError
from mtl_jax.tools.export.command import export
from mtl_jax.tools.export.stablehlo import write_stablehlo
from tests.test_docs import blocks
from tests.tools.export.conftest import (
    EXPORT_PAGE,
    PAIRS,
    TEXTS,
    expected_logits,
    expected_vectors,
    of_pairs,
)

needs_flatbuffers = pytest.mark.skipif(
    find_spec("flatbuffers") is None, reason="flatbuffers is not installed"
)

PROGRAM = """
import sys
sys.modules.update(mtl_jax=None, flax=None, transformers=None)
sys.path.insert(0, sys.argv[1])
import json
import load_stablehlo as here
texts = [tuple(text) if isinstance(text, list) else text for text in json.load(sys.stdin)]
of = lambda texts: {task: found.tolist() for task, found in here.logits(texts).items()}
print(json.dumps({"whole": of(texts), "first": of(texts[:1]), "tasks": here.tasks}))
try:
    arrays = [here.np.ones((1, 99), "int32")] * (len(here.model.in_avals) - len(here.weights))
    here.model.call(here.weights, *arrays)
except ValueError:
    print("too long")
"""


@needs_flatbuffers
@pytest.mark.parametrize(("dtype", "texts"), [("float32", PAIRS), ("bfloat16", TEXTS)])
def test_a_fresh_process_without_this_package_gives_the_logits(dtype, texts, opened, tmp_path):
    run = of_pairs(opened) if texts is PAIRS else opened
    assert run.token_types is (texts is PAIRS)
    write_stablehlo(run, tmp_path, dtype, "run", ())
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
    )
    answer, long = done.stdout.splitlines()
    found = json.loads(answer)
    assert long == "too long"
    assert {task: told["labels"] for task, told in found["tasks"].items()} == {
        head.name: list(head.classes) for head in opened.heads
    }
    tolerance = 1e-5 if dtype == "float32" else 0.1
    for task, expected in expected_logits(run, texts).items():
        np.testing.assert_allclose(found["whole"][task], expected, atol=tolerance)
        np.testing.assert_allclose(found["first"][task], expected[:1], atol=tolerance)


class Own(nn.Module):
    """A head of a user's own."""

    classes: int

    @nn.compact
    def __call__(self, vectors):
        return nn.Dense(self.classes)(nn.tanh(nn.Dense(5)(vectors)))


@needs_flatbuffers
def test_a_head_of_ones_own_is_in_the_program_of_a_trusted_module(opened, tmp_path):
    path = f"{__name__}:Own"
    settings = {**opened.record["settings"], "heads": [f"sentiment={path}"]}
    params = Own(3).init(jax.random.key(0), np.zeros((1, 16), np.float32))["params"]
    head = dataclasses.replace(opened.heads[1], own=path, params=params)
    record = {**opened.record, "settings": settings}
    run = dataclasses.replace(opened, record=record, heads=(head,))
    with pytest.raises(UserError, match="trust"):
        write_stablehlo(run, tmp_path, "float32", "run", ())
    assert list(tmp_path.iterdir()) == []
    write_stablehlo(run, tmp_path, "float32", "run", (__name__.partition(".")[0],))
    program = export_of_jax.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    weights = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    ids = run.tokenizer(TEXTS[0], return_tensors="np")["input_ids"].astype(np.int32)
    found = program.call(weights, ids, np.ones_like(ids))["sentiment"]
    vectors = expected_vectors(run, TEXTS[:1])
    expected: Any = Own(3).apply({"params": params}, vectors)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    page = blocks(EXPORT_PAGE, "python")[2].replace('["topic"]', '["sentiment"]')
    exec(page.replace('Path("program")', f"Path({str(tmp_path)!r})"), names := {})  # noqa: S102
    expected = Own(3).apply({"params": params}, expected_vectors(run, ["a text", "another one"]))
    np.testing.assert_allclose(names["logits"], expected, atol=1e-5)


@pytest.mark.skipif(find_spec("flatbuffers") is not None, reason="flatbuffers is installed")
def test_what_is_not_installed_is_named_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match="needs the package flatbuffers: pip install"):
        export(tmp_path / "gone", tmp_path / "new", "stablehlo")
