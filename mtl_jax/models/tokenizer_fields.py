"""What the files of a checkpoint say of its tokenizer, beside the vocabulary."""

from __future__ import annotations

import dataclasses
import os
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import OBJECT, read_json
from mtl_jax.models.exported import plain_fields
from mtl_jax.models.quiet_transformers import tokenizer_class

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REMEDY = "name a checkpoint that carries tokenizer.json, vocab.txt, or vocab.json and merges.txt"

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "cls_token": "[CLS]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}
# Those of the tokenizers that begin and end a text as RoBERTa does.
_ROBERTA_TOKENS = {
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_DEFAULT_TOKENS: Mapping[str, Mapping[str, str]] = {
    "MPNetTokenizer": {**_ROBERTA_TOKENS, "unk_token": "[UNK]"},
    "RobertaTokenizer": _ROBERTA_TOKENS,
}
# Which class there is where no file says so.
_OF_MODEL = {"mpnet": "MPNetTokenizer", "roberta": "RobertaTokenizer"}
_TOKEN: Mapping[str, Any] = {
    "anyOf": [
        {"type": ["string", "null"]},
        {
            "type": "object",
            "required": ["content"],
            "properties": {"content": {"type": "string"}}
            | {name: {"type": "boolean"} for name in FLAGS},
        },
    ]
}
_TOKENS_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        **dict.fromkeys(_BERT_TOKENS, _TOKEN),
        "additional_special_tokens": {"type": ["array", "null"], "items": _TOKEN},
    },
}
_SWITCH: Mapping[str, Any] = {"type": ["boolean", "null"]}
_CONFIG_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        **_TOKENS_SCHEMA["properties"],
        "tokenizer_class": {"type": ["string", "null"]},
        "do_lower_case": _SWITCH,
        "strip_accents": _SWITCH,
        "tokenize_chinese_chars": _SWITCH,
        "do_basic_tokenize": _SWITCH,
        "add_prefix_space": _SWITCH,
        "never_split": {"type": ["array", "null"]},
        "truncation_side": {"enum": ["left", "right", None]},
        "extra_special_tokens": {
            "type": ["array", "object"],
            "items": _TOKEN,
            "additionalProperties": _TOKEN,
        },
        "added_tokens_decoder": {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": _TOKEN["anyOf"][1],
        },
    },
}
IDS_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "additionalProperties": {"type": "integer", "minimum": 0},
}

_TOKENIZER_CLASS = re.compile(r"[A-Za-z0-9]*(Tokenizer|TokenizerFast|TokenizersBackend)")


@dataclasses.dataclass(frozen=True)
class Declared:
    """What the files beside a vocabulary say of a tokenizer."""

    config: Path
    fields: Mapping[str, Any]
    """of ``tokenizer_config.json``"""
    kind: str | None
    """its class in transformers, whose fast ones have an older name too"""
    special: Mapping[str, str]
    """the special tokens by role, where one is declared"""
    added: Mapping[str, int]
    """tokens that are not of the vocabulary's own, with their ids"""
    extra: tuple[str, ...]
    """special tokens without a role"""

    @property
    def usual(self) -> Mapping[str, str]:
        """The special tokens by role that its class has where nothing is declared."""
        name = (self.kind or "").removesuffix("Fast")
        return _DEFAULT_TOKENS.get(name, _BERT_TOKENS)

    def is_computed_by(self, base: str) -> bool:
        """Whether the declared class is, or is derived from, one of transformers' own."""
        if self.kind is None:
            return True
        # To look up anything else of transformers may import PyTorch.
        if not _TOKENIZER_CLASS.fullmatch(self.kind):
            return False
        tokenizer_class()
        import transformers

        try:
            found = getattr(transformers, self.kind, None)
        except (ImportError, RuntimeError):  # it needs what is not installed
            return False
        return isinstance(found, type) and issubclass(found, getattr(transformers, base))


def declared_in(folder: Path, remedy: str) -> Declared:
    """Reads what the files of a checkpoint say of its tokenizer.

    Args:
        folder: The checkpoint's.
        remedy: What to do where a file can't be read.

    Raises:
        UserError: One can't be read, or names code of its own.
    """

    def read(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
        path = folder / name
        return read_json(path, schema, remedy) if os.path.lexists(path) else {}

    config = folder / "tokenizer_config.json"
    fields, model = read(config.name, _CONFIG_SCHEMA), plain_fields(read("config.json", OBJECT))
    for name, there in ((config.name, fields), ("config.json", model)):
        if own_code := there.get("auto_map"):
            raise UserError(
                f"{folder / name}: auto_map names code of its own ({reprlib.repr(own_code)}), and "
                "none is ever run: use a checkpoint without it"
            )
    kind = fields.get("tokenizer_class") or model.get("tokenizer_class")
    kind = kind or _OF_MODEL.get(str(model.get("model_type")))
    tokens = read("special_tokens_map.json", _TOKENS_SCHEMA) | fields
    decoder = fields.get("added_tokens_decoder", {})
    extra = fields.get("extra_special_tokens", [])
    extra = [*(extra.values() if isinstance(extra, dict) else extra)]
    extra += tokens.get("additional_special_tokens") or []
    return Declared(
        config=config,
        fields=fields,
        kind=None if kind is None else str(kind),
        special={
            role: _content(token)
            for role in _BERT_TOKENS
            if (token := tokens.get(role)) is not None
        },
        extra=tuple(_content(token) for token in extra if token is not None),
        added=read("added_tokens.json", IDS_SCHEMA)
        | {token["content"]: int(index) for index, token in decoder.items()},
    )


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def special_tokens(own: Tokenizer, declared: Declared) -> Mapping[str, str]:
    """The special tokens by role; those of its class where it says nothing else."""
    if not is_word_piece(own):
        known = declared.usual if declared.usual is _ROBERTA_TOKENS else {}
        return {**known, **declared.special}
    ends = own.encode("").tokens
    used = {"cls_token": ends[0], "sep_token": ends[-1]} if len(ends) == 2 else {}
    # The token that the model itself takes for an unknown word.
    return {**declared.usual, **used, **declared.special, "unk_token": own.model.unk_token}


def is_word_piece(own: Tokenizer) -> bool:
    """Whether a tokenizer's model is WordPiece."""
    from tokenizers.models import WordPiece

    return isinstance(own.model, WordPiece)
