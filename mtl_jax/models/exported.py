"""What of the folders that ``export`` writes for PyTorch is read back here.

Where no class of transformers pools as the model does, such a folder carries a module file of its
own. Its encoder is still one of transformers' families, with that family's tensors and settings,
so that nothing here runs that file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from mtl_jax.config.model import Pooling
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import read_json

FIELD = "mtl_jax"
"""Of a ``config.json``: what transformers has no field for."""

MODULE = "modeling_pooled"
"""The module file, without ``.py``."""

AUTO_MAP = {
    "AutoConfig": f"{MODULE}.PooledConfig",
    "AutoModelForSequenceClassification": f"{MODULE}.PooledForSequenceClassification",
}
_POOLED = "pooled_"

PROBLEM_TYPES = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
"""The kind of a task to transformers' name of it."""

# The tensors of a linear classifier, whichever class it is in.
_KERNEL, _BIAS = "classifier.weight", "classifier.bias"

_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        FIELD: {"type": "object", "properties": {"pooling": {"enum": list(get_args(Pooling))}}}
    },
}
_WITH_HEAD: Mapping[str, Any] = {
    "type": "object",
    "required": [FIELD, "id2label", "problem_type"],
    "properties": {
        FIELD: {
            "type": "object",
            "required": ["task", "pooling"],
            "properties": {
                "task": {"type": "string"},
                "pooling": {"enum": list(get_args(Pooling))},
            },
        },
        "id2label": {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "string"},
        },
        "problem_type": {"enum": list(PROBLEM_TYPES.values())},
    },
}
_REMEDY = "name a folder that export --format huggingface wrote, or what PyTorch saved of one"


def pooled_type(model_type: str) -> str:
    """The ``model_type`` of a model that has a family's encoder and the module file."""
    return f"{_POOLED}{model_type}"


def plain_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a ``config.json`` as those of the encoder's own family.

    Args:
        fields: Those of any checkpoint; only where they name the module file of an export, they
            are changed.
    """
    kind, code = fields.get("model_type"), fields.get("auto_map")
    if not (isinstance(kind, str) and kind.startswith(_POOLED) and isinstance(code, dict)):
        return fields
    # transformers writes where on the hub a module file is from before its name.
    named = {name: str(path).rpartition("--")[2] for name, path in code.items()}
    if named != AUTO_MAP:
        return fields
    rest = {name: value for name, value in fields.items() if name != "auto_map"}
    return rest | {"model_type": kind.removeprefix(_POOLED)}


def exported_pooling(folder: Path) -> Pooling | None:
    """The pooling of the model that a folder was exported from; None of any other folder.

    Raises:
        UserError: Its ``config.json`` is damaged.
    """
    path = folder / "config.json"
    fields = read_json(path, _SCHEMA, "export it again") if path.exists() else {}
    return fields.get(FIELD, {}).get("pooling")


@dataclasses.dataclass(frozen=True)
class ExportedHead:
    """The head of a folder of one task.

    Attributes:
        task: The name of the task.
        kind: What its labels are, as of ``PROBLEM_TYPES``.
        classes: The names of its classes; none of a regression.
        params: Its Dense layer, float32: ``kernel`` [hidden, outputs] and ``bias`` [outputs].
    """

    task: str
    kind: str
    classes: tuple[str, ...]
    params: dict[str, np.ndarray]


def classifier_tensors(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of transformers' linear classifier, from the parameters of a Dense layer."""
    return {_KERNEL: np.asarray(params["kernel"]).T, _BIAS: np.asarray(params["bias"])}


def read_head(folder: Path, tensors: Mapping[str, np.ndarray]) -> ExportedHead:
    """Reads the head of an exported folder.

    Args:
        folder: The folder.
        tensors: All of its checkpoint.

    Raises:
        UserError: It is no such folder, or its tensors are not those of the head.
    """
    fields = read_json(folder / "config.json", _WITH_HEAD, _REMEDY)
    labels = [fields["id2label"][i] for i in sorted(fields["id2label"], key=int)]
    kernel, bias = tensors.get(_KERNEL), tensors.get(_BIAS)
    if kernel is None or bias is None or kernel.ndim != 2 or len(kernel) != len(labels):
        raise UserError(
            f"{folder} has no {_KERNEL} and {_BIAS} of {len(labels)} outputs, as its config.json "
            f"says: {_REMEDY}"
        )
    kinds = {name: kind for kind, name in PROBLEM_TYPES.items()}
    kind = kinds[fields["problem_type"]]
    return ExportedHead(
        task=fields[FIELD]["task"],
        kind=kind,
        classes=() if kind == "regression" else tuple(labels),
        params={
            "kernel": np.ascontiguousarray(kernel.T, np.float32),
            "bias": np.ascontiguousarray(bias, np.float32),
        },
    )
