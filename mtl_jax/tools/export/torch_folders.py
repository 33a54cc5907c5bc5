"""Folders for transformers and sentence-transformers: weights, settings, tokenizer."""

from __future__ import annotations

import dataclasses
import json
import shutil
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy

from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import OBJECT, read_json, write_json
from mtl_jax.models import exported
from mtl_jax.models.conversion import to_transformers
from mtl_jax.models.encoder_config import EncoderConfig
from mtl_jax.models.heads import dense_layers
from mtl_jax.models.tokenizer_checks import check_ids
from mtl_jax.models.tokenizer_files import tokenizer_files
from mtl_jax.tools.export.trained_run import TaskHead, TrainedRun

Dtype = Literal["float32", "bfloat16", "float16"]

_CONFIG, _WEIGHTS, _TOKENIZER = "config.json", "model.safetensors", "tokenizer_config.json"
# Of a checkpoint's config.json: what is of its own head, files or code, and not of its encoder.
_NOT_OF_THE_ENCODER = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "finetuning_task",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "torch_dtype",
    "transformers_version",
    exported.FIELD,
)


def write_classifier(run: TrainedRun, head: TaskHead, folder: Path, dtype: Dtype) -> None:
    """Writes what ``AutoModelForSequenceClassification.from_pretrained`` loads.

    What pools by its pooler is of a class of the family, such as ``BertForSequenceClassification``.
    For any other pooling, and for an MLP, transformers has no class: the folder has a module file.

    Raises:
        UserError: The head is one of the user's own, or a weight does not fit into ``dtype``.
        OSError: It can't be written.
    """
    fields, dense = encoder_fields(run), head.dense()
    kind, hidden = fields["model_type"], [len(each["bias"]) for each in dense_layers(dense)[:-1]]
    fields |= {
        "architectures": [f"{_stem(kind)}ForSequenceClassification"],
        "dtype": dtype,
        "id2label": {str(i): label for i, label in enumerate(head.labels)},
        "label2id": {label: i for i, label in enumerate(head.labels)},
        "problem_type": exported.PROBLEM_TYPES[head.kind],
        exported.FIELD: {
            "task": head.name,
            "pooling": run.pooling,
            "dropout": run.config.head_dropout,
            **({"hidden": hidden} if hidden else {}),
        },
    }
    if not exported.is_native(run.pooling, dense):
        fields |= {
            "model_type": exported.pooled_type(kind),
            "architectures": ["PooledForSequenceClassification"],
            "auto_map": exported.AUTO_MAP,
        }
        source = Path(__file__).with_name(f"{exported.MODULE}.py").read_text(encoding="utf-8")
        module = source.replace("pooled_bert", exported.pooled_type(kind))
        target = folder / f"{exported.MODULE}.py"
        target.write_text(module.replace("Bert", _stem(kind)), encoding="utf-8")
    write_json(folder / _CONFIG, fields)
    tensors = exported.classifier_tensors(encoder_tensors(run), dense, kind, run.pooling)
    save_tensors(folder / _WEIGHTS, tensors, dtype)
    write_tokenizer(run, folder)


def write_sentence_encoder(run: TrainedRun, folder: Path, dtype: Dtype) -> None:
    """Writes what ``SentenceTransformer`` loads: the encoder, its pooling, no head.

    The pooler is sentence-transformers' Dense module after the vector of the first token.

    Raises:
        UserError: A weight does not fit into ``dtype``.
        OSError: It can't be written.
    """
    fields, width = encoder_fields(run), run.config.hidden_size
    names = {exported.FIELD: {"pooling": run.pooling}, "dtype": dtype}
    fields |= {"architectures": [f"{_stem(fields['model_type'])}Model"], **names}
    write_json(folder / _CONFIG, fields)
    save_tensors(folder / _WEIGHTS, encoder_tensors(run), dtype)
    write_tokenizer(run, folder)
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": run.max_length, "do_lower_case": False},
    )
    modules = ["Transformer", "Pooling", *(["Dense"] if run.pooling == "pooler" else [])]
    paths = ["", *(f"{i}_{name}" for i, name in enumerate(modules) if i)]
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (name, path) in enumerate(zip(modules, paths, strict=True))
        ],
    )
    for path in paths[1:]:
        (folder / path).mkdir()
    pooling = {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": run.pooling != "mean",
        "pooling_mode_mean_tokens": run.pooling == "mean",
    }
    write_json(folder / paths[1] / _CONFIG, pooling)
    if run.pooling == "pooler":
        write_json(
            folder / paths[2] / _CONFIG,
            {
                "in_features": width,
                "out_features": width,
                "bias": True,
                "activation_function": "torch.nn.modules.activation.Tanh",
            },
        )
        pooler = run.backbone["pooler"]
        linear = {"linear.weight": np.asarray(pooler["kernel"]).T, "linear.bias": pooler["bias"]}
        save_tensors(folder / paths[2] / _WEIGHTS, linear, dtype)


def encoder_fields(run: TrainedRun) -> dict[str, Any]:
    """The fields of the encoder's ``config.json``, as the checkpoint had them.

    Raises:
        UserError: They are not those that the run was trained with.
    """
    path = run.files / _CONFIG
    fields = read_json(path, OBJECT, "put back what was there, or train again")
    fields = exported.plain_fields(fields)
    fields = {name: value for name, value in fields.items() if name not in _NOT_OF_THE_ENCODER}
    trained, found = run.config, EncoderConfig.from_dict(fields, str(path))
    # A run may have another rate of dropout than its checkpoint.
    rate = {"attention_probs_dropout_prob": trained.attention_probs_dropout_prob}
    if dataclasses.replace(found, **rate) != trained:
        raise UserError(f"{path} is not that of the run's encoder: put back what was there")
    # Configurations of 2019 do not say what they are of.
    fields |= {"model_type": trained.family}
    if found == trained:
        return fields
    names = trained.family_table.names
    return fields | {names.get(name, name): value for name, value in rate.items()}


def encoder_tensors(run: TrainedRun) -> dict[str, np.ndarray]:
    """The tensors of the encoder under transformers' names, float32.

    Raises:
        UserError: It has parameters that no encoder of transformers has.
    """
    tensors = to_transformers(run.backbone, run.config.family)
    if sum(array.size for array in tensors.values()) != sum(
        np.size(leaf) for leaf in jax.tree.leaves(run.backbone)
    ):
        raise UserError(
            "the encoder has parameters that transformers' has not: use --format stablehlo"
        )
    return tensors


def _stem(model_type: str) -> str:
    """What transformers' names of a family's classes begin with, such as Bert of bert."""
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type].__name__.removesuffix("Config")


def as_dtype(name: str, array: np.ndarray, dtype: Dtype) -> np.ndarray:
    """The array in another precision.

    Raises:
        UserError: It has a number too large for that.
    """
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(array).astype(kind)
    if not np.isfinite(rounded).all():
        raise UserError(f"{name} has a number too large for {dtype}: use --dtype bfloat16")
    return rounded


def save_tensors(path: Path, tensors: Mapping[str, Any], dtype: Dtype) -> None:
    """Writes a safetensors file.

    Raises:
        UserError: A number is too large for ``dtype``.
        OSError: It can't be written.
    """
    arrays = {name: as_dtype(name, np.asarray(array), dtype) for name, array in tensors.items()}
    # Through the memory, for safetensors itself tells of a full disk in its own kind of error.
    path.write_bytes(safetensors.numpy.save(arrays, {"format": "pt"}))


def write_tokenizer(run: TrainedRun, folder: Path) -> None:
    """Copies the run's tokenizer beside a ``config.json``, with the length that texts are cut to.

    Where transformers makes other ids of these files than they do here, it is written anew, as
    the ``tokenizer.json`` that gives those.

    Raises:
        UserError: Neither is loaded as it is here.
        OSError: It can't be written.
    """
    copied = [file for file in tokenizer_files(run.files) if file.name != _CONFIG]
    for file in copied:
        shutil.copyfile(file, folder / file.name)
    _with_settings(run, folder)
    if _gives_the_ids(run, folder):
        return
    for file in copied:
        (folder / file.name).unlink()
    run.tokenizer.save_pretrained(folder)
    # Older releases of transformers do not know the newer name of the class.
    _with_settings(run, folder, tokenizer_class="PreTrainedTokenizerFast")
    if not _gives_the_ids(run, folder):
        raise UserError(
            f"transformers makes other ids of the tokenizer in {run.files} than the run had: use "
            "another release of transformers"
        )


def _with_settings(run: TrainedRun, folder: Path, **more: Any) -> None:
    """Writes what the model asks of its tokenizer: lengths, and types where it has several."""
    path = folder / _TOKENIZER
    fields = read_json(path, OBJECT, "train again") if path.exists() else {}
    more["model_max_length"] = run.max_length
    if run.config.type_vocab_size < 2:
        more["model_input_names"] = ["input_ids", "attention_mask"]
    path.write_text(json.dumps(fields | more, indent=2))


def _gives_the_ids(run: TrainedRun, folder: Path) -> bool:
    """Whether transformers makes the run's ids: of usual texts, each token and each character.

    Of pairs it makes the same ids and, where the encoder has several, the same token types.
    """
    from transformers import AutoTokenizer, logging

    own = run.plain_tokenizer()
    texts = [*own.get_vocab(), *string.printable]
    level = logging.get_verbosity()
    # The model_type of a module file is none that it knows, and it says so.
    logging.set_verbosity_error()
    try:
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        check_ids(own, found, folder)
    except (UserError, ValueError, OSError, KeyError, AttributeError):
        return False
    finally:
        logging.set_verbosity(level)
    ids = [encoding.ids for encoding in own.encode_batch(texts)]
    same = found(texts, truncation=False, verbose=False)["input_ids"] == ids
    if run.config.type_vocab_size > 1:
        types = found("a", "b", return_token_type_ids=True)["token_type_ids"]
        same = same and types == own.encode("a", "b").type_ids
    return same and found.pad_token_id == run.tokenizer.pad_token_id
