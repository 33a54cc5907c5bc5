"""Reference numbers of BERT from transformers' PyTorch ``BertModel``, in float32.

``python tests/make_bert_reference.py`` writes ``tests/data/bert_reference.npz``: the small
random models whole, and of the default checkpoint what ``thinned`` leaves. ``--full FILE``
writes everything. Needs PyTorch; what the tests share with it (``MODELS``, ``inputs``,
``write_model`` and ``loss_weights``) does not.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from mtl_jax.config.train import DataConfig
from mtl_jax.core import downloads
from mtl_jax.models.encoder_config import EncoderConfig

STORED = Path(__file__).parent / "data" / "bert_reference.npz"
REAL = "minilm"
SENTENCES = 16

_SMALL = EncoderConfig(
    vocab_size=29,
    hidden_size=14,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=22,
    hidden_act="relu",
    max_position_embeddings=9,
    type_vocab_size=2,
    layer_norm_eps=1e-5,
)
MODELS = {
    "deep": EncoderConfig(
        vocab_size=53,
        hidden_size=21,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=38,
        hidden_act="gelu",
        max_position_embeddings=19,
        type_vocab_size=2,
        layer_norm_eps=1e-3,
    ),
    "wide": EncoderConfig(
        vocab_size=37,
        hidden_size=30,
        num_hidden_layers=2,
        num_attention_heads=5,
        intermediate_size=17,
        hidden_act="gelu_new",
        max_position_embeddings=11,
        type_vocab_size=3,
        layer_norm_eps=0.1,
    ),
    **{act: dataclasses.replace(_SMALL, hidden_act=act) for act in ("relu", "silu", "tanh")},
}


def _shapes(config):
    """transformers' names and shapes, spelled out rather than taken from the code on trial."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes = {
        "embeddings.word_embeddings.weight": (config.vocab_size, hidden),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, hidden),
        "embeddings.token_type_embeddings.weight": (config.type_vocab_size, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    modules: list[tuple[str, tuple[int, ...]]] = [("pooler.dense", (hidden, hidden))]
    for i in range(config.num_hidden_layers):
        for module, shape in (
            ("attention.self.query", (hidden, hidden)),
            ("attention.self.key", (hidden, hidden)),
            ("attention.self.value", (hidden, hidden)),
            ("attention.output.dense", (hidden, hidden)),
            ("attention.output.LayerNorm", (hidden,)),
            ("intermediate.dense", (inner, hidden)),
            ("output.dense", (hidden, inner)),
            ("output.LayerNorm", (hidden,)),
        ):
            modules.append((f"encoder.layer.{i}.{module}", shape))
    for module, shape in modules:
        shapes |= {f"{module}.weight": shape, f"{module}.bias": shape[:1]}
    return shapes


def write_model(name, folder):
    """The checkpoint of one of ``MODELS``; its weights follow from its name."""
    config = MODELS[name]
    # RandomState's uniform numbers are the same for every version and machine.
    random = np.random.RandomState(sum(name.encode()))
    tensors = {}
    for tensor, shape in _shapes(config).items():
        values = random.uniform(-0.6, 0.6, shape)
        if tensor.endswith("LayerNorm.weight"):
            values += 1
        if tensor.endswith(("query.weight", "key.weight")):
            # So that attention picks out tokens; the states do not become alike with depth.
            values *= 3
        tensors[tensor] = values.astype(np.float32)
    folder.mkdir(parents=True)
    fields = dataclasses.asdict(config) | {"model_type": "bert", "architectures": ["BertModel"]}
    (folder / "config.json").write_text(json.dumps(fields))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def inputs(name):
    """Token ids, mask and token types, int32 [batch, length]; one text fills every position."""
    config = MODELS[name]
    length = config.max_position_embeddings
    random = np.random.RandomState(7)
    lengths = np.array([length, length // 2, 1, length - 1])
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    # Neither ids nor types are 0 throughout the padding: what lies there must not matter.
    types = random.randint(0, config.type_vocab_size, mask.shape).astype(np.int32)
    ids = random.randint(1, config.vocab_size, mask.shape).astype(np.int32)
    ids[1, lengths[1] :] = config.pad_token_id
    return ids, mask, types


def real_inputs():
    """The same for 16 real sentences, from the shortest to the longest, padded with [PAD]."""
    from mtl_jax.data.corpus import load_corpus
    from mtl_jax.data.tokens import tokenize
    from mtl_jax.models.tokenizer import load_tokenizer

    texts = sorted(load_corpus(DataConfig()).read("train").texts)
    tokens = tokenize(load_tokenizer(downloads.minilm()), texts, 128)
    ranks = np.argsort(tokens.lengths, kind="stable")
    # Half of them evenly spread over the sentences, half over the lengths there are.
    spread = ranks[np.linspace(0, len(ranks) - 1, SENTENCES // 2).astype(int)]
    wanted = np.linspace(3, 128, SENTENCES // 2)
    nearest = ranks[np.searchsorted(tokens.lengths[ranks], wanted)]
    chosen = np.concatenate([spread, nearest])
    lengths = tokens.lengths[chosen]
    ids = np.zeros((SENTENCES, lengths.max()), np.int32)
    for row, text in zip(ids, chosen, strict=True):
        text_ids = tokens.ids[tokens.offsets[text] : tokens.offsets[text + 1]]
        row[: len(text_ids)] = text_ids
    mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int32)
    return ids, mask, np.zeros_like(ids)


def loss_weights(mask, hidden_size):
    """What the scalar loss weighs the last hidden state and the pooler's output with.

    Padding weighs nothing: PyTorch gives the embedding of [PAD] no gradient.
    """
    state = np.cos(np.arange(mask.size * hidden_size, dtype=np.float64))
    state = state.reshape(*mask.shape, hidden_size) * mask[:, :, None]
    pooled = np.sin(np.arange(len(mask) * hidden_size, dtype=np.float64)).reshape(len(mask), -1)
    return state.astype(np.float32), pooled.astype(np.float32)


def thinned(full):
    """What the committed file keeps of the default checkpoint's arrays.

    Of each vector six dimensions, others at each position and in each sentence, so that all
    are covered; of the states below the last only every fourth sentence; 64 values of each
    gradient.
    """
    kept = {}
    for name, array in full.items():
        if name.startswith("gradient/"):
            array = array.reshape(-1)
            array = array[:: -(-array.size // 64)]
        elif name == "states":
            kept["states"] = _some_dimensions(array[:, ::4])
            name, array = "last_state", _some_dimensions(array[-1])
        kept[name] = array
    return kept


def _some_dimensions(states):
    """[..., sentences, length, hidden] -> [..., sentences, length, 6]."""
    sentences, length, hidden = states.shape[-3:]
    start = np.arange(sentences)[:, None, None] * 5 + np.arange(length)[:, None]
    index = (start + np.arange(6) * (hidden // 6)) % hidden
    return np.take_along_axis(states, np.broadcast_to(index, (*states.shape[:-1], 6)), -1)


def reference(folder, ids, mask, types):
    """Everything that PyTorch computes: states of all depths, pooler, gradients."""
    import torch  # pyright: ignore[reportMissingImports]  (optional)
    from transformers import BertModel

    loaded: Any = BertModel.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    model, loading = loaded
    problems = {kind: found for kind, found in loading.items() if found}
    # Files of the older transformers carry their position indices too.
    assert not problems or set(problems.pop("unexpected_keys", ())) == {"embeddings.position_ids"}
    assert not problems
    model.eval()
    output = model(
        input_ids=torch.tensor(ids, dtype=torch.int64),
        attention_mask=torch.tensor(mask, dtype=torch.int64),
        token_type_ids=torch.tensor(types, dtype=torch.int64),
        output_hidden_states=True,
    )
    state, pooled = loss_weights(mask, model.config.hidden_size)
    loss = (output.last_hidden_state * torch.tensor(state)).sum()
    loss = loss + (output.pooler_output * torch.tensor(pooled)).sum()
    loss.backward()
    arrays = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": types,
        "states": torch.stack(output.hidden_states).detach().numpy(),
        "pooler": output.pooler_output.detach().numpy(),
    }
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        arrays[f"gradient/{name}"] = parameter.grad.numpy()
    return arrays


def store(parser, stored, made):
    """The command that writes a file of arrays.

    Args:
        parser: Of its arguments, ``--full`` apart.
        stored: Where the file is by default, compressed.
        made: From a folder to write in and the arguments to the arrays, by name.
    """
    import tempfile

    parser.add_argument("--full", type=Path, help="write everything to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        arrays = made(Path(temporary), args)
    target = args.full or stored
    target.parent.mkdir(parents=True, exist_ok=True)
    (np.savez if args.full else np.savez_compressed)(target, **arrays)
    print(f"{target}: {len(arrays)} arrays, {target.stat().st_size:,} bytes")


def references(temporary, args):
    """Those of every model, and of the default checkpoint."""
    arrays = {}
    for name in MODELS:
        found = reference(write_model(name, temporary / name), *inputs(name))
        arrays |= {f"{name}/{part}": array for part, array in found.items()}
    found = reference(downloads.minilm(), *real_inputs())
    found = found if args.full else thinned(found)
    return arrays | {f"{REAL}/{part}": array for part, array in found.items()}


if __name__ == "__main__":
    store(argparse.ArgumentParser(description=__doc__), STORED, references)
