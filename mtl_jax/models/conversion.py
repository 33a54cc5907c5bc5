"""Tensors of transformers to the tree of an encoder and back: one table, read both ways."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mtl_jax.core.errors import UserError
from mtl_jax.core.names import listed
from mtl_jax.models.encoder_config import FETCH, EncoderConfig
from mtl_jax.models.families import FAMILIES, Family

# Of the names of tensors, so many are told in an error.
_MOST_NAMED = 10


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of the conversion table.

    Attributes:
        tensor: Name in the safetensors file, without the family's prefix.
        path: Path in the Flax tree.
        transposed: Whether one is the other's transpose.
        part: Which of the equal parts of the tensor's rows the leaf is, from 0.
        parts: How many of these there are.
    """

    tensor: str
    path: str
    transposed: bool
    part: int = 0
    parts: int = 1


def conversion_table(num_layers: int, with_pooler: bool, family: str = "bert") -> list[Entry]:
    """Every tensor that a backbone of a family may have, with the leaf that it becomes.

    Which of them an encoder has its configuration says: see ``leaf_shape``.
    """
    table = FAMILIES[family]
    modules = dict(table.embeddings)
    for i in range(num_layers):
        for name, (paths, kind) in table.layer.items():
            of_layer = tuple(f"layer_{i}/{path}" for path in paths)
            modules[f"{table.layers}{i}.{name}"] = of_layer, kind
    for name, (paths, kind) in table.top.items():
        modules[name] = tuple(f"layer_{num_layers - 1}/{path}" for path in paths), kind
    if with_pooler:
        modules |= table.pooler
    return [
        Entry(f"{name}.{parameter}", f"{path}/{leaf}", transposed, part, len(paths))
        for name, (paths, kind) in modules.items()
        for parameter, (leaf, transposed) in kind.items()
        for part, path in enumerate(paths)
    ]


def leaf_shape(path: str, config: EncoderConfig) -> tuple[int, ...] | None:
    """The shape of a leaf of an encoder; None where the encoder has none of that path."""
    stage, part, *_ = parts = path.split("/")
    module, leaf = parts[-2:]
    hidden, inner, words = config.hidden_size, config.intermediate_size, config.word_size
    if module == "relative_position":
        rows = config.relative_attention_num_buckets
        return (rows, config.num_attention_heads) if rows else None
    if module in ("distance", "distance_norm"):
        if config.position_buckets is None:
            return None
        return (2 * config.position_buckets, hidden) if leaf == "embedding" else (hidden,)
    if leaf == "embedding":
        rows = {
            "word": config.vocab_size,
            "position": config.max_position_embeddings if config.has_positions else 0,
            "token_type": config.type_vocab_size,
        }[module]
        return (rows, words) if rows else None
    if module in ("layer_norm", "final_norm"):
        # The embeddings are normalised already for the first layer's attention.
        if config.norm_first and (stage, part) == ("layer_0", "attention"):
            return None
        if leaf == "bias" and not config.norm_bias:
            return None
        return (words,) if stage == "embeddings" else (hidden,)
    biased = {"attention": config.attention_bias, "mlp": config.mlp_bias}
    if leaf == "bias" and not biased.get(part, True):
        return None
    if module == "projection" and words == hidden:
        return None
    rows_of = {"projection": words, "output": inner if part == "mlp" else hidden}
    rows = rows_of.get(module, hidden)
    columns = inner if module in ("intermediate", "gate") else hidden
    return (rows, columns) if leaf == "kernel" else (columns,)


def from_transformers(tensors: Mapping[str, np.ndarray], config: EncoderConfig) -> dict[str, Any]:
    """Converts a checkpoint's tensors to the Flax tree, float32.

    Tensors of a task's own head (beside the family's prefix, or beside ``embeddings``,
    ``encoder`` and so on where there is no prefix) are left out, as are the position indices
    that old checkpoints carry; the older names ``LayerNorm.gamma`` and ``LayerNorm.beta`` are
    understood. The pooler is kept where there is one.

    Raises:
        UserError: Tensors are missing, unexpected or wrongly shaped, or hold anything but finite
            floating-point numbers; the first of each kind are named.
    """
    family = config.family_table
    use = f"use the files of one and the same {family.label} checkpoint"
    tensors = _canonical(tensors, family)
    # Before a table of as many layers as a damaged config.json may say is made.
    numbered = re.compile(re.escape(family.layers) + r"(\d+)\.")
    layers = len({found[1] for found in map(numbered.match, tensors) if found})
    if config.num_hidden_layers > layers:
        said = family.names.get("num_hidden_layers", "num_hidden_layers")
        raise UserError(
            f"config.json says {said} {config.num_hidden_layers:,}, the weights have "
            f"{layers:,} layers: {use}"
        )
    with_pooler = "pooler.dense.weight" in tensors
    table = [
        (entry, shape)
        for entry in conversion_table(config.num_hidden_layers, with_pooler, config.family)
        if (shape := leaf_shape(entry.path, config)) is not None
    ]
    params: dict[str, np.ndarray] = {}
    missing: dict[str, None] = {}
    misshaped: dict[str, None] = {}
    no_floats: dict[str, None] = {}
    not_finite: dict[str, None] = {}
    for entry, shape in table:
        if entry.tensor not in tensors:
            missing[entry.tensor] = None
            continue
        value = tensors[entry.tensor]
        shape = shape[::-1] if entry.transposed else shape
        expected = (shape[0] * entry.parts, *shape[1:])
        if value.shape != expected:
            misshaped[f"{entry.tensor} is {value.shape}, not {expected}"] = None
            continue
        if not _is_floating(value):
            no_floats[f"{entry.tensor} is {value.dtype}"] = None
            continue
        value = value[entry.part * shape[0] : (entry.part + 1) * shape[0]]
        value = value.T if entry.transposed else value
        with np.errstate(over="ignore"):  # what float32 can't hold becomes infinite, and is told
            params[entry.path] = np.ascontiguousarray(value, dtype=np.float32)
        if not np.isfinite(params[entry.path]).all():
            not_finite[entry.tensor] = None
    unexpected = sorted(set(tensors) - {entry.tensor for entry, _ in table})
    problems = [
        f"{kind}: {named(names)}"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrongly shaped", misshaped),
        )
        if names
    ]
    if problems:
        raise UserError(f"the weights do not fit their config.json ({'; '.join(problems)}): {use}")
    if no_floats:
        raise UserError(
            f"weights are not floating-point numbers ({named(no_floats)}): use a checkpoint "
            "that is not quantized"
        )
    if not_finite:
        raise UserError(f"weights are NaN or infinite ({named(not_finite)}): {FETCH}")
    return unflatten_dict(params, sep="/")


def _is_floating(value: np.ndarray) -> bool:
    # The half precision that is not numpy's, bfloat16, is none of its floating kinds.
    return np.issubdtype(value.dtype, np.floating) or value.dtype.name.startswith("bfloat")


def named(names: Iterable[str]) -> str:
    """Names of tensors for an error, which stays short whatever a file holds."""
    short = [name if len(name) <= 100 else f"{name[:100]}..." for name in names]
    return listed(short, _MOST_NAMED)


def to_transformers(params: Mapping[str, Any], family: str = "bert") -> dict[str, np.ndarray]:
    """The inverse of ``from_transformers``: the tensors of a family's plain model."""
    flat = flatten_dict(dict(params), sep="/")
    num_layers = sum(name.startswith("layer_") for name in params)
    parts: dict[str, list[np.ndarray]] = {}
    for entry in conversion_table(num_layers, "pooler" in params, family):
        if entry.path in flat:
            value = np.asarray(flat[entry.path])
            parts.setdefault(entry.tensor, []).append(value.T if entry.transposed else value)
    return {
        tensor: np.ascontiguousarray(np.concatenate(values) if len(values) > 1 else values[0])
        for tensor, values in parts.items()
    }


def _canonical(tensors: Mapping[str, np.ndarray], family: Family) -> dict[str, np.ndarray]:
    if any(name.startswith(family.prefix) for name in tensors):
        tensors = {
            name.removeprefix(family.prefix): value
            for name, value in tensors.items()
            if name.startswith(family.prefix)
        }
    tensors = {k: value for k, value in tensors.items() if k.startswith(family.roots)}
    renamed = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
            "LayerNorm.beta", "LayerNorm.bias"
        ): value
        for name, value in tensors.items()
    }
    renamed.pop("embeddings.position_ids", None)
    return renamed
