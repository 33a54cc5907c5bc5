"""Pre-trained checkpoints: where a name leads, and one conversion table read both ways."""

from __future__ import annotations

import dataclasses
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict

from mtl_jax.config.model import DEFAULT_BACKBONE, Pooling
from mtl_jax.core import downloads
from mtl_jax.core.atomic_write import refuse_other_kind
from mtl_jax.core.errors import UserError, first_line
from mtl_jax.core.json_files import OBJECT, read_json
from mtl_jax.core.paths import expanded
from mtl_jax.models.bert_config import BertConfig
from mtl_jax.models.exported import exported_pooling, plain_fields

_HUB_FILES = ("*.json", "*.safetensors", "vocab.txt", "1_Pooling/config.json")
_FETCH = "fetch the checkpoint again"
# Of what a list holds, so many are told in an error.
_MOST_NAMED = 10

# transformers' module name -> (Flax path, kind). A dense kernel is PyTorch's weight transposed.
_DENSE = {"weight": ("kernel", True), "bias": ("bias", False)}
_NORM = {"weight": ("scale", False), "bias": ("bias", False)}
_EMBED = {"weight": ("embedding", False)}
_EMBEDDINGS = {
    "embeddings.word_embeddings": ("embeddings/word", _EMBED),
    "embeddings.position_embeddings": ("embeddings/position", _EMBED),
    "embeddings.token_type_embeddings": ("embeddings/token_type", _EMBED),
    "embeddings.LayerNorm": ("embeddings/layer_norm", _NORM),
}
_LAYER = {
    "attention.self.query": ("attention/query", _DENSE),
    "attention.self.key": ("attention/key", _DENSE),
    "attention.self.value": ("attention/value", _DENSE),
    "attention.output.dense": ("attention/output", _DENSE),
    "attention.output.LayerNorm": ("attention/layer_norm", _NORM),
    "intermediate.dense": ("mlp/intermediate", _DENSE),
    "output.dense": ("mlp/output", _DENSE),
    "output.LayerNorm": ("mlp/layer_norm", _NORM),
}
_POOLER = {"pooler.dense": ("pooler", _DENSE)}
# Whatever else is in a file is not of the encoder: heads of tasks, under any name.
_ENCODER = ("embeddings.", "encoder.", "pooler.")
_NUMBERED = re.compile(r"encoder\.layer\.(\d+)\.")

_INDEX_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "required": ["weight_map"],
    "properties": {
        "weight_map": {
            "type": "object",
            "minProperties": 1,
            # A file beside the index, and no path that leads elsewhere.
            "additionalProperties": {"type": "string", "pattern": r"^[^/\\]+\.safetensors$"},
        }
    },
}
_MODULES_SCHEMA: Mapping[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["type"],
        "properties": {"type": {"type": "string"}, "path": {"type": "string"}},
    },
}
_POOLING_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "pooling_mode": {
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
        }
    },
    "patternProperties": {"^pooling_mode_": {"type": ["boolean", "null"]}},
}
_POOLINGS: Mapping[str, Pooling] = {
    "mean": "mean",
    "mean_tokens": "mean",
    "cls": "cls",
    "cls_token": "cls",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of the conversion table.

    Attributes:
        tensor: Name in the safetensors file, without the prefix ``bert.``.
        path: Path in the Flax tree.
        transposed: Whether one is the other's transpose.
    """

    tensor: str
    path: str
    transposed: bool


def conversion_table(num_layers: int, with_pooler: bool) -> list[Entry]:
    """Every tensor of a backbone with the leaf that it becomes."""
    modules = dict(_EMBEDDINGS)
    for i in range(num_layers):
        for name, (path, kind) in _LAYER.items():
            modules[f"encoder.layer.{i}.{name}"] = (f"layer_{i}/{path}", kind)
    if with_pooler:
        modules |= _POOLER
    return [
        Entry(f"{name}.{parameter}", f"{path}/{leaf}", transposed)
        for name, (path, kind) in modules.items()
        for parameter, (leaf, transposed) in kind.items()
    ]


def _expected_shape(path: str, config: BertConfig) -> tuple[int, ...]:
    hidden, inner = config.hidden_size, config.intermediate_size
    if path.startswith("embeddings/") and path.endswith("/embedding"):
        sizes = {
            "word": config.vocab_size,
            "position": config.max_position_embeddings,
            "token_type": config.type_vocab_size,
        }
        return (sizes[path.split("/")[1]], hidden)
    if "/mlp/intermediate/" in path:
        return (hidden, inner) if path.endswith("kernel") else (inner,)
    if "/mlp/output/" in path:
        return (inner, hidden) if path.endswith("kernel") else (hidden,)
    return (hidden, hidden) if path.endswith("kernel") else (hidden,)


def from_transformers(tensors: Mapping[str, np.ndarray], config: BertConfig) -> dict[str, Any]:
    """Converts a checkpoint's tensors to the Flax tree, float32.

    Tensors of a task's own head (beside the prefix ``bert.``, or beside ``embeddings``,
    ``encoder`` and ``pooler`` where there is no prefix) are left out, as are the position indices
    that old checkpoints carry; the older names ``LayerNorm.gamma`` and ``LayerNorm.beta`` are
    understood. The pooler is kept where there is one.

    Raises:
        UserError: Tensors are missing, unexpected or wrongly shaped, or hold anything but finite
            floating-point numbers; the first of each kind are named.
    """
    tensors = _canonical(tensors)
    # Before a table of as many layers as a damaged config.json may say is made.
    layers = len({found[1] for found in map(_NUMBERED.match, tensors) if found})
    if config.num_hidden_layers > layers:
        raise UserError(
            f"config.json says num_hidden_layers {config.num_hidden_layers:,}, the weights have "
            f"{layers:,} layers: use the files of one and the same BERT checkpoint"
        )
    table = conversion_table(config.num_hidden_layers, "pooler.dense.weight" in tensors)
    params: dict[str, np.ndarray] = {}
    missing: list[str] = []
    misshaped: list[str] = []
    no_floats: list[str] = []
    not_finite: list[str] = []
    for entry in table:
        if entry.tensor not in tensors:
            missing.append(entry.tensor)
            continue
        value = tensors[entry.tensor]
        value = value.T if entry.transposed else value
        expected = _expected_shape(entry.path, config)
        if value.shape != expected:
            expected = expected[::-1] if entry.transposed else expected
            found = tensors[entry.tensor].shape
            misshaped.append(f"{entry.tensor} is {found}, not {expected}")
            continue
        if not _is_floating(value):
            no_floats.append(f"{entry.tensor} is {value.dtype}")
            continue
        with np.errstate(over="ignore"):  # what float32 can't hold becomes infinite, and is told
            params[entry.path] = np.ascontiguousarray(value, dtype=np.float32)
        if not np.isfinite(params[entry.path]).all():
            not_finite.append(entry.tensor)
    unexpected = sorted(set(tensors) - {entry.tensor for entry in table})
    problems = [
        f"{kind}: {_named(names)}"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrongly shaped", misshaped),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"the weights do not fit their config.json ({'; '.join(problems)}): "
            "use the files of one and the same BERT checkpoint"
        )
    if no_floats:
        raise UserError(
            f"weights are no floating-point numbers ({_named(no_floats)}): use a checkpoint that "
            "is not quantized"
        )
    if not_finite:
        raise UserError(f"weights are NaN or infinite ({_named(not_finite)}): {_FETCH}")
    return unflatten_dict(params, sep="/")


def _is_floating(value: np.ndarray) -> bool:
    # The half precision that is not numpy's, bfloat16, is none of its floating kinds.
    return np.issubdtype(value.dtype, np.floating) or value.dtype.name.startswith("bfloat")


def _named(names: Sequence[str]) -> str:
    """Names for an error, which stays short whatever a file holds."""
    shown = [name if len(name) <= 100 else f"{name[:100]}..." for name in names[:_MOST_NAMED]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def to_transformers(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of ``from_transformers``: the tensors of a ``BertModel``."""
    flat = flatten_dict(dict(params), sep="/")
    num_layers = sum(name.startswith("layer_") for name in params)
    tensors = {}
    for entry in conversion_table(num_layers, "pooler" in params):
        value = np.asarray(flat[entry.path])
        tensors[entry.tensor] = np.ascontiguousarray(value.T if entry.transposed else value)
    return tensors


def _canonical(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    if any(name.startswith("bert.") for name in tensors):
        tensors = {
            name.removeprefix("bert."): value
            for name, value in tensors.items()
            if name.startswith("bert.")
        }
    tensors = {k: value for k, value in tensors.items() if k.startswith(_ENCODER)}
    renamed = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
            "LayerNorm.beta", "LayerNorm.bias"
        ): value
        for name, value in tensors.items()
    }
    renamed.pop("embeddings.position_ids", None)
    return renamed


def resolve_backbone(name: str) -> Path:
    """The folder of a checkpoint: itself, the pinned default's, or the hub's cache's.

    Raises:
        UserError: There is no such folder, and the hub has no such name or can't be reached.
    """
    folder = expanded(name)
    if folder.is_dir():
        return folder
    if name == DEFAULT_BACKBONE:
        return downloads.minilm()
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"backbone {name!r}: no such folder: correct the path")
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except errors.GatedRepoError as error:
        raise UserError(
            f"backbone {name!r} is gated: ask for access on its page, then `hf auth login`"
        ) from error
    except (errors.HFValidationError, errors.RepositoryNotFoundError) as error:
        raise UserError(
            f"unknown backbone {name!r}: name a folder, or a checkpoint on the hub "
            f"(the default is {DEFAULT_BACKBONE})"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        raise UserError(
            f"backbone {name!r} is neither a folder nor in the hub's cache, and the hub can't be "
            "reached: connect to the network once, or give the folder of a downloaded checkpoint"
        ) from error


def _weight_files(folder: Path) -> Iterator[Path]:
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    # As transformers does: saving a model again, in one file, leaves an older index beside it.
    if whole.exists() or not index.exists():
        yield whole
        return
    for shard in sorted(set(read_json(index, _INDEX_SCHEMA, _FETCH)["weight_map"].values())):
        yield folder / shard


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint folder, from safetensors only: a pickle can run code."""
    tensors: dict[str, np.ndarray] = {}
    for path in _weight_files(folder):
        if not path.exists():
            raise UserError(
                f"{path} is missing: weights are read from safetensors only; convert the "
                "checkpoint, or use one that has model.safetensors"
            )
        try:
            refuse_other_kind(path)
            with safetensors.safe_open(path, "numpy") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, TypeError, OSError) as error:
            raise UserError(f"{path} can't be read ({first_line(error)}): {_FETCH}") from error
    return tensors


def load_config(folder: Path) -> BertConfig:
    """The ``BertConfig`` of a checkpoint folder."""
    path = folder / "config.json"
    fields = read_json(path, OBJECT, "use the folder of a BERT checkpoint")
    return BertConfig.from_dict(plain_fields(fields), origin=str(path))


def load_backbone(name_or_directory: str | Path) -> tuple[BertConfig, dict[str, Any]]:
    """Loads a pre-trained encoder.

    Args:
        name_or_directory: The folder of a transformers BERT checkpoint, the name of the
            default checkpoint, or a name on the hub.

    Returns:
        The configuration, and the nested dict of float32 arrays for ``BertEncoder``.

    Raises:
        UserError: Not found, not a BERT this encoder computes, or damaged.
    """
    folder = resolve_backbone(str(name_or_directory))
    config = load_config(folder)
    return config, from_transformers(read_tensors(folder), config)


def default_pooling(folder: Path, width: int | None = None) -> Pooling:
    """What a sentence-transformers checkpoint declares, or an exported one, else ``mean``.

    ``mean`` is also the better of the frozen features for a plain BERT (Reimers & Gurevych
    2019, arXiv:1908.10084, table 6).

    Args:
        folder: The checkpoint's.
        width: Of its hidden states; None where that is not compared.

    Raises:
        UserError: It declares one that is not computed here, several at once, or one of vectors
            of another width.
    """
    if exported := exported_pooling(folder):
        return exported
    modules = _modules(folder)
    places = [module.get("path", "") for module in modules if _kind(module) == "Pooling"]
    path = folder / (places[0] if places else "1_Pooling") / "config.json"
    if not places and not path.exists():
        return "mean"
    fields = read_json(path, _POOLING_SCHEMA, f"{_FETCH}, or say --pooling")
    if width is not None and (told := fields.get("word_embedding_dimension", width)) != width:
        raise UserError(
            f"{path} is for vectors of {told}, and the encoder's have {width}: use files "
            "of one checkpoint, or say --pooling"
        )
    flags = (name for name, on in fields.items() if on is True)
    declared = [
        name.removeprefix("pooling_mode_") for name in flags if name.startswith("pooling_mode_")
    ]
    # How newer releases of sentence-transformers write it.
    newer = fields.get("pooling_mode", [])
    declared += [newer] if isinstance(newer, str) else newer
    if not declared and not any(name.startswith("pooling_mode") for name in fields):
        return "mean"
    poolings = {_POOLINGS.get(name) for name in declared}
    if poolings == {"mean"}:
        return "mean"
    if poolings == {"cls"}:
        return "cls"
    what = f"the pooling {reprlib.repr(declared)}, which is not computed here"
    raise UserError(
        f"{path} declares {what if declared else 'no pooling'}: choose one by --pooling mean, cls "
        "or pooler; its vectors are not those that the checkpoint was made for"
    )


def left_out(folder: Path, *, vectors: bool) -> list[str]:
    """What a sentence-transformers checkpoint does besides its encoder and pooling, in words.

    Args:
        folder: The checkpoint's.
        vectors: Whether the pooled vectors themselves are wanted. That they are not scaled to
            unit length, as the default checkpoint's are by sentence-transformers, matters there
            and not to heads, which are trained on them as they are.
    """
    modules = [m for m in _modules(folder) if _kind(m) not in ("Transformer", "Pooling")]
    if exported_pooling(folder) == "pooler":
        # Its Dense module is the pooler.
        modules = [module for module in modules if _kind(module) != "Dense"]
    other = [reprlib.repr(_kind(module)) for module in modules if _kind(module) != "Normalize"]
    notes = []
    if other:
        notes.append(
            f"what modules.json of the checkpoint has besides encoder and pooling is left out "
            f"({_named(other)}): the vectors are not those of sentence-transformers"
        )
    if vectors and len(other) < len(modules):
        notes.append(
            "the vectors are pooled and not scaled to unit length, as sentence-transformers scales "
            "this checkpoint's (Normalize in modules.json): divide each by its norm to compare them"
        )
    return notes


def _modules(folder: Path) -> list[dict[str, Any]]:
    path = folder / "modules.json"
    return read_json(path, _MODULES_SCHEMA, _FETCH) if path.exists() else []


def _kind(module: Mapping[str, Any]) -> str:
    """The class of a module without its Python module, which differs between releases."""
    return module["type"].rpartition(".")[2]


def without_unused_pooler(params: dict[str, Any], pooling: Pooling, name: str) -> dict[str, Any]:
    """The backbone without a pooler that ``pooling`` would never run.

    Raises:
        UserError: ``pooling`` needs a pooler, and the checkpoint has none.
    """
    if pooling == "pooler" and "pooler" not in params:
        raise UserError(f"backbone {name!r} has no pooler: use --pooling mean or --pooling cls")
    return {k: v for k, v in params.items() if pooling == "pooler" or k != "pooler"}
