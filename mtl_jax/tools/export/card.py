"""The card of an exported folder: its ``README.md``."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from mtl_jax.config.data import DataConfig
from mtl_jax.config.files import flags_of
from mtl_jax.config.train import TrainConfig
from mtl_jax.models.exported import MODULE
from mtl_jax.tools.export.stablehlo import LOADER
from mtl_jax.tools.export.trained_run import TaskHead, TrainedRun

# An absolute path, by itself or after ``task=``.
_ABSOLUTE = re.compile(r"(?<![^=])/.*/")
_SPLITS = ("validation", "test")


@dataclasses.dataclass(frozen=True)
class Use:
    """How a kind of folder is used.

    Attributes:
        code: Python that loads it.
        metadata: Of the YAML in front of its card, what only this kind has.
        note: What is to be known before.
    """

    code: str
    metadata: Mapping[str, Any]
    note: str = ""


def card(run: TrainedRun, heads: tuple[TaskHead, ...], use: Use) -> str:
    """The text of a card, Markdown with YAML in front.

    Args:
        run: The run.
        heads: The tasks that the folder holds; none of an encoder alone.
        use: How the folder is used.
    """
    import yaml

    record = run.record
    backbone = record["settings"]["backbone"]
    front: dict[str, Any] = {**use.metadata, "tags": [*use.metadata.get("tags", ()), "mtl_jax"]}
    # A folder is known to its owner alone.
    if not PurePath(backbone).is_absolute():
        front["base_model"] = backbone
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {', '.join(head.name for head in heads) or 'Text encoder'}",
        _what(run, heads),
        "## Use",
        _block("python", use.code),
        *([use.note] if use.note else []),
        "## Training",
        _training(run),
        "The command, with files by their names alone:",
        _block("bash", command(record["settings"])),
        "## Scores",
        _scores(run, heads),
    ]
    return "\n\n".join(parts) + "\n"


def _literal(text: str) -> str:
    """A text as Python has it, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _block(language: str, code: str) -> str:
    """Code as Markdown has it, which nothing in it can end."""
    fence = _ticks(code, 3)
    return f"{fence}{language}\n{code}\n{fence}"


def _span(text: str) -> str:
    """A text as Markdown shows code, in one line; what can't be seen in it is escaped."""
    seen = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    ticks = _ticks(seen, 1)
    room = " " if len(ticks) > 1 else ""
    return f"{ticks}{room}{seen}{room}{ticks}"


def _ticks(text: str, fewest: int) -> str:
    """More backticks than the text has anywhere in a row, and not fewer than some."""
    runs = [len(run) + 1 for run in re.findall("`+", text)]
    return "`" * max(fewest, *runs, 0)


def _what(run: TrainedRun, heads: tuple[TaskHead, ...]) -> str:
    lines = []
    for head in heads:
        names = ", ".join(map(_span, head.classes))
        kinds = {
            "single_label": f"One of {names}.",
            "multi_label": f"Any of {names}.",
            "regression": "A number, in the unit of its labels.",
        }
        lines.append(f"* **{head.name}**: {kinds[head.kind]}")
    if heads:
        lines.append("")
    paired = any(head.name in run.pair_tasks for head in heads)
    what = "A pair of texts" if paired else "A text"
    lines.append(
        f"Trained by mtl_jax {run.record['mtl_jax']} on the tasks "
        f"{', '.join(run.record['classes'])}. {what} becomes the {_POOLINGS[run.pooling]}; longer "
        f"ones are cut to {run.max_length} tokens."
    )
    return "\n".join(lines)


_POOLINGS = {
    "mean": "mean of its tokens' vectors",
    "cls": "vector of its first token",
    "pooler": "vector of its first token, through the encoder's pooler",
}


def _training(run: TrainedRun) -> str:
    record = run.record
    settings = record["settings"]
    what = "recipe" if settings.get("recipe") else "scenario"
    rows = {
        what: _without_folders(str(settings[what])),
        "encoder": _without_folders(settings["backbone"]),
        "seed": settings["seed"],
        "data": ", ".join(_data_sets(settings["data"])),
        "digest of the data": record["data"]["fingerprint"],
        "digest of the weights before training": record["weights_sha256"],
    }
    if run.result:
        rows |= {
            "epochs": f"{run.result['epochs']}, the best one {run.result['best_epoch']}",
            "trained parameters": f"{run.result['trainable_parameters']:,}",
        }
    # A pipe ends a cell even inside a code span, unless it is escaped there too.
    spans = {name: _span(str(value)).replace("|", r"\|") for name, value in rows.items()}
    cells = (f"| {name} | {spans[name]} |" for name, value in rows.items() if value != "")
    return "\n".join(["| | |", "|---|---|", *cells])


def _data_sets(data: Mapping[str, Any]) -> list[str]:
    """The names of what was trained on, of files without their folders."""
    origins = DataConfig(**data).origins
    return [each.files[0][1].name if each.files else each.dataset for each in origins]


def command(settings: Mapping[str, Any]) -> str:
    """The command of a run, without the folders of its files.

    Args:
        settings: Of its ``config.json``.
    """
    flags = [_without_folders(flag) for flag in flags_of(settings, TrainConfig)]
    words = ["python", "-m", "mtl_jax", "train", *flags, "--workdir", "DIR"]
    return shlex.join(words)


def _without_folders(words: str) -> str:
    return _ABSOLUTE.sub("", words)


def _scores(run: TrainedRun, heads: tuple[TaskHead, ...]) -> str:
    if run.result is None:
        return "None: the run is not finished."
    names = [head.name for head in heads] or list(run.record["classes"])
    lines = []
    untrained = run.result.get("untrained_heads", ())
    for task in [name for name in names if name in untrained]:
        lines += [f"The head of {task} has not been trained: it is what chance has made it.", ""]
    rows = [
        (split, task, {name: v for name, v in of_split[task].items() if _is_number(v)})
        for task in names
        for split in _SPLITS
        if (of_split := run.result.get(split))
    ]
    columns = list(dict.fromkeys(name for _, _, scores in rows for name in scores))
    lines += [f"| task | split | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for split, task, scores in rows:
        cells = [f"{scores[name]:.4g}" if name in scores else "" for name in columns]
        lines.append(f"| {task} | {split} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# What a tokenizer is called with: a text, or a pair of them.
_TEXTS = {False: '["a text"]', True: '["a text"], ["its other text"]'}

_CLASSIFIER = {"library_name": "transformers", "pipeline_tag": "text-classification"}


def classifier_use(folder: str, *, native: bool, pairs: bool = False) -> Use:
    """Of a folder for transformers: its own class (``native``), or the module file.

    Args:
        folder: What it is loaded by.
        native: Whether transformers has a class of the model.
        pairs: Whether it takes pairs of texts.
    """
    trust = "" if native else ", trust_remote_code=True"
    code = (
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        f"folder = {_literal(folder)}\n"
        f"tokenizer = AutoTokenizer.from_pretrained(folder{trust})\n"
        f"model = AutoModelForSequenceClassification.from_pretrained(folder{trust})\n"
        f"batch = tokenizer({_TEXTS[pairs]}, truncation=True, padding=True, "
        'return_tensors="pt")\n'
        "logits = model(**batch).logits"
    )
    note = (
        f"This folder holds code, `{MODULE}.py`: transformers has no class of this encoder with "
        "the pooling and the head of the model. It is run only where `trust_remote_code=True` is "
        "said; read it first."
    )
    return Use(code, _CLASSIFIER, "" if native else note)


def encoder_use(folder: str) -> Use:
    """Of a folder for sentence-transformers."""
    code = (
        "from sentence_transformers import SentenceTransformer\n\n"
        f'vectors = SentenceTransformer({_literal(folder)}).encode(["a text"])'
    )
    name = "sentence-transformers"
    metadata = {"library_name": name, "pipeline_tag": "sentence-similarity", "tags": [name]}
    return Use(code, metadata)


def onnx_use(folder: str, *, pairs: bool = False) -> Use:
    """Of a folder for ONNX Runtime; see ``classifier_use``."""
    code = (
        "import onnxruntime\nfrom transformers import AutoTokenizer\n\n"
        f"folder = {_literal(folder)}  # fetched from where it is\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        'session = onnxruntime.InferenceSession(f"{folder}/model.onnx")\n'
        f"batch = tokenizer({_TEXTS[pairs]}, truncation=True, padding=True, "
        'return_tensors="np")\n'
        "inputs = {each.name: batch[each.name] for each in session.get_inputs()}\n"
        "(logits,) = session.run(None, inputs)"
    )
    return Use(code, {**_CLASSIFIER, "library_name": "onnx"})


def program_use(*, pairs: bool = False) -> Use:
    """Of a folder for JAX; see ``classifier_use``."""
    texts = '[("a text", "its other text")]' if pairs else '["a text"]'
    code = (
        f"from {Path(LOADER).stem} import logits, tasks\n\n"
        f"logits({texts})  # of each of tasks [texts, labels]"
    )
    note = (
        f"`{LOADER}` of this folder needs jax, flatbuffers, numpy, safetensors and tokenizers, and "
        "is imported from here."
    )
    return Use(code, {"library_name": "jax"}, note)
