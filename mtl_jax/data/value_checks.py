"""What looks wrong in the values of a regression, though it may be meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from mtl_jax.data.findings import Finding
from mtl_jax.data.kinds import MISSING, has_label

# With fewer distinct values the labels may be classes.
_FEWEST_VALUES = 4
# Deviations from the median, in those of the middle half of the values, beyond which a value is
# an outlier: of normally distributed ones two in a million are.
_OUTLIER = 3.5
_LEAST_OUTLIERS = 30
# Of an R2 on n labels the standard error is at most 0.77 / sqrt(n): the largest value of
# sqrt(4 R2 (1 - R2)^2 / n) (Olkin & Finn 1995, *Correlations redux*).
_R2_ERROR, _LARGEST_ERROR = 0.77, 0.03
# What some data sets write where a value is missing.
_SENTINELS = (float(MISSING), -99.0, -100.0, -999.0, -9999.0, 999.0, 9999.0)


def findings(task: str, labels: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    """Says how the values of every split are spread, and what can hardly be meant.

    Args:
        task: The task.
        labels: Per split float [n], NaN where there is none; ``train`` is among them.
    """
    splits = {split: of_split[has_label(of_split)] for split, of_split in labels.items()}
    described = "; ".join(f"{split} {_spread(values)}" for split, values in splits.items())
    yield Finding("note", f"{task}: values of a regression: {described}")
    train = splits["train"]
    if not len(train):
        return
    distinct = np.unique(train)
    if len(distinct) == 1:
        yield _warning(task, f"one value only, {distinct[0]:g}: there is nothing to learn")
    elif len(distinct) < _FEWEST_VALUES:
        shown = ", ".join(f"{value:g}" for value in distinct)
        yield _warning(
            task,
            f"{len(distinct)} values only, {shown}: are they classes? "
            f"--task-kinds {task}=single_label",
        )
    yield from _sentinels(task, train, distinct)
    yield from _outliers(task, train)
    for split in ("validation", "test"):
        values = splits.get(split)
        if values is None or not len(values):
            continue
        severity = "note" if split == "test" else "warning"
        if np.ptp(values) == 0:
            words = f"{split} has one value only, {values[0]:g}: R2 is not defined there"
            yield Finding(severity, f"{task}: {words}")
        beyond = int(((values < train.min()) | (values > train.max())).sum())
        if beyond:
            words = f"{beyond:,} of {len(values):,} values of {split} are beyond those of training"
            yield Finding("note", f"{task}: {words}, {train.min():g} to {train.max():g}")
    validation = splits.get("validation", train)
    error = _R2_ERROR / np.sqrt(max(len(validation), 1))
    if len(validation) and error > _LARGEST_ERROR:
        enough = int(np.ceil((_R2_ERROR / _LARGEST_ERROR) ** 2))
        yield Finding(
            "warning",
            "the validation split is small: the standard error of an R2 measured on it is up to "
            f"{error:.3f} on {len(validation):,} {task} values; with {enough} values it would be "
            f"{_LARGEST_ERROR}",
        )


def summary(labels: np.ndarray) -> dict[str, float]:
    """How many values there are and how they are spread, as JSON; ``texts`` alone where none is.

    Args:
        labels: float [n], NaN where there is none.
    """
    values = labels[has_label(labels)]
    if not len(values):
        return {"texts": 0}
    spread = {"least": values.min(), "most": values.max(), "mean": values.mean()}
    spread["deviation"] = values.std()
    return {"texts": len(values)} | {name: float(value) for name, value in spread.items()}


def _spread(values: np.ndarray) -> str:
    if not len(values):
        return "0"
    found = summary(values)
    return (
        f"{len(values):,} from {found['least']:g} to {found['most']:g}, mean {found['mean']:.4g}, "
        f"deviation {found['deviation']:.4g}"
    )


def _sentinels(task: str, train: np.ndarray, distinct: np.ndarray) -> Iterator[Finding]:
    """A value that some use for a missing one, apart from all the others."""
    for value in _SENTINELS:
        others = distinct[distinct != value]
        if value not in distinct or len(others) < 2:
            continue
        # All on the other side of 0, or of a gap as wide as they are.
        apart = others.min() >= 0 if value == MISSING else _gap(others, value) > np.ptp(others)
        if apart:
            count = int((train == value).sum())
            yield _warning(
                task,
                f"{value:g} ({count:,}) is apart from all other values, from {others.min():g} to "
                f"{others.max():g}: if it is a missing one, leave it empty",
            )


def _gap(others: np.ndarray, value: float) -> float:
    return float(np.abs(others - value).min())


def _outliers(task: str, train: np.ndarray) -> Iterator[Finding]:
    if len(train) < _LEAST_OUTLIERS:
        return
    low, median, high = np.quantile(train, (0.25, 0.5, 0.75))
    # The middle half of normally distributed values is 1.349 deviations wide.
    deviation = (high - low) / 1.349
    far = np.abs(train - median) > max(_OUTLIER * deviation, 1e-12)
    # Of values that are mostly equal nothing is told.
    if deviation > 0 and (count := int(far.sum())):
        furthest = train[np.abs(train - median).argmax()]
        yield Finding(
            "note",
            f"{task}: {count:,} of {len(train):,} values are more than {_OUTLIER:g} deviations "
            f"from the median {median:g}, the furthest {furthest:g}: the squared error weighs them "
            "most",
        )


def _warning(task: str, words: str) -> Finding:
    return Finding("warning", f"{task}: {words}")
