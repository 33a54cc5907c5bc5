"""What tells the families of encoders apart: fields of a ``config.json``, and names of tensors.

One line per family in ``FAMILIES``. The encoder itself knows none of them: it computes what an
``EncoderConfig`` says.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from mtl_jax.core.errors import UserError

Kind = Mapping[str, tuple[str, bool]]
"""Of a module: transformers' name of a parameter to that of the leaf, and whether one is the
other's transpose. A dense kernel is PyTorch's weight transposed."""

Table = Mapping[str, tuple[tuple[str, ...], Kind]]
"""transformers' name of a module to the paths of those that it becomes: of several, each has an
equal part of the tensor's rows, in this order."""

_DENSE: Kind = {"weight": ("kernel", True), "bias": ("bias", False)}
_NORM: Kind = {"weight": ("scale", False), "bias": ("bias", False)}
_EMBED: Kind = {"weight": ("embedding", False)}

_EMBEDDINGS: Table = {
    "embeddings.word_embeddings": (("embeddings/word",), _EMBED),
    "embeddings.position_embeddings": (("embeddings/position",), _EMBED),
    "embeddings.token_type_embeddings": (("embeddings/token_type",), _EMBED),
    "embeddings.LayerNorm": (("embeddings/layer_norm",), _NORM),
}
_MLP: Table = {
    "intermediate.dense": (("mlp/intermediate",), _DENSE),
    "output.dense": (("mlp/output",), _DENSE),
    "output.LayerNorm": (("mlp/layer_norm",), _NORM),
}
_POOLER: Table = {"pooler.dense": (("pooler",), _DENSE)}


def _nothing(of: Any) -> dict[str, Any]:
    del of
    return {}


@dataclasses.dataclass(frozen=True)
class Family:
    """One ``model_type`` of transformers.

    Attributes:
        label: Its name in a sentence.
        prefix: What stands before its tensors' names in the file of a task's model.
        names: Fields of ``EncoderConfig`` to transformers' names of them, where these differ.
        own: Fields that only some families read, under transformers' own names.
        defaults: What transformers takes for a field that a ``config.json`` lacks, where that is
            not what ``EncoderConfig`` has.
        fixed: What holds whatever a ``config.json`` says.
        derived: Makes further fields of a ``config.json`` in which every default is filled in.
        underived: The inverse of ``derived``: of a configuration the fields of its ``config.json``.
        refused: Fields to the values that this encoder computes, of which the first is named.
        embeddings: Its tensors below the layers.
        layers: What stands before the number of a layer.
        layer: The tensors of a layer.
        top: Tensors that belong to the last layer.
        pooler: Those of the pooler; empty where the family has none.
    """

    label: str
    prefix: str
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    own: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    derived: Callable[[Mapping[str, Any]], dict[str, Any]] = _nothing
    underived: Callable[[Any], dict[str, Any]] = _nothing
    refused: Mapping[str, tuple[object, ...]] = dataclasses.field(default_factory=dict)
    embeddings: Table = dataclasses.field(default_factory=lambda: _EMBEDDINGS)
    layers: str = "encoder.layer."
    layer: Table = dataclasses.field(
        default_factory=lambda: {
            "attention.self.query": (("attention/query",), _DENSE),
            "attention.self.key": (("attention/key",), _DENSE),
            "attention.self.value": (("attention/value",), _DENSE),
            "attention.output.dense": (("attention/output",), _DENSE),
            "attention.output.LayerNorm": (("attention/layer_norm",), _NORM),
            **_MLP,
        }
    )
    top: Table = dataclasses.field(default_factory=dict)
    pooler: Table = dataclasses.field(default_factory=lambda: _POOLER)

    @property
    def roots(self) -> tuple[str, ...]:
        """What the names of an encoder's own tensors begin with; all others are of tasks' heads."""
        modules = (*self.embeddings, self.layers, *self.top, *self.pooler)
        return tuple(sorted({f"{name.split('.')[0]}." for name in modules}))


def _after_padding(fields: Mapping[str, Any]) -> dict[str, Any]:
    """RoBERTa counts positions from the one after ``pad_token_id``, as fairseq does."""
    pad = fields["pad_token_id"]
    if type(pad) is not int or pad < 0:
        raise UserError(
            f"pad_token_id {reprlib.repr(pad)} must be a whole number of at least 0, from which "
            "positions are counted: correct the checkpoint's config.json"
        )
    return {"first_position": pad + 1}


_ATTENTION_KINDS = ("full_attention", "sliding_attention")


def _rotary(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary frequencies and the layers of local attention, in the older fields or the newer."""
    thetas = {"full_attention": fields.get("global_rope_theta", 160_000.0)}
    thetas["sliding_attention"] = fields.get("local_rope_theta", 10_000.0)
    newer = fields.get("rope_parameters") or {}
    if not isinstance(newer, dict) or any(
        not isinstance(newer.get(kind) or {}, dict) for kind in _ATTENTION_KINDS
    ):
        raise UserError(
            f"rope_parameters {reprlib.repr(newer)} must hold an object for each of "
            f"{' and '.join(_ATTENTION_KINDS)}: correct the checkpoint's config.json"
        )
    for kind in _ATTENTION_KINDS:
        of_kind = newer.get(kind) or {}
        if (scaled := of_kind.get("rope_type", "default")) != "default":
            raise UserError(
                f"rope_type {reprlib.repr(scaled)} is not supported: use a checkpoint with "
                "rope_type 'default'"
            )
        thetas[kind] = of_kind.get("rope_theta", thetas[kind])
    layers, kinds = fields["num_hidden_layers"], fields.get("layer_types")
    if kinds is None:
        every = fields.get("global_attn_every_n_layers", 3)
        if type(every) is not int or every < 1:
            raise UserError(
                f"global_attn_every_n_layers {reprlib.repr(every)} must be a whole number of at "
                "least 1: correct the checkpoint's config.json"
            )
        local = (i for i in range(_counted(layers)) if i % every)
    elif (
        not isinstance(kinds, list)
        or len(kinds) != layers
        or any(kind not in _ATTENTION_KINDS for kind in kinds)
    ):
        raise UserError(
            f"layer_types {reprlib.repr(kinds)} must name {' or '.join(_ATTENTION_KINDS)} for "
            f"each of {reprlib.repr(layers)} layers: correct the checkpoint's config.json"
        )
    else:
        local = (i for i, kind in enumerate(kinds) if kind == "sliding_attention")
    return {
        "global_rope_theta": thetas["full_attention"],
        "local_rope_theta": thetas["sliding_attention"],
        "local_layers": tuple(local),
    }


def _rotary_fields(config: Any) -> dict[str, Any]:
    thetas = config.global_rope_theta, config.local_rope_theta
    return {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta}
            for kind, theta in zip(_ATTENTION_KINDS, thetas, strict=True)
        },
        "layer_types": [
            _ATTENTION_KINDS[i in config.local_layers] for i in range(config.num_hidden_layers)
        ],
    }


# What tells DeBERTa-v3 apart: a field, what it is where it is not said, and what is computed.
_DISENTANGLED: tuple[tuple[str, Any, Any], ...] = (
    ("relative_attention", False, True),
    ("share_att_key", False, True),
    ("norm_rel_ebd", "none", "layer_norm"),
    ("position_biased_input", True, False),
    ("conv_kernel_size", 0, 0),
)


def _disentangled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The distances that a table has rows for; refuses what DeBERTa-v3 has not."""
    for name, default, computed in _DISENTANGLED:
        if (found := fields.get(name, default)) != computed:
            raise UserError(
                f"{name} {reprlib.repr(found)} is not supported: use a checkpoint of DeBERTa-v3, "
                f"with {name} {computed!r}"
            )
    kinds = fields.get("pos_att_type")
    named = kinds.lower().split("|") if isinstance(kinds, str) else kinds
    if not isinstance(named, list) or {str(kind).strip() for kind in named} != {"c2p", "p2c"}:
        raise UserError(
            f"pos_att_type {reprlib.repr(kinds)} is not supported: use a checkpoint of DeBERTa-v3, "
            "with pos_att_type ['p2c', 'c2p']"
        )
    farthest = fields.get("max_relative_positions", -1)
    if type(farthest) is int and farthest < 1:
        farthest = fields["max_position_embeddings"]
    return {"max_relative_positions": farthest}


def _disentangled_fields(config: Any) -> dict[str, Any]:
    return {name: computed for name, _, computed in _DISENTANGLED} | {
        "pos_att_type": ["p2c", "c2p"],
        "max_relative_positions": config.max_relative_positions,
    }


def _counted(layers: Any) -> int:
    """A number of layers that ``EncoderConfig`` may still refuse, as one to count to."""
    return layers if type(layers) is int and 0 < layers <= 10_000 else 0


def _roberta(label: str, **defaults: Any) -> Family:
    return Family(
        label=label,
        prefix="roberta.",
        defaults={"pad_token_id": 1, **defaults},
        derived=_after_padding,
    )


FAMILIES: Mapping[str, Family] = {
    "bert": Family(label="BERT", prefix="bert."),
    # Liu et al. 2019, arXiv:1907.11692
    "roberta": _roberta("RoBERTa", vocab_size=50265),
    # Conneau et al. 2019, arXiv:1911.02116
    "xlm-roberta": _roberta("XLM-RoBERTa"),
    # Martin et al. 2019, arXiv:1911.03894
    "camembert": _roberta("CamemBERT"),
    # Sanh et al. 2019, arXiv:1910.01108
    "distilbert": Family(
        label="DistilBERT",
        prefix="distilbert.",
        names={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
            "hidden_dropout_prob": "dropout",
            "attention_probs_dropout_prob": "attention_dropout",
            "classifier_dropout": "seq_classif_dropout",
        },
        defaults={"num_hidden_layers": 6, "classifier_dropout": 0.2},
        fixed={
            "type_vocab_size": 0,
            "layer_norm_eps": 1e-12,
            "attention_output_dropout_prob": 0.0,
        },
        layers="transformer.layer.",
        layer={
            "attention.q_lin": (("attention/query",), _DENSE),
            "attention.k_lin": (("attention/key",), _DENSE),
            "attention.v_lin": (("attention/value",), _DENSE),
            "attention.out_lin": (("attention/output",), _DENSE),
            "sa_layer_norm": (("attention/layer_norm",), _NORM),
            "ffn.lin1": (("mlp/intermediate",), _DENSE),
            "ffn.lin2": (("mlp/output",), _DENSE),
            "output_layer_norm": (("mlp/layer_norm",), _NORM),
        },
        pooler={},
    ),
    # Clark et al. 2020, arXiv:2003.10555
    "electra": Family(
        label="ELECTRA",
        prefix="electra.",
        own=("embedding_size",),
        defaults={
            "embedding_size": 128,
            "hidden_size": 256,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
        },
        embeddings={
            **_EMBEDDINGS,
            "embeddings_project": (("embeddings/projection",), _DENSE),
        },
        pooler={},
    ),
    # Song et al. 2020, arXiv:2004.09297
    "mpnet": Family(
        label="MPNet",
        prefix="mpnet.",
        own=("relative_attention_num_buckets",),
        defaults={
            "vocab_size": 30527,
            "relative_attention_num_buckets": 32,
            "pad_token_id": 1,
        },
        # Of transformers' MPNet the padding index is 1, whatever ``pad_token_id`` is.
        fixed={"type_vocab_size": 0, "first_position": 2},
        embeddings={
            **_EMBEDDINGS,
            "encoder.relative_attention_bias": (("embeddings/relative_position",), _EMBED),
        },
        layer={
            "attention.attn.q": (("attention/query",), _DENSE),
            "attention.attn.k": (("attention/key",), _DENSE),
            "attention.attn.v": (("attention/value",), _DENSE),
            "attention.attn.o": (("attention/output",), _DENSE),
            "attention.LayerNorm": (("attention/layer_norm",), _NORM),
            **_MLP,
        },
    ),
    # Warner et al. 2024, arXiv:2412.13663
    "modernbert": Family(
        label="ModernBERT",
        prefix="model.",
        names={
            "hidden_act": "hidden_activation",
            "layer_norm_eps": "norm_eps",
            "attention_output_dropout_prob": "attention_dropout",
            "attention_probs_dropout_prob": "attention_dropout",
            "embedding_dropout_prob": "embedding_dropout",
            "mlp_dropout_prob": "mlp_dropout",
        },
        own=(
            "attention_bias",
            "mlp_bias",
            "norm_bias",
            "local_attention",
            "classifier_pooling",
        ),
        defaults={
            "vocab_size": 50368,
            "num_hidden_layers": 22,
            "intermediate_size": 1152,
            "max_position_embeddings": 8192,
            "layer_norm_eps": 1e-5,
            "pad_token_id": 50283,
            "attention_probs_dropout_prob": 0.0,
            "attention_output_dropout_prob": 0.0,
            "embedding_dropout_prob": 0.0,
            "mlp_dropout_prob": 0.0,
            "classifier_dropout": 0.0,
            "attention_bias": False,
            "mlp_bias": False,
            "norm_bias": False,
            "local_attention": 128,
            "classifier_pooling": "cls",
        },
        fixed={
            "type_vocab_size": 0,
            "hidden_dropout_prob": 0.0,
            "norm_first": True,
            "gated_mlp": True,
        },
        derived=_rotary,
        underived=_rotary_fields,
        refused={"rope_scaling": (None,)},
        embeddings={
            "embeddings.tok_embeddings": (("embeddings/word",), _EMBED),
            "embeddings.norm": (("embeddings/layer_norm",), _NORM),
        },
        layers="layers.",
        layer={
            "attn_norm": (("attention/layer_norm",), _NORM),
            "attn.Wqkv": (("attention/query", "attention/key", "attention/value"), _DENSE),
            "attn.Wo": (("attention/output",), _DENSE),
            "mlp_norm": (("mlp/layer_norm",), _NORM),
            "mlp.Wi": (("mlp/intermediate", "mlp/gate"), _DENSE),
            "mlp.Wo": (("mlp/output",), _DENSE),
        },
        top={"final_norm": (("final_norm",), _NORM)},
        pooler={},
    ),
    # He et al. 2021, arXiv:2111.09543
    "deberta-v2": Family(
        label="DeBERTa",
        prefix="deberta.",
        own=("position_buckets",),
        defaults={
            "vocab_size": 128100,
            "hidden_size": 1536,
            "num_hidden_layers": 24,
            "num_attention_heads": 24,
            "intermediate_size": 6144,
            "type_vocab_size": 0,
            "layer_norm_eps": 1e-7,
            "position_buckets": -1,
        },
        derived=_disentangled,
        underived=_disentangled_fields,
        embeddings={
            **_EMBEDDINGS,
            "encoder.rel_embeddings": (("embeddings/distance",), _EMBED),
            "encoder.LayerNorm": (("embeddings/distance_norm",), _NORM),
        },
        layer={
            "attention.self.query_proj": (("attention/query",), _DENSE),
            "attention.self.key_proj": (("attention/key",), _DENSE),
            "attention.self.value_proj": (("attention/value",), _DENSE),
            "attention.output.dense": (("attention/output",), _DENSE),
            "attention.output.LayerNorm": (("attention/layer_norm",), _NORM),
            **_MLP,
        },
        pooler={},
    ),
}
