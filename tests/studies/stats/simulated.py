"""Studies whose truth is known, decided as the reports decide, and how often they are right.

    python -m tests.studies.stats.simulated 4000      # studies of each kind; some ten minutes

The tests have some hundred of each kind.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from mtl_jax.studies.stats.comparisons import against
from mtl_jax.studies.stats.intervals import LEVEL, mean_interval
from mtl_jax.studies.stats.measured import Measured, contributions
from mtl_jax.studies.stats.results import REFERENCE, qualities
from mtl_jax.training.kinds.registry import KINDS

CLASSES = 3
# Texts, and how often each class is there: 25 of 320 texts are of the rarest.
KINDS_OF_TEXTS = {"even": (160, (0.45, 0.35, 0.2)), "rare": (320, (0.5, 0.42, 0.08))}


def score(gold: np.ndarray, predicted: np.ndarray) -> Measured:
    """Macro-F1, with what each text contributes."""
    kind = KINDS["single_label"]
    left_out = kind.left_out("macro_f1", gold, predicted, CLASSES)
    assert left_out is not None
    parts = contributions(left_out)
    cells = np.bincount(gold * CLASSES + predicted, minlength=CLASSES**2).reshape(CLASSES, -1)
    f1 = 2 * np.diag(cells) / np.maximum(cells.sum(0) + cells.sum(1), 1)
    counted = np.count_nonzero(cells.sum(0) + cells.sum(1))
    return Measured(f1.sum() / counted, lambda: {"texts": parts})


def study(
    draw: np.random.Generator,
    seeds: int,
    arms: int = 1,
    *,
    texts: str = "even",
    hard: float = 0.0,
    own: float = 0.0,
    effect: float = 0.0,
) -> list[dict[str, Any]]:
    """The lines of a study: an answer is right where a latent number is above 0.

    Args:
        draw: What is drawn by.
        seeds: Of each arm, with an effect each.
        arms: The reference, and so many less one beside it.
        texts: Of ``KINDS_OF_TEXTS``.
        hard: Standard deviation of how hard a text is for all arms.
        own: The same for one arm.
        effect: What the last arm has more.
    """
    count, often = KINDS_OF_TEXTS[texts]
    gold, common = draw.choice(CLASSES, count, p=often), draw.normal(0, hard, count)
    lines = []
    for arm in range(arms):
        level = 0.6 + (effect if arm == arms - 1 else 0) + draw.normal(0, 0.1, (seeds, 1))
        number = level + common + draw.normal(0, own, count) + draw.normal(0, 1, (seeds, count))
        wrong = (gold + draw.integers(1, CLASSES, (seeds, count))) % CLASSES
        predicted = np.where(number > 0, gold, wrong)
        name = f"arm_{arm}" if arm else REFERENCE
        lines += [
            {"arm": name, "seed": seed, "test": {"task": {"macro_f1": score(gold, answers)}}}
            for seed, answers in enumerate(predicted)
        ]
    return lines


def coverage(studies: int, seeds: int, **kind: Any) -> float:
    """How often the interval of an arm's mean holds the mean over all texts and seeds."""
    draw, found = np.random.default_rng(seeds), []
    for _ in range(studies):
        interval = mean_interval(qualities(study(draw, seeds, **kind), REFERENCE, "test").values())
        assert interval is not None
        found.append((interval.low, interval.high, interval.mean))
    low, high, mean = np.transpose(found)
    return float(np.mean((low <= mean.mean()) & (mean.mean() <= high)))


def false_claims(studies: int, seeds: int, arms: int, **kind: Any) -> float:
    """In how many studies of arms that do not differ at least one is told from the reference."""
    draw = np.random.default_rng(seeds)
    claimed = [
        any(
            told(each.p_value)
            for each in against(study(draw, seeds, arms, **kind), REFERENCE, "test")
        )
        for _ in range(studies)
    ]
    return float(np.mean(claimed))


def power(studies: int, seeds: int = 8, arms: int = 13, size: float = 2.0, **kind: Any) -> float:
    """How often one arm of many is told from the reference, where the others do not differ.

    Args:
        studies: How many.
        seeds: Of each arm.
        arms: The reference among them.
        size: Of the effect, in standard deviations of a seed's difference, texts included.
        **kind: See ``study``.
    """
    draw = np.random.default_rng(seeds)

    def difference(effect: float) -> float:
        base, other = (
            line["test"]["task"]["macro_f1"] for line in study(draw, 1, 2, effect=effect, **kind)
        )
        return float(other - base)

    spread = np.std([difference(0.0) for _ in range(400)])
    slope = np.mean([difference(0.4) for _ in range(400)]) / 0.4
    last, seen = f"arm_{arms - 1}", 0
    for _ in range(studies):
        found = against(
            study(draw, seeds, arms, effect=float(size * spread / slope), **kind), REFERENCE, "test"
        )
        seen += next(told(each.p_value) for each in found if each.arm == last)
    return seen / studies


def told(p_value: float | None) -> bool:
    return p_value is not None and p_value <= LEVEL


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("studies", type=int, help="of each kind")
    studies = parser.parse_args().studies
    for texts in KINDS_OF_TEXTS:
        for hard in (0.0, 1.0):
            for seeds in (3, 4, 6, 8, 10):
                found = coverage(studies, seeds, texts=texts, hard=hard)
                print(f"coverage, {texts} classes, texts {hard:g}, {seeds} seeds: {found:.3f}")
        for own in (0.0, 0.7):
            for seeds, arms in ((4, 2), (6, 2), (8, 2), (10, 2), (4, 6), (8, 6)):
                found = false_claims(studies, seeds, arms, texts=texts, hard=0.7, own=own)
                what = f"{texts} classes, own {own:g}, {seeds} seeds, {arms} arms"
                print(f"false claims, {what}: {found:.3f}")
        for own in (0.0, 0.7):
            found = power(max(studies // 10, 1), texts=texts, hard=0.7, own=own)
            print(f"power, {texts} classes, own {own:g}: {found:.3f}", flush=True)


if __name__ == "__main__":
    main()
