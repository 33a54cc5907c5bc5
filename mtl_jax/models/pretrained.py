"""Pre-trained checkpoints: where a name leads, and one conversion table read both ways."""

from __future__ import annotations

import dataclasses
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict

from mtl_jax.config.model import DEFAULT_BACKBONE, Pooling
from mtl_jax.core import downloads
from mtl_jax.core.atomic_write import refuse_other_kind
from mtl_jax.core.errors import NoFileError, UserError, cannot_read, first_line
from mtl_jax.core.json_files import OBJECT, read_json
from mtl_jax.core.paths import expanded
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.exported import exported_pooling, plain_fields, with_pooler
from mtl_jax.models.families import FAMILIES, Family

_HUB_FILES = ("*.json", "*.safetensors", "vocab.txt", "merges.txt", "1_Pooling/config.json")
# What is fetched, and checked, without a hub.
_PINNED = {
    DEFAULT_BACKBONE: downloads.minilm,
    "sentence-transformers/all-mpnet-base-v2": downloads.mpnet,
}
_FETCH = "fetch the checkpoint again"
# Of what a list holds, so many are told in an error.
_MOST_NAMED = 10

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
_PROMPTS_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "prompts": {
            "type": ["object", "null"],
            "additionalProperties": {"type": ["string", "null"]},
        },
        "default_prompt_name": {"type": ["string", "null"]},
    },
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
        f"{kind}: {_named(list(names))}"
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
            f"weights are not floating-point numbers ({_named(list(no_floats))}): use a checkpoint "
            "that is not quantized"
        )
    if not_finite:
        raise UserError(f"weights are NaN or infinite ({_named(list(not_finite))}): {_FETCH}")
    return unflatten_dict(params, sep="/")


def _is_floating(value: np.ndarray) -> bool:
    # The half precision that is not numpy's, bfloat16, is none of its floating kinds.
    return np.issubdtype(value.dtype, np.floating) or value.dtype.name.startswith("bfloat")


def _named(names: Sequence[str]) -> str:
    """Names for an error, which stays short whatever a file holds."""
    shown = [name if len(name) <= 100 else f"{name[:100]}..." for name in names[:_MOST_NAMED]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


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


def resolve_backbone(name: str) -> Path:
    """The folder of a checkpoint: itself, a pinned one's, or the hub's cache's.

    Raises:
        UserError: There is no such folder, and the hub has no such name or can't be reached.
    """
    folder = expanded(name)
    if folder.is_dir():
        return folder
    if name in _PINNED:
        return _PINNED[name]()
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


def _weight_map(folder: Path) -> Mapping[str, str] | None:
    """The file that each tensor is in; None where one file has all."""
    index = folder / "model.safetensors.index.json"
    # As transformers does: saving a model again, in one file, leaves an older index beside it.
    if (folder / "model.safetensors").exists() or not index.exists():
        return None
    return read_json(index, _INDEX_SCHEMA, _FETCH)["weight_map"]


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint folder, from safetensors only: a pickle can run code.

    Of several files each gives the tensors that the index says are in it, and no others: one may
    have been left by another checkpoint.

    Raises:
        UserError: A file is missing or damaged, or lacks a tensor that the index says it has.
    """
    tensors: dict[str, np.ndarray] = {}
    places = _weight_map(folder)
    for shard in ["model.safetensors"] if places is None else sorted({*places.values()}):
        path = folder / shard
        if not path.exists():
            remedy = "convert the checkpoint, or use one that has model.safetensors"
            if (folder / "adapter_config.json").exists():
                remedy = "merge the adapter into its base model (merge_and_unload of peft)"
            raise UserError(f"{path} is missing: weights are read from safetensors only; {remedy}")
        try:
            refuse_other_kind(path)
            # Of one that may not be read safetensors says that it is not there.
            path.open("rb").close()
            with safetensors.safe_open(path, "numpy") as file:
                names = [*file.keys()]
                if places is not None:
                    expected = [name for name, place in places.items() if place == shard]
                    if lacking := [name for name in expected if name not in {*names}]:
                        raise UserError(
                            f"{path} lacks {_named(lacking)}, which the index beside it says it "
                            f"has: {_FETCH}"
                        )
                    names = expected
                tensors |= {name: _tensor(file, name, path) for name in names}
        except (PermissionError, NoFileError) as error:
            raise cannot_read(path, error) from error
        except (safetensors.SafetensorError, TypeError, OSError) as error:
            raise UserError(f"{path} can't be read ({first_line(error)}): {_FETCH}") from error
    return tensors


def _tensor(file: Any, name: str, path: Path) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except AttributeError:
        # What safetensors raises of numbers that numpy has not.
        kind = file.get_slice(name).get_dtype()
        raise UserError(
            f"{path}: {name} is of {kind} numbers: use a checkpoint that is not quantized"
        ) from None


def load_config(folder: Path) -> EncoderConfig:
    """The ``EncoderConfig`` of a checkpoint folder."""
    path = folder / "config.json"
    fields = read_json(path, OBJECT, "use the folder of a checkpoint")
    return EncoderConfig.from_dict(plain_fields(fields), origin=str(path))


def load_backbone(name_or_directory: str | Path) -> tuple[EncoderConfig, dict[str, Any]]:
    """Loads a pre-trained encoder.

    Args:
        name_or_directory: The folder of a transformers checkpoint, the name of one that is
            fetched without a hub, or a name on the hub.

    Returns:
        The configuration, and the nested dict of float32 arrays for ``EncoderModule``.

    Raises:
        UserError: Not found, of a kind that this encoder does not compute, or damaged.
    """
    folder = resolve_backbone(str(name_or_directory))
    config = load_config(folder)
    tensors = with_pooler(folder, read_tensors(folder), config.family)
    return config, from_transformers(tensors, config)


def default_pooling(folder: Path, config: EncoderConfig | None = None) -> Pooling:
    """What a checkpoint declares its pooling to be, else what its family's classifiers pool by.

    An exported one declares it in its ``config.json``, one of sentence-transformers beside that.
    Where nothing is said it is ``mean``, which is also the better of the frozen features for a
    plain BERT (Reimers & Gurevych 2019, arXiv:1908.10084, table 6).

    Args:
        folder: The checkpoint's.
        config: Its configuration; None where that is neither compared nor asked.

    Raises:
        UserError: It declares one that is not computed here, several at once, or one of vectors
            of another width.
    """
    if exported := exported_pooling(folder):
        return exported
    modules = _modules(folder)
    places = [module.get("path", "") for module in modules if _kind(module) == "Pooling"]
    path = folder / (places[0] if places else "1_Pooling") / "config.json"
    otherwise = cast("Pooling", (config and config.classifier_pooling) or "mean")
    if not places and not path.exists():
        return otherwise
    fields = read_json(path, _POOLING_SCHEMA, f"{_FETCH}, or say --pooling")
    width = config and config.hidden_size
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
        return otherwise
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
    return [*notes, *_changes_of_texts(folder)]


def _changes_of_texts(folder: Path) -> Iterator[str]:
    """What others do to texts, or to the weights, and nothing here does."""
    told = _read_if_there(folder / "config_sentence_transformers.json", _PROMPTS_SCHEMA)
    prompt = (told.get("prompts") or {}).get(told.get("default_prompt_name") or "")
    if prompt:
        yield (
            f"sentence-transformers puts {reprlib.repr(prompt)} before each text (see "
            f"{folder / 'config_sentence_transformers.json'}), and nothing does here: put it there"
        )
    path = folder / "sentence_bert_config.json"
    if _read_if_there(path, OBJECT).get("do_lower_case") is True:
        yield (
            f"sentence-transformers lower-cases each text (do_lower_case in {path}), and nothing "
            "does here but what the tokenizer does itself: lower-case the texts if it does not"
        )
    if (folder / "adapter_config.json").exists():
        yield (
            f"{folder / 'adapter_config.json'} is of an adapter, which is left out: if it is part "
            "of the checkpoint, merge it into the weights first (merge_and_unload of peft)"
        )


def _read_if_there(path: Path, schema: Mapping[str, Any]) -> dict[str, Any]:
    return read_json(path, schema, _FETCH) if path.exists() else {}


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
