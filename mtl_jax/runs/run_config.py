"""What a run's ``config.json`` says of it, read back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from mtl_jax.config.data import DataConfig
from mtl_jax.config.earlier import renamed
from mtl_jax.config.extensions import named_paths
from mtl_jax.config.model import Parallel, Pooling
from mtl_jax.config.tasks import Kind, Task
from mtl_jax.config.train import Settings
from mtl_jax.core.errors import UserError
from mtl_jax.core.imported import refuse_untrusted
from mtl_jax.core.json_files import OBJECT, check_json
from mtl_jax.core.versions import version
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.runs.record_changes import json_digest, lasting
from mtl_jax.runs.workdir import Workdir
from mtl_jax.training.evaluator import ModelSpec, of_tasks
from mtl_jax.training.extensions import built_in_parts, load_extensions

_TEXT = {"type": "string"}
_CLASSES = {"type": "array", "items": _TEXT}
_NUMBER = {"type": "number"}


def _fields_of(kind: type) -> dict[str, Any]:
    """The schema of an object with fields of a dataclass."""
    names = [field.name for field in dataclasses.fields(kind)]
    return {"type": "object", "propertyNames": {"enum": names}}


_SIZE = {"type": "integer", "minimum": 1}
_LAYOUT = {
    "type": "object",
    "required": ["rows", "blocks", "slots"],
    "properties": {
        "rows": _SIZE,
        "slots": _SIZE,
        "blocks": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "array", "items": _SIZE, "minItems": 2, "maxItems": 2},
        },
    },
    "additionalProperties": False,
}
_RECORD = {
    "type": "object",
    "required": [
        "id",
        "settings",
        "phases",
        "bert",
        "pooling",
        "classes",
        "weights_sha256",
        "tokenizer_sha256",
        "data",
        "environment",
    ],
    "properties": {
        "id": _TEXT,
        "settings": {
            "type": "object",
            "required": ["data", "dtype"],
            "properties": {"data": _fields_of(DataConfig), "dtype": _TEXT},
        },
        "phases": {"type": "array", "items": OBJECT, "minItems": 1},
        "bert": _fields_of(EncoderConfig),
        "pooling": {"enum": list(get_args(Pooling))},
        "classes": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": _CLASSES,
        },
        "kinds": {"type": "object", "additionalProperties": {"enum": list(get_args(Kind))}},
        "scales": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["mean", "deviation"],
                "properties": {
                    "mean": _NUMBER,
                    "deviation": {"type": "number", "exclusiveMinimum": 0},
                },
            },
        },
        "class_weights": {
            "type": "object",
            "additionalProperties": {"type": "array", "items": _NUMBER},
        },
        "weights_sha256": _TEXT,
        "tokenizer_sha256": _TEXT,
        "data": {"type": "object", "required": ["fingerprint"]},
        "environment": {
            "type": "object",
            "required": ["limits", "versions", "devices"],
            "properties": {
                "limits": {
                    "type": "object",
                    "required": ["parallel"],
                    "properties": {"parallel": {"enum": list(get_args(Parallel))}},
                },
                "versions": OBJECT,
                "devices": {"type": "array", "items": _TEXT},
                "layout": {"anyOf": [_LAYOUT, {"type": "null"}]},
            },
        },
    },
}
"""The schema of what is read again of a run's ``config.json``."""


def read_record(workdir: Workdir, remedy: str) -> dict[str, Any]:
    """The ``config.json`` of a run's folder, with the names that settings have now.

    Args:
        workdir: The folder.
        remedy: What to do where it is another's.

    Raises:
        UserError: There is none, or it is that of a study.
    """
    record = workdir.config()
    if "settings" not in record or "phases" not in record:
        raise UserError(
            f"{workdir.path} is not the folder of a run (its config.json belongs to "
            f"something else): {remedy}"
        )
    if isinstance(record["settings"], dict):
        record = {**record, "settings": renamed(record["settings"])}
    made, own = record.get("mtl_jax"), version("mtl-jax")
    check_json(
        record,
        _RECORD,
        str(workdir.path / "config.json"),
        f"it was made by mtl_jax {made}, and this is {own}: use that version, or {remedy}",
    )
    return record


def identity(record: Mapping[str, Any]) -> dict[str, str]:
    """What a run is, to be kept in each of its checkpoints.

    Args:
        record: Its ``config.json``, as it stands there.

    Returns:
        The name that its folder alone has, and the digests of its settings, of all of its
        record that may not change, and of its tokenizer.
    """
    kept = lasting(record)
    return {
        "run": record["id"],
        "settings": json_digest(kept["settings"]),
        "config": json_digest(kept),
        "tokenizer": record["tokenizer_sha256"],
    }


def recorded_tasks(record: Mapping[str, Any], where: str) -> dict[str, Task]:
    """The tasks of a run by name, as its training data had them.

    Args:
        record: From ``read_record``.
        where: The folder that it is from, for an error.

    Raises:
        UserError: The record is damaged.
    """
    kinds, scales = record.get("kinds") or {}, record.get("scales") or {}
    columns = DataConfig(**record["settings"]["data"]).columns
    found = {}
    for name, classes in record["classes"].items():
        kind: Kind = kinds.get(name, "single_label")
        if kind == "regression":
            if name not in scales:
                raise UserError(f"{where}: config.json has no scale of {name}: train it again")
            task = Task(name, kind, columns.get(name, ""), **scales[name])
        elif not classes:
            raise UserError(f"{where}: config.json has no classes of {name}: train it again")
        else:
            task = Task(name, kind, columns.get(name, ""), tuple(classes))
        found[name] = task
    return found


def model_spec(
    record: dict[str, Any], where: str, trust: Sequence[str] = (), **how: Any
) -> ModelSpec:
    """The model of a run.

    Args:
        record: From ``read_record``.
        where: The folder that it is from, for an error.
        trust: The modules of a user's own code that it may import.
        **how: What of ``ModelSpec`` is no matter of the model: ``max_length``, ``parallel`` and
            so on.
    """
    settings, tasks = record["settings"], recorded_tasks(record, where)
    refuse_untrusted(named_paths(settings), trust, where)
    heads, loss, metrics = (settings.get(name) or () for name in ("heads", "loss", "metrics"))
    bert = EncoderConfig(**record["bert"])
    own = load_extensions(heads, loss, metrics, tasks, bert.hidden_size)
    names = ("heads", "loss", "mlp_heads", "class_weights", "label_smoothing")
    asked = Settings(
        data=DataConfig(**settings["data"]),
        **{name: settings[name] for name in names if name in settings},
    )
    own += built_in_parts(asked, tasks, bert, record.get("class_weights") or {})
    return ModelSpec(
        bert=bert,
        **of_tasks(tasks.values()),
        pooling=record["pooling"],
        dtype=settings["dtype"],
        fused_attention=settings.get("fused_attention", True),
        heads=own.heads,
        losses=own.losses,
        metrics=own.metrics,
        **how,
    )
