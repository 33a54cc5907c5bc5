"""The folder of a run to that of another framework, whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mtl_jax.core.atomic_write import whole_folder
from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError, cannot_read, cannot_write
from mtl_jax.core.paths import expanded
from mtl_jax.models.exported import is_native
from mtl_jax.tools.export import card, hub
from mtl_jax.tools.export.stablehlo import LOADER, require_flatbuffers, write_stablehlo
from mtl_jax.tools.export.torch_folders import (
    Dtype,
    write_classifier,
    write_sentence_encoder,
)
from mtl_jax.tools.export.trained_run import TrainedRun

Format = Literal["huggingface", "sentence-transformers", "stablehlo", "onnx"]


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
    """Writes the best checkpoint of a run as a folder of another framework.

        mtl.export("runs/mine", "exported")

    Args:
        workdir: The folder of the run.
        output: The new folder.
        format: ``huggingface``: in it a folder for each task, which transformers loads;
            ``sentence-transformers``: the encoder and its pooling; ``stablehlo``: a program of
            all tasks, which JAX loads.
        dtype: Of the weights in the files.
        tasks: Those whose heads are written; all by default.
        trust: The modules that may be imported, where the run names a user's own code.
        push_to_hub: The name of a repository that it is pushed to as well; of several tasks each
            has its own, ``NAME-TASK``.
        private: Whether a repository that is made now is private.

    Returns:
        The folder.

    Raises:
        UserError: There is no run, something else is where the folder would be, the model can't be
            had in that format, or the hub refuses. Then there is no folder, but for the last.
    """
    folder = _free(output)
    if format == "onnx":
        raise UserError(
            "--format onnx is not written: no maintained converter takes this model from JAX with "
            "batches and lengths of any size; use --format stablehlo, or give the folder of "
            "--format huggingface to PyTorch's torch.onnx.export"
        )
    if format == "stablehlo":
        require_flatbuffers()
    if push_to_hub is not None:
        hub.refuse_name(push_to_hub)
    run = TrainedRun.open(workdir, tasks)
    if format == "huggingface":
        for head in run.heads:
            _ = head.dense()
    try:
        with whole_folder(folder) as draft:
            _write(run, draft, format, dtype, folder.name, str(workdir), trust)
    except OSError as error:
        raise cannot_write(folder, error) from error
    if push_to_hub is not None:
        names = [head.name for head in run.heads] if format == "huggingface" else []
        several = len(names) > 1
        for part, name in [(folder / name, name) for name in names] or [(folder, "")]:
            repository = f"{push_to_hub}-{name}" if several else push_to_hub
            say(f"pushed to {hub.push(part, repository, private=private)}")
    return folder


def _free(output: str | Path) -> Path:
    """The folder to be written.

    Raises:
        UserError: It has no name, or something is there.
    """
    folder = expanded(output)
    if not str(output):
        raise UserError("--output names no folder: give it one")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            what = "is not empty" if folder.is_dir() else "is no folder"
            raise UserError(f"--output {folder} {what}: name a new folder")
    except OSError as error:
        raise cannot_read(folder, error) from error
    return folder


def _write(
    run: TrainedRun,
    folder: Path,
    kind: Format,
    dtype: Dtype,
    name: str,
    where: str,
    trust: Sequence[str],
) -> None:
    if kind == "stablehlo":
        write_stablehlo(run, folder, dtype, where, trust)
        loader = f"from {Path(LOADER).stem} import logits, tasks\n\n"
        usage = f'{loader}logits(["a text"])  # per task [texts, labels of tasks]'
        code = f"`{LOADER}` has to lie in this folder; it needs jax, flatbuffers and tokenizers."
        metadata = {"library_name": "jax"}
        _write_card(folder, card.card(run, run.heads, usage, metadata, code))
    elif kind == "sentence-transformers":
        write_sentence_encoder(run, folder, dtype)
        usage = card.ENCODER_USAGE.format(folder=name)
        metadata = {"library_name": kind, "pipeline_tag": "sentence-similarity", "tags": [kind]}
        _write_card(folder, card.card(run, (), usage, metadata, ""))
    else:
        native = is_native(run.pooling)
        if not native:
            say(
                f"note: transformers has no class of this encoder that pools by {run.pooling}: "
                "each folder has a module file, and is loaded with trust_remote_code=True"
            )
        for head in run.heads:
            of_task = folder / head.name
            of_task.mkdir()
            write_classifier(run, head, of_task, dtype)
            usage = card.classifier_usage(f"{name}/{head.name}", native=native)
            metadata = {"library_name": "transformers", "pipeline_tag": "text-classification"}
            code = "" if native else card.CODE
            _write_card(of_task, card.card(run, (head,), usage, metadata, code))


def _write_card(folder: Path, text: str) -> None:
    (folder / "README.md").write_text(text, encoding="utf-8")
