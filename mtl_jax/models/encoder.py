"""A pre-trained encoder, ready to use: parameters, tokenizer and pooling of one checkpoint."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from mtl_jax.config.model import Dropped, Pooling
from mtl_jax.core.errors import UserError
from mtl_jax.core.type_checks import refuse_arguments
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.encoder_module import EncoderModule
from mtl_jax.models.pretrained import load_backbone, resolve_backbone, without_unused_pooler
from mtl_jax.models.sentence_transformers import default_pooling
from mtl_jax.models.tokenizer import load_tokenizer
from mtl_jax.models.tokenizer_checks import tokenizer_notes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = ArrayLike | Sequence[Sequence[int]]
"""Whole numbers [batch, length], as an array or as lists."""


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """A checkpoint's encoder: a function from token ids to hidden states.

        encoder = mtl.load_encoder("bert-base-uncased")
        ids = encoder.tokenizer(["a text"], return_tensors="np")
        hidden = encoder(ids["input_ids"], ids["attention_mask"])

    Attributes:
        name: What it was loaded by: a folder, or a name on the hub.
        folder: Where its files are.
        config: Its sizes, activation and dropout rates.
        params: Its parameters, float32 numpy arrays; without a pooler that its pooling leaves out.
        tokenizer: Its tokenizer.
        pooling: How a text's hidden states become one vector: ``mean``, ``cls`` or ``pooler``.
        notes: What to know of its files, in words.
    """

    name: str
    folder: Path
    config: EncoderConfig
    params: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    pooling: Pooling
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        config = self.config
        return (
            f"<Encoder {self.name!r}: {config.family}, {config.num_hidden_layers} layers, "
            f"{config.hidden_size} wide, pooling {self.pooling}>"
        )

    def __call__(
        self,
        input_ids: Tokens,
        attention_mask: Tokens | None = None,
        token_type_ids: Tokens | None = None,
    ) -> jax.Array:
        """Computes the last hidden state of token ids, without dropout.

        Args:
            input_ids: int [batch, length].
            attention_mask: int [batch, length], 1 at tokens, 0 at padding; by default all 1.
            token_type_ids: int [batch, length]; by default all 0, which is also the only choice in
                a family without token types.

        Returns:
            The last hidden state, float32 [batch, length, hidden].

        Raises:
            UserError: As of ``as_tokens``.
        """
        return self.hidden_states(input_ids, attention_mask, token_type_ids)[-1]

    def hidden_states(
        self,
        input_ids: Tokens,
        attention_mask: Tokens | None = None,
        token_type_ids: Tokens | None = None,
    ) -> tuple[jax.Array, ...]:
        """Returns the output of the embeddings and of every layer, from the lowest to the highest.

        Takes the arguments of ``__call__``. With L layers there are L + 1 arrays, float32
        [batch, length, hidden].
        """
        tokens = as_tokens(self.config, input_ids, attention_mask, token_type_ids)
        return self._compiled(self.params, *tokens)

    @functools.cached_property
    def _compiled(self) -> Any:
        module = EncoderModule(self.config)

        def states(
            encoder: EncoderModule, ids: jax.Array, mask: jax.Array, types: jax.Array
        ) -> tuple[jax.Array, ...]:
            views = encoder.views(mask)
            found = [encoder.embed(ids, types)]
            for layer in range(self.config.num_hidden_layers):
                found.append(encoder.run_layers(found[-1], views, layer, layer + 1))
            return tuple(found)

        @jax.jit
        def apply(params: Any, *inputs: jax.Array) -> tuple[jax.Array, ...]:
            found = module.apply({"params": params}, *inputs, method=states)
            return cast("tuple[jax.Array, ...]", found)

        return apply


def as_tokens(
    config: EncoderConfig,
    input_ids: Tokens,
    attention_mask: Tokens | None = None,
    token_type_ids: Tokens | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns what a user gives as tokens as arrays that an encoder can compute with.

    An id that there is not, or a position, would be read as another one, or as NaN. The values of
    traced arrays are not known, and only their shapes are checked.

    Args:
        config: The encoder's.
        input_ids: int [batch, length].
        attention_mask: int or bool [batch, length], above 0 at tokens; by default all 1.
        token_type_ids: int [batch, length]; by default all 0.

    Returns:
        The three, [batch, length] each; ids and token types are int32.

    Raises:
        UserError: They are no such arrays, a text has more tokens than the encoder has positions,
            or there is no such id or token type.
    """
    ids = _numbers("input_ids", input_ids)
    if ids.ndim != 2:
        raise UserError(f"input_ids has the shape {ids.shape}: give it as [batch, length]")
    if ids.shape[1] > config.max_length:
        raise UserError(
            f"{ids.shape[1]} tokens are more than the encoder's {config.max_length} "
            "positions: cut the texts (truncation=True, max_length=...)"
        )
    least, most = _range(ids)
    if least < 0 or most >= config.vocab_size:
        raise UserError(
            f"input_ids has the id {least if least < 0 else most}, and the encoder's are 0 to "
            f"{config.vocab_size - 1}: use its own tokenizer, encoder.tokenizer"
        )
    given = (("attention_mask", attention_mask, 1), ("token_type_ids", token_type_ids, 0))
    mask, types = (
        jnp.full(ids.shape, otherwise, jnp.int32) if array is None else _numbers(name, array)
        for name, array, otherwise in given
    )
    for name, array in (("attention_mask", mask), ("token_type_ids", types)):
        if array.shape != ids.shape:
            raise UserError(
                f"{name} has the shape {array.shape}, and input_ids {ids.shape}: give them alike"
            )
    count = config.type_vocab_size
    if token_type_ids is not None and (most := _range(types)[1]) >= max(count, 1):
        raise UserError(
            f"the encoder has {count} token types, and none with the number {most}: "
            "leave token_type_ids out"
        )
    return jnp.asarray(ids, jnp.int32), jnp.asarray(mask), jnp.asarray(types, jnp.int32)


def _numbers(name: str, given: Any) -> jax.Array | np.ndarray:
    """The array that an argument is, or stands for; one of numpy is looked at without a device."""
    try:
        array = given if isinstance(given, jax.Array) else np.asarray(given)
    except ValueError:  # Rows of different lengths.
        array = np.asarray(None)
    if array.dtype.kind not in ("iub" if name != "attention_mask" else "iubf"):
        raise UserError(
            f"{name} is no array of whole numbers: give what the tokenizer makes, as in "
            'encoder(**encoder.tokenizer(texts, padding=True, return_tensors="np"))'
        )
    return array


def _range(array: jax.Array | np.ndarray) -> tuple[int, int]:
    """The least and the largest number of an array; 0 of one whose values are not known."""
    if isinstance(array, Tracer):
        return 0, 0
    return int(array.min(initial=0)), int(array.max(initial=0))


def load_encoder(
    name: str | Path,
    pooling: Pooling | None = None,
    attention_dropout: float | None = None,
    attention_dropout_on: Dropped = "weights",
) -> Encoder:
    """Loads the encoder of a pre-trained checkpoint.

        encoder = mtl.load_encoder("sentence-transformers/all-MiniLM-L6-v2")

    Args:
        name: A folder, or a name on the Hugging Face hub. Weights are read from safetensors only.
        pooling: How the token vectors of a text become one vector; by default as the checkpoint
            declares, otherwise their mean.
        attention_dropout: Dropout of the attention weights; by default the checkpoint's.
        attention_dropout_on: What that drops: ``weights``, or ``output`` for components of what
            these mix.

    Raises:
        UserError: The checkpoint can't be found or used.
    """
    refuse_arguments(load_encoder, locals())
    folder = resolve_backbone(str(name))
    config, params = load_backbone(folder)
    if attention_dropout is not None:
        config = dataclasses.replace(config, attention_probs_dropout_prob=attention_dropout)
    config = dataclasses.replace(config, attention_dropout_on=attention_dropout_on)
    chosen = pooling or default_pooling(folder, config)
    tokenizer = load_tokenizer(folder)
    return Encoder(
        name=str(name),
        folder=folder,
        config=config,
        params=without_unused_pooler(params, chosen, str(name)),
        tokenizer=tokenizer,
        pooling=chosen,
        notes=tuple(tokenizer_notes(folder, tokenizer, config.vocab_size)),
    )
