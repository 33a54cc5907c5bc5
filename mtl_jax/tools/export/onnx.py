"""A folder for ONNX Runtime: what PyTorch makes of the folder that transformers loads, checked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np

from mtl_jax.core.errors import UserError, first_line, system_number
from mtl_jax.core.json_files import OBJECT, read_json, write_json
from mtl_jax.models import exported
from mtl_jax.tools.export.forward import forward, weights_of
from mtl_jax.tools.export.torch_folders import write_classifier
from mtl_jax.tools.export.trained_run import TaskHead, TrainedRun

TOLERANCE = 1e-4
"""How far ONNX Runtime's logits may be from the model's own."""

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")
_MODEL = "model.onnx"


def require_packages() -> None:
    """Refuses where a package is not installed.

    Raises:
        UserError: One is not.
    """
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise UserError(
            f"--format onnx needs {' and '.join(missing)}, which PyTorch converts with: pip "
            "install 'mtl-jax[onnx]'"
        )


def write_onnx(run: TrainedRun, head: TaskHead, folder: Path, where: str) -> None:
    """Writes ``model.onnx`` of a task, with its settings and tokenizer.

    The model takes ``input_ids``, ``attention_mask`` and, of pairs of texts that the encoder tells
    apart by them, ``token_type_ids``, int64 [batch, length], and gives ``logits``, float32 [batch,
    outputs].

    Args:
        run: The run.
        head: The head of the task.
        folder: Where to write.
        where: The folder of the run, for an error.

    Raises:
        UserError: PyTorch can't convert the model, or ONNX Runtime gives other logits.
        OSError: It can't be written.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        source.mkdir()
        write_classifier(run, head, source, "float32")
        program = Path(__file__).with_name("torch_to_onnx.py")
        words = [str(source), str(folder / _MODEL), str(run.config.max_length), *_inputs(run)]
        # transformers keeps a copy of each module file that it runs.
        own = {"HF_MODULES_CACHE": str(Path(scratch) / "modules"), "PYTHONIOENCODING": "utf-8"}
        done = subprocess.run(  # noqa: S603  (this interpreter, and a file of this package)
            # Without the folder of the program on the path, where modules have other's names.
            [sys.executable, "-P", str(program), *words],
            env=os.environ | own,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()] or ["no word"]
            if number := system_number(OSError(said[-1])):
                raise OSError(number, os.strerror(number), str(folder / _MODEL))
            raise UserError(
                f"PyTorch can't convert the task {head.name!r} to ONNX ({said[-1][:300]}): use "
                "another release of torch and onnxscript, or --format stablehlo"
            )
        fields = exported.plain_fields(read_json(source / "config.json", OBJECT, "try again"))
        write_json(folder / "config.json", fields)
        left = ("config.json", "model.safetensors", f"{exported.MODULE}.py")
        for file in source.iterdir():
            if file.name not in left:
                shutil.copyfile(file, folder / file.name)
    _check(run, head, folder / _MODEL, where)


def _inputs(run: TrainedRun) -> list[str]:
    types = ["token_type_ids"] if run.token_types else []
    return ["input_ids", "attention_mask", *types]


def _check(run: TrainedRun, head: TaskHead, path: Path, where: str) -> None:
    """Holds the logits of ONNX Runtime against the model's own, on texts of several lengths.

    Raises:
        UserError: They differ, or the file can't be run.
    """
    import onnxruntime  # pyright: ignore[reportMissingImports]  (optional)

    length, pad = run.max_length, cast("int", run.tokenizer.pad_token_id)
    ids = np.random.default_rng(0).integers(0, run.config.vocab_size - 1, (3, length), np.int64)
    ids += ids >= pad
    lengths = np.array([length, max(length // 2, 1), min(3, length)])
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    # Some families count positions by what is not padding's id.
    ids = np.where(mask, ids, pad)
    # The second text of a pair is the second half.
    types = mask * (2 * np.arange(length) >= lengths[:, None])
    given = dict(zip(_inputs(run), (ids, mask, types), strict=False))
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, given)
    except Exception as error:
        raise UserError(
            f"ONNX Runtime can't run {head.name} ({first_line(error)}): use another release"
        ) from error
    model = forward(run, where, ())
    arrays = (array.astype(np.int32) for array in given.values())
    expected = model(weights_of(run), *arrays)[head.name]
    if not (apart := float(np.abs(found - np.asarray(expected)).max())) <= TOLERANCE:
        raise UserError(
            f"ONNX Runtime gives logits of {head.name} that are {apart:.2g} away from the model's "
            f"own, and not within {TOLERANCE:g}: use --format stablehlo"
        )
