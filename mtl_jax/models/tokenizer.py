"""The tokenizer of a checkpoint or a run, from its own files and held against them.

It is made of ``tokenizer.json`` as that stands, else of ``vocab.txt``, or of ``vocab.json`` and
``merges.txt``, and of a few known fields of the other files. transformers' own loader would make a
BERT's anew from the vocabulary alone, whatever ``tokenizer.json`` says of case, accents, words and
special tokens, and would run a module that the checkpoint names.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl_jax.core.errors import UserError, first_line
from mtl_jax.core.json_files import OBJECT, read_json, read_text
from mtl_jax.models.byte_pairs import byte_pair_tokenizer, read_merges
from mtl_jax.models.exported import plain_fields

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_REMEDY = "name a checkpoint that carries tokenizer.json, vocab.txt, or vocab.json and merges.txt"

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
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
            | {name: {"type": "boolean"} for name in _FLAGS},
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
_ADDED_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "additionalProperties": {"type": "integer", "minimum": 0},
}

_NEEDED = ("cls_token", "sep_token", "pad_token", "unk_token")
# What is done to a text by default, and would make tokens unreachable that are so written.
_CHANGES = {
    "do_lower_case": ("have capitals", "lower-cases"),
    "strip_accents": ("have accents", "strips them"),
    "tokenize_chinese_chars": ("are of several Chinese characters", "parts these"),
}
_TOKENIZER_CLASS = re.compile(r"[A-Za-z0-9]*(Tokenizer|TokenizerFast|TokenizersBackend)")
# Special tokens, and those that are kept for later.
_BRACKETED = re.compile(r"\[.*\]|<.*>")

# What tokenizers are known to differ in: case, accents, punctuation, numbers, scripts, white
# space, what is invisible, composed and decomposed letters, long words, special tokens.
_PROBES = (
    "",
    " ",
    "The quick brown FOX, aged 12.5 (or 3,000), jumped!",
    "don't e-mail you@there.org: $5 #1 a_b C++ 50% ... unaffable tokenization",
    "CAFÉ naïve Ångström İstanbul Straße ŒUVRE e\u0301 A\u030a",
    "tabs\tand\nlines\r\n no-break\u00a0wide\u3000zero\u200bwidth \ufeff\u00ad\u0000\ufffd",
    "中文字 日本語カタカナ 한국어 Ελληνικά Кириллица עברית العربية हिन्दी ไทย",
    "👍🏽 🇫🇷 ½ ² № ﬁ Ａ",
    "x" * 200,
    "[CLS] a [SEP] b[MASK]c [PAD] [UNK] [unused1] <s> </s> <mask>",
)


@dataclasses.dataclass(frozen=True)
class _Declared:
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


def load_tokenizer(folder: str | Path, remedy: str = _REMEDY) -> PreTrainedTokenizerFast:
    """Loads the tokenizer of a checkpoint, from local files only, and runs no code of theirs.

    Args:
        folder: A folder in transformers' layout.
        remedy: What to do where the folder holds none that can be loaded.

    Raises:
        UserError: It holds none, its files contradict each other, a special token is not in the
            vocabulary, or a file names code.
    """
    folder = Path(folder)
    declared = _declared(folder, remedy)
    whole, vocabulary = folder / "tokenizer.json", folder / "vocab.txt"
    side = "right"
    if os.path.lexists(whole):
        own = _from_whole(whole, declared, remedy)
        # How texts were cut and filled up where it was saved says nothing of how they are here.
        side = (own.truncation or {}).get("direction", side)
        own.no_truncation()
        own.no_padding()
        _refuse_missing(own, declared, whole)
        if _is_word_piece(own) and _computed_by(declared.kind, "BertTokenizer"):
            _refuse_contradictions(own, declared)
        if os.path.lexists(vocabulary):
            _refuse_other_ids(own, whole, vocabulary.name, _read_vocabulary(vocabulary, remedy))
        if _is_byte_pairs(own):
            _refuse_other_pairs(own, declared, whole, remedy)
    elif os.path.lexists(vocabulary):
        own = _from_vocabulary(vocabulary, declared, remedy)
    elif os.path.lexists(folder / "vocab.json"):
        own = _from_byte_pairs(folder, declared, remedy)
    else:
        raise UserError(f"{folder} holds no tokenizer: {remedy}")
    for token, index in declared.added.items():
        if (found := own.token_to_id(token)) != index:
            raise UserError(
                f"{folder}: the added token {reprlib.repr(token)} is declared as id {index}, and "
                f"is {'not there' if found is None else found}: use files of one checkpoint"
            )
    for token in declared.extra:
        if own.token_to_id(token) is None:
            raise UserError(
                f"{folder}: the special token {reprlib.repr(token)} is declared, and is not in the "
                "vocabulary: use files of one checkpoint"
            )
    there = {token.content for token in own.get_added_tokens_decoder().values()}
    names = {role: token for role, token in _special(own, declared).items() if token in there}
    loaded = tokenizer_class()(
        tokenizer_object=own,
        truncation_side=declared.fields.get("truncation_side") or side,
        **names,
    )
    check_ids(own, loaded, folder)
    return loaded


def check_ids(own: Tokenizer, loaded: PreTrainedTokenizerBase, folder: Path) -> None:
    """Holds the ids of a loaded tokenizer against those of its own file, on some texts.

    Raises:
        UserError: They differ, or a text can't be tokenised.
    """
    added = [token.content for token in own.get_added_tokens_decoder().values()]
    probes = [*_PROBES, *(f"a {token} b{token}c" for token in added[:100])]
    try:
        expected = [encoding.ids for encoding in own.encode_batch(probes)]
    except Exception as error:
        raise UserError(
            f"the tokenizer in {folder} can't make ids of every text ({first_line(error)}): give "
            "it an unknown token that is in its vocabulary"
        ) from error
    found = loaded(probes, truncation=False, verbose=False)["input_ids"]
    if changed := [text for text, a, b in zip(probes, expected, found, strict=True) if a != b]:
        raise UserError(
            f"the tokenizer that transformers makes of {folder} gives {changed[0]!r:.80} other ids "
            "than its own file does: use another release of transformers"
        )


def tokenizer_notes(
    folder: str | Path, tokenizer: PreTrainedTokenizerFast, rows: int
) -> Iterator[str]:
    """What looks wrong of a tokenizer and may be meant, in words.

    Args:
        folder: Where it was loaded from.
        tokenizer: What ``load_tokenizer`` made of it.
        rows: Words of the backbone's embedding.
    """
    folder, own = Path(folder), tokenizer.backend_tokenizer
    declared = _declared(folder, _REMEDY)
    if _is_word_piece(own):
        yield from _unreachable(own, declared)
    special, ends = _special(own, declared), own.encode("").tokens
    usual = [special.get("cls_token", "[CLS]"), special.get("sep_token", "[SEP]")]
    if ends != usual and (_is_word_piece(own) or declared.special or not ends):
        yield (
            f"{folder / 'tokenizer.json'} puts {reprlib.repr(ends) if ends else 'nothing'} around "
            f"a text, and not {' and '.join(usual)}: if the checkpoint was trained with these, "
            "give it a post_processor that adds them"
        )
    size = 1 + max(tokenizer.get_vocab().values(), default=-1)
    unused = rows - size
    # Embeddings are filled up to a multiple of 8, 64 or 128, and some have a few rows to spare.
    if unused * 100 > rows and unused >= math.gcd(rows, 128):
        yield (
            f"the tokenizer has {size:,} tokens, the embedding {rows:,} rows: if the tokenizer is "
            "an older one, or of another checkpoint, its ids stand for other words"
        )


def tokenizer_class() -> type[PreTrainedTokenizerFast]:
    """Imports transformers without its advice to install PyTorch, which nothing here needs."""
    switch = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        from transformers import PreTrainedTokenizerFast
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before
    return PreTrainedTokenizerFast


def _declared(folder: Path, remedy: str) -> _Declared:
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
    return _Declared(
        config=config,
        fields=fields,
        kind=None if kind is None else str(kind),
        special={
            role: _content(token)
            for role in _BERT_TOKENS
            if (token := tokens.get(role)) is not None
        },
        extra=tuple(_content(token) for token in extra if token is not None),
        added=read("added_tokens.json", _ADDED_SCHEMA)
        | {token["content"]: int(index) for index, token in decoder.items()},
    )


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _computed_by(kind: str | None, base: str) -> bool:
    """Whether a declared class is, or is derived from, one of transformers' own."""
    if kind is None:
        return True
    # To look up anything else of transformers may import PyTorch.
    if not _TOKENIZER_CLASS.fullmatch(kind):
        return False
    tokenizer_class()
    import transformers

    try:
        found = getattr(transformers, kind, None)
    except (ImportError, RuntimeError):  # it needs what is not installed
        return False
    return isinstance(found, type) and issubclass(found, getattr(transformers, base))


def _refuse_kind(declared: _Declared, file: str) -> UserError:
    return UserError(
        f"{declared.config}: tokenizer_class {reprlib.repr(declared.kind)} is none that "
        f"transformers makes of {file}, and no other code is run: use a checkpoint with a "
        f"tokenizer.json, or leave tokenizer_class out if {file} is all of it"
    )


def _from_whole(path: Path, declared: _Declared, remedy: str) -> Tokenizer:
    from tokenizers import Tokenizer

    if not _computed_by(declared.kind, "PreTrainedTokenizerFast"):
        raise _refuse_kind(declared, path.name)
    text = read_text(path, remedy)
    try:
        own = Tokenizer.from_str(text)
        # A template that names no token it has ends in a panic of Rust, which is no Exception.
        own.encode("")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UserError(f"cannot load {path} ({first_line(error)}): {remedy}") from error
    return own


def _from_vocabulary(path: Path, declared: _Declared, remedy: str) -> Tokenizer:
    from tokenizers import Tokenizer
    from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer

    # MPNet's differs in its special tokens alone.
    bases = ("BertTokenizer", "MPNetTokenizer")
    if not any(_computed_by(declared.kind, base) for base in bases):
        raise _refuse_kind(declared, path.name)
    fields = declared.fields
    if fields.get("do_basic_tokenize") is False or fields.get("never_split"):
        raise UserError(
            f"{declared.config}: do_basic_tokenize false and never_split are not supported: use a "
            "checkpoint that has a tokenizer.json"
        )
    vocabulary = _read_vocabulary(path, remedy)
    special = {**declared.usual, **declared.special}
    vocabulary |= {token: i for token, i in declared.added.items() if token in special.values()}
    for role in _NEEDED:
        if special[role] not in vocabulary:
            raise _missing(path, role, special[role])
    bert = BertWordPieceTokenizer(
        vocabulary,
        **special,  # pyright: ignore[reportArgumentType]  (the names are those of tokens)
        handle_chinese_chars=fields.get("tokenize_chinese_chars") is not False,
        strip_accents=fields.get("strip_accents"),
        lowercase=fields.get("do_lower_case") is not False,
    )
    own = Tokenizer.from_str(bert.to_str())
    _add(own, declared, special, vocabulary)
    return own


def _from_byte_pairs(folder: Path, declared: _Declared, remedy: str) -> Tokenizer:
    if declared.kind is None or not _computed_by(declared.kind, "RobertaTokenizer"):
        raise _refuse_kind(declared, "vocab.json and merges.txt")
    special = {**declared.usual, **declared.special}
    vocabulary = read_json(folder / "vocab.json", _ADDED_SCHEMA, remedy)
    for role in _NEEDED:
        if special[role] not in vocabulary:
            raise _missing(folder / "vocab.json", role, special[role])
    prefix = declared.fields.get("add_prefix_space") is True
    own = byte_pair_tokenizer(folder, special, add_prefix_space=prefix, remedy=remedy)
    _add(own, declared, special, vocabulary)
    return own


def _add(
    own: Tokenizer,
    declared: _Declared,
    special: Mapping[str, str],
    vocabulary: Mapping[str, int],
) -> None:
    """Adds the tokens that are declared beside a vocabulary."""
    from tokenizers import AddedToken

    fields = declared.fields
    own.add_special_tokens([token for token in declared.extra if token in vocabulary])
    told = {token["content"]: token for token in fields.get("added_tokens_decoder", {}).values()}
    for token in sorted(declared.added, key=declared.added.__getitem__):
        flags = {name: on for name, on in told.get(token, {}).items() if name in _FLAGS}
        own.add_tokens([AddedToken(token, **({"special": token in special.values()} | flags))])


def _read_vocabulary(path: Path, remedy: str) -> dict[str, int]:
    """The tokens of a ``vocab.txt``, one a line, with the numbers of their lines from 0 on."""
    lines = read_text(path, remedy).split("\n")
    vocabulary: dict[str, int] = {}
    for i, token in enumerate(lines):
        if token in vocabulary:
            raise UserError(
                f"{path} has {reprlib.repr(token)} on lines {vocabulary[token] + 1} and {i + 1}, "
                "and a token has one id: bring back the checkpoint's own"
            )
        if token:
            vocabulary[token] = i
    return vocabulary


def _refuse_missing(own: Tokenizer, declared: _Declared, path: Path) -> None:
    special = _special(own, declared)
    for role in _NEEDED:
        if (token := special.get(role)) is not None and own.token_to_id(token) is None:
            raise _missing(path, role, token)
    ends = own.encode("")
    for token, index in zip(ends.tokens, ends.ids, strict=True):
        if own.token_to_id(token) != index:
            raise UserError(
                f"{path} puts {reprlib.repr(token)} around a text as id {index}, which is not its "
                "id in the vocabulary: use files of one and the same checkpoint"
            )


def _missing(path: Path, role: str, token: str) -> UserError:
    return UserError(
        f"{path} has no {role} {reprlib.repr(token)}: name the one it has in "
        f"{path.parent / 'tokenizer_config.json'}, or use files of one and the same checkpoint"
    )


def _special(own: Tokenizer, declared: _Declared) -> Mapping[str, str]:
    """The special tokens by role; those of its class where it says nothing else."""
    if not _is_word_piece(own):
        known = declared.usual if declared.usual is _ROBERTA_TOKENS else {}
        return {**known, **declared.special}
    ends = own.encode("").tokens
    used = {"cls_token": ends[0], "sep_token": ends[-1]} if len(ends) == 2 else {}
    # The token that the model itself takes for an unknown word.
    return {**declared.usual, **used, **declared.special, "unk_token": own.model.unk_token}


def _is_word_piece(own: Tokenizer) -> bool:
    from tokenizers.models import WordPiece

    return isinstance(own.model, WordPiece)


def _refuse_contradictions(own: Tokenizer, declared: _Declared) -> None:
    """Refuses what ``tokenizer_config.json`` says and ``tokenizer.json`` does not do."""
    done = {
        "do_lower_case": _normalized(own, "A") == "a",
        "strip_accents": _normalized(own, "é") == "e",
        "tokenize_chinese_chars": _normalized(own, "中") != "中",
    }
    for name, does in done.items():
        if declared.fields.get(name) not in (None, does):
            raise UserError(
                f"{declared.config} says {name} {str(not does).lower()}, and the normalizer of "
                f"tokenizer.json does {'so' if does else 'not'}: let both say what the checkpoint "
                "was trained with"
            )


def _normalized(own: Tokenizer, text: str) -> str:
    return text if own.normalizer is None else own.normalizer.normalize_str(text)


def _refuse_other_ids(
    own: Tokenizer, path: Path, beside: str, vocabulary: Mapping[str, int]
) -> None:
    ids = own.get_vocab(with_added_tokens=True)
    if other := [token for token, i in vocabulary.items() if token.strip() and ids.get(token) != i]:
        token = other[0]
        raise UserError(
            f"{beside} and {path} differ in {len(other):,} of {len(vocabulary):,} tokens "
            f"({reprlib.repr(token)} is {vocabulary[token]} and {ids.get(token, 'not there')}): "
            "remove the one that is not the checkpoint's"
        )


def _is_byte_pairs(own: Tokenizer) -> bool:
    from tokenizers.models import BPE

    return isinstance(own.model, BPE)


def _refuse_other_pairs(own: Tokenizer, declared: _Declared, path: Path, remedy: str) -> None:
    """Refuses byte pairs whose other files say otherwise than ``tokenizer.json``."""
    folder = path.parent
    if os.path.lexists(folder / "vocab.json"):
        vocabulary = read_json(folder / "vocab.json", _ADDED_SCHEMA, remedy)
        _refuse_other_ids(own, path, "vocab.json", vocabulary)
    if os.path.lexists(folder / "merges.txt"):
        merges = read_merges(folder, remedy)
        there = json.loads(own.to_str())["model"]["merges"]
        # Older files have a pair as one text.
        known = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in there]
        if merges != known:
            raise UserError(
                f"merges.txt and {path} differ in what they merge ({len(merges):,} and "
                f"{len(known):,} pairs): remove the one that is not the checkpoint's"
            )
    told, does = declared.fields.get("add_prefix_space"), _puts_space_first(own)
    if told not in (None, does):
        raise UserError(
            f"{declared.config} says add_prefix_space {str(told).lower()}, and the pre_tokenizer "
            f"of tokenizer.json does {'so' if does else 'not'}: let both say what the checkpoint "
            "was trained with"
        )


def _puts_space_first(own: Tokenizer) -> bool:
    if own.pre_tokenizer is None:
        return False
    return own.pre_tokenizer.pre_tokenize_str("a")[0][0] != "a"


def _unreachable(own: Tokenizer, declared: _Declared) -> Iterator[str]:
    """Which tokens no text can have, since it is changed before it is cut into tokens."""
    prefix = own.model.continuing_subword_prefix
    changed = dict.fromkeys(_CHANGES, 0)
    words = [token.removeprefix(prefix) for token in own.get_vocab(with_added_tokens=False)]
    for word in words:
        after = _normalized(own, word).strip()
        if after == word or _BRACKETED.fullmatch(word):
            continue
        if word != word.lower() and after == after.lower():
            changed["do_lower_case"] += 1
        elif " " in after:
            changed["tokenize_chinese_chars"] += 1
        else:
            changed["strip_accents"] += 1
    if declared.fields.get("do_lower_case") is None and changed["do_lower_case"]:
        # Where a text keeps its capitals, it keeps its accents as well.
        changed["strip_accents"] = 0
    for name, count in changed.items():
        # A few are there by chance.
        if count * 200 > len(words) and declared.fields.get(name) is None:
            what, change = _CHANGES[name]
            yield (
                f"{count:,} of {len(words):,} tokens of the vocabulary {what}, and the tokenizer "
                f'{change}, so that no text reaches them: say "{name}": false in '
                f"{declared.config}, or true where that is meant"
            )
    letters = "abcdefghijklmnopqrstuvwxyz"
    unknown = own.token_to_id(own.model.unk_token)
    upper, lower = (
        set(own.encode(" ".join(kind), add_special_tokens=False).ids)
        for kind in (letters.upper(), letters)
    )
    if upper == {unknown} != lower:
        yield (
            "the vocabulary has no capitals and the tokenizer keeps them, so that each word with "
            f'one is unknown: say "do_lower_case": true in {declared.config}'
        )
