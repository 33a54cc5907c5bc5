"""What the design claims, as data: each claim, the arms it is about, and how to ask the results.

What holds by construction is stated, with its numbers, and not tested.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.decision_rules import (
    Contrast,
    Finding,
    Verdict,
    contrast,
    of_seeds,
    within_arm,
)
from mtl_jax.studies.stats.overfitting import (
    calibration_error,
    loss_past_its_minimum,
    validation_losses,
)
from mtl_jax.studies.stats.results import (
    BASELINE,
    REFERENCE,
    Result,
    by_setting,
    evaluation_split,
    lookup,
    mean_of_known,
    numbers,
    per_seed,
    qualities,
    quality,
    score,
    score_name,
    tasks_of,
)

Arms = tuple[str, ...]
Answer = tuple[Contrast | Finding | None, Sequence[Contrast]]
"""What decides the claim, None where the study does not ask; and the same in each setting."""

_FROZEN = "backbone_frozen"
_AT_ONCE = "at_once"
_CONTROL = "sequential_control"
# By which the mean numbers of updates of two arms may differ and are equal: parts of the larger,
# and updates, as the order of the texts decides in how many batches a thin task is met.
_SAME_UPDATES = 0.05
_FEW_UPDATES = 2.0


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


def _in_sequence(arms: Collection[str]) -> Arms | None:
    """One task after the other, and the control that can't forget, where a study has it."""
    control = (_CONTROL,) if _CONTROL in arms else ()
    return _named("sequential_heads", *control)(arms)


def _trained(arms: Collection[str]) -> Arms | None:
    """An arm that trains every layer, of which each can be rolled back."""
    return _named(REFERENCE)(arms)


def _heads_frozen(arms: Collection[str]) -> Arms | None:
    """The reference, and the arms that freeze a head from its random start on."""
    others = ("all_frozen", _FROZEN, REFERENCE)
    found = sorted(a for a in arms if a.endswith("_frozen") and a not in others and "head" not in a)
    return (REFERENCE, *found) if found and REFERENCE in arms else None


def _loss_past_its_minimum(results: Sequence[Result], pair: Arms) -> Answer:
    what = "validation loss at the end, above its minimum, in nats"
    return contrast(results, pair, loss_past_its_minimum, what, claimed=-1)


def _still_falling(results: Sequence[Result], pair: Arms) -> str:
    """How many runs had not reached the minimum of their loss, so that nothing could rise."""
    said = []
    for arm in pair:
        runs = [line for line in results if line["arm"] == arm and line.get("curve")]
        ends = [[validation_losses(line, task) for task in tasks_of([line])] for line in runs]
        falling = sum(any(each and each[-1] == min(each) for each in run) for run in ends)
        said.append(f"`{arm}` in {falling} of {formatting.count_of(len(runs), 'run')}")
    return f"a loss was at its minimum when it ended: {', '.join(said)}"


def _calibrated(results: Sequence[Result], pair: Arms) -> Answer:
    split = evaluation_split(results)

    def error(line: Result) -> float | None:
        return calibration_error(line, split)

    return contrast(results, pair, error, f"calibration error on {split}", claimed=-1)


def _rolled_back(results: Sequence[Result], pair: Arms) -> Answer:
    """What the lowest layer's reset leaves, above what the highest's does, on validation."""

    def number(line: Result) -> float | None:
        layers = (line.get("layers") or {}).get("rolled_back") or {}
        scores = {int(name.removeprefix("layer_")): quality(each) for name, each in layers.items()}
        known = {layer: value for layer, value in scores.items() if value is not None}
        return known[min(known)] - known[max(known)] if len(known) > 1 else None

    what = f"validation macro-F1 of `{pair[0]}` with the lowest layer reset minus the highest reset"
    return within_arm(results, pair[0], number, what)


def _probed(results: Sequence[Result], pair: Arms) -> Answer:
    """What a probe of the top layer gains by training, above what one of the first does."""

    def number(line: Result) -> float | None:
        layers = line.get("layers") or {}
        gains = {}
        for name, after in (layers.get("probe") or {}).items():
            before = (layers.get("probe_before") or {}).get(name)
            gained, had = quality(after), quality(before)
            if gained is not None and had is not None:
                gains[int(name.removeprefix("layer_"))] = gained - had
        return gains[max(gains)] - gains[min(gains)] if len(gains) > 1 else None

    what = f"gain of a probe by training, the highest layer of `{pair[0]}` minus the lowest"
    return within_arm(results, pair[0], number, what)


def _layer_by_layer(results: Sequence[Result], pair: Arms) -> str:
    """The mean score with each layer reset, beside that with none."""
    lines = [line for line in results if line["arm"] == pair[0]]
    names = dict.fromkeys(
        name for line in lines for name in (line.get("layers") or {}).get("rolled_back") or {}
    )

    def mean(number: Callable[[Result], float | None]) -> str:
        values = list(per_seed(lines, pair[0], number).values())
        return formatting.fixed(sum(values) / len(values) if values else None)

    each = [f"{name} {mean(lambda line, n=name: quality(_reset(line).get(n)))}" for name in names]
    return f"{', '.join(each)}; none reset {mean(lambda line: quality(line.get('validation')))}"


def _reset(line: Result) -> Mapping[str, object]:
    return (line.get("layers") or {}).get("rolled_back") or {}


def _head_is_control(results: Sequence[Result], pair: Arms) -> Answer:
    """The score of the tasks whose heads never trained, against full fine-tuning's of the same."""
    split, reference = evaluation_split(results), pair[0]
    frozen = {arm: arm.removesuffix("_frozen") for arm in pair[1:]}
    tasks = {arm: task for arm, task in frozen.items() if task in tasks_of(results)}
    if not tasks:
        # Arms that are only called so.
        return None, ()
    differences: dict[int, list[float]] = {}
    for arm, task in tasks.items():
        mine, theirs = (
            per_seed(results, each, lambda line, t=task: score(line.get(split), t))
            for each in (arm, reference)
        )
        for seed in mine.keys() & theirs.keys():
            differences.setdefault(seed, []).append(mine[seed] - theirs[seed])
    means = {s: sum(d) / len(d) for s, d in differences.items() if len(d) == len(tasks)}
    what = (
        f"{score_name(results, *tasks.values())} of the task whose head is frozen, "
        f"{formatting.listing(sorted(tasks))} minus `{reference}`"
    )
    return of_seeds(means, what, claimed=-1)


def _forgotten(results: Sequence[Result], pair: Arms) -> Answer:
    """What tasks lose on validation from the end of their own phase to that of the others'.

    Beside an arm in whose others' phases they can't lose anything, where a study has that.
    """
    what = "validation score of a task after its own phase, minus after the others'"
    if len(pair) == 1:
        return within_arm(results, pair[0], forgotten, f"{what}, of `{pair[0]}`")
    return contrast(results, pair, forgotten, what)


def _left_at_the_end(results: Sequence[Result], pair: Arms) -> str:
    """What of it is still lost when the run ends, in each arm."""

    def lost(line: Result) -> float | None:
        return forgotten(line, at_end=True)

    means = {arm: _mean(results, arm, lost) for arm in pair}
    said = [f"{formatting.signed(m)} in `{arm}`" for arm, m in means.items() if m is not None]
    return f"at the end of the run {', '.join(said)}" if said else ""


def forgotten(line: Result, *, at_end: bool = False) -> float | None:
    """What the tasks of a run lose on validation after their own phase, the mean over them.

    Args:
        line: A line of ``results.jsonl``.
        at_end: Until the end of the run, and not of the phases of other tasks.

    Returns:
        None where no task has a phase of its own with others behind it.
    """
    phases, losses = line.get("by_phase") or (), []
    for task in tasks_of([line]):
        ends = _own_and_others(phases, task)
        if ends is not None:
            last = len(phases) - 1 if at_end else ends[1]
            before, after = (lookup(phases[i], "validation", task) for i in (ends[0], last))
            losses += [before - after] if before is not None and after is not None else []
    return sum(losses) / len(losses) if losses else None


def _own_and_others(phases: Sequence[Mapping[str, Any]], task: str) -> tuple[int, int] | None:
    """The last phase of a task's first row of phases, and the last of the row behind without it."""
    trained = [task in phase["tasks"] for phase in phases]
    if True not in trained:
        return None
    own = trained.index(True)
    while own + 1 < len(trained) and trained[own + 1]:
        own += 1
    others = own
    while others + 1 < len(trained) and not trained[others + 1]:
        others += 1
    return (own, others) if others > own else None


def _better(results: Sequence[Result], pair: Arms) -> Answer:
    split = evaluation_split(results)
    return contrast(results, pair, lambda line: quality(line.get(split)), score_name(results))


def _scarce_task_gains(results: Sequence[Result], pair: Arms) -> Answer:
    """On the task that a line's setting names as ``scarce_task``, with equal updates for it."""
    split = evaluation_split(results)
    if words := _unlike_updates(results, pair):
        return Finding("macro-F1 of the scarce task", Verdict.UNDECIDED, "", words), ()

    def scarce(result: Result) -> float | None:
        return score(result.get(split), result["setting"]["scarce_task"])

    return contrast(results, pair, scarce, "macro-F1 of the scarce task")


def _unlike_updates(results: Sequence[Result], pair: Arms) -> str:
    """Why the two can't be compared, where one makes more updates for the scarce task."""
    for setting, lines in by_setting(results).items():
        means = [_mean(lines, arm, updates) for arm in pair]
        if None in means:
            continue
        mine, theirs = (mean or 0.0 for mean in means)
        if abs(mine - theirs) > max(_SAME_UPDATES * max(mine, theirs), _FEW_UPDATES):
            return (
                f"the arms make unlike numbers of updates for the task, {mine:,.0f} and "
                f"{theirs:,.0f} in the mean{f' at {setting}' if setting else ''}: what training "
                "longer buys is in the difference"
            )
    return ""


def updates(line: Result) -> float | None:
    """How many updates of a run met labels of its scarce task; None where not recorded."""
    task = (line.get("setting") or {}).get("scarce_task")
    return None if task is None else lookup(line, "updates_by_task", task)


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


_FROZEN_OR_NOT = _named(_FROZEN, REFERENCE)


@dataclasses.dataclass(frozen=True)
class Statement:
    """What holds by construction, and the numbers that it comes to."""

    sentence: str
    arms: Callable[[Collection[str]], Arms | None]
    """as of ``Claim``"""
    numbers: Callable[[Sequence[Result], Arms], str]


def _against(
    count: Callable[[Result], float | None], written: Callable[[float | None], str]
) -> Callable[[Sequence[Result], Arms], str]:
    """The means of a count over the runs of two arms, and their ratio."""

    def said(results: Sequence[Result], pair: Arms) -> str:
        means = [_mean(results, arm, count) for arm in pair]
        ratio = formatting.ratio(*means) or formatting.MISSING
        return f"{written(means[0])} against {written(means[1])} ({ratio})"

    return said


def _mean(
    results: Sequence[Result], arm: str, count: Callable[[Result], float | None]
) -> float | None:
    return mean_of_known(count(line) for line in results if line["arm"] == arm)


def _of_an_update(line: Result) -> float | None:
    phases = line.get("flops_of_phases") or ()
    steps = sum(phase["steps"] for phase in phases)
    return sum(phase["steps"] * phase["step"] for phase in phases) / steps if steps else None


def _baseline_trains_nothing(results: Sequence[Result], pair: Arms) -> str:
    flops = _mean(results, pair[0], lambda line: lookup(line, "train_flops"))
    trained = sum(numbers(results, pair[0], "trainable_parameters").values())
    return f"{formatting.flops(flops)} FLOPs for its pass and its probe, {trained:,.0f} parameters"


STATEMENTS = (
    Statement(
        "All frozen trains nothing: it makes no update, and its heads stay what chance made them.",
        _named(BASELINE),
        _baseline_trains_nothing,
    ),
    Statement(
        "An update with a frozen backbone takes fewer FLOPs.",
        _FROZEN_OR_NOT,
        _against(_of_an_update, formatting.flops),
    ),
    Statement(
        "A frozen backbone trains fewer parameters.",
        _FROZEN_OR_NOT,
        _against(
            lambda line: lookup(line, "trainable_parameters"),
            lambda count: formatting.fixed(count, 0),
        ),
    ),
)
"""What no study has to test."""

CLAIMS = (
    Claim(
        "A frozen backbone overfits less: its validation loss rises less past its minimum.",
        _FROZEN_OR_NOT,
        _loss_past_its_minimum,
        _still_falling,
    ),
    Claim("A frozen backbone is better calibrated.", _FROZEN_OR_NOT, _calibrated),
    Claim(
        "A head frozen at its random start is only a control: its task does worse.",
        _heads_frozen,
        _head_is_control,
    ),
    Claim(
        "Freezing the head of the scarce task at first helps it, with as many updates.",
        _named("scarce_head_frozen", "joint"),
        _scarce_task_gains,
    ),
    Claim(
        "Training the head of the scarce task last helps it, with as many updates for it.",
        _named("scarce_head_last", "joint"),
        _scarce_task_gains,
    ),
    Claim(
        "Training one task after the other forgets the first.",
        _in_sequence,
        _forgotten,
        _left_at_the_end,
    ),
    Claim(
        "Higher layers are the task-specific ones: to reset the highest layer to its pre-trained "
        "weights costs more than to reset the lowest.",
        _trained,
        _rolled_back,
        _layer_by_layer,
    ),
    Claim(
        "Higher layers are the task-specific ones: by training, a probe of the highest layer gains "
        "more than one of the lowest.",
        _trained,
        _probed,
    ),
    Claim(
        "Gradual unfreezing needs less data.",
        _gradual_and_at_once,
        _better_when_small,
        _where_each_wins,
    ),
)
