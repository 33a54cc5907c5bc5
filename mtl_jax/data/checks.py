"""What looks wrong in texts and labels, though it may be meant: told before anyone waits.

Pure functions from what has been read to a list of findings; nothing here reads a file.
"""

from __future__ import annotations

import dataclasses
import decimal
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from mtl_jax.config.tasks import Kind
from mtl_jax.core.names import listed, shown
from mtl_jax.data import value_checks
from mtl_jax.data.findings import Finding
from mtl_jax.data.kinds import KINDS, SEPARATOR, has_label, kind_of
from mtl_jax.data.repeated_texts import contradictions, seen_before

_MOST_CLASSES = 12
_MOST_WARNINGS = 5

# How pandas, numpy, Python, PyTorch (its ignore_index), spreadsheets and databases write that
# a value is missing; folded as ``_folded`` does.
_SPELL_MISSING = {"nan", "-nan", "none", "null", "na", "n/a", "<na>", "nat", "#n/a", "-100", "\\n"}
_SPELL_MISSING |= {"#n/an/a", "#na", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"}

# Characters without a look of their own, beside those of the categories Cf and Cc: the combining
# grapheme joiner, Hangul fillers and variation selectors.
_INVISIBLE = {"\u034f", "\u115f", "\u1160", "\u3164", "\uffa0", *map(chr, range(0xFE00, 0xFE10))}

# With fewer labels their number says nothing of what the column holds.
_FEWEST_LABELS = 10
_CLASSES_OF_A_SCALE = 10
UNEVEN = 3
"""times as many texts as another that a class of imbalanced ones has"""
# Of an accuracy, at most: 0.5 / sqrt(n) of n labels.
_LARGEST_ERROR = 0.03
# Labels that are counted at a time.
_AT_A_TIME = 2**20


@dataclasses.dataclass(frozen=True)
class View:
    """What is looked at of a split."""

    labels: Mapping[str, np.ndarray]
    """per task those of n texts, as ``kinds`` tells"""
    hashes: np.ndarray | None = None
    """uint64 [n]: ``hashes_of`` the texts; None where these are not to be looked at"""


def check(
    classes: Mapping[str, Sequence[str]], train: View, others: Mapping[str, View]
) -> list[Finding]:
    """Counts the classes of every split, and looks for what can hardly be meant.

    Args:
        classes: Per task the names of its classes.
        train: The texts to train on and their labels, as they are left after every limit.
        others: The same of ``validation``, and of ``test`` as far as it may be looked at; a task
            that a view does not have is left out there.
    """
    views = {"train": train, **others}
    findings = []
    for task, names in classes.items():
        of_splits = {
            split: labels
            for split, view in views.items()
            if (labels := view.labels.get(task)) is not None
        }
        findings += _BY_KIND[kind_of(of_splits["train"])](task, names, of_splits)
    for split, view in others.items():
        findings += _unlabelled(split, view, tuple(classes))
    if "validation" in others:
        findings += _too_small(others["validation"], tuple(classes))
    for split, view in others.items():
        if view.hashes is not None and train.hashes is not None:
            findings += seen_before(split, view.hashes, {"train": train.hashes})
    if train.hashes is not None:
        findings += contradictions(train.hashes, {task: train.labels[task] for task in classes})
    return findings


def class_counts(labels: np.ndarray, classes: int) -> np.ndarray:
    """How many texts have each class, int [classes]; nothing of a regression.

    Args:
        labels: Those of n texts, as ``kinds`` tells.
        classes: How many classes there are.
    """
    counts = np.zeros(classes, np.int64)
    # Some at a time: of many, what is worked out of them takes as much memory again.
    for start in range(0, len(labels) if classes else 0, _AT_A_TIME):
        some = labels[start : start + _AT_A_TIME]
        there = some[has_label(some)]
        if there.ndim == 2:
            counts += (there > 0).sum(0)
        else:
            counts += np.bincount(there, minlength=classes)
    return counts


def absent_classes(
    task: str, names: Sequence[str], split: str, labels: np.ndarray
) -> list[Finding]:
    """Says which classes a split to evaluate on lacks, where it lacks some.

    Args:
        task: The task.
        names: Its classes.
        split: The split.
        labels: Its labels.
    """
    return _absent(task, names, split, class_counts(labels, len(names)))


def _of_classes(
    task: str, names: Sequence[str], labels: Mapping[str, np.ndarray]
) -> Iterator[Finding]:
    """What there is of each class in every split, and what is odd about them."""
    counts = {split: class_counts(of_split, len(names)) for split, of_split in labels.items()}
    yield Finding("note", f"{task}: {_class_counts(names, counts)}")
    train = counts["train"]
    yield from _odd_names(task, names, train)
    if len(names) == 1:
        yield _warning(task, f"one class only, {shown(names[0])}: there is nothing to tell apart")
    yield from _no_classes(task, names, train)
    untrained = np.flatnonzero(train == 0).tolist()
    for index in untrained[:_MOST_WARNINGS]:
        there = [f"{of[index]:,} in {split}" for split, of in counts.items() if of[index]]
        where = f" ({', '.join(there)})" if there else ""
        yield _warning(task, f"no training text of {shown(names[index])}{where}")
    if len(untrained) > _MOST_WARNINGS:
        left = len(untrained) - _MOST_WARNINGS
        yield _warning(task, f"no training text of {left:,} more classes")
    for split in ("validation", "test"):
        if split in counts:
            yield from _absent(task, names, split, counts[split])
    there = train[train > 0]
    if len(there) > 1 and there.max() >= UNEVEN * there.min():
        texts = int(has_label(labels["train"]).sum())
        share = lambda index: f"{100 * train[index] / texts:.3g} %"  # noqa: E731
        most, least = int(train.argmax()), int(np.where(train > 0, train, train.max()).argmin())
        yield Finding(
            "note",
            f"{task}: imbalanced classes: {share(most)} of the training texts are "
            f"{shown(names[most])}, {share(least)} {shown(names[least])} "
            f"({there.max() / there.min():.1f} to 1): look at macro-F1, not at accuracy alone",
        )


def _of_lists(
    task: str, names: Sequence[str], labels: Mapping[str, np.ndarray]
) -> Iterator[Finding]:
    """The same, and what is odd about the lists of a task whose texts have several classes."""
    yield from _of_classes(task, names, labels)
    train = labels["train"]
    marks = train[has_label(train)] > 0
    if not len(marks):
        return
    of_text = marks.sum(1)
    yield Finding(
        "note",
        f"{task}: {of_text.mean():.2f} classes a training text, {of_text.max()} at most; "
        f"{int((of_text == 0).sum()):,} of {len(marks):,} have none",
    )
    everywhere = [shown(names[i]) for i in np.flatnonzero(marks.all(0)).tolist()]
    if everywhere:
        yield _warning(task, f"every training text has {listed(everywhere)}: nothing to tell apart")
    if (of_text <= 1).all():
        yield _warning(
            task,
            "no training text has more than one class: is it --task-kinds "
            f"{task}=single_label, or are classes separated otherwise than by {SEPARATOR}?",
        )
    for separator in (";", ","):
        joined = [name for name in names if separator in name]
        apart = {part.strip() for name in joined for part in name.split(separator)}
        if joined and apart & {*names}:
            yield _warning(
                task,
                f"classes have {separator!r} in them, as {shown(joined[0])}, with parts that are "
                f"classes, too: write JSON lists, or {SEPARATOR} between classes",
            )


def _of_values(
    task: str, names: Sequence[str], labels: Mapping[str, np.ndarray]
) -> Iterator[Finding]:
    del names
    return value_checks.findings(task, labels)


_BY_KIND: Mapping[
    Kind, Callable[[str, Sequence[str], Mapping[str, np.ndarray]], Iterator[Finding]]
] = {"single_label": _of_classes, "multi_label": _of_lists, "regression": _of_values}


def _class_counts(names: Sequence[str], counts: Mapping[str, np.ndarray]) -> str:
    order = range(len(names))
    if len(names) > _MOST_CLASSES:
        order = np.argsort(-counts["train"], kind="stable").tolist()
    each = [
        f"{shown(names[i])} {' / '.join(f'{of_split[i]:,}' for of_split in counts.values())}"
        for i in order[:_MOST_CLASSES]
    ]
    if (left := len(names) - len(each)) > 0:
        each.append(f"... and {left:,} more")
    noun = "class" if len(names) == 1 else "classes"
    return f"{len(names):,} {noun}, texts in {' / '.join(counts)}: {'; '.join(each)}"


def _odd_names(task: str, names: Sequence[str], train: np.ndarray) -> Iterator[Finding]:
    alike = defaultdict(list)
    missing = []
    for name, count in zip(names, train.tolist(), strict=True):
        key = _folded(name)
        if key in _SPELL_MISSING:
            missing.append(f"{shown(name)} ({count:,})")
        else:
            alike[_as_number(key)].append(name)
    if missing:
        spell = "is a class and spells" if len(missing) == 1 else "are classes and spell"
        yield _warning(task, f'{listed(missing, 8)} {spell} "missing": leave empty if missing')
    groups = [_equated(group[:8]) for group in alike.values() if len(group) > 1]
    if groups:
        yield _warning(
            task,
            "classes are equal but for case, space, invisible characters, Unicode form or the "
            f"way a number is written: {listed(groups)}: write each one way",
        )


def _equated(names: Sequence[str]) -> str:
    looks = {unicodedata.normalize("NFC", name) for name in names}
    return " = ".join(ascii(name) if len(looks) < len(names) else shown(name) for name in names)


def _folded(name: str) -> str:
    """What two names have in common that a reader takes for the same.

    Case, compatibility forms of Unicode, white space and what can't be seen are gone.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return "".join(
        c
        for c in folded
        if not (c.isspace() or c in _INVISIBLE or unicodedata.category(c) in ("Cf", "Cc"))
    )


def _as_number(name: str) -> object:
    """A number for one in ASCII digits, however it is written; else the name."""
    return _number(name) if _number(name) is not None else name


def _number(name: str) -> decimal.Decimal | None:
    if not name.isascii() or not any(c.isdigit() for c in name):
        return None
    try:
        number = decimal.Decimal(name)
    except decimal.InvalidOperation:
        return None
    return number if number.is_finite() else None


def _no_classes(task: str, names: Sequence[str], train: np.ndarray) -> Iterator[Finding]:
    """Where labels are scores, identities or texts."""
    labels, there = int(train.sum()), int((train > 0).sum())
    numbers = [_number(name) for name in names]
    numeric = all(number is not None for number in numbers)
    many = labels >= _FEWEST_LABELS and there > labels / 2
    scale = (
        numeric
        and len(names) >= _CLASSES_OF_A_SCALE
        and any(n != n.to_integral_value() for n in numbers if n)
    )
    if many or scale:
        what = "the labels look like numbers, not classes" if numeric else "is it a column of ids?"
        yield _warning(
            task,
            f"{there:,} classes for {labels:,} labelled training texts: {what}: put them in a few "
            "classes, or name another column with --label-columns"
            + (f", or train a regression with --task-kinds {task}=regression" if numeric else ""),
        )


def _absent(task: str, names: Sequence[str], split: str, count: np.ndarray) -> list[Finding]:
    lacking = [shown(name) for name, texts in zip(names, count.tolist(), strict=True) if not texts]
    # A split without a label of the task has no figures of it.
    if not lacking or len(lacking) == len(names):
        return []
    text = (
        f"{task}: {split} has {len(names) - len(lacking):,} of {len(names):,} classes, no text of "
        f"{listed(lacking)}: macro-F1 is the mean over classes that occur or are predicted"
    )
    # Nothing is chosen on the test split.
    return [Finding("note" if split == "test" else "warning", text)]


def _unlabelled(split: str, view: View, tasks: Sequence[str]) -> Iterator[Finding]:
    """Where nothing can be measured of a task, as on a test split whose labels are kept back."""
    what = "measured of it" if split == "test" else "measured of it or chosen by it"
    for task in tasks:
        labels = view.labels.get(task)
        if labels is not None and len(labels) and not has_label(labels).any():
            yield _warning(task, f"no text of {split} has a label: nothing is {what}")


def _too_small(validation: View, tasks: Sequence[str]) -> list[Finding]:
    words = []
    for task in tasks:
        labels = validation.labels.get(task)
        if labels is None or not KINDS[kind_of(labels)].has_classes:
            continue
        count = int(has_label(labels).sum())
        if count and (error := 0.5 / np.sqrt(count)) > _LARGEST_ERROR:
            words.append(f"{error:.3f} on {count:,} {task} label{'s' if count > 1 else ''}")
    if not words:
        return []
    enough = int(np.ceil((0.5 / _LARGEST_ERROR) ** 2))
    text = (
        "the validation split is small: the standard error of an accuracy measured on it is up to "
        f"{' and '.join(words)}; with {enough} labels it would be {_LARGEST_ERROR}"
    )
    return [Finding("warning", text)]


def _warning(task: str, words: str) -> Finding:
    return Finding("warning", f"{task}: {words}")
