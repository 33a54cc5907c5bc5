"""What notes say of intervals and tests: over what they are, and how they were made."""

from __future__ import annotations

from collections.abc import Sequence

from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.intervals import (
    FEWEST_FOR_T,
    LEVEL,
    PairedDifference,
    covers_texts,
    flips_suffice,
)
from mtl_jax.studies.stats.resampling import seeds_needed
from mtl_jax.studies.stats.results import Result, quality


def what_intervals_cover(results: Sequence[Result], split: str) -> str:
    """Over what the intervals of means and differences on a split are, in a sentence.

    Args:
        results: Lines of ``results.jsonl``, of ``text_errors.with_text_errors`` where the
            predictions are there.
        split: Which one.
    """
    values = [value for line in results if (value := quality(line.get(split))) is not None]
    seeds = "other seeds (heads, order of the data, dropout, and training texts that are drawn)"
    if covers_texts(values):
        return f"Intervals cover {seeds} and other {split} texts together."
    return (
        f"Intervals cover {seeds}, not other {split} texts: the predictions on these were not kept "
        "for all runs."
    )


def mean_note(results: Sequence[Result], split: str) -> str:
    """What a mean over seeds is shown with, for the note of a table."""
    if len({result["seed"] for result in results}) == 1:
        return "One seed: there is no interval."
    return f"Mean over seeds ± half of the 95 % t interval. {what_intervals_cover(results, split)}"


def difference_note() -> str:
    """What a difference is shown with."""
    return (
        f"Differences are paired by seed and text. In brackets, with {FEWEST_FOR_T} seeds or more, "
        "the 95 % t interval, which is not corrected for the number of comparisons."
    )


def test_note(differences: Sequence[PairedDifference]) -> str:
    """How a family of comparisons was tested, in a sentence."""
    count = formatting.count_of(len(differences), "comparison")
    family = f"{count} {'is' if len(differences) == 1 else 'are'} tested as one family"
    if flips_suffice(differences):
        return (
            f"{family}, by joint flips of the seeds' signs with the errors that other texts would "
            "make (step-down maxT, Westfall & Young 1993)."
        )
    return (
        f"{family}, by Student's t with Holm's correction, which needs {FEWEST_FOR_T} seeds; with "
        f"{seeds_needed(LEVEL)} seeds or more, signs are flipped instead."
    )


def too_few_seeds(seeds: int) -> str:
    """A clause where a comparison has too few seeds for a test; else empty."""
    if seeds >= FEWEST_FOR_T:
        return ""
    return f"a test needs {FEWEST_FOR_T} seeds, and there {'is' if seeds == 1 else 'are'} {seeds}"


def corrected_p(p_value: float | None, seeds: int) -> str:
    """The corrected p of a comparison of so many seeds, as a clause."""
    if p_value is None:
        return too_few_seeds(seeds) or "not tested, as one before it was not made"
    return f"corrected p {formatting.p_equals(p_value)}"
