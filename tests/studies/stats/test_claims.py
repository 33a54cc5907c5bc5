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

OVERFITTING, CALIBRATION, CONTROL, FROZEN_HEAD, SCARCE, FORGETTING, LAYERS, PROBES, GRADUAL = range(
    9
)


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


def with_losses(results: list[dict[str, Any]], *losses: float) -> list[dict[str, Any]]:
    """The same with these losses on validation, of both tasks alike."""
    for result in results:
        result["curve"] = [
            {"validation": {task: {"loss": loss} for task in ("classifier", "sentiment")}}
            for loss in losses
        ]
    return results


def overfitting(seeds: int, frozen: float, full: float) -> list[dict[str, Any]]:
    """Losses that rise by so much past their minimum."""
    return [
        *with_losses(runs("backbone_frozen", 0.7, range(seeds)), 0.9, 0.5, 0.5 + frozen),
        *with_losses(runs("none_frozen", 0.8, range(seeds)), 0.9, 0.4, 0.4 + full),
    ]


def layers(seeds: int, high: float, low: float) -> list[dict[str, Any]]:
    """What is left on validation with the highest and the lowest of three layers reset."""
    left = {"layer_0": low, "layer_1": 0.99, "layer_2": high}
    return [
        line("none_frozen", seed, 0.8, 10)
        | {"layers": {"rolled_back": {name: metrics(score) for name, score in left.items()}}}
        for seed in range(seeds)
    ]


def test_what_holds_by_construction_is_stated_with_its_numbers():
    stated = dict(judge_claims(study(seeds=(0, 1, 2, 3))).stated)
    assert list(stated.values()) == [
        "4 G FLOPs for its pass and its probe, 0 parameters",
        "52.1 M against 1.04 G (0.05×)",
        "5,000 against 100,000 (0.05×)",
    ]
    assert judge_claims(runs("top_1", 0.7, range(3))).stated == ()
    old = [{k: v for k, v in each.items() if "flops" not in k} for each in study()]
    assert dict(judge_claims(old).stated)[
        "An update with a frozen backbone takes fewer FLOPs."
    ] == ("— against — (—)")


def test_six_seeds_support_a_claim():
    finding = judged(OVERFITTING, overfitting(6, frozen=0.05, full=0.1)).finding
    assert finding.verdict is Verdict.SUPPORTED
    assert finding.number == "−0.050 [−0.050, −0.050], corrected p 0.031, 6 seeds"
    assert finding.what == (
        "validation loss at the end, above its minimum, in nats, `backbone_frozen` minus "
        "`none_frozen`; a loss was at its minimum when it ended: `backbone_frozen` in 0 of 6 runs, "
        "`none_frozen` in 0 of 6 runs"
    )


def test_six_seeds_the_other_way():
    finding = judged(OVERFITTING, overfitting(6, frozen=0.1, full=0.05)).finding
    assert finding.verdict is Verdict.NOT_SUPPORTED
    assert finding.reason == "the difference has the other sign"


def scattered(results: list[dict[str, Any]], size: float) -> list[dict[str, Any]]:
    """The same with the losses of a frozen backbone scattered at their end by so much."""
    for result in results:
        if result["arm"] == "backbone_frozen":
            for of_task in result["curve"][-1]["validation"].values():
                of_task["loss"] += size * (-1) ** result["seed"]
    return results


def test_few_seeds_are_decided_by_t_and_two_not_at_all():
    finding = judged(OVERFITTING, scattered(overfitting(4, 0.05, 0.1), 0.01)).finding
    # t = 0.05 / (0.011547 / 2) of 3 degrees of freedom.
    assert (finding.verdict, finding.number) == (
        Verdict.SUPPORTED,
        "−0.050 [−0.068, −0.032], corrected p 0.003, 4 seeds",
    )
    other = judged(OVERFITTING, scattered(overfitting(4, 0.1, 0.05), 0.01)).finding
    assert other.verdict is Verdict.NOT_SUPPORTED
    two = judged(OVERFITTING, overfitting(2, 0.05, 0.1)).finding
    assert (two.verdict, two.number) == (Verdict.UNDECIDED, "−0.050, 2 seeds")
    assert two.reason == "a test needs 3 seeds, and there are 2"


def test_an_effect_within_the_margin_is_none():
    finding = judged(OVERFITTING, scattered(overfitting(6, 0.05, 0.05), 0.008)).finding
    assert finding.verdict is Verdict.NOT_SUPPORTED
    assert finding.reason == "too small to matter, the whole interval is within 0.01 of 0"


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
    results = scattered(overfitting(6, 0.1, 0.1 + effect), 0.1 * effect)
    first = judged(OVERFITTING, results).finding
    assert first.verdict is alone
    assert "corrected p 0.031" in first.number
    # The layers differ by 0.1 with seeds 1 to 5 and by -0.1 with seed 0: where seed 0 flips, their
    # statistic is sqrt(6), above the one of effects that scatter by a tenth.
    for result, of_layers in zip(results[6:], layers(6, high=0.6, low=0.7), strict=True):
        left = of_layers["layers"]["rolled_back"]
        if result["seed"] == 0:
            left["layer_0"] = metrics(0.5)
        result["layers"] = {"rolled_back": left}
    found = judged(OVERFITTING, results).finding
    assert "corrected p 0.062" in found.number
    assert found.verdict is beside
    assert (found.reason == "p is 0.031 alone, but not after correction") is (
        beside is Verdict.UNDECIDED
    )


def test_a_wide_scatter_is_undecided():
    finding = judged(OVERFITTING, scattered(overfitting(6, 0.3, 0.3), 0.2)).finding
    assert finding.verdict is Verdict.UNDECIDED
    assert finding.reason == "the seeds scatter too widely"


def test_the_correction_covers_what_decides_the_claims_of_the_study():
    both = overfitting(6, frozen=0.05, full=0.1)
    for result, of_layers in zip(both[6:], layers(6, high=0.7, low=0.6), strict=True):
        result["layers"] = of_layers["layers"]
    judgement = judge_claims(both)
    assert (len(judgement.family), judgement.details) == (2, ())
    rise, layer = (judgement.claims[claim].finding for claim in (OVERFITTING, LAYERS))
    # Six seeds can decide both: 2/2^6 is the p-value of either.
    assert "corrected p 0.031" in rise.number
    assert rise.verdict is Verdict.SUPPORTED
    assert "−0.100 [−0.100, −0.100], corrected p 0.031" in layer.number
    assert layer.verdict is Verdict.NOT_SUPPORTED
    assert layer.reason == "the difference has the other sign"


def test_each_layer_is_rolled_back_and_probed():
    results = layers(6, high=0.5, low=0.7)
    claim = judged(LAYERS, results)
    assert claim.finding.verdict is Verdict.SUPPORTED
    assert claim.finding.number.startswith("+0.200 ")
    assert claim.finding.what.endswith(
        "layer_0 0.700, layer_1 0.990, layer_2 0.500; none reset 0.800"
    )
    assert judged(PROBES, results).finding.verdict is Verdict.NOT_ASKED
    for result in results:
        probes = {"layer_0": metrics(0.5), "layer_2": metrics(0.6)}
        result["layers"] |= {
            "probe_before": probes,
            "probe": {"layer_0": metrics(0.51), "layer_2": metrics(0.68)},
        }
    assert judged(PROBES, results).finding.number.startswith("+0.070 ")
    assert judged(LAYERS, runs("none_frozen", 0.7, range(6))).finding.verdict is Verdict.NOT_ASKED


def test_calibration_is_compared_where_it_was_measured():
    results = [*runs("backbone_frozen", 0.7, range(6)), *runs("none_frozen", 0.8, range(6))]
    assert judged(CALIBRATION, results).finding.verdict is Verdict.NOT_ASKED
    for result in results:
        for of_task in result["test"].values():
            of_task["ece"] = 0.02 if result["arm"] == "backbone_frozen" else 0.08
    finding = judged(CALIBRATION, results).finding
    assert (finding.verdict, finding.number[:6]) == (Verdict.SUPPORTED, "−0.060")


def test_a_head_frozen_at_its_random_start_is_compared_on_its_own_task():
    results = [
        *runs("classifier_frozen", 0.3, range(6)),
        *runs("sentiment_frozen", 0.5, range(6)),
        *runs("none_frozen", 0.8, range(6)),
        *runs("backbone_frozen", 0.1, range(6)),
    ]
    finding = judged(CONTROL, results).finding
    assert (finding.verdict, finding.number[:6]) == (Verdict.SUPPORTED, "−0.400")
    assert "`classifier_frozen` and `sentiment_frozen` minus `none_frozen`" in finding.what
    assert judged(CONTROL, results[12:]).finding.verdict is Verdict.NOT_ASKED
    # No head is frozen by an arm that is only called so.
    named = [*runs("half_frozen", 0.5, range(6)), *results[12:]]
    assert judged(CONTROL, named).finding.verdict is Verdict.NOT_ASKED


def test_what_is_forgotten_is_lost_between_a_tasks_own_phase_and_the_end_of_the_others():
    results = runs("sequential_heads", 0.8, range(6))
    assert judged(FORGETTING, results).finding.verdict is Verdict.NOT_ASKED
    scores = [(["classifier"], 0.9, 0.2), (["sentiment"], 0.7, 0.8), (["classifier"], 0.85, 0.8)]
    for result in results:
        result["by_phase"] = [
            {"steps": 5, "tasks": tasks, "validation": {"classifier": first, "sentiment": second}}
            for tasks, first, second in scores
        ]
    finding = judged(FORGETTING, results).finding
    # The classifier loses 0.2, the sentiment, which is last but for the classifier's, nothing.
    assert (finding.verdict, finding.number[:6]) == (Verdict.SUPPORTED, "+0.100")
    # The run ends with 0.05 less for the classifier, and as much as ever for the sentiment.
    assert "at the end of the run +0.025 in `sequential_heads`" in finding.what
    control = runs("sequential_control", 0.8, range(6))
    for result in control:
        result["by_phase"] = [
            {"steps": 5, "tasks": [task], "validation": {"classifier": 0.9, "sentiment": 0.8}}
            for task in ("classifier", "sentiment", "classifier")
        ]
    finding = judged(FORGETTING, [*results, *control]).finding
    assert (finding.verdict, finding.number[:6]) == (Verdict.SUPPORTED, "+0.100")
    assert "`sequential_heads` minus `sequential_control`" in finding.what


def test_arms_with_unlike_updates_of_the_scarce_task_are_not_compared():
    results = scarce({0.1: 0.04}, seeds=6)
    for result in results:
        result["updates_by_task"] = {"sentiment": 50 if result["arm"] == "joint" else 100}
    finding = judged(SCARCE, results).finding
    assert finding.verdict is Verdict.UNDECIDED
    assert finding.reason.startswith(
        "the arms make unlike numbers of updates for the task, 100 and 50 in the mean at 10 % of"
    )
    for result in results:
        if result["arm"] == "joint":
            result["updates_by_task"] = {"sentiment": 96}
    assert judged(SCARCE, results).finding.verdict is Verdict.SUPPORTED


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
    finding = judged(OVERFITTING, runs("backbone_frozen", 0.7, range(3)), failures).finding
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
    table, rest = blocks
    assert isinstance(table, Table)
    assert [row.cells[0].text for row in table.rows] == [
        "Training the head of the scarce task last helps it, with as many updates for it.",
        "at 1 % of the sentiment labels",
        "at 10 % of the sentiment labels",
    ]
    assert table.rows[0].cells[1].text == "supported"
    assert "1 comparison is tested as one family, by joint flips" in table.note
    assert "Within settings, 2 comparisons are tested as one family, by" in table.note
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
    # The same two the other way round are no further comparison.
    signs = {seed: -value for seed, value in within[0].difference.by_seed.items()}
    turned = dataclasses.replace(within[0], difference=of_differences(signs))
    judgement = judge_claims(results, (), overall, [*within, other, turned])
    claim = judgement.claims[SCARCE]
    assert (len(judgement.family), len(judgement.details)) == (1, 3)
    for comparison, finding in zip(
        (*judgement.overall, *judgement.within), (claim.finding, *claim.details), strict=False
    ):
        assert f"corrected p {p_text(comparison.p_value)}," in finding.number
    assert within[0].p_value == 2 / 64
    assert judgement.within[0].p_value == judgement.within[-1].p_value == 4 / 64
    note = claims_blocks(judgement)[0]
    assert isinstance(note, Table)
    assert "The 5 findings above are among these" in note.note
