"""Pre-trained checkpoints: where a name leads, and what is read there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from mtl_jax.config.model import DEFAULT_BACKBONE, Pooling
from mtl_jax.core import downloads
from mtl_jax.core.atomic_write import refuse_other_kind
from mtl_jax.core.errors import NoFileError, UserError, cannot_read, first_line
from mtl_jax.core.json_files import OBJECT, read_json
from mtl_jax.core.paths import expanded
from mtl_jax.models.conversion import from_transformers, named
from mtl_jax.models.encoder_config import FETCH, EncoderConfig
from mtl_jax.models.exported import plain_fields, with_pooler

_HUB_FILES = ("*.json", "*.safetensors", "vocab.txt", "merges.txt", "1_Pooling/config.json")
# What is fetched, and checked, without a hub.
_PINNED = {
    DEFAULT_BACKBONE: downloads.minilm,
    "sentence-transformers/all-mpnet-base-v2": downloads.mpnet,
}
_INDEX_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "required": ["weight_map"],
    "properties": {
        "weight_map": {
            "type": "object",
            "minProperties": 1,
            # A file beside the index, and no path that leads elsewhere.
            "additionalProperties": {"type": "string", "pattern": r"^[^/\\]+\.safetensors$"},
        }
    },
}


def resolve_backbone(name: str) -> Path:
    """The folder of a checkpoint: itself, a pinned one's, or the hub's cache's.

    Raises:
        UserError: There is no such folder, and the hub has no such name or can't be reached.
    """
    folder = expanded(name)
    if folder.is_dir():
        return folder
    if name in _PINNED:
        return _PINNED[name]()
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"backbone {name!r}: no such folder: correct the path")
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except errors.GatedRepoError as error:
        raise UserError(
            f"backbone {name!r} is gated: ask for access on its page, then `hf auth login`"
        ) from error
    except (errors.HFValidationError, errors.RepositoryNotFoundError) as error:
        raise UserError(
            f"unknown backbone {name!r}: name a folder, or a checkpoint on the hub "
            f"(the default is {DEFAULT_BACKBONE})"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        raise UserError(
            f"backbone {name!r} is neither a folder nor in the hub's cache, and the hub can't be "
            "reached: connect to the network once, or give the folder of a downloaded checkpoint"
        ) from error


def _weight_map(folder: Path) -> Mapping[str, str] | None:
    """The file that each tensor is in; None where one file has all."""
    index = folder / "model.safetensors.index.json"
    # As transformers does: saving a model again, in one file, leaves an older index beside it.
    if (folder / "model.safetensors").exists() or not index.exists():
        return None
    return read_json(index, _INDEX_SCHEMA, FETCH)["weight_map"]


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint folder, from safetensors only: a pickle can run code.

    Of several files each gives the tensors that the index says are in it, and no others: one may
    have been left by another checkpoint.

    Raises:
        UserError: A file is missing or damaged, or lacks a tensor that the index says it has.
    """
    tensors: dict[str, np.ndarray] = {}
    places = _weight_map(folder)
    for shard in ["model.safetensors"] if places is None else sorted({*places.values()}):
        path = folder / shard
        if not path.exists():
            remedy = "convert the checkpoint, or use one that has model.safetensors"
            if (folder / "adapter_config.json").exists():
                remedy = "merge the adapter into its base model (merge_and_unload of peft)"
            raise UserError(f"{path} is missing: weights are read from safetensors only; {remedy}")
        try:
            refuse_other_kind(path)
            # Of one that may not be read safetensors says that it is not there.
            path.open("rb").close()
            with safetensors.safe_open(path, "numpy") as file:
                names = [*file.keys()]
                if places is not None:
                    expected = [name for name, place in places.items() if place == shard]
                    if lacking := [name for name in expected if name not in {*names}]:
                        raise UserError(
                            f"{path} lacks {named(lacking)}, which the index beside it says it "
                            f"has: {FETCH}"
                        )
                    names = expected
                tensors |= {name: _tensor(file, name, path) for name in names}
        except (PermissionError, NoFileError) as error:
            raise cannot_read(path, error) from error
        except (safetensors.SafetensorError, TypeError, OSError) as error:
            raise UserError(f"{path} can't be read ({first_line(error)}): {FETCH}") from error
    return tensors


def _tensor(file: Any, name: str, path: Path) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except AttributeError:
        # What safetensors raises of numbers that numpy has not.
        kind = file.get_slice(name).get_dtype()
        raise UserError(
            f"{path}: {name} is of {kind} numbers: use a checkpoint that is not quantized"
        ) from None


def load_config(folder: Path) -> EncoderConfig:
    """The ``EncoderConfig`` of a checkpoint folder."""
    path = folder / "config.json"
    fields = read_json(path, OBJECT, "use the folder of a checkpoint")
    return EncoderConfig.from_dict(plain_fields(fields), origin=str(path))


def load_backbone(name_or_directory: str | Path) -> tuple[EncoderConfig, dict[str, Any]]:
    """Loads the parameters of a pre-trained encoder; ``load_encoder`` adds its tokenizer.

        config, params = mtl.load_backbone("bert-base-uncased")

    Args:
        name_or_directory: The folder of a transformers checkpoint, the name of one that is
            fetched without a hub, or a name on the hub.

    Returns:
        The configuration, and the nested dict of float32 arrays for ``EncoderModule``.

    Raises:
        UserError: Not found, of a kind that this encoder does not compute, or damaged.
    """
    folder = resolve_backbone(str(name_or_directory))
    config = load_config(folder)
    tensors = with_pooler(folder, read_tensors(folder), config.family)
    return config, from_transformers(tensors, config)


def without_unused_pooler(params: dict[str, Any], pooling: Pooling, name: str) -> dict[str, Any]:
    """The backbone without a pooler that ``pooling`` would never run.

    Raises:
        UserError: ``pooling`` needs a pooler, and the checkpoint has none.
    """
    if pooling == "pooler" and "pooler" not in params:
        raise UserError(f"backbone {name!r} has no pooler: use --pooling mean or --pooling cls")
    return {k: v for k, v in params.items() if pooling == "pooler" or k != "pooler"}
