"""What of the folders that ``export`` writes for PyTorch is read back here.

Where no class of transformers pools as the model does, such a folder carries a module file of its
own. Its encoder is still one of transformers' families, with that family's tensors and settings,
so that nothing here runs that file. Where one does, its tensors are those of that class, of which
some have the pooler in the head.
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
from mtl_jax.models.families import FAMILIES
from mtl_jax.models.heads import dense_layers

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

# The last layer of a classifier, whichever class it is in, and those before it in the module file.
_LINEAR, _HIDDEN = "classifier", "hidden"
# Families whose encoder has no pooler where transformers classifies: its head of two layers begins
# with that one, on the first token and with tanh.
_POOLER_IN_HEAD = ("roberta", "xlm-roberta", "camembert", "mpnet")
_IN_HEAD, _AFTER_IT, _POOLER = "classifier.dense", "classifier.out_proj", "pooler.dense"
_PARAMETERS = ("weight", "bias")

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
                "hidden": {"type": "array", "items": {"type": "integer", "minimum": 1}},
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
        hidden: Units of each hidden layer; none of a head that is one Dense layer.
        params: Its parameters, float32: those of a Dense layer, ``kernel`` [hidden, outputs] and
            ``bias`` [outputs], or of an ``MlpHead``.
    """

    task: str
    kind: str
    classes: tuple[str, ...]
    hidden: tuple[int, ...]
    params: dict[str, Any]


def is_native(pooling: Pooling, head: Mapping[str, Any]) -> bool:
    """Whether a class of transformers itself pools so, and puts such a head on that.

    Each family that has a pooler has such a class for one linear layer; no other pooling and no
    other head has one.

    Args:
        pooling: How a text's token vectors become one.
        head: The parameters of the head.
    """
    return pooling == "pooler" and len(dense_layers(head)) == 1


def classifier_tensors(
    encoder: Mapping[str, np.ndarray], head: Mapping[str, Any], family: str, pooling: Pooling
) -> dict[str, np.ndarray]:
    """The tensors of a model with one head.

    Args:
        encoder: Those of the family's plain model.
        head: The parameters of the head: a Dense layer, or an ``MlpHead``.
        family: The encoder's ``model_type``.
        pooling: How a text's token vectors become one.
    """
    prefix, last = FAMILIES[family].prefix, _LINEAR
    tensors = {f"{prefix}{name}": array for name, array in encoder.items()}
    if is_native(pooling, head) and family in _POOLER_IN_HEAD:
        last = _AFTER_IT
        for name in _PARAMETERS:
            tensors[f"{_IN_HEAD}.{name}"] = tensors.pop(f"{prefix}{_POOLER}.{name}")
    layers = dense_layers(head)
    names = [*(f"{_HIDDEN}.{i}" for i in range(len(layers) - 1)), last]
    for name, layer in zip(names, layers, strict=True):
        tensors[f"{name}.weight"] = np.asarray(layer["kernel"]).T
        tensors[f"{name}.bias"] = np.asarray(layer["bias"])
    return tensors


def with_pooler(
    folder: Path, tensors: Mapping[str, np.ndarray], family: str
) -> Mapping[str, np.ndarray]:
    """The tensors of a checkpoint, with the pooler of an exported one in its place.

    Args:
        folder: The checkpoint's.
        tensors: All that it has.
        family: Its encoder's ``model_type``.

    Raises:
        UserError: Its ``config.json`` is damaged.
    """
    if family not in _POOLER_IN_HEAD or exported_pooling(folder) != "pooler":
        return tensors
    names = {f"{_IN_HEAD}.{name}": f"{_POOLER}.{name}" for name in _PARAMETERS}
    prefix = FAMILIES[family].prefix
    return {
        f"{prefix}{names[name]}" if name in names else name: array
        for name, array in tensors.items()
    }


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
    hidden = tuple(fields[FIELD].get("hidden", ()))
    last = _AFTER_IT if f"{_AFTER_IT}.weight" in tensors else _LINEAR
    names = [*(f"{_HIDDEN}.{i}" for i in range(len(hidden))), last]
    layers: list[dict[str, np.ndarray]] = []
    for name, units in zip(names, (*hidden, len(labels)), strict=True):
        kernel, bias = (tensors.get(f"{name}.{parameter}") for parameter in _PARAMETERS)
        if kernel is None or bias is None or kernel.ndim != 2 or len(kernel) != units:
            raise UserError(
                f"{folder} has no {name}.weight and {name}.bias of {units} outputs, as its "
                f"config.json says: {_REMEDY}"
            )
        layer = {"kernel": np.ascontiguousarray(kernel.T, np.float32)}
        layers.append(layer | {"bias": np.ascontiguousarray(bias, np.float32)})
    own = [f"hidden_{i}" for i in range(len(hidden))]
    kinds = {name: kind for kind, name in PROBLEM_TYPES.items()}
    kind = kinds[fields["problem_type"]]
    return ExportedHead(
        task=fields[FIELD]["task"],
        kind=kind,
        classes=() if kind == "regression" else tuple(labels),
        hidden=hidden,
        params=dict(zip([*own, "output"], layers, strict=True)) if hidden else layers[0],
    )
