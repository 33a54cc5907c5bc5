"""The tokenizer that runs, held against the files that it comes from."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl_jax.core.errors import UserError, first_line
from mtl_jax.core.json_files import read_json
from mtl_jax.models.byte_pairs import read_merges
from mtl_jax.models.tokenizer_fields import (
    IDS_SCHEMA,
    REMEDY,
    Declared,
    declared_in,
    is_word_piece,
    special_tokens,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

NEEDED = ("cls_token", "sep_token", "pad_token", "unk_token")
# What is done to a text by default, and would make tokens unreachable that are so written.
_CHANGES = {
    "do_lower_case": ("have capitals", "lower-cases"),
    "strip_accents": ("have accents", "strips them"),
    "tokenize_chinese_chars": ("are of several Chinese characters", "parts these"),
}
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


def check_ids(own: Tokenizer, loaded: PreTrainedTokenizerBase, folder: Path) -> None:
    """Holds the ids of a loaded tokenizer against those of its own file, on some texts and pairs.

    Raises:
        UserError: They differ, or a text can't be tokenised.
    """
    added = [token.content for token in own.get_added_tokens_decoder().values()]
    probes = [*_PROBES, *(f"a {token} b{token}c" for token in added[:100])]
    pairs = list(itertools.pairwise(_PROBES))
    try:
        expected = [encoding.ids for encoding in own.encode_batch([*probes, *pairs])]
    except Exception as error:
        raise UserError(
            f"the tokenizer in {folder} can't make ids of every text ({first_line(error)}): give "
            "it an unknown token that is in its vocabulary"
        ) from error
    how: dict[str, Any] = {"truncation": False, "verbose": False}
    firsts, seconds = map(list, zip(*pairs, strict=True))
    found = [loaded(probes, **how)["input_ids"], loaded(firsts, seconds, **how)["input_ids"]]
    same = zip([*probes, *pairs], expected, itertools.chain(*found), strict=True)
    if changed := [text for text, a, b in same if a != b]:
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
    declared = declared_in(folder, REMEDY)
    if is_word_piece(own):
        yield from _unreachable(own, declared)
    special, ends = special_tokens(own, declared), own.encode("").tokens
    usual = [special.get("cls_token", "[CLS]"), special.get("sep_token", "[SEP]")]
    if ends != usual and (is_word_piece(own) or declared.special or not ends):
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


def refuse_missing(own: Tokenizer, declared: Declared, path: Path) -> None:
    """Refuses a ``tokenizer.json`` without a token that it needs, or with another id for one.

    Args:
        own: What was made of it.
        declared: What the files beside it say.
        path: The file.

    Raises:
        UserError: A special token is not in the vocabulary, or has another id there.
    """
    special = special_tokens(own, declared)
    for role in NEEDED:
        if (token := special.get(role)) is not None and own.token_to_id(token) is None:
            raise missing(path, role, token)
    ends = own.encode("")
    for token, index in zip(ends.tokens, ends.ids, strict=True):
        if own.token_to_id(token) != index:
            raise UserError(
                f"{path} puts {reprlib.repr(token)} around a text as id {index}, which is not its "
                "id in the vocabulary: use files of one and the same checkpoint"
            )


def missing(path: Path, role: str, token: str) -> UserError:
    """What to say where the token of a role is not in a vocabulary."""
    return UserError(
        f"{path} has no {role} {reprlib.repr(token)}: name the one it has in "
        f"{path.parent / 'tokenizer_config.json'}, or use files of one and the same checkpoint"
    )


def refuse_contradictions(own: Tokenizer, declared: Declared) -> None:
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


def refuse_other_ids(
    own: Tokenizer, path: Path, beside: str, vocabulary: Mapping[str, int]
) -> None:
    """Refuses a vocabulary beside ``tokenizer.json`` that gives its tokens other ids.

    Args:
        own: What was made of ``tokenizer.json``.
        path: That file.
        beside: The name of the vocabulary's.
        vocabulary: What is in that.

    Raises:
        UserError: They differ.
    """
    ids = own.get_vocab(with_added_tokens=True)
    if other := [token for token, i in vocabulary.items() if token.strip() and ids.get(token) != i]:
        token = other[0]
        raise UserError(
            f"{beside} and {path} differ in {len(other):,} of {len(vocabulary):,} tokens "
            f"({reprlib.repr(token)} is {vocabulary[token]} and {ids.get(token, 'not there')}): "
            "remove the one that is not the checkpoint's"
        )


def is_byte_pairs(own: Tokenizer) -> bool:
    """Whether a tokenizer's model is byte pair encoding."""
    from tokenizers.models import BPE

    return isinstance(own.model, BPE)


def refuse_other_pairs(own: Tokenizer, declared: Declared, path: Path, remedy: str) -> None:
    """Refuses byte pairs whose other files say otherwise than ``tokenizer.json``."""
    folder = path.parent
    if os.path.lexists(folder / "vocab.json"):
        vocabulary = read_json(folder / "vocab.json", IDS_SCHEMA, remedy)
        refuse_other_ids(own, path, "vocab.json", vocabulary)
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


def _unreachable(own: Tokenizer, declared: Declared) -> Iterator[str]:
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
