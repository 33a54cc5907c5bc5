"""How far the encoders are from PyTorch's at the sizes that are published.

``python -m experiments.benchmarks.encoders`` makes a checkpoint of random weights of each shape,
one after the other, and prints the largest difference over all tokens of the states of every
layer from those of transformers' own model, both in float32; with names it takes these alone.
Needs PyTorch, and some 6 GiB of memory.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
# What the config.json of each says of its shape, beside the defaults of its family.
SHAPES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bert-base-uncased": ("bert", {}),
    "bert-large-uncased": (
        "bert",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    ),
    "bert-base-multilingual-cased": ("bert", {"vocab_size": 119_547}),
    "MiniLM-L12-H384-uncased": ("bert", {"hidden_size": 384, "intermediate_size": 1536}),
    "roberta-base": ("roberta", _ROBERTA),
    "xlm-roberta-base": ("xlm-roberta", {**_ROBERTA, "vocab_size": 250_002}),
    "camembert-base": ("camembert", {**_ROBERTA, "vocab_size": 32_005}),
    "distilbert-base-uncased": ("distilbert", {}),
    "electra-small-discriminator": ("electra", {}),
    "electra-base-discriminator": (
        "electra",
        {
            "embedding_size": 768,
            "hidden_size": 768,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
        },
    ),
    "mpnet-base": ("mpnet", {"max_position_embeddings": 514, "layer_norm_eps": 1e-5}),
    "ModernBERT-base": ("modernbert", {}),
    "deberta-v3-base": (
        "deberta-v2",
        {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "relative_attention": True,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "pos_att_type": "p2c|c2p",
            "position_buckets": 256,
        },
    ),
}
# Longer than half of ModernBERT's window, than MPNet's farthest distance, and than the distances
# that have a row of their own in DeBERTa.
_LENGTHS = (200, 131, 17)


def write_checkpoint(name: str, folder: Path) -> Path:
    """A checkpoint of one of ``SHAPES`` with random weights."""
    import torch  # pyright: ignore[reportMissingImports]  (optional)
    from transformers import AutoConfig, AutoModel

    family, fields = SHAPES[name]
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(family, **fields)).save_pretrained(folder)
    return folder


def pytorch_states(folder: Path, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The states of transformers' model, float32 [1 + layers, batch, length, hidden]."""
    import torch  # pyright: ignore[reportMissingImports]  (optional)
    from transformers import AutoModel

    model: Any = AutoModel.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
    )
    model.eval()
    with torch.no_grad():
        given = (torch.tensor(array, dtype=torch.int64) for array in (ids, mask))
        output = model(*given, output_hidden_states=True)
    return torch.stack([*output.hidden_states[:-1], output.last_hidden_state]).numpy()


def our_states(folder: Path, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Those of the encoder here."""
    import jax
    import jax.numpy as jnp

    from mtl_jax.models.encoder_module import EncoderModule
    from mtl_jax.models.pretrained import load_backbone

    config, params = load_backbone(folder)

    def states(encoder: EncoderModule, ids: jax.Array, mask: jax.Array) -> jax.Array:
        views, found = encoder.views(mask), [encoder.embed(ids)]
        for i in range(config.num_hidden_layers):
            found.append(encoder.run_layers(found[-1], views, i, i + 1))
        return jnp.stack(found)

    module = EncoderModule(config)
    apply = jax.jit(lambda params: module.apply({"params": params}, ids, mask, method=states))
    return np.asarray(apply(params))


def inputs(vocabulary: int, padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask, int32 [batch, length]."""
    mask = (np.arange(max(_LENGTHS)) < np.array(_LENGTHS)[:, None]).astype(np.int32)
    ids = np.random.RandomState(0).randint(5, vocabulary - 10, mask.shape)
    ids += ids == padding
    return np.where(mask, ids, padding).astype(np.int32), mask


def main() -> None:
    """Prints the table."""
    from mtl_jax.models.pretrained import load_config

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *SHAPES], help="all by default")
    print("| encoder | parameters | largest difference |\n|---|---:|---:|")
    for name in parser.parse_args().names or SHAPES:
        with tempfile.TemporaryDirectory() as temporary:
            folder = write_checkpoint(name, Path(temporary) / "checkpoint")
            config = load_config(folder)
            ids, mask = inputs(config.vocab_size, config.pad_token_id)
            theirs, ours = (of(folder, ids, mask) for of in (pytorch_states, our_states))
            size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 4e6
        difference = np.abs(theirs - ours)[:, mask == 1].max()
        print(f"| {name} | {size:.0f} M | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    main()
