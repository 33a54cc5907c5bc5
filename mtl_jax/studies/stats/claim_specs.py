"""What the design claims, as data: each claim, the arms it is about, and how to ask the results."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence

from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.decision_rules import Contrast, Finding, Verdict, all_of, below, contrast
from mtl_jax.studies.stats.results import (
    BASELINE,
    REFERENCE,
    Result,
    evaluation_split,
    gap,
    qualities,
    quality,
    score,
    tasks_of,
)

Arms = tuple[str, ...]
Answer = tuple[Contrast | Finding | None, Sequence[Contrast]]
"""What decides the claim, None where the study does not ask; and the same in each setting."""

_FROZEN = "backbone_frozen"
_AT_ONCE = "at_once"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence of the design, the arms that it is about, and how to ask the results."""

    sentence: str
    arms: Callable[[Collection[str]], Arms | None]
    """of the arms of a study those that must have results; None where it lacks one"""
    ask: Callable[[Sequence[Result], Arms], Answer]
    remark: Callable[[Sequence[Result], Arms], str] = lambda _results, _pair: ""
    """a number beside the one that decides"""


def _named(*needed: str) -> Callable[[Collection[str]], Arms | None]:
    return lambda arms: needed if set(needed) <= set(arms) else None


def _gradual_and_at_once(arms: Collection[str]) -> Arms | None:
    """Unfreezing at once with gradual unfreezing's rates and schedule, where a study has it."""
    control = _AT_ONCE if _AT_ONCE in arms else REFERENCE
    return _named("gradual_unfreezing", control)(arms)


def _baseline_beside_another(arms: Collection[str]) -> Arms | None:
    return (BASELINE,) if BASELINE in arms and len(arms) > 1 else None


def _outermost_layers(arms: Collection[str]) -> Arms | None:
    """``only_layer_i`` with the highest and the lowest i."""
    found = sorted(int(arm[11:]) for arm in arms if re.fullmatch(r"only_layer_\d+", arm))
    return (f"only_layer_{found[-1]}", f"only_layer_{found[0]}") if len(found) > 1 else None


def _lightest(results: Sequence[Result], pair: Arms) -> Answer:
    others = sorted({result["arm"] for result in results} - {BASELINE})
    parts = {
        key: below(results, pair[0], others, key)
        for key in ("train_flops", "trainable_parameters", "optimizer_state_bytes")
    }

    def written(flops: float | None, parameters: float | None, state: float | None) -> str:
        return (
            f"{formatting.flops(flops)} training FLOPs, {formatting.fixed(parameters, 0)} "
            "parameters, "
            f"{formatting.byte_size(state)} of optimizer state"
        )

    verdict = all_of({part[0] for part in parts.values()})
    reasons = {
        Verdict.SUPPORTED: "it trains nothing, so its heads stay untrained",
        Verdict.NOT_SUPPORTED: "it is not below the others in "
        + " and ".join(_COUNTS[k] for k, part in parts.items() if part[0] is verdict),
        Verdict.UNDECIDED: _uncounted(*parts["train_flops"]) or _unmeasured(verdict),
    }
    mine = written(*(part[1] for part in parts.values()))
    least = written(*(part[2] for part in parts.values()))
    number = f"{mine}; of the others at least {least}"
    what = "cost of a run, its pass and its probe, against every other scenario"
    return Finding(what, verdict, number, reasons[verdict]), ()


_COUNTS = {
    "train_flops": "training FLOPs",
    "trainable_parameters": "parameters",
    "optimizer_state_bytes": "optimizer state",
}


def _uncounted(verdict: Verdict, *means: float | None) -> str:
    """Why FLOPs decide nothing; empty where they do."""
    if verdict is not Verdict.UNDECIDED:
        return ""
    if None in means:
        return "the training FLOPs of these runs were not counted"
    return "some runs take fewer training FLOPs, and others do not"


def _fewer_flops(results: Sequence[Result], pair: Arms) -> Answer:
    found = below(results, pair[0], pair[1:], "train_flops")
    verdict, mine, theirs = found
    number = f"{formatting.flops(mine)} against {formatting.flops(theirs)} a run"
    ratio = formatting.ratio(mine, theirs) or formatting.MISSING
    what = _what("training FLOPs", pair)
    return Finding(what, verdict, f"{number} ({ratio})", _uncounted(*found)), ()


def _fewer_parameters(results: Sequence[Result], pair: Arms) -> Answer:
    verdict, mine, theirs = below(results, pair[0], pair[1:], "trainable_parameters")
    number = f"{formatting.fixed(mine, 0)} against {formatting.fixed(theirs, 0)}"
    return Finding(_what("trained parameters", pair), verdict, number, _unmeasured(verdict)), ()


def _less_overfitting(results: Sequence[Result], pair: Arms) -> Answer:
    split = evaluation_split(results)

    def overfitting(result: Result) -> float | None:
        gaps = [gap(result, task, split) for task in tasks_of([result])]
        known = [each for each in gaps if each is not None]
        return sum(known) / len(known) if known else None

    return contrast(results, pair, overfitting, f"macro-F1, train minus {split}", claimed=-1)


def _better(results: Sequence[Result], pair: Arms) -> Answer:
    split = evaluation_split(results)
    return contrast(results, pair, lambda line: quality(line.get(split)), "macro-F1")


def _scarce_task_gains(results: Sequence[Result], pair: Arms) -> Answer:
    """On the task that a line's setting names as ``scarce_task``."""
    split = evaluation_split(results)

    def scarce(result: Result) -> float | None:
        return score(result.get(split), result["setting"]["scarce_task"])

    return contrast(results, pair, scarce, "macro-F1 of the scarce task")


def _by_size(results: Sequence[Result]) -> dict[int, list[Result]]:
    """The lines by the training sentences of their setting, the fewest first."""
    found: dict[int, list[Result]] = {}
    for line in results:
        size = (line.get("setting") or {}).get("max_train_examples")
        if size is not None:
            found.setdefault(size, []).append(line)
    return dict(sorted(found.items()))


def _better_when_small(results: Sequence[Result], pair: Arms) -> Answer:
    """Over the smaller half of the training sizes; that in each size, as details."""
    sizes = _by_size(results)
    if len(sizes) < 2:
        return None, ()
    small = [line for size in list(sizes)[: len(sizes) // 2] for line in sizes[size]]
    head, _ = _better(small, pair)
    _, details = _better([line for lines in sizes.values() for line in lines], pair)
    return head, details


def _where_each_wins(results: Sequence[Result], pair: Arms) -> str:
    """From how many sentences on each arm's mean is above that of the frozen backbone."""
    if _FROZEN not in {result["arm"] for result in results}:
        return ""
    said = [f"`{arm}` {_wins_from(_by_size(results), arm)}" for arm in pair]
    return f"above `{_FROZEN}`, by the means and without a test: {', '.join(said)}"


def _wins_from(sizes: Mapping[int, Sequence[Result]], arm: str) -> str:
    first = None
    for size, lines in sizes.items():
        split = evaluation_split(lines)
        mine, frozen = (qualities(lines, name, split) for name in (arm, _FROZEN))
        shared = mine.keys() & frozen.keys()
        if shared and sum(mine[seed] - frozen[seed] for seed in shared) > 0:
            first = size if first is None else first
        else:
            first = None
    return "at no size" if first is None else f"from {first:,} sentences on"


def _what(quantity: str, pair: Arms) -> str:
    return f"{quantity}, `{pair[0]}` against `{pair[1]}`"


def _unmeasured(verdict: Verdict) -> str:
    return "some runs lack the number" if verdict is Verdict.UNDECIDED else ""


_FROZEN_OR_NOT = _named(_FROZEN, REFERENCE)

CLAIMS = (
    Claim("All frozen is cheapest and lightest.", _baseline_beside_another, _lightest),
    Claim("A frozen backbone takes fewer training FLOPs.", _FROZEN_OR_NOT, _fewer_flops),
    Claim("A frozen backbone trains fewer parameters.", _FROZEN_OR_NOT, _fewer_parameters),
    Claim("A frozen backbone overfits less.", _FROZEN_OR_NOT, _less_overfitting),
    Claim(
        "Freezing the head of the scarce task at first helps it.",
        _named("scarce_head_frozen", "joint"),
        _scarce_task_gains,
    ),
    Claim(
        "Training the head of the scarce task last, its loss off before, helps it.",
        _named("scarce_head_last", "joint"),
        _scarce_task_gains,
    ),
    Claim(
        "Higher layers are the task-specific ones, judged by a proxy: the highest layer, trained "
        "alone, does better than the lowest.",
        _outermost_layers,
        _better,
    ),
    Claim(
        "Gradual unfreezing needs less data.",
        _gradual_and_at_once,
        _better_when_small,
        _where_each_wins,
    ),
)
