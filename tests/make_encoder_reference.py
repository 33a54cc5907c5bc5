"""Reference numbers of every family of encoders from its PyTorch model of transformers, in float32.

``python -m tests.make_encoder_reference`` writes ``tests/data/encoder_reference.npz``: what
``MODELS`` compute, thinned. ``--full FILE --seed SEED`` writes everything of these and of a
random configuration of each family. Needs PyTorch; what the tests share with it (``MODELS``,
``drawn``, ``weights``, ``write_model`` and ``loss_weights``) does not. BERT itself is in
``make_bert_reference.py``.
"""

import argparse
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tests.make_bert_reference import loss_weights, store

STORED = Path(__file__).parent / "data" / "encoder_reference.npz"
BATCH = 4

_SMALL = {
    "vocab_size": 31,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 17,
    "layer_norm_eps": 1e-3,
}
_MODERN = {
    "model_type": "modernbert",
    "vocab_size": 31,
    "hidden_size": 12,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "intermediate_size": 14,
    "max_position_embeddings": 23,
    "norm_eps": 1e-3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "local_attention": 8,
}
DISENTANGLED = {
    "model_type": "deberta-v2",
    "relative_attention": True,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "pos_att_type": "p2c|c2p",
    "type_vocab_size": 0,
}
MODELS: dict[str, dict[str, Any]] = {
    "roberta": {**_SMALL, "model_type": "roberta", "type_vocab_size": 1},
    "xlm-roberta": {
        **_SMALL,
        "model_type": "xlm-roberta",
        "type_vocab_size": 1,
        "pad_token_id": 5,
        "hidden_act": "relu",
    },
    "camembert": {
        **_SMALL,
        "model_type": "camembert",
        "hidden_act": "gelu_new",
        "num_hidden_layers": 1,
    },
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": 31,
        "dim": 12,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 20,
        "max_position_embeddings": 17,
        "activation": "gelu",
    },
    "electra": {**_SMALL, "model_type": "electra", "embedding_size": 7, "type_vocab_size": 3},
    "electra of one width": {**_SMALL, "model_type": "electra", "embedding_size": 12},
    # Long enough for distances that share a row of the table, and for those beyond all of them.
    "mpnet": {**_SMALL, "model_type": "mpnet", "max_position_embeddings": 152},
    "modernbert": {**_MODERN, "global_rope_theta": 500.0, "local_rope_theta": 10.0},
    "modernbert with biases": {
        **_MODERN,
        "num_hidden_layers": 3,
        "hidden_activation": "silu",
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 300.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
        },
        "local_attention": 5,
    },
    "modernbert of one layer": {**_MODERN, "num_hidden_layers": 1},
    # Long enough for distances that share a row, and for those that have the last one.
    "deberta-v2": {
        **_SMALL,
        **DISENTANGLED,
        "max_position_embeddings": 40,
        "max_relative_positions": 24,
        "position_buckets": 8,
    },
}


def drawn(seed):
    """A random small configuration of each family, by name."""
    random = np.random.RandomState(seed)

    def pick(*values):
        return values[random.randint(len(values))]

    found = {}
    for family in dict.fromkeys(fields["model_type"] for fields in MODELS.values()):
        heads = int(random.randint(1, 5))
        width = heads * 2 * int(random.randint(2, 5))
        act = pick("gelu", "gelu_new", "relu", "silu", "tanh")
        most = 4 if family == "modernbert" else 2
        layers, inner = int(random.randint(1, most + 1)), int(random.randint(5, 30))
        shared = {"model_type": family, "vocab_size": int(random.randint(20, 40))}
        shared["max_position_embeddings"] = int(random.randint(12, 40))
        usual = {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": inner,
        }
        usual |= {"hidden_act": act, "layer_norm_eps": pick(1e-12, 1e-5, 0.1)}
        if family == "distilbert":
            sizes = {"dim": width, "n_layers": layers, "n_heads": heads, "hidden_dim": inner}
            fields = {**sizes, "activation": act}
        elif family == "modernbert":
            fields = {name: usual[name] for name in list(usual)[:4]} | {
                "hidden_activation": act,
                "norm_eps": pick(1e-5, 0.1),
                "local_attention": int(random.randint(2, 20)),
                "global_attn_every_n_layers": int(random.randint(1, 4)),
                "global_rope_theta": pick(160_000.0, 100.0),
                "local_rope_theta": pick(10_000.0, 30.0),
                "attention_bias": pick(True, False),
                "mlp_bias": pick(True, False),
                "norm_bias": pick(True, False),
            }
            fields |= {name: _MODERN[name] for name in _MODERN if name.endswith("token_id")}
            if pick(True, False):
                # As its present configurations say it.
                kinds = [f"{pick('sliding', 'full')}_attention" for _ in range(layers)]
                thetas = {"full": "global_rope_theta", "sliding": "local_rope_theta"}
                fields["rope_parameters"] = {
                    f"{kind}_attention": {"rope_type": "default", "rope_theta": fields.pop(theta)}
                    for kind, theta in thetas.items()
                }
                del fields["global_attn_every_n_layers"]
                fields["layer_types"] = kinds
        elif family == "electra":
            fields = {**usual, "embedding_size": pick(width, 9, 15)}
            fields["type_vocab_size"] = pick(1, 2, 4)
        elif family == "mpnet":
            # Its positions begin after 1, whatever the id of padding is.
            fields = {**usual, "relative_attention_num_buckets": pick(32, 40)}
            fields["pad_token_id"] = pick(1, 4)
        elif family == "deberta-v2":
            fields = {**usual, **DISENTANGLED, "position_buckets": pick(4, 7, 10)}
            fields["type_vocab_size"] = pick(0, 2)
            fields["max_relative_positions"] = pick(-1, 9, 30)
        else:
            fields = {**usual, "pad_token_id": pick(0, 1, 4), "type_vocab_size": pick(1, 2)}
        found[f"{family} of {seed}"] = {**shared, **fields}
    return found


def padding(fields):
    """The id of padding, which also says where positions begin."""
    usual = {"roberta": 1, "xlm-roberta": 1, "camembert": 1, "mpnet": 1}
    return fields.get("pad_token_id", usual.get(fields["model_type"], 0))


def inputs(fields):
    """Token ids, mask and token types, int32 [batch, length]; one text fills every position."""
    family, pad = fields["model_type"], padding(fields)
    counted = family in ("roberta", "xlm-roberta", "camembert", "mpnet")
    length = fields["max_position_embeddings"] - (pad + 1 if counted else 0)
    random = np.random.RandomState(7)
    lengths = np.array([length, length // 2, 1, length - 1])
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    ids = random.randint(0, fields["vocab_size"] - 1, mask.shape).astype(np.int32)
    ids += ids >= pad  # none is padding's
    most = max(fields.get("type_vocab_size", 2), 1)
    types = random.randint(0, most, mask.shape).astype(np.int32)
    if family != "electra":
        types[:] = 0
    return np.where(mask, ids, pad).astype(np.int32), mask, types


def weights(tensor, shape):
    """The numbers of a tensor, which follow from its name."""
    # RandomState's uniform numbers are the same for every version and machine.
    random = np.random.RandomState(zlib.crc32(tensor.encode()))
    values = random.uniform(-0.6, 0.6, shape)
    if "norm" in tensor.lower() and tensor.endswith("weight"):
        values += 1
    return values.astype(np.float32)


def write_model(fields, shapes, folder):
    """A checkpoint of a configuration and its tensors, by name their shapes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(fields))
    tensors = {name: weights(name, shape) for name, shape in shapes.items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def thinned(full):
    """What the committed file keeps: of each gradient at most 40 values, of the states 3,000."""
    kept = {}
    for name, array in full.items():
        most = 40 if name.startswith("gradient/") else 3000 if name == "states" else array.size
        kept[name] = array if array.size <= most else array.reshape(-1)[:: -(-array.size // most)]
    return kept


def compared(states, fields, mask):
    """The states that are compared: DeBERTa's padding looks at all tokens, which nobody reads."""
    there = (
        mask[..., None] if fields["model_type"] == "deberta-v2" else np.ones_like(mask)[..., None]
    )
    return states * there.astype(states.dtype)


def reference(fields, folder):
    """Everything that PyTorch computes: states of all depths, pooler, gradients."""
    import torch  # pyright: ignore[reportMissingImports]  (optional)
    from transformers import AutoConfig, AutoModel

    ids, mask, types = inputs(fields)
    config = AutoConfig.for_model(**fields)
    empty = AutoModel.from_config(config)
    shapes = {name: list(tensor.shape) for name, tensor in empty.state_dict().items()}
    write_model(fields, shapes, folder)
    model: Any = AutoModel.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
    )
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), weights(name, shapes[name]))
    model.eval()
    given = {"token_type_ids": torch.tensor(types, dtype=torch.int64)} if types.any() else {}
    output = model(
        input_ids=torch.tensor(ids, dtype=torch.int64),
        attention_mask=torch.tensor(mask, dtype=torch.int64),
        output_hidden_states=True,
        **given,
    )
    state, pooled = loss_weights(mask, config.hidden_size)
    loss = (output.last_hidden_state * torch.tensor(state)).sum()
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    arrays["shapes"] = np.array(json.dumps(shapes))
    states = [*output.hidden_states[:-1], output.last_hidden_state]
    arrays["states"] = compared(torch.stack(states).detach().numpy(), fields, mask)
    if getattr(output, "pooler_output", None) is not None:
        loss = loss + (output.pooler_output * torch.tensor(pooled)).sum()
        arrays["pooler"] = output.pooler_output.detach().numpy()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        arrays[f"gradient/{name}"] = parameter.grad.numpy()
    return arrays


def references(temporary, args):
    """Those of every model, with ``--full`` of random ones, too."""
    models = {**MODELS, **drawn(args.seed)} if args.full else MODELS
    arrays = {}
    for name, fields in models.items():
        found = reference(fields, temporary / name)
        found = found if args.full else thinned(found)
        arrays |= {f"{name}/{part}": array for part, array in found.items()}
    return arrays


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the random configurations")
    store(parser, STORED, references)


if __name__ == "__main__":
    main()
