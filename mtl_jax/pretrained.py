"""Pre-trained checkpoints: where a name leads, and one conversion table read both ways."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict

from mtl_jax import assets
from mtl_jax.config import DEFAULT_BACKBONE, BertConfig, Pooling
from mtl_jax.errors import UserError
from mtl_jax.paths import expanded

_HUB_FILES = ("*.json", "*.safetensors", "vocab.txt", "1_Pooling/config.json")

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

    Tensors of a task's own head (beside the prefix ``bert.``) are left out, as are the
    position indices that old checkpoints carry; the older names ``LayerNorm.gamma`` and
    ``LayerNorm.beta`` are understood. The pooler is kept where there is one.

    Raises:
        UserError: Lists every missing, unexpected and wrongly shaped tensor.
    """
    tensors = _canonical(tensors)
    table = conversion_table(config.num_hidden_layers, "pooler.dense.weight" in tensors)
    params: dict[str, np.ndarray] = {}
    missing: list[str] = []
    misshaped: list[str] = []
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
        params[entry.path] = np.ascontiguousarray(value, dtype=np.float32)
    unexpected = sorted(set(tensors) - {entry.tensor for entry in table})
    problems = [
        f"{kind}: {', '.join(names)}"
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
    return unflatten_dict(params, sep="/")


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
        return assets.minilm()
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: use the folder of a BERT checkpoint") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: fetch the checkpoint again") from error


def _weight_files(folder: Path) -> Iterator[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        for shard in sorted(set(_read_json(index)["weight_map"].values())):
            yield folder / shard
    else:
        yield folder / "model.safetensors"


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
            with safetensors.safe_open(path, "numpy") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, TypeError) as error:
            raise UserError(
                f"{path} can't be read ({error}): fetch the checkpoint again"
            ) from error
    return tensors


def load_config(folder: Path) -> BertConfig:
    """The ``BertConfig`` of a checkpoint folder."""
    path = folder / "config.json"
    return BertConfig.from_dict(_read_json(path), origin=str(path))


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


def default_pooling(folder: Path) -> Pooling:
    """What a sentence-transformers checkpoint declares, else ``mean``.

    ``mean`` is also the better of the frozen features for a plain BERT (Reimers & Gurevych
    2019, arXiv:1908.10084, table 6).
    """
    path = folder / "1_Pooling" / "config.json"
    declared = _read_json(path) if path.exists() else {}
    # The second is how newer releases of sentence-transformers write it.
    if declared.get("pooling_mode_cls_token") or declared.get("pooling_mode") == "cls":
        return "cls"
    return "mean"


def without_unused_pooler(params: dict[str, Any], pooling: Pooling, name: str) -> dict[str, Any]:
    """The backbone without a pooler that ``pooling`` would never run.

    Raises:
        UserError: ``pooling`` needs a pooler, and the checkpoint has none.
    """
    if pooling == "pooler" and "pooler" not in params:
        raise UserError(f"backbone {name!r} has no pooler: use --pooling mean or --pooling cls")
    return {k: v for k, v in params.items() if pooling == "pooler" or k != "pooler"}
