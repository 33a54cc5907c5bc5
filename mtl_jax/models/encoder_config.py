"""The sizes of an encoder, as a checkpoint's ``config.json`` gives them."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from typing import Any, TypeGuard

from mtl_jax.core.errors import UserError

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh")

# What a config.json may say without a change in the numbers that this encoder computes.
_SUPPORTED_ONLY: dict[str, tuple[object, ...]] = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "chunk_size_feed_forward": (0, None),
}

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)

_RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The fields of a transformers ``EncoderConfig`` that change the numbers."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        for name in _SIZES:
            size = getattr(self, name)
            if type(size) is not int or not 0 < size < 2**31:
                raise _wrong(name, size, f"a whole number from 1 to {2**31 - 1}")
        for name in _RATES:
            rate = getattr(self, name)
            right = _is_number(rate) and 0 <= rate <= 1  # a comparison with NaN is false
            if not right and (rate is not None or name != "classifier_dropout"):
                raise _wrong(name, rate, "from 0 to 1")
        if not (_is_number(self.initializer_range) and 0 <= self.initializer_range < math.inf):
            raise _wrong("initializer_range", self.initializer_range, "a number of at least 0")
        # Layer normalisation divides by its root where all numbers of a row are the same.
        if not (_is_number(self.layer_norm_eps) and 0 < self.layer_norm_eps < 1):
            raise _wrong("layer_norm_eps", self.layer_norm_eps, "above 0 and below 1")
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(
                f"hidden_act {reprlib.repr(self.hidden_act)} is not supported: use one of "
                f"{', '.join(ACTIVATIONS)}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}: correct the checkpoint's config.json"
            )

    @classmethod
    def from_dict(cls, fields: dict[str, Any], origin: str = "config.json") -> EncoderConfig:
        """Reads a transformers ``config.json``.

        Args:
            fields: The parsed JSON object. Fields that do not change the encoder's
                numbers are passed over.
            origin: What to call the file in an error.

        Raises:
            UserError: A field asks for something that this encoder does not compute.
        """
        if not isinstance(fields, dict):
            raise UserError(f"{origin} is not a JSON object: fetch the checkpoint again")
        if own_code := fields.get("auto_map"):
            raise UserError(
                f"{origin}: auto_map names code of the checkpoint's own "
                f"({reprlib.repr(own_code)}), and none is ever run: use a checkpoint without it"
            )
        _check_model_type(fields, origin)
        for name, supported in _SUPPORTED_ONLY.items():
            value = fields.get(name, supported[0])
            if value not in supported:
                raise UserError(
                    f"{origin}: {name} {reprlib.repr(value)} is not supported: use a checkpoint "
                    f"with {name} {supported[0]!r}"
                )
        known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        try:
            return cls(**known)
        except UserError as error:
            raise UserError(f"{origin}: {error}") from error


def _check_model_type(fields: dict[str, Any], origin: str) -> None:
    found, architectures = fields.get("model_type"), fields.get("architectures")
    if found == "bert":
        return
    # Configurations of 2019 have none.
    named = architectures if isinstance(architectures, list) else [architectures or "Bert"]
    if not found and all(str(name).startswith("Bert") for name in named):
        raise UserError(
            f"{origin}: model_type is missing: if the checkpoint is a BERT, as old ones without "
            'it are, add "model_type": "bert"'
        )
    name, value = ("model_type", found) if found else ("architectures", named)
    raise UserError(
        f"{origin}: {name} {reprlib.repr(value)} is not supported: use a checkpoint with "
        "model_type 'bert'"
    )


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong(name: str, value: object, right: str) -> UserError:
    return UserError(
        f"{name} {reprlib.repr(value)} must be {right}: correct the checkpoint's config.json"
    )
