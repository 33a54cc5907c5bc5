"""What a study says of the design's claims, on numbers that a reader can work out."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest

from mtl_jax.studies.report.claims_section import claims_blocks
from mtl_jax.studies.report.document import Paragraph, Table
from mtl_jax.studies.stats.claims import Judged, judge_claims
from mtl_jax.studies.stats.comparisons import questions
from mtl_jax.studies.stats.decision_rules import Verdict
from mtl_jax.studies.stats.formatting import p_text
from mtl_jax.studies.stats.intervals import of_differences
from tests.synthetic_study import line, metrics, study

FASTEST, TIME, PARAMETERS, OVERFITTING, FROZEN_HEAD, SCARCE, LAYERS, GRADUAL = range(8)


def judged(
    claim: int,
    results: Sequence[dict[str, Any]],
    failures: Sequence[Mapping[str, Any]] = (),
) -> Judged:
    return judge_claims(results, failures).claims[claim]


def runs(
    arm: str,
    score: float,
    seeds: Iterable[int],
    seconds: float = 10,
    setting: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    found = [line(arm, seed, score, seconds) for seed in seeds]
    return [each | {"setting": setting} for each in found] if setting else found


def with_gap(results: list[dict[str, Any]], gap: float) -> list[dict[str, Any]]:
    """The same with so much more macro-F1 on the training examples than on test."""
    for result in results:
        for task, scores in result["train"].items():
            scores["macro_f1"] = result["test"][task]["macro_f1"] + gap
    return results


def overfitting(seeds: int, frozen: float, full: float) -> list[dict[str, Any]]:
    return [
        *with_gap(runs("backbone_frozen", 0.7, range(seeds)), frozen),
        *with_gap(runs("none_frozen", 0.8, range(seeds)), full),
    ]


def layers(seeds: int, high: float, low: float) -> list[dict[str, Any]]:
    return [
        *runs("only_layer_10", high, range(seeds)),
        *runs("only_layer_9", 0.99, range(seeds)),
        *runs("only_layer_2", low, range(seeds)),
    ]


def test_nothing_trained_is_cheapest_and_lightest():
    finding = judged(FASTEST, study()).finding
    assert finding.verdict is Verdict.SUPPORTED
    assert finding.number == (
        "4 G training FLOPs, 0 parameters, 0 B of optimizer state; of the others at least "
        "5 G training FLOPs, 5,000 parameters, 39.1 KiB of optimizer state"
    )
    as_light = judged(FASTEST, [*study(), *runs("probe", 0.7, range(3), seconds=0)]).finding
    assert as_light.verdict is Verdict.NOT_SUPPORTED
    assert as_light.reason.startswith("it is not below the others in training FLOPs and param")
    cheap = judged(FASTEST, [*study(), *runs("backbone_frozen", 0.7, range(3), 3)]).finding
    assert cheap.reason == "it is not below the others in training FLOPs"
    (alone,) = runs("all_frozen", 0.2, [0], seconds=0)
    assert judged(FASTEST, [alone]).finding.verdict is Verdict.NOT_ASKED


def test_costs_are_compared_directly():
    results = study(seeds=(0, 1, 2, 3))
    time, parameters = (judged(claim, results).finding for claim in (TIME, PARAMETERS))
    assert (time.verdict, parameters.verdict) == (Verdict.SUPPORTED,) * 2
    assert time.number == "5 G against 100 G a run (0.05×)"
    assert parameters.number == "5,000 against 100,000"


@pytest.mark.parametrize(
    ("frozen", "full", "verdict"),
    [
        ((1, 2, 3), (4, 5, 6), Verdict.SUPPORTED),
        ((1,), (4,), Verdict.SUPPORTED),
        ((1, 2, 5), (4, 5, 6), Verdict.UNDECIDED),
        ((4,), (4,), Verdict.NOT_SUPPORTED),
        ((7, 8, 9), (4, 5, 6), Verdict.NOT_SUPPORTED),
    ],
)
def test_counts_must_not_overlap(
    frozen: tuple[float, ...], full: tuple[float, ...], verdict: Verdict
):
    results = [
        line(arm, seed, 0.7, seconds)
        for arm, times in (("backbone_frozen", frozen), ("none_frozen", full))
        for seed, seconds in enumerate(times)
    ]
    assert judged(TIME, results).finding.verdict is verdict
    for result in results:
        del result["train_flops"]
    finding = judged(TIME, results).finding
    assert (finding.verdict, finding.number) == (Verdict.UNDECIDED, "— against — a run (—)")
    assert finding.reason == "the training FLOPs of these runs were not counted"


def test_counts_are_compared_setting_by_setting():
    results = [
        each
        for size, seconds in ((64, 1), (4096, 50))
        for arm, factor in (("backbone_frozen", 1), ("none_frozen", 10))
        for each in runs(arm, 0.7, range(4), seconds * factor, {"max_train_examples": size})
    ]
    finding = judged(TIME, results).finding
    assert finding.verdict is Verdict.SUPPORTED
    assert finding.number == "25.5 G against 255 G a run (0.10×)"


def test_six_seeds_support_a_claim():
    finding = judged(OVERFITTING, overfitting(6, frozen=0.05, full=0.1)).finding
    assert finding.verdict is Verdict.SUPPORTED
    assert finding.number == "−0.050 [−0.050, −0.050], corrected p 0.031, 6 seeds"
    assert finding.what == "macro-F1, train minus test, `backbone_frozen` minus `none_frozen`"


def test_six_seeds_the_other_way():
    finding = judged(OVERFITTING, overfitting(6, frozen=0.1, full=0.05)).finding
    assert finding.verdict is Verdict.NOT_SUPPORTED
    assert finding.reason == "the difference has the other sign"


def test_few_seeds_decide_nothing_either_way():
    for frozen, full in ((0.05, 0.1), (0.1, 0.05), (0.05, 0.05)):
        finding = judged(OVERFITTING, overfitting(5, frozen, full)).finding
        assert finding.verdict is Verdict.UNDECIDED
        # 2/2^5 = 0.0625, and 2/2^6 = 0.03125. Differences without scatter leave t no doubt.
        by_t = "= 1.000" if frozen == full else "< 0.001"
        assert finding.reason == (
            "the sign-flip test of 5 seeds can give no p below 0.062 (6 seeds could), and the "
            f"paired t-test with Holm's correction gives p {by_t}"
        )
    assert judged(OVERFITTING, overfitting(1, 0.05, 0.1)).finding.number == (
        "−0.050, corrected p 1.000, 1 seed"
    )


def test_an_effect_within_the_margin_is_none():
    results = overfitting(6, 0.05, 0.05)
    for result in results[:6]:
        result["train"]["classifier"]["macro_f1"] += 0.009 * (-1) ** result["seed"]
    finding = judged(OVERFITTING, results).finding
    assert finding.verdict is Verdict.NOT_SUPPORTED
    assert finding.reason == "too small to matter, the whole interval is within 0.01 of 0"


def small_effect(effect: float) -> list[dict[str, Any]]:
    """Gaps that differ by ``effect`` with each of six seeds, and by a tenth of it either way."""
    results = overfitting(6, 0.05, 0.05 + effect)
    for result in results[:6]:
        result["train"]["classifier"]["macro_f1"] += 0.2 * effect * (-1) ** result["seed"]
    return results


@pytest.mark.parametrize(
    ("effect", "alone", "beside"),
    [
        (0.05, Verdict.SUPPORTED, Verdict.UNDECIDED),
        (0.008, Verdict.NOT_SUPPORTED, Verdict.NOT_SUPPORTED),
        (-0.008, Verdict.NOT_SUPPORTED, Verdict.NOT_SUPPORTED),
        (-0.05, Verdict.NOT_SUPPORTED, Verdict.UNDECIDED),
    ],
)
def test_further_arms_turn_no_verdict_into_its_contrary(
    effect: float, alone: Verdict, beside: Verdict
):
    results = small_effect(effect)
    first = judged(OVERFITTING, results).finding
    assert first.verdict is alone
    assert "corrected p 0.031" in first.number
    # The layers differ by 0.1 with seeds 1 to 5 and by -0.1 with seed 0: where seed 0 flips, their
    # statistic is sqrt(6), above the one of effects that scatter by a tenth.
    others = layers(6, high=0.7, low=0.6)
    for result in others:
        if (result["arm"], result["seed"]) == ("only_layer_10", 0):
            result["test"] = metrics(0.5)
    found = judged(OVERFITTING, [*results, *others]).finding
    assert "corrected p 0.062" in found.number
    assert found.verdict is beside
    assert (found.reason == "p is 0.031 alone, but not after correction") is (
        beside is Verdict.UNDECIDED
    )


def test_a_wide_scatter_is_undecided():
    results = overfitting(6, 0.05, 0.05)
    for result in results[:6]:
        result["train"]["classifier"]["macro_f1"] += 0.2 * (-1) ** result["seed"]
    finding = judged(OVERFITTING, results).finding
    assert finding.verdict is Verdict.UNDECIDED
    assert finding.reason == "the seeds scatter too widely"


def test_the_correction_covers_what_decides_the_claims_of_the_study():
    both = [*overfitting(6, frozen=0.05, full=0.1), *layers(6, high=0.6, low=0.7)]
    judgement = judge_claims(both)
    assert (judgement.family, judgement.details) == (2, 0)
    gap, layer = (judgement.claims[claim].finding for claim in (OVERFITTING, LAYERS))
    # Six seeds can decide both: 2/2^6 is the p-value of either.
    assert "corrected p 0.031" in gap.number
    assert gap.verdict is Verdict.SUPPORTED
    assert "−0.100 [−0.100, −0.100], corrected p 0.031" in layer.number
    assert layer.verdict is Verdict.NOT_SUPPORTED
    assert layer.reason == "the difference has the other sign"


def test_the_highest_layer_against_the_lowest_by_number():
    finding = judged(LAYERS, layers(6, high=0.8, low=0.6)).finding
    assert finding.verdict is Verdict.SUPPORTED
    assert finding.what == "macro-F1, `only_layer_10` minus `only_layer_2`"
    assert "judged by a proxy" in judged(LAYERS, layers(1, 0.8, 0.6)).sentence
    assert finding.number.startswith("+0.200 ")
    assert judged(LAYERS, runs("only_layer_1", 0.7, range(6))).finding.verdict is Verdict.NOT_ASKED


def scarce(
    gains: Mapping[float, float], seeds: int, task: str = "sentiment"
) -> list[dict[str, Any]]:
    return [
        each
        for fraction, gain in gains.items()
        for arm, score in (("joint", 0.5), ("scarce_head_last", 0.5 + gain))
        for each in runs(
            arm, score, range(seeds), setting={"scarce_task": task, "fraction": fraction}
        )
    ]


def test_the_scarce_head_over_all_fractions_and_in_each():
    claim = judged(SCARCE, scarce({0.01: 0.04, 0.1: 0.0}, seeds=6))
    assert claim.finding.verdict is Verdict.SUPPORTED
    assert claim.finding.number == "+0.020 [+0.020, +0.020], corrected p 0.031, 6 seeds"
    few, many = claim.details
    assert claim.finding.what.endswith(", over scarce_task sentiment; fraction 0.01, 0.1")
    assert few.what == "1 % of the sentiment labels"
    # The two fractions are a family of two.
    assert few.number == "+0.040 [+0.040, +0.040], corrected p 0.031, 6 seeds"
    assert few.verdict is Verdict.SUPPORTED
    assert many.verdict is Verdict.NOT_SUPPORTED
    assert many.number == "0.000 [0.000, 0.000], corrected p 1.000, 6 seeds"


@pytest.mark.parametrize(("task", "gain"), [("classifier", "+0.040"), ("sentiment", "+0.540")])
def test_the_scarce_task_is_the_one_the_study_names(task: str, gain: str):
    results = scarce({0.1: 0.04}, seeds=6, task=task)
    for result in results:
        if result["arm"] == "scarce_head_last":
            result["test"]["sentiment"]["macro_f1"] += 0.5
    assert judged(SCARCE, results).finding.number.startswith(gain)


def test_a_seed_without_every_setting_is_left_out_and_counted():
    results = scarce({0.01: 0.04, 0.1: 0.0}, seeds=7)
    results.remove(next(r for r in results if r["arm"] == "joint" and r["seed"] == 3))
    claim = judged(SCARCE, results)
    assert claim.finding.number == "+0.020 [+0.020, +0.020], corrected p 0.031, 6 of 7 seeds"
    assert [each.number.rpartition(", ")[2] for each in claim.details] == [
        "6 of 7 seeds",
        "7 seeds",
    ]


def test_no_shared_seed_is_said():
    setting = {"scarce_task": "sentiment", "fraction": 0.1}
    results = [
        *runs("joint", 0.5, [0, 1], setting=setting),
        *runs("scarce_head_last", 0.6, [2, 3], setting=setting),
    ]
    finding = judged(SCARCE, results).finding
    assert finding.verdict is Verdict.UNDECIDED
    assert finding.reason == "no seed has all that is compared"


SIZES = (64, 256, 1024, 4096)


def sized(seeds: int, sizes: Sequence[int] = SIZES) -> list[dict[str, Any]]:
    scores = {
        "gradual_unfreezing": (0.6, 0.7, 0.8, 0.8),
        "none_frozen": (0.5, 0.65, 0.8, 0.8),
        "backbone_frozen": (0.55, 0.66, 0.7, 0.7),
    }
    return [
        each
        for arm, found in scores.items()
        for size, score in zip(SIZES, found, strict=True)
        if size in sizes
        for each in runs(arm, score, range(seeds), setting={"max_train_examples": size})
    ]


def test_gradual_unfreezing_at_the_smaller_half_of_the_sizes():
    claim = judged(GRADUAL, sized(7))
    # The mean of 0.1 at 64 and 0.05 at 256, of seven seeds: 2/2^7.
    assert claim.finding.verdict is Verdict.SUPPORTED
    assert claim.finding.number == "+0.075 [+0.075, +0.075], corrected p 0.016, 7 seeds"
    assert claim.finding.what == (
        "macro-F1, `gradual_unfreezing` minus `none_frozen`, over max_train_examples 64, 256; "
        "above `backbone_frozen`, by the means and without a test: `gradual_unfreezing` from 64 "
        "sentences on, `none_frozen` from 1,024 sentences on"
    )
    assert [each.what for each in claim.details] == [
        "max_train_examples 64",
        "max_train_examples 256",
        "max_train_examples 1,024",
        "max_train_examples 4,096",
    ]
    assert [each.number.partition(" ")[0] for each in claim.details] == [
        "+0.100",
        "+0.050",
        "0.000",
        "0.000",
    ]


def test_one_training_size_does_not_ask_about_less_data():
    assert judged(GRADUAL, sized(7, sizes=(64,))).finding.verdict is Verdict.NOT_ASKED


def test_an_arm_that_always_failed_leaves_its_claim_undecided():
    failures = [{"arm": "none_frozen", "seed": seed, "error": "out of memory"} for seed in range(3)]
    finding = judged(TIME, runs("backbone_frozen", 0.7, range(3)), failures).finding
    assert finding.verdict is Verdict.UNDECIDED
    assert finding.reason == "no run of `none_frozen` gave a result"


def test_failed_seeds_are_counted():
    results = overfitting(7, 0.05, 0.1)
    failed = results.pop()
    finding = judged(OVERFITTING, results, [{"arm": failed["arm"], "seed": 6}]).finding
    assert finding.number.endswith("6 of 7 seeds")


def test_a_scarce_head_that_is_frozen_has_a_claim_of_its_own():
    results = [
        {**each, "arm": each["arm"].replace("last", "frozen")}
        for each in scarce({0.01: 0.04}, seeds=6)
    ]
    assert judged(FROZEN_HEAD, results).finding.verdict is Verdict.SUPPORTED
    assert judged(SCARCE, results).finding.verdict is Verdict.NOT_ASKED


def test_gradual_unfreezing_is_judged_against_its_control_where_there_is_one():
    plain = sized(7)
    assert "`gradual_unfreezing` minus `none_frozen`" in judged(GRADUAL, plain).finding.what
    control = [{**each, "arm": "at_once"} for each in plain if each["arm"] == "none_frozen"]
    found = judged(GRADUAL, [*plain, *control]).finding
    assert "`gradual_unfreezing` minus `at_once`" in found.what


def test_the_section_lists_what_is_asked_and_what_is_not():
    blocks = claims_blocks(judge_claims(scarce({0.01: 0.04, 0.1: 0.0}, seeds=6)))
    _, table, rest = blocks
    assert isinstance(table, Table)
    assert [row.cells[0].text for row in table.rows] == [
        "Training the head of the scarce task last, its loss off before, helps it.",
        "at 1 % of the sentiment labels",
        "at 10 % of the sentiment labels",
    ]
    assert table.rows[0].cells[1].text == "supported"
    assert "1 comparison, and, as a family of their own, the 2 within a setting." in table.note
    assert "is 0.0312, whatever the size of the family; 6 seeds can reach 0.05." in table.note
    assert isinstance(rest, Paragraph)
    assert "Gradual unfreezing needs less data." in rest.text
    assert claims_blocks(judge_claims(runs("top_1", 0.7, range(3)))) == []
    assert claims_blocks(judge_claims([])) == []


def test_what_a_report_finds_beside_has_the_claims_p_values():
    """One comparison, one verdict, whether in a claim or among the findings."""
    results = scarce({0.01: 0.04, 0.1: -0.03}, seeds=6)
    for result in results:
        result["test"]["sentiment"]["macro_f1"] += 0.001 * result["seed"] * len(result["arm"])

    def score(result: Mapping[str, Any]) -> float:
        return result["test"]["sentiment"]["macro_f1"]

    overall, within = questions(results, "fraction", "scarce_head_last", "joint", score)
    # Another arm, whose signs disagree, raises what the family takes.
    other = dataclasses.replace(
        within[0], difference=of_differences({s: (-1.0) ** (s == 0) for s in range(6)})
    )
    judgement = judge_claims(results, (), overall, [*within, other])
    claim = judgement.claims[SCARCE]
    assert (judgement.family, judgement.details) == (1, 3)
    for comparison, finding in zip(
        (*judgement.overall, *judgement.within), (claim.finding, *claim.details), strict=False
    ):
        assert f"corrected p {p_text(comparison.p_value)}," in finding.number
    assert within[0].p_value == 2 / 64
    assert judgement.within[0].p_value == 4 / 64
    note = claims_blocks(judgement)[1]
    assert isinstance(note, Table)
    assert "the 4 findings above are among these" in note.note
