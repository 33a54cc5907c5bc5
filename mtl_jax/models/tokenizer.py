"""The tokenizer of a checkpoint or a run, from its own files and held against them.

It is made of ``tokenizer.json`` as that stands, else of ``vocab.txt``, or of ``vocab.json`` and
``merges.txt``, and of a few known fields of the other files. transformers' own loader would make a
BERT's anew from the vocabulary alone, whatever ``tokenizer.json`` says of case, accents, words and
special tokens, and would run a module that the checkpoint names.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mtl_jax.core.errors import UserError, first_line
from mtl_jax.core.json_files import read_json, read_text
from mtl_jax.models.byte_pairs import byte_pair_tokenizer
from mtl_jax.models.quiet_transformers import tokenizer_class
from mtl_jax.models.tokenizer_checks import (
    NEEDED,
    check_ids,
    is_byte_pairs,
    missing,
    refuse_contradictions,
    refuse_missing,
    refuse_other_ids,
    refuse_other_pairs,
)
from mtl_jax.models.tokenizer_fields import (
    FLAGS,
    IDS_SCHEMA,
    REMEDY,
    Declared,
    declared_in,
    is_word_piece,
    special_tokens,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(folder: str | Path, remedy: str = REMEDY) -> PreTrainedTokenizerFast:
    """Loads the tokenizer of a checkpoint, from local files only, and runs no code of theirs.

    Args:
        folder: A folder in transformers' layout.
        remedy: What to do where the folder holds none that can be loaded.

    Raises:
        UserError: It holds none, its files contradict each other, a special token is not in the
            vocabulary, or a file names code.
    """
    folder = Path(folder)
    declared = declared_in(folder, remedy)
    whole, vocabulary = folder / "tokenizer.json", folder / "vocab.txt"
    side = "right"
    if os.path.lexists(whole):
        own = _from_whole(whole, declared, remedy)
        # How texts were cut and filled up where it was saved says nothing of how they are here.
        side = (own.truncation or {}).get("direction", side)
        own.no_truncation()
        own.no_padding()
        refuse_missing(own, declared, whole)
        if is_word_piece(own) and declared.is_computed_by("BertTokenizer"):
            refuse_contradictions(own, declared)
        if os.path.lexists(vocabulary):
            refuse_other_ids(own, whole, vocabulary.name, _read_vocabulary(vocabulary, remedy))
        if is_byte_pairs(own):
            refuse_other_pairs(own, declared, whole, remedy)
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
    names = {role: token for role, token in special_tokens(own, declared).items() if token in there}
    loaded = tokenizer_class()(
        tokenizer_object=own,
        truncation_side=declared.fields.get("truncation_side") or side,
        **names,
    )
    check_ids(own, loaded, folder)
    return loaded


def _refuse_kind(declared: Declared, file: str) -> UserError:
    return UserError(
        f"{declared.config}: tokenizer_class {reprlib.repr(declared.kind)} is none that "
        f"transformers makes of {file}, and no other code is run: use a checkpoint with a "
        f"tokenizer.json, or leave tokenizer_class out if {file} is all of it"
    )


def _from_whole(path: Path, declared: Declared, remedy: str) -> Tokenizer:
    from tokenizers import Tokenizer

    if not declared.is_computed_by("PreTrainedTokenizerFast"):
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


def _from_vocabulary(path: Path, declared: Declared, remedy: str) -> Tokenizer:
    from tokenizers import Tokenizer, processors
    from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer

    # MPNet's differs in its special tokens, and in how many stand between the texts of a pair.
    bases = ("BertTokenizer", "MPNetTokenizer")
    if not any(declared.is_computed_by(base) for base in bases):
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
    for role in NEEDED:
        if special[role] not in vocabulary:
            raise missing(path, role, special[role])
    bert = BertWordPieceTokenizer(
        vocabulary,
        **special,  # pyright: ignore[reportArgumentType]  (the names are those of tokens)
        handle_chinese_chars=fields.get("tokenize_chinese_chars") is not False,
        strip_accents=fields.get("strip_accents"),
        lowercase=fields.get("do_lower_case") is not False,
    )
    own = Tokenizer.from_str(bert.to_str())
    if declared.kind is not None and declared.is_computed_by("MPNetTokenizer"):
        sep, cls = (
            (special[role], vocabulary[special[role]]) for role in ("sep_token", "cls_token")
        )
        own.post_processor = processors.RobertaProcessing(sep, cls, add_prefix_space=False)
    _add(own, declared, special, vocabulary)
    return own


def _from_byte_pairs(folder: Path, declared: Declared, remedy: str) -> Tokenizer:
    if declared.kind is None or not declared.is_computed_by("RobertaTokenizer"):
        raise _refuse_kind(declared, "vocab.json and merges.txt")
    special = {**declared.usual, **declared.special}
    vocabulary = read_json(folder / "vocab.json", IDS_SCHEMA, remedy)
    for role in NEEDED:
        if special[role] not in vocabulary:
            raise missing(folder / "vocab.json", role, special[role])
    prefix = declared.fields.get("add_prefix_space") is True
    own = byte_pair_tokenizer(folder, special, add_prefix_space=prefix, remedy=remedy)
    _add(own, declared, special, vocabulary)
    return own


def _add(
    own: Tokenizer,
    declared: Declared,
    special: Mapping[str, str],
    vocabulary: Mapping[str, int],
) -> None:
    """Adds the tokens that are declared beside a vocabulary."""
    from tokenizers import AddedToken

    fields = declared.fields
    own.add_special_tokens([token for token in declared.extra if token in vocabulary])
    told = {token["content"]: token for token in fields.get("added_tokens_decoder", {}).values()}
    for token in sorted(declared.added, key=declared.added.__getitem__):
        flags = {name: on for name, on in told.get(token, {}).items() if name in FLAGS}
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
