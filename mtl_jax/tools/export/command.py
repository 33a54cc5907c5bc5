"""The folder of a run to that of another framework, whole or not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mtl_jax.core.atomic_write import atomic_folder
from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError, cannot_read, cannot_write
from mtl_jax.core.paths import expanded
from mtl_jax.core.type_checks import refuse_arguments
from mtl_jax.models.exported import is_native
from mtl_jax.tools.export import card, hub
from mtl_jax.tools.export.onnx import require_packages, write_onnx
from mtl_jax.tools.export.stablehlo import require_flatbuffers, write_stablehlo
from mtl_jax.tools.export.torch_folders import (
    Dtype,
    write_classifier,
    write_sentence_encoder,
)
from mtl_jax.tools.export.trained_run import TaskHead, TrainedRun

Format = Literal["huggingface", "sentence-transformers", "stablehlo", "onnx"]

# In these each task has a folder of its own.
_OF_TASKS = ("huggingface", "onnx")


@dataclasses.dataclass(frozen=True)
class _Part:
    """A folder that is loaded by itself.

    Attributes:
        path: Its path in that of ``--output``.
        heads: The tasks whose heads it holds.
        repository: Where it is pushed to; None for nowhere.
    """

    path: str
    heads: tuple[TaskHead, ...]
    repository: str | None


def export(
    workdir: str | Path,
    output: str | Path,
    format: Format = "huggingface",  # noqa: A002  (it is the name of the flag)
    *,
    dtype: Dtype = "float32",
    tasks: Sequence[str] = (),
    trust: Sequence[str] = (),
    push_to_hub: str | None = None,
    private: bool = False,
) -> Path:
    """Exports the best checkpoint of a run to a folder that another framework can load.

        mtl.export("runs/mine", "exported")

    Args:
        workdir: The folder of the run.
        output: The folder to create.
        format: ``huggingface``: one folder per task, for transformers;
            ``sentence-transformers``: the encoder with its pooling; ``stablehlo``: one program
            for all tasks, which JAX loads; ``onnx``: one folder per task, for ONNX Runtime.
        dtype: Precision of the weights in the files; ``onnx`` supports float32 only.
        tasks: The tasks whose heads are exported; by default all.
        trust: The modules with a user's own code that may be imported, if the run names any.
        push_to_hub: The name of a repository to upload to as well; if there are several folders,
            each has a repository, ``NAME-TASK``.
        private: Whether a new repository is private.

    Returns:
        The folder.

    Raises:
        UserError: There is no run, ``output`` exists and is not an empty folder, the model can't
            be exported in that format, or the hub refuses. Except in the last case no folder is
            left.
    """
    refuse_arguments(export, locals())
    folder = _free(output)
    if format == "stablehlo":
        require_flatbuffers()
    if format == "onnx":
        if dtype != "float32":
            raise UserError(f"--format onnx is written in float32: leave --dtype {dtype} out")
        require_packages()
    if push_to_hub is not None:
        hub.refuse_name(push_to_hub)
    run = TrainedRun.open(workdir, tasks)
    parts = _parts(run, format, push_to_hub)
    if format == "sentence-transformers" and tasks:
        say("note: --tasks is without effect: sentence-transformers gets the encoder and no head")
    if format in _OF_TASKS:
        native = [is_native(run.pooling, head.dense()) for head in run.heads]
        if format == "huggingface" and not all(native):
            what = "an MLP as its head" if run.pooling == "pooler" else f"the pooling {run.pooling}"
            say(
                f"note: transformers has no class of this encoder with {what}: such a folder has a "
                "module file and is loaded with trust_remote_code=True"
            )
    try:
        with atomic_folder(folder) as draft:
            for part in parts:
                inside = draft / part.path
                inside.mkdir(exist_ok=True)
                loaded_by = part.repository or str(Path(folder.absolute().name, part.path))
                text = _write(run, part, inside, format, dtype, loaded_by, str(workdir), trust)
                (inside / "README.md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise cannot_write(folder, error) from error
    for part in parts:
        if part.repository is not None:
            say(f"pushed to {hub.push(folder / part.path, part.repository, private=private)}")
    return folder


def _parts(run: TrainedRun, format: Format, repository: str | None) -> list[_Part]:  # noqa: A002
    if format not in _OF_TASKS:
        heads = () if format == "sentence-transformers" else run.heads
        return [_Part("", heads, repository)]
    several = repository is not None and len(run.heads) > 1
    return [
        _Part(head.name, (head,), f"{repository}-{head.name}" if several else repository)
        for head in run.heads
    ]


def _free(output: str | Path) -> Path:
    """The folder to be written.

    Raises:
        UserError: It has no name, or something is there.
    """
    if not str(output):
        raise UserError("--output names no folder: give it one")
    folder = expanded(output)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            what = "is not empty" if folder.is_dir() else "is no folder"
            raise UserError(f"--output {folder} {what}: name a new folder")
    except OSError as error:
        raise cannot_read(folder, error) from error
    return folder


def _write(
    run: TrainedRun,
    part: _Part,
    folder: Path,
    format: Format,  # noqa: A002
    dtype: Dtype,
    loaded_by: str,
    where: str,
    trust: Sequence[str],
) -> str:
    """Writes a part, and returns its card."""
    if format == "stablehlo":
        write_stablehlo(run, folder, dtype, where, trust)
        return card.card(run, part.heads, card.program_use(pairs=run.pairs))
    if format == "sentence-transformers":
        write_sentence_encoder(run, folder, dtype)
        return card.card(run, (), card.encoder_use(loaded_by))
    (head,) = part.heads
    pairs = head.name in run.pair_tasks
    if format == "onnx":
        write_onnx(run, head, folder, where)
        return card.card(run, part.heads, card.onnx_use(loaded_by, pairs=pairs))
    write_classifier(run, head, folder, dtype)
    native = is_native(run.pooling, head.params)
    use = card.classifier_use(loaded_by, native=native, pairs=pairs)
    return card.card(run, part.heads, use)
