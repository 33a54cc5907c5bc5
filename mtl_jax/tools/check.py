"""Looks at texts and labels before anyone waits: what there is, and what looks wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl_jax.config.data import DataConfig
from mtl_jax.core.errors import UserError
from mtl_jax.core.names import shown
from mtl_jax.data.checks import class_counts
from mtl_jax.data.corpus import Corpus, load_corpus
from mtl_jax.data.data_set import Keeping
from mtl_jax.data.examples import Examples
from mtl_jax.data.findings import Finding
from mtl_jax.data.kinds import KINDS
from mtl_jax.data.near_duplicates import THRESHOLD, NearDuplicates, near_duplicates
from mtl_jax.data.repeated_texts import repeated
from mtl_jax.data.tokens import lengths_of
from mtl_jax.data.value_checks import summary
from mtl_jax.models import pretrained
from mtl_jax.models.tokenizer import load_tokenizer
from mtl_jax.studies.report.document import Bullets, Cell, Document, Heading, Paragraph, Row, Table
from mtl_jax.training.metrics import Metrics
from mtl_jax.training.text_baseline import in_words, text_baseline

# Texts of a split that are kept of large files, and that the baseline is made and measured with.
SAMPLE = 20_000
# Texts whose tokens are counted, and texts that are compared with each other, of all splits.
_MEASURED, _COMPARED = 5_000, 10_000
_SHOWN = 160
# Of the values of a regression, as ``summary`` calls them.
_SPREAD = ("texts", "least", "most", "mean", "deviation")


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens of some texts of a split, special ones included."""

    texts: int
    """of which they are counted"""
    median: int
    most: int
    """of 95 % of them at most"""
    longest: int
    cut: int
    """of them longer than ``--max-length``"""


@dataclasses.dataclass(frozen=True)
class Checked:
    """What a look at the data has found.

    Attributes:
        name: Of the data.
        max_length: Tokens kept of a text.
        sizes: Texts of each split.
        classes: Per task with classes and class the texts in each split.
        values: Per regression and split how its values are spread.
        findings: What to know, the way it was read first.
        lengths: Tokens per split; None where no tokenizer could be had.
        unmeasured: Why not.
        near: Nearly the same texts.
        baseline: What a bag of words reaches on validation.
        judged: Validation texts that this is measured on.
    """

    name: str
    max_length: int
    sizes: dict[str, int]
    classes: dict[str, dict[str, dict[str, int]]]
    values: dict[str, dict[str, dict[str, float]]]
    findings: list[Finding]
    lengths: dict[str, Lengths] | None
    unmeasured: str
    near: NearDuplicates
    baseline: Metrics
    judged: int

    def lines(self) -> list[str]:
        """The same, a line for each."""
        sizes = ", ".join(f"{split} {count:,}" for split, count in self.sizes.items())
        return [f"texts: {sizes}", *map(str, self.findings), *self._of_lengths(), self._words()]

    def record(self) -> dict[str, Any]:
        """The same as JSON."""
        near = [
            {
                "split": split,
                "other": other,
                "texts": count,
                "of": self.near.compared[split],
                "examples": self.near.examples.get((split, other), []),
            }
            for (split, other), count in self.near.counts.items()
        ]
        lengths = self.lengths and {s: dataclasses.asdict(of) for s, of in self.lengths.items()}
        return {
            "name": self.name,
            "texts": self.sizes,
            "classes": self.classes,
            "values": self.values,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "max_length": self.max_length,
            "lengths": lengths,
            "near_duplicates": near,
            "baseline": self.baseline,
            "baseline_texts": self.judged,
        }

    def document(self) -> Document:
        """The same as a page."""
        warnings = [f.text for f in self.findings if f.severity == "warning"]
        notes = [f.text for f in self.findings if f.severity == "note"]
        splits = list(self.sizes)
        sizes = ", ".join(f"{split} {count:,}" for split, count in self.sizes.items())
        blocks: list[Any] = [Paragraph(warning, "warning") for warning in warnings]
        blocks.append(Bullets((*notes, *self._of_lengths(), self._words())))
        blocks += [Heading("Classes")] if self.classes else []
        blocks += [
            Table(
                task,
                ("class", *splits),
                tuple(
                    _row(shown(name), *(f"{counts.get(s, 0):,}" for s in splits))
                    for name, counts in of_task.items()
                ),
            )
            for task, of_task in self.classes.items()
        ]
        blocks += [Heading("Values")] if self.values else []
        blocks += [
            Table(task, ("split", *_SPREAD), tuple(_row(s, *_spread(of)) for s, of in own.items()))
            for task, own in self.values.items()
        ]
        if self.lengths:
            rows = (
                _row(split, *(f"{n:,}" for n in dataclasses.astuple(of)))
                for split, of in self.lengths.items()
            )
            columns = ("split", "texts counted", "median", "95 %", "longest", "cut")
            blocks += [Heading("Tokens of a text"), Table("", columns, tuple(rows))]
        pairs = [
            _row(split, other, _short(text), _short(known))
            for (split, other), of in self.near.examples.items()
            for text, known in of
        ]
        if pairs:
            columns = ("split", "nearly the same in", "text", "the other")
            blocks += [Heading("Nearly the same"), Table("", columns, tuple(pairs), textual=True)]
        return Document(f"Data: {self.name}", f"Texts: {sizes}", tuple(blocks))

    def _of_lengths(self) -> list[str]:
        if self.lengths is None:
            return [f"tokens were not counted ({self.unmeasured})"]
        return [
            f"{split}: {_portion(of.texts, self.sizes[split])} have {of.median} tokens in the "
            f"median, 95 % at most {of.most}, the longest {of.longest}; "
            f"{of.cut:,} are longer than --max-length {self.max_length}"
            for split, of in self.lengths.items()
        ]

    def _words(self) -> str:
        words, texts = in_words(self.baseline), self.sizes["validation"]
        return words if self.judged == texts else f"{words}, {_portion(self.judged, texts)}"


def check(config: DataConfig, backbone: str, *, needs_backbone: bool = False) -> Checked:
    """Looks at all rows of all splits, and at samples of their texts.

    Of a file of more than 64 MiB ``SAMPLE`` texts of each split are kept; classes, duplicates and
    labels that contradict each other are of all rows in any case.

    Args:
        config: The data.
        backbone: Whose tokenizer counts the tokens.
        needs_backbone: Whether it is an error if that can't be had, and not a note.

    Raises:
        UserError: Something is wrong with the data.
    """
    corpus = load_corpus(config, Keeping(sample=SAMPLE))
    findings = [*_as_findings(corpus.notes), *corpus.check()]
    splits = {split: corpus.read(split) for split in corpus.splits}
    for split, examples in splits.items():
        findings += repeated(split, examples.text_hashes)
    if "test" in splits:
        of_test = corpus.check_test(splits["test"])
        findings += [finding for finding in of_test if finding not in findings]
    sizes = {split: len(examples) for split, examples in splits.items()}
    counts = _class_counts(corpus, splits)
    values = {
        task: {split: summary(examples.labels[task]) for split, examples in splits.items()}
        for task, kind in corpus.kinds.items()
        if not KINDS[kind].has_classes
    }
    samples = {split: examples.sample(SAMPLE) for split, examples in splits.items()}
    name, classes = corpus.name, corpus.classes
    # What follows needs memory of its own, and of many rows no more than the samples.
    del corpus, splits
    share = _COMPARED // len(samples)
    near = near_duplicates({split: of.sample(share).texts for split, of in samples.items()})
    lengths, unmeasured = _lengths(samples, config.max_length, backbone, needed=needs_backbone)
    return Checked(
        name=name,
        max_length=config.max_length,
        sizes=sizes,
        classes=counts,
        values=values,
        findings=[*findings, *_near_findings(near)],
        lengths=lengths,
        unmeasured=unmeasured,
        near=near,
        baseline=text_baseline(samples["train"], samples["validation"], classes),
        judged=len(samples["validation"]),
    )


def _as_findings(notes: Sequence[str]) -> list[Finding]:
    return [
        Finding("warning", note.removeprefix("warning: "))
        if note.startswith("warning: ")
        else Finding("note", note)
        for note in notes
    ]


def _near_findings(near: NearDuplicates) -> list[Finding]:
    compared = ", ".join(f"{count:,} of {split}" for split, count in near.compared.items())
    found = near.findings()
    words = f"near duplicates (similarity {THRESHOLD} or more) searched among {compared}"
    return [Finding("note", words if found else f"{words}: none found"), *found]


def _class_counts(
    corpus: Corpus, splits: Mapping[str, Examples]
) -> dict[str, dict[str, dict[str, int]]]:
    classes = {
        task: names
        for task, names in corpus.classes.items()
        if KINDS[corpus.kinds[task]].has_classes
    }
    counts = {
        (task, split): class_counts(of, len(names)).tolist()
        for task, names in classes.items()
        for split, examples in splits.items()
        if len(of := examples.labels[task])
    }
    return {
        task: {
            name: {s: counts[task, s][index] for s in splits if (task, s) in counts}
            for index, name in enumerate(names)
        }
        for task, names in classes.items()
    }


def _lengths(
    splits: Mapping[str, Examples], max_length: int, backbone: str, *, needed: bool
) -> tuple[dict[str, Lengths] | None, str]:
    try:
        tokenizer = load_tokenizer(pretrained.resolve_backbone(backbone))
    except UserError as error:
        if needed:
            raise
        return None, str(error)
    found = {}
    for split, examples in splits.items():
        if len(texts := list(examples.sample(_MEASURED).texts)):
            lengths = lengths_of(tokenizer, texts)
            found[split] = Lengths(
                len(texts),
                int(np.median(lengths)),
                int(np.percentile(lengths, 95, method="higher")),
                int(lengths.max()),
                int((lengths > max_length).sum()),
            )
    return found, ""


def _spread(values: Mapping[str, float]) -> list[str]:
    return [
        f"{values['texts']:,}",
        *(f"{values[n]:.4g}" if n in values else "" for n in _SPREAD[1:]),
    ]


def _portion(some: int, of: int) -> str:
    return f"{some:,} texts" if some == of else f"{some:,} of {of:,} texts"


def _row(*cells: str) -> Row:
    return Row(tuple(map(Cell, cells)))


def _short(text: str) -> str:
    words = " ".join(text.replace("`", "'").split())
    return words if len(words) <= _SHOWN else f"{words[: _SHOWN - 3]}..."
