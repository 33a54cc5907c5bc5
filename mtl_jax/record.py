"""What a run's ``config.json`` says of it, read back."""

from __future__ import annotations

from typing import Any

from mtl_jax.config import TASKS, BertConfig
from mtl_jax.errors import UserError
from mtl_jax.evaluate import ModelSpec
from mtl_jax.workdir import Workdir


def read_record(workdir: Workdir, remedy: str) -> dict[str, Any]:
    """The ``config.json`` of a run's folder.

    Args:
        workdir: The folder.
        remedy: What to do where it is another's.

    Raises:
        UserError: There is none, or it is that of a study.
    """
    record = workdir.config()
    if "settings" not in record or "phases" not in record:
        raise UserError(
            f"{workdir.path} is not the folder of a run (its config.json is another's): {remedy}"
        )
    return record


def model_spec(record: dict[str, Any], **how: Any) -> ModelSpec:
    """The model of a run.

    Args:
        record: From ``read_record``.
        **how: What of ``ModelSpec`` is no matter of the model: ``max_length``, ``parallel`` and
            so on.
    """
    settings, classes = record["settings"], record["classes"]
    first, second = (len(classes[task]) for task in TASKS)
    return ModelSpec(
        bert=BertConfig(**record["bert"]),
        classes=(first, second),
        pooling=record["pooling"],
        dtype=settings["dtype"],
        fused_attention=settings.get("fused_attention", True),
        **how,
    )
