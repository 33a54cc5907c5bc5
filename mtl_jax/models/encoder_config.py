"""The sizes and parts of an encoder, as a checkpoint's ``config.json`` gives them."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from typing import Any, TypeGuard, get_args

from mtl_jax.config.model import Dropped
from mtl_jax.core.errors import UserError
from mtl_jax.models.families import FAMILIES, Family

FETCH = "fetch the checkpoint again"
"""What to do where a file of a checkpoint is damaged."""

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh")

# The buckets that MPNet computes, whatever the rows of its table.
RELATIVE_BUCKETS = 32

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
)

_RATES = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "embedding_dropout_prob",
    "attention_output_dropout_prob",
    "mlp_dropout_prob",
)
_FLAGS = ("norm_first", "gated_mlp", "attention_bias", "mlp_bias", "norm_bias")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """What changes the numbers of an encoder; the defaults are BERT's.

        small = mtl.EncoderConfig(vocab_size=1000, hidden_size=64, num_hidden_layers=2,
                                  num_attention_heads=4, intermediate_size=256)

    The names are those of transformers' ``BertConfig``, and for what BERT has not those of the
    family that has it.

    Attributes:
        vocab_size: Rows of the word embedding.
        hidden_size: Width of the hidden states.
        num_hidden_layers: Layers.
        num_attention_heads: Heads, each of an equal part of the width.
        intermediate_size: Width inside the position-wise network.
        hidden_act: Its activation, one of ``ACTIVATIONS``.
        hidden_dropout_prob: Dropout of the embeddings and of what each part of a layer adds.
        attention_probs_dropout_prob: Dropout of the attention weights.
        classifier_dropout: Dropout before the heads; None for ``hidden_dropout_prob``.
        max_position_embeddings: Positions, those before ``first_position`` included.
        type_vocab_size: Token types; 0 where there is no embedding of them.
        initializer_range: Standard deviation of fresh kernels and embeddings.
        layer_norm_eps: Added to the variance in layer normalisation.
        pad_token_id: The id of padding.
        family: transformers' ``model_type``.
        embedding_size: Width of the embeddings, which are projected to ``hidden_size``; None where
            it is the same.
        first_position: The row of the position embedding that a text's first token has.
        relative_attention_num_buckets: Rows of a table of relative positions, which every layer
            adds to its attention scores; 0 without one.
        embedding_dropout_prob: Dropout of the embeddings, if not ``hidden_dropout_prob``.
        attention_output_dropout_prob: Dropout of what attention adds, if not that.
        mlp_dropout_prob: Dropout inside the position-wise network, before its last product, in the
            place of that of what it adds.
        norm_first: Whether each part of a layer normalises its input and not its result. The
            embeddings are normalised already for the first layer's attention; what the last layer
            makes is normalised once more.
        gated_mlp: Whether a second product gates the activations (Shazeer 2020, arXiv:2002.05202).
        attention_bias: Whether attention's products have a bias.
        mlp_bias: Whether those of the position-wise network have one.
        norm_bias: Whether layer normalisation has one.
        global_rope_theta: Base of the rotary frequencies (Su et al. 2021, arXiv:2104.09864) where
            a token looks at the whole text; None for embeddings of the positions.
        local_rope_theta: The same in the ``local_layers``.
        local_attention: Tokens that a token looks at in these, half of them on each side.
        local_layers: Layers in which a token looks at those near it alone.
        position_buckets: Of disentangled attention (He et al. 2020, arXiv:2006.03654) half of the
            rows of a table of distances, where distances share rows by their logarithm; None
            where attention is another.
        max_relative_positions: The distance from which on all share the last row.
        classifier_pooling: What the family's classifiers pool by; None where nothing is said.
        attention_dropout_on: What ``attention_probs_dropout_prob`` drops: ``weights``, or
            ``output``, components of what the weights have mixed, before its product. No
            checkpoint's, but a setting.
    """

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
    family: str = "bert"
    embedding_size: int | None = None
    first_position: int = 0
    relative_attention_num_buckets: int = 0
    embedding_dropout_prob: float | None = None
    attention_output_dropout_prob: float | None = None
    mlp_dropout_prob: float | None = None
    norm_first: bool = False
    gated_mlp: bool = False
    attention_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    global_rope_theta: float | None = None
    local_rope_theta: float | None = None
    local_attention: int = 0
    local_layers: tuple[int, ...] = ()
    position_buckets: int | None = None
    max_relative_positions: int = 0
    classifier_pooling: str | None = None
    attention_dropout_on: str = "weights"

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise UserError(
                f"family {reprlib.repr(self.family)} is not supported: use one of "
                f"{', '.join(FAMILIES)}"
            )
        # JSON has lists alone, and what is compiled is found again by its hash.
        if isinstance(self.local_layers, list):
            object.__setattr__(self, "local_layers", tuple(self.local_layers))
        self._check_sizes()
        for name in _RATES:
            rate, may_lack = getattr(self, name), _FIELDS[name].default is None
            right = _is_number(rate) and 0 <= rate <= 1  # a comparison with NaN is false
            if not right and (rate is not None or not may_lack):
                raise self._wrong(name, "from 0 to 1")
        if not (_is_number(self.initializer_range) and 0 <= self.initializer_range < math.inf):
            raise self._wrong("initializer_range", "a number of at least 0")
        # Layer normalisation divides by its root where all numbers of a row are the same.
        if not (_is_number(self.layer_norm_eps) and 0 < self.layer_norm_eps < 1):
            raise self._wrong("layer_norm_eps", "above 0 and below 1")
        for name in _FLAGS:
            if type(getattr(self, name)) is not bool:
                raise self._wrong(name, "true or false")
        for name in ("global_rope_theta", "local_rope_theta"):
            theta = getattr(self, name)
            if not (theta is None or (_is_number(theta) and 0 < theta < 1e30)):
                raise self._wrong(name, "a number above 0")
        if self.classifier_pooling not in (None, "cls", "mean"):
            raise self._wrong("classifier_pooling", "cls or mean")
        if self.attention_dropout_on not in get_args(Dropped):
            raise self._wrong("attention_dropout_on", " or ".join(get_args(Dropped)))
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(
                f"{self._theirs('hidden_act')} {reprlib.repr(self.hidden_act)} is not supported: "
                f"use one of {', '.join(ACTIVATIONS)}"
            )

    @property
    def head_dropout(self) -> float:
        """Dropout before the heads."""
        rate = self.classifier_dropout
        return self.hidden_dropout_prob if rate is None else rate

    @property
    def drops_attention_weights(self) -> bool:
        """Whether training drops attention weights."""
        return self.attention_dropout_on == "weights" and self.attention_probs_dropout_prob > 0

    @property
    def drops_out(self) -> bool:
        """Whether its layers have any dropout."""
        return any(getattr(self, name) for name in _RATES if name != "classifier_dropout")

    def trained_head_dropout(self, *, heads_alone: bool) -> float:
        """The same in training, where nothing states it.

        It is 0 where heads alone train: their vectors never change, and of a linear head the
        loss has one minimum, from which the masks of a seed would only lead away.
        """
        return 0.0 if heads_alone else self.head_dropout

    def _check_sizes(self) -> None:
        for name in _SIZES:
            if not _is_count(getattr(self, name), 1):
                raise self._wrong(name, f"a whole number from 1 to {2**31 - 1}")
        told = {**self.family_table.defaults, **self.family_table.fixed}
        least = 0 if told.get("type_vocab_size") == 0 else 1
        if not _is_count(self.type_vocab_size, least):
            raise self._wrong("type_vocab_size", f"a whole number from {least} to {2**31 - 1}")
        if not (self.embedding_size is None or _is_count(self.embedding_size, 1)):
            raise self._wrong("embedding_size", f"a whole number from 1 to {2**31 - 1}")
        if not _is_count(self.local_attention, 0):
            raise self._wrong("local_attention", f"a whole number from 0 to {2**31 - 1}")
        buckets = self.relative_attention_num_buckets
        has_buckets = "relative_attention_num_buckets" in self.family_table.own
        if not (_is_count(buckets, RELATIVE_BUCKETS) or (buckets == 0 and not has_buckets)):
            raise self._wrong(
                "relative_attention_num_buckets", f"a whole number of at least {RELATIVE_BUCKETS}"
            )
        self._check_distances()
        if not all(_is_count(i, 0) and i < self.num_hidden_layers for i in self.local_layers):
            raise self._wrong("local_layers", "the numbers of layers")
        if not (_is_count(self.first_position, 0) and self.max_length >= 1):
            raise UserError(
                f"max_position_embeddings {self.max_position_embeddings} leaves no position: the "
                f"first {reprlib.repr(self.first_position)} stand for padding: correct the "
                "checkpoint's config.json"
            )
        width, heads = self.hidden_size, self.num_attention_heads
        if width % heads:
            raise UserError(
                f"{self._theirs('hidden_size')} {width} is not a multiple of "
                f"{self._theirs('num_attention_heads')} {heads}: correct the checkpoint's "
                "config.json"
            )
        if self.global_rope_theta is not None and width // heads % 2:
            raise UserError(
                f"{self._theirs('hidden_size')} {width} gives each of {heads} heads an odd width, "
                "which rotary positions can't turn: correct the checkpoint's config.json"
            )

    def _check_distances(self) -> None:
        """Refuses buckets whose logarithms can't be told apart."""
        buckets, farthest = self.position_buckets, self.max_relative_positions
        if buckets is None and "position_buckets" not in self.family_table.own:
            return
        if not _is_count(farthest, 1):
            raise self._wrong("max_relative_positions", "a whole number")
        if not (_is_count(buckets, 4) and buckets <= farthest):
            raise self._wrong(
                "position_buckets", f"a whole number from 4 to max_relative_positions, {farthest}"
            )

    @property
    def has_positions(self) -> bool:
        """Whether there are embeddings of absolute positions."""
        return self.global_rope_theta is None and self.position_buckets is None

    @property
    def family_table(self) -> Family:
        """The table of its family."""
        return FAMILIES[self.family]

    @property
    def max_length(self) -> int:
        """Tokens of a text at most."""
        return self.max_position_embeddings - self.first_position

    @property
    def word_size(self) -> int:
        """Width of the embeddings."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    def record(self) -> dict[str, Any]:
        """The fields as JSON; of those that BERT has not, the ones that are not its own.

        ``EncoderConfig(**record)`` is this one again.
        """
        fields = dataclasses.asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in fields.items()
            if name in _OF_BERT or value != _FIELDS[name].default
        }

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
            raise UserError(f"{origin} is not a JSON object: {FETCH}")
        if own_code := fields.get("auto_map"):
            raise UserError(
                f"{origin}: auto_map names code of the checkpoint's own "
                f"({reprlib.repr(own_code)}), and none is ever run: use a checkpoint without it"
            )
        name = _model_type(fields, origin)
        family = FAMILIES[name]
        for field, supported in {**_SUPPORTED_ONLY, **family.refused}.items():
            value = fields.get(field, supported[0])
            if value not in supported:
                raise UserError(
                    f"{origin}: {field} {reprlib.repr(value)} is not supported: use a checkpoint "
                    f"with {field} {supported[0]!r}"
                )
        read = dict.fromkeys((*_OF_BERT, *family.names, *family.own))
        known = {ours: _FIELDS[ours].default for ours in _OF_BERT} | dict(family.defaults)
        for ours in read:
            theirs = family.names.get(ours, ours)
            if theirs in fields:
                known[ours] = fields[theirs]
        known |= family.fixed
        try:
            return cls(**known, **family.derived({**fields, **known}), family=name)
        except UserError as error:
            raise UserError(f"{origin}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The fields of a transformers ``config.json``, which ``from_dict`` reads as this one."""
        family = self.family_table
        read = (name for name in (*_OF_BERT, *family.own) if name not in family.names)
        fields = {name: getattr(self, name) for name in read if name not in family.fixed}
        fields |= {theirs: getattr(self, ours) for ours, theirs in family.names.items()}
        return {"model_type": self.family, **fields, **family.underived(self)}

    def _theirs(self, name: str) -> str:
        """The name that a field has in ``config.json``, for an error."""
        return self.family_table.names.get(name, name)

    def _wrong(self, name: str, right: str) -> UserError:
        return UserError(
            f"{self._theirs(name)} {reprlib.repr(getattr(self, name))} must be {right}: correct "
            "the checkpoint's config.json"
        )


_FIELDS = {field.name: field for field in dataclasses.fields(EncoderConfig)}
_OF_BERT = tuple(_FIELDS)[: tuple(_FIELDS).index("family")]


def _model_type(fields: dict[str, Any], origin: str) -> str:
    found, architectures = fields.get("model_type"), fields.get("architectures")
    if isinstance(found, str) and found in FAMILIES:
        return found
    # Configurations of 2019 have none.
    named = architectures if isinstance(architectures, list) else [architectures or "Bert"]
    if not found and all(str(name).startswith("Bert") for name in named):
        raise UserError(
            f"{origin}: model_type is missing: if the checkpoint is a BERT, as old ones without "
            'it are, add "model_type": "bert"'
        )
    name, value = ("model_type", found) if found else ("architectures", named)
    raise UserError(
        f"{origin}: {name} {reprlib.repr(value)} is not supported: use a checkpoint with a "
        f"model_type of {', '.join(FAMILIES)}"
    )


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any, least: int) -> TypeGuard[int]:
    return type(value) is int and least <= value < 2**31
