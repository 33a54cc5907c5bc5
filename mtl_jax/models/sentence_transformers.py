"""What the files of sentence-transformers beside a checkpoint say: its pooling, and what else."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from mtl_jax.config.model import Pooling
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import OBJECT, read_json
from mtl_jax.core.names import listed
from mtl_jax.models.encoder_config import FETCH, EncoderConfig
from mtl_jax.models.exported import exported_pooling

# Of the modules that are left out, so many are told.
_MOST_NAMED = 10

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
    if len(places) > 1:
        raise UserError(
            f"{folder / 'modules.json'} declares {len(places)} poolings: choose one by --pooling "
            "mean, cls or pooler; its vectors are not those that the checkpoint was made for"
        )
    path = folder / (places[0] if places else "1_Pooling") / "config.json"
    otherwise = cast("Pooling", (config and config.classifier_pooling) or "mean")
    if not places and not path.exists():
        return otherwise
    fields = read_json(path, _POOLING_SCHEMA, f"{FETCH}, or say --pooling")
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
            f"({listed(other, _MOST_NAMED)}): the vectors are not those of sentence-transformers"
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
    return read_json(path, schema, FETCH) if path.exists() else {}


def _modules(folder: Path) -> list[dict[str, Any]]:
    path = folder / "modules.json"
    return read_json(path, _MODULES_SCHEMA, FETCH) if path.exists() else []


def _kind(module: Mapping[str, Any]) -> str:
    """The class of a module without its Python module, which differs between releases."""
    return module["type"].rpartition(".")[2]
