"""Reads the lines of ``results.jsonl``: which arms, in which order, which number per seed."""

from __future__ import annotations

import dataclasses
import gzip
import math
import re
import zlib
from typing import TYPE_CHECKING, Any

from mtl_jax.config.tasks import SCORES, Kind
from mtl_jax.core.errors import UserError, cannot_read, first_line
from mtl_jax.core.json_files import parse_json
from mtl_jax.core.paths import expanded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

Result = dict[str, Any]

SPLITS = ("train", "validation", "test")
"""Of a study's data; a line may have metrics on each."""
_MEASURED = (*SPLITS, "probe")
_METRICS = {"type": ["object", "null"], "additionalProperties": {"type": "object"}}
RESULT = {
    "type": "object",
    "required": ["arm", "seed"],
    "properties": {
        "arm": {"type": "string"},
        "seed": {"type": "integer"},
        "setting": {"type": "object"},
        "curve": {"type": "array", "items": {"type": "object"}},
        **dict.fromkeys(SPLITS, _METRICS),
    },
}
"""The schema of a line of ``results.jsonl``."""

_CLASSES: Kind = "single_label"
BASELINE = "all_frozen"
REFERENCE = "none_frozen"


def results_file(folder: Path) -> Path:
    """Where the results of a study are: ``results.jsonl``, or the same compressed."""
    path = folder / "results.jsonl"
    packed = folder / "results.jsonl.gz"
    return packed if packed.exists() and not path.exists() else path


def read_results(path: str | Path) -> list[Result]:
    """Reads a ``results.jsonl``, or one that gzip has compressed, passing over empty lines.

        lines = mtl.studies.read_results("runs/freezing/results.jsonl")
        lines[0]["arm"], lines[0]["seed"], lines[0]["test"]["sentiment"]["macro_f1"]

    Raises:
        UserError: It can't be read, or a line is no result.
    """
    path = expanded(path)
    try:
        content = path.read_bytes()
        lines = (gzip.decompress(content) if path.suffix == ".gz" else content).split(b"\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}): copy it there again") from error
    except OSError as error:
        raise cannot_read(path, error) from error
    return [
        parse_json(
            line.decode("utf-8", errors="replace"),
            RESULT,
            f"{path}, line {number}",
            "remove that line and run the study again, which replaces it",
        )
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def arm_order(names: Iterable[str]) -> list[str]:
    """Sorts arms from the most frozen to the least; recipes come last, as they were met."""
    # What trains a little of every layer, one block of layers, the top ones.
    kinds = {"lora": 3, "only": 4, "first": 5, "middle": 6, "top": 7}
    plain = {BASELINE: (0, 0), "backbone_frozen": (1, 0), REFERENCE: (8, 1)}
    plain |= {"layer_norm_only": (2, 0), "bias_only": (2, 1)}

    def rank(name: str) -> tuple[int, int]:
        if numbered := re.fullmatch(rf"({'|'.join(kinds)})_(\d+)", name):
            return (kinds[numbered.group(1)], int(numbered.group(2)))
        # What ends like them freezes the head of one task.
        return plain.get(name, (8, 0) if name.endswith("_frozen") else (9, 0))

    return sorted(dict.fromkeys(names), key=rank)


def arms_of(results: Sequence[Result]) -> list[str]:
    """The arms that have a result, in the fixed order."""
    return arm_order(result["arm"] for result in results)


def tasks_of(results: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The tasks that have metrics on some split, in the order of the file."""
    found: dict[str, None] = {}
    for result in results:
        for split in _MEASURED:
            metrics = result.get(split)
            found |= dict.fromkeys(metrics if isinstance(metrics, dict) else ())
    return tuple(found)


def untrained_heads(result: Mapping[str, Any]) -> list[str]:
    """The tasks whose heads no phase of a run has trained, so that they are what chance has made.

    Results from before these were noted tell it by the arm's name.
    """
    if (noted := result.get("untrained_heads")) is not None:
        return list(noted)
    tasks = tasks_of([result])
    if result["arm"] == BASELINE:
        return list(tasks)
    return [task for task in tasks if result["arm"] == f"{task}_frozen"]


def control_heads(results: Sequence[Result]) -> dict[str, list[str]]:
    """The arms that are controls: they train something, but not every head.

    Returns:
        Of each the tasks whose heads never trained.
    """
    found = {
        arm: {task for r in results if r["arm"] == arm for task in untrained_heads(r)}
        for arm in trained_arms(results)
    }
    tasks = tasks_of(results)
    return {arm: [t for t in tasks if t in heads] for arm, heads in found.items() if heads}


def trained_arms(results: Sequence[Result]) -> list[str]:
    """The arms that train something."""
    return [arm for arm in arms_of(results) if arm != BASELINE]


def evaluation_split(results: Sequence[Result]) -> str:
    """``test`` where every arm has test metrics, else ``validation``.

    One split for all: a table that mixed the two would compare unlike numbers.
    """
    return "test" if all(result.get("test") for result in results) else "validation"


def lookup(result: Any, *path: str) -> float | None:
    """The number under a path of keys; None where it is missing, null or not finite."""
    for key in path:
        if not isinstance(result, dict):
            return None
        result = result.get(key)
    if isinstance(result, bool) or not isinstance(result, int | float):
        return None
    if not math.isfinite(result):
        return None
    return float(result) if isinstance(result, int) else result


def score(metrics: Any, task: str) -> float | None:
    """What a task is judged by: macro-F1, or R2 of a regression; None where there is none.

    Args:
        metrics: ``{task: {"macro_f1": …}}``, the metrics on one split.
        task: The task.
    """
    return lookup(metrics, task, SCORES["regression" if _is_value(metrics, task) else _CLASSES])


def is_regression(results: Iterable[Mapping[str, Any]], task: str) -> bool:
    """Whether the metrics of a task, on whichever split it has some, are those of a regression."""
    return any(_is_value(result.get(split), task) for result in results for split in _MEASURED)


def score_name(results: Sequence[Mapping[str, Any]], *tasks: str) -> str:
    """What the scores of tasks are called: ``macro-F1``, ``R2`` or, of both kinds, ``score``.

    Args:
        results: Lines of ``results.jsonl``.
        *tasks: Which ones; by default all.
    """
    kinds = {is_regression(results, task) for task in tasks or tasks_of(results)}
    return "score" if len(kinds) > 1 else "R2" if True in kinds else "macro-F1"


def _is_value(metrics: Any, task: str) -> bool:
    of_task = _of_task(metrics, task)
    return "r2" in of_task and "macro_f1" not in of_task


def _of_task(metrics: Any, task: str) -> Mapping[str, Any]:
    of_task = metrics.get(task) if isinstance(metrics, dict) else None
    return of_task if isinstance(of_task, dict) else {}


def measures(results: Sequence[Mapping[str, Any]], task: str) -> tuple[tuple[str, str], ...]:
    """``(metric, name for a reader)`` of the two metrics of a task that a table has."""
    if is_regression(results, task):
        return (("rmse", "RMSE"), ("r2", "R2"))
    if any(
        "micro_f1" in _of_task(result.get(split), task) for result in results for split in _MEASURED
    ):
        return (("micro_f1", "micro-F1"), ("macro_f1", "macro-F1"))
    return (("accuracy", "accuracy"), ("macro_f1", "macro-F1"))


def quality(metrics: Any) -> float | None:
    """The one number an arm is judged by: the mean over tasks of their ``score``.

    Tasks without labels are left out of the mean.

    Args:
        metrics: ``{task: {"macro_f1": …}}``, the metrics on one split.
    """
    tasks = metrics if isinstance(metrics, dict) else ()
    return mean_of_known(score(metrics, task) for task in tasks)


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """The mean of the values that there are; None where there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def untrained(results: Sequence[Result], key: str) -> list[Mapping[str, Any]]:
    """What no training gives, once for each draw of the training texts.

    Seeds with the same training texts repeat it, for no weight is drawn.

    Args:
        results: Lines of ``results.jsonl``.
        key: ``probe`` or ``chance``.

    Returns:
        Metrics by task.
    """
    return list({r.get("train_subset"): r[key] for r in results if r.get(key)}.values())


def gap(result: Result, task: str, split: str) -> float | None:
    """The score on the training examples minus that on ``split``."""
    train, other = score(result.get("train"), task), score(result.get(split), task)
    return None if train is None or other is None else train - other


def per_seed(
    results: Sequence[Result], arm: str, number: Callable[[Result], float | None]
) -> dict[int, float]:
    """One number per seed of an arm, without the seeds that lack it.

    Where a file holds an arm and seed twice, the later line counts.
    """
    found = {result["seed"]: number(result) for result in results if result["arm"] == arm}
    return {seed: value for seed, value in sorted(found.items()) if value is not None}


def numbers(results: Sequence[Result], arm: str, *path: str) -> dict[int, float]:
    """The number under a path of keys, per seed of an arm."""
    return per_seed(results, arm, lambda result: lookup(result, *path))


def qualities(results: Sequence[Result], arm: str, split: str) -> dict[int, float]:
    """The mean macro-F1 over tasks on a split, per seed of an arm."""
    return per_seed(results, arm, lambda result: quality(result.get(split)))


def sources_of(results: Sequence[Result], split: str, task: str) -> list[str]:
    """The sources that the scores of a task are split by, in the order of the file."""
    found: dict[str, None] = {}
    for result in results:
        metrics = (result.get(split) or {}).get(task) or {}
        found.update(dict.fromkeys(metrics.get("weighted_f1_by_source") or {}))
    return list(found)


def setting_name(line: Mapping[str, Any]) -> str:
    """The setting of a run in words, ``max_train_examples 64``; empty without one."""
    setting = line.get("setting") or {}
    if setting.keys() == {"scarce_task", "fraction"}:
        return f"{100 * setting['fraction']:g} % of the {setting['scarce_task']} labels"
    return ", ".join(f"{name} {written(value)}" for name, value in setting.items())


def by_setting(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The lines of each setting; a study without has one, ``""``.

    They are in the order of the numbers that settings differ by, where names differ in that of
    the file, which a study that goes on with more settings has left in the order of its calls.
    """
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(setting_name(result), []).append(result)

    def sizes(lines: Sequence[Result]) -> list[float]:
        values = (lines[0].get("setting") or {}).values()
        return [value for value in values if isinstance(value, (int, float))]

    return dict(sorted(found.items(), key=lambda item: sizes(item[1])))


@dataclasses.dataclass(frozen=True)
class Finished:
    """How many of the runs that a study asks of an arm have a result."""

    runs: int
    asked: int
    settings: int

    def __str__(self) -> str:
        unit = "seed" if self.settings == 1 else "run"
        return f"{self.runs} of {self.asked} {unit}{'' if self.asked == 1 else 's'}"


def unfinished(
    results: Sequence[Mapping[str, Any]], failures: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Finished]:
    """The arms that lack a result for some seed of the study, in the fixed order.

    A study asks each arm for every seed that any arm has or failed with, in each of the
    arm's own settings. A mean over the seeds that are left is no fair match for a mean
    over all: the seed that failed may be the one that every arm does badly with.

    Args:
        results: Lines of ``results.jsonl``.
        failures: Runs without a result, with ``arm``, ``seed`` and, if any, ``setting``.
    """
    lines = [*results, *failures]
    seeds = len({line["seed"] for line in lines})
    found = {}
    for arm in arm_order(line["arm"] for line in lines):
        settings = len({setting_name(line) for line in lines if line["arm"] == arm})
        runs = {(line["seed"], setting_name(line)) for line in results if line["arm"] == arm}
        if len(runs) < seeds * settings:
            found[arm] = Finished(len(runs), seeds * settings, settings)
    return found


def written(value: Any) -> str:
    """A setting's value as it is shown."""
    return f"{value:,}" if isinstance(value, int) else f"{value}"
