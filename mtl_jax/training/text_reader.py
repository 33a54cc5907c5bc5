"""Texts to token ids, for one backbone."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mtl_jax.config.data import LongTexts
from mtl_jax.core.downloads import cache_dir
from mtl_jax.core.errors import UserError
from mtl_jax.data.batches import TextSet
from mtl_jax.data.tokens import special_tokens, tokenize
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.training.cache.token_store import TokenStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextReader:
    """Turns texts into token ids for one backbone.

    Attributes:
        tokenizer: The checkpoint's.
        max_length: Tokens of a text at most: what was asked for, or the model's positions.
        refuses: Whether longer texts are refused, not cut.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        bert: EncoderConfig,
        max_length: int,
        long_texts: LongTexts,
        remedy: str = "shorten them, raise --max-length",
        *,
        pairs: bool = False,
        kept: TokenStore | None = None,
    ):
        """Checks that tokenizer and backbone fit.

        ``pairs`` says that there are pairs of texts to come; ``kept`` has the ids of texts that
        have been tokenised before, and keeps those of others.

        Raises:
            UserError: ``max_length`` leaves no room beside the special tokens, or there are ids
                that the embedding has no row for.
        """
        self.tokenizer = tokenizer
        self.max_length = min(max_length, bert.max_length)
        # Batches are shaped by the length before the first text is tokenised.
        special_tokens(tokenizer, self.max_length, pairs=pairs)
        if (last := max(tokenizer.get_vocab().values(), default=0)) >= bert.vocab_size:
            raise UserError(
                f"the tokenizer has ids up to {last}, the backbone a vocabulary of "
                f"{bert.vocab_size}: use the tokenizer of the same checkpoint"
            )
        self.refuses, self._remedy = long_texts == "refuse", remedy
        self._types, self._kept = bert.type_vocab_size > 1, kept

    def __call__(
        self, texts: Sequence[str], labels: Mapping[str, np.ndarray], origin: str = "the input"
    ) -> TextSet:
        """Tokenises ``texts``; longer ones are cut, or refused.

        Of texts that are not in memory the ids are not, either.

        Args:
            texts: n texts.
            labels: Per task those of the texts, as ``TextSet`` has them.
            origin: What to call the texts in an error.

        Raises:
            UserError: There are longer ones and they are refused.
        """
        folder = None if isinstance(texts, list) else cache_dir() / "tokens"
        how = {"max_length": self.max_length, "types": self._types}
        make = functools.partial(tokenize, self.tokenizer, texts, folder=folder, **how)
        tokens = make() if self._kept is None else self._kept.get(texts, make=make, **how)
        if tokens.truncated and self.refuses:
            raise UserError(
                f"{origin}: {tokens.truncated} of {len(texts)} texts are longer than "
                f"{self.max_length} tokens: {self._remedy}, or use --long-texts cut"
            )
        return TextSet(tokens, labels)

    def cut(self, texts: TextSet, origin: str) -> list[str]:
        """How many of ``texts`` were cut, in words; nothing where none was."""
        if not texts.tokens.truncated:
            return []
        counts = f"{texts.tokens.truncated} of {len(texts)}"
        return [f"{origin}: {counts} texts were cut to {self.max_length} tokens"]
