"""A folder that JAX alone runs: the program as StableHLO, its weights, tokenizer and labels."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import write_json
from mtl_jax.tools.export.forward import forward, weights_of
from mtl_jax.tools.export.torch_folders import Dtype, as_dtype, save_tensors
from mtl_jax.tools.export.trained_run import TrainedRun

LOADER = "load_stablehlo.py"
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def write_stablehlo(
    run: TrainedRun, folder: Path, dtype: Dtype, where: str, trust: Sequence[str]
) -> None:
    """Writes the model of all tasks, heads of the user's own included.

    The program takes weights by their paths, ``input_ids``, ``attention_mask`` and, of pairs of
    texts that the encoder tells apart by them, ``token_type_ids``, int32 [batch, length] of any
    batch and of any length that the encoder has positions for, and gives float32 [batch, outputs]
    for each task.

    Args:
        run: The run.
        folder: Where to write.
        dtype: Of the weights in their file; the program computes as the run did.
        where: The folder of the run, for an error.
        trust: The modules of a user's own code that may be imported.

    Raises:
        UserError: A package is missing, the run names code that is not trusted, or a weight does
            not fit into ``dtype``.
        OSError: It can't be written.
    """
    weights = {path: as_dtype(path, leaf, dtype) for path, leaf in weights_of(run).items()}
    program = _program(run, weights, where, trust)
    (folder / "model.stablehlo").write_bytes(program)
    save_tensors(folder / "model.safetensors", weights, dtype)
    write_json(
        folder / "tasks.json",
        {
            head.name: {"kind": head.kind, "labels": list(head.labels), "pairs": run.pairs}
            for head in run.heads
        },
    )
    _write_tokenizer(run, folder / "tokenizer.json")
    shutil.copyfile(Path(__file__).with_name(LOADER), folder / LOADER)


def require_flatbuffers() -> None:
    """Refuses where what serializes a program is not installed.

    Raises:
        UserError: It is not.
    """
    try:
        import flatbuffers  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "--format stablehlo needs the package flatbuffers: pip install flatbuffers"
        ) from error


def _program(run: TrainedRun, weights: Any, where: str, trust: Sequence[str]) -> bytes:
    from jax import export

    longest = f"length <= {run.config.max_length}"
    shape = export.symbolic_shape("batch, length", constraints=[longest])
    arrays = [jax.ShapeDtypeStruct(shape, jnp.int32)] * (3 if run.token_types else 2)
    given = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), weights)
    model: Any = forward(run, where, trust)
    return bytes(export.export(model, platforms=_PLATFORMS)(given, *arrays).serialize())


def _write_tokenizer(run: TrainedRun, path: Path) -> None:
    """The tokenizer as one file, which cuts texts as the run did and fills them up."""
    loaded, own = run.tokenizer, run.plain_tokenizer()
    own.enable_truncation(run.max_length, direction=loaded.truncation_side)
    own.enable_padding(pad_id=loaded.pad_token_id, pad_token=loaded.pad_token)
    own.save(str(path))
