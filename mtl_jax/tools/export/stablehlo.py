"""A folder that JAX alone runs: the program as StableHLO, its weights, tokenizer and labels."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import write_json
from mtl_jax.runs.run_config import model_spec
from mtl_jax.tools.export.torch_folders import Dtype, as_dtype, save_tensors
from mtl_jax.tools.export.trained_run import TrainedRun

LOADER = "load_stablehlo.py"
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def write_stablehlo(
    run: TrainedRun, folder: Path, dtype: Dtype, where: str, trust: Sequence[str]
) -> None:
    """Writes the model of all tasks, heads of the user's own included.

    The program takes weights by their paths, ``input_ids`` and ``attention_mask``, int32 [batch,
    length] of any batch and of any length that the encoder has positions for, and gives float32
    [batch, outputs] for each task.

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
    weights = {path: as_dtype(path, np.asarray(leaf), dtype) for path, leaf in _flat(run).items()}
    program = _program(run, weights, where, trust)
    (folder / "model.stablehlo").write_bytes(program)
    save_tensors(folder / "model.safetensors", weights, dtype)
    write_json(
        folder / "tasks.json",
        {head.name: {"kind": head.kind, "labels": list(head.labels)} for head in run.heads},
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


def _flat(run: TrainedRun) -> dict[str, Any]:
    params = {"backbone": run.backbone, **{head.name: head.params for head in run.heads}}
    return dict(flatten_dict(params, sep="/"))


def _program(run: TrainedRun, weights: Any, where: str, trust: Sequence[str]) -> bytes:
    from jax import export

    spec = model_spec(dict(run.record), where, trust, max_length=run.max_length)
    asked = {head.name for head in run.heads}
    classes = tuple(each for each in spec.classes if each[0] in asked)
    # Fused attention is a call of one platform's own library.
    module = dataclasses.replace(spec, classes=classes, fused_attention=False).model()

    def of_text(weights: Any, ids: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        params = {path: array.astype(jnp.float32) for path, array in weights.items()}
        batch = {
            "input_ids": ids[None],
            "segment_ids": (mask > 0).astype(jnp.int32)[None],
            "position_ids": jnp.arange(ids.shape[0])[None],
            classes[0][0]: jnp.full((1, 1), -1),
        }
        logits: Any = module.apply({"params": unflatten_dict(params, sep="/")}, batch)
        return {
            head.name: logits[head.name][0, 0] * head.scale[0] + head.scale[1] for head in run.heads
        }

    # The model cuts its rows by their number, which a symbol is not: it sees one at a time.
    model = jax.jit(jax.vmap(of_text, (None, 0, 0)))
    longest = f"length <= {run.config.max_length}"
    shape = export.symbolic_shape("batch, length", constraints=[longest])
    ids = jax.ShapeDtypeStruct(shape, jnp.int32)
    given = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), weights)
    return bytes(export.export(model, platforms=_PLATFORMS)(given, ids, ids).serialize())


def _write_tokenizer(run: TrainedRun, path: Path) -> None:
    """The tokenizer as one file, which cuts texts as the run did and fills them up."""
    loaded, own = run.tokenizer, run.plain_tokenizer()
    own.enable_truncation(run.max_length, direction=loaded.truncation_side)
    own.enable_padding(pad_id=loaded.pad_token_id, pad_token=loaded.pad_token)
    own.save(str(path))
