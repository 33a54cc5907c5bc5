"""RoBERTa's tokenizer from ``vocab.json`` and ``merges.txt``: byte-level BPE.

Source: Liu et al. 2019 (arXiv:1907.11692), section 4.4. A checkpoint that was saved by a newer
release of transformers has a ``tokenizer.json`` in the place of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl_jax.core.errors import UserError, first_line
from mtl_jax.core.json_files import read_json, read_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_VOCABULARY: Mapping[str, Any] = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": {"type": "integer", "minimum": 0},
}


def byte_pair_tokenizer(
    folder: Path, special: Mapping[str, str], *, add_prefix_space: bool, remedy: str
) -> Tokenizer:
    """Makes the tokenizer of a folder with ``vocab.json`` and ``merges.txt``.

    Args:
        folder: The checkpoint's.
        special: The special tokens by role; all must be in the vocabulary.
        add_prefix_space: Whether a text's first word is one like every other.
        remedy: What to do where a file can't be read.

    Raises:
        UserError: A file is missing or damaged, or the two contradict each other.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    path = folder / "vocab.json"
    vocabulary = read_json(path, _VOCABULARY, remedy)
    if len(set(vocabulary.values())) < len(vocabulary):
        raise UserError(f"{path} gives several tokens one id: {remedy}")
    try:
        own = Tokenizer(models.BPE(vocab=vocabulary, merges=read_merges(folder, remedy)))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{folder / 'merges.txt'} does not fit {path.name} ({first_line(error)}): use files of "
            "one and the same checkpoint"
        ) from error
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    own.decoder = decoders.ByteLevel()
    # A mask takes the place of a word with the space before it.
    own.add_special_tokens(
        [
            AddedToken(token, lstrip=role == "mask_token", normalized=False)
            for role, token in special.items()
            if token in vocabulary
        ]
    )
    sep, cls = special["sep_token"], special["cls_token"]
    own.post_processor = processors.RobertaProcessing(
        (sep, vocabulary[sep]), (cls, vocabulary[cls]), add_prefix_space=add_prefix_space
    )
    return own


def read_merges(folder: Path, remedy: str) -> list[tuple[str, str]]:
    """The pairs of ``merges.txt``, the first to be merged first.

    Raises:
        UserError: It is missing or damaged.
    """
    merges: list[tuple[str, str]] = []
    lines = read_text(folder / "merges.txt", remedy).split("\n")
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise UserError(f"{folder / 'merges.txt'}, line {number}, is not a pair: {remedy}")
        merges.append((pair[0], pair[1]))
    return merges
