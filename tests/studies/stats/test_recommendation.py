from typing import Any

import pytest

from mtl_jax.studies.report.tables import difference_table
from mtl_jax.studies.stats import formatting
from mtl_jax.studies.stats.recommendation import Recommendation, recommend
from mtl_jax.studies.stats.recommendation_text import alternatives, explain
from mtl_jax.studies.stats.results import unfinished
from tests.synthetic_study import line, metrics, study


def advise(lines: list[dict[str, Any]], tolerance: float = 0.01) -> Recommendation:
    advice = recommend(lines, tolerance)
    assert advice is not None
    return advice


def test_cheapest_within_the_tolerance():
    advice = advise(study())
    assert (advice.chosen.arm, advice.best.arm) == ("top_2", "none_frozen")
    assert [c.arm for c in advice.candidates] == [
        "backbone_frozen",
        "top_2",
        "gradual",
        "none_frozen",
    ]
    assert advise(study(), tolerance=0.2).chosen.arm == "backbone_frozen"
    assert advise(study(), tolerance=0.001).chosen.arm == "none_frozen"


def test_the_test_split_has_no_part_in_the_choice():
    lines = [
        line("top_1", 0, validation=0.80, seconds=10, test=0.10),
        line("none_frozen", 0, validation=0.80, seconds=90, test=0.99),
    ]
    assert advise(lines).chosen.arm == "top_1"
    assert advise(lines).difference is not None


def test_exactly_at_the_tolerance_counts():
    lines = [line("top_1", 0, 0.79, 10), line("none_frozen", 0, 0.80, 90)]
    assert advise(lines).chosen.arm == "top_1"


def test_equal_cost_goes_to_the_better_then_to_the_fixed_order():
    better = [line("top_1", 0, 0.790, 10), line("top_2", 0, 0.795, 10)]
    assert advise(better).chosen.arm == "top_2"
    same = [line("none_frozen", 0, 0.79, 10), line("top_2", 0, 0.79, 10)]
    assert advise(same).chosen.arm == "top_2"


def test_the_baseline_is_not_eligible():
    lines = [line("all_frozen", 0, 0.99, 0), line("top_1", 0, 0.5, 10)]
    assert advise(lines).chosen.arm == "top_1"
    assert recommend(lines[:1]) is None
    assert recommend([]) is None


def test_without_full_fine_tuning_the_best_other_is_the_opponent():
    lines = [r for r in study() if r["arm"] != "none_frozen"]
    advice = advise(lines)
    assert advice.chosen.arm == "top_2"
    assert advice.runner_up is not None
    assert advice.runner_up.arm == "gradual"


def test_a_single_arm_leaves_no_choice():
    advice = advise([line("top_1", 0, 0.7, 10)])
    assert advice.runner_up is None
    assert "no choice" in explain(advice)[0]


def test_null_scores_are_left_out():
    lines = study()
    for result in lines:
        for split in ("validation", "test"):
            result[split]["classifier"]["macro_f1"] = None
            result[split]["sentiment"]["macro_f1"] -= 0.1
    assert advise(lines).best.validation == pytest.approx(0.7)


def test_sentences_name_the_arms_the_numbers_and_the_seeds():
    text = " ".join(explain(advise(study())))
    assert text.startswith(
        "Use `top_2`. Of 4 arms nothing separates `top_2`, `gradual` and `none_frozen`: "
    )
    assert "0.795 against 0.800 of `none_frozen`, and 2.5× fewer training FLOPs" in text
    assert "The runner-up is `gradual`, 0.005 below it on validation, with 2.0× more" in text
    # The differences to it with the three seeds are 0.003, 0.005 and 0.007.
    assert "0.005 above the runner-up" in text
    # t = 0.005 / (0.002 / sqrt(3)) = 4.33 of 2 degrees of freedom: the largest of the family.
    assert (
        "The 95 % interval of that difference, over seeds alone, is [0.000, +0.010], which "
        "rules out losses of more than 0.01; the test tells the two apart (p = 0.049, corrected "
        "over 3 comp"
    ) in text
    assert text.endswith("It rests on 3 seeds.")


def test_arms_are_ranked_on_the_seeds_that_all_have():
    lines = [line for line in study() if (line["arm"], line["seed"]) != ("top_2", 1)]
    # Without seed 1, which alone is bad for gradual, it would be the better of the two.
    for result in lines:
        if (result["arm"], result["seed"]) == ("gradual", 1):
            result["validation"] = metrics(0.1)
    advice = advise(lines)
    assert (advice.seeds, advice.held) == ((0, 2), 3)
    assert {c.arm: round(c.validation, 3) for c in advice.candidates}["gradual"] == 0.79
    assert "They are ranked on seeds 0 and 2, as not all of them have the others." in (
        explain(advice)
    )


def test_an_interim_report_ranks_all_arms_on_the_first_seeds():
    arms = (("backbone_frozen", 0.7, 5), ("top_2", 0.79, 40), ("none_frozen", 0.795, 100))
    lines = [line(arm, seed, score, cost) for seed in (0, 1) for arm, score, cost in arms]
    # The second seed of full fine-tuning is still being trained.
    advice = advise(lines[:-1])
    assert [each.arm for each in advice.candidates] == [arm for arm, *_ in arms]
    assert (advice.seeds, advice.chosen.arm, advice.best.arm) == ((0,), "top_2", "none_frozen")


def test_an_arm_without_a_seed_of_the_others_is_left_out():
    lines = [
        line("top_1", 0, 0.80, 10),
        line("top_2", 0, 0.70, 20),
        line("none_frozen", 1, 0.99, 90),
    ]
    advice = advise(lines)
    assert (advice.chosen.arm, advice.left_out) == ("top_1", {"none_frozen": 1})
    assert "Not ranked, for want of a seed that the others have: `none_frozen`, 1 seed." in (
        explain(advice)
    )


def test_a_head_that_never_trained_makes_a_control():
    lines = [
        line(arm, seed, score, cost)
        for arm, score, cost in (
            ("files/mine.json", 0.9, 1),
            ("classifier_frozen", 0.9, 2),
            ("scarce_head_last", 0.8, 40),
            ("none_frozen", 0.7, 90),
        )
        for seed in (0, 1)
    ]
    for result in lines[:2]:
        result["untrained_heads"] = ["classifier", "sentiment"]
    for result in lines[4:]:
        result["untrained_heads"] = []
    advice = advise(lines)
    # What the result says, not the name; where it says nothing, as before, the name.
    assert (advice.chosen.arm, [c.arm for c in advice.candidates]) == (
        "scarce_head_last",
        ["scarce_head_last", "none_frozen"],
    )
    assert (
        "Not ranked, being a control: `classifier_frozen`, whose classifier head never trained; "
        "`files/mine.json`, whose classifier and sentiment heads never trained."
    ) in explain(advice)
    assert recommend(lines[:4]) is None
    lines[2]["untrained_heads"] = lines[3]["untrained_heads"] = []
    assert advise(lines).chosen.arm == "classifier_frozen"


def noisy(loss: float) -> list[dict[str, Any]]:
    """Four seeds whose differences scatter by 0.05 about a loss."""
    scatter = (0.05, -0.05, 0.05, -0.05)
    cheap = [line("top_1", seed, 0.8 - loss + scatter[seed], 10) for seed in range(4)]
    return [*cheap, *(line("none_frozen", seed, 0.8, 90) for seed in range(4))]


def test_where_the_seeds_tell_nothing_apart_the_cheapest_is_given():
    text = " ".join(explain(advise(noisy(0.02))))
    assert text.startswith("Use `top_1`. Of 2 arms nothing separates `top_1` and `none_frozen`: ")
    assert "or not told apart from it by the t-test with Holm's correction" in text
    assert "`top_1` is the cheapest of them by training FLOPs" in text
    assert "The runner-up is `none_frozen`, the best on validation by 0.020, with 9.0× mor" in text
    # No scatter excuses a large loss.
    assert advise(noisy(0.04)).chosen.arm == "none_frozen"


def test_two_seeds_are_too_few_to_test_and_the_tolerance_decides():
    two = [each for each in noisy(0.02) if each["seed"] < 2]
    assert advise(two).chosen.arm == "none_frozen"
    assert explain(advise(two))[-1] == "A test needs 3 seeds, and there are 2."


def test_costs_that_were_not_counted_are_said_and_times_do_not_take_their_place():
    lines = study()
    del lines[0]["train_flops"]
    advice = advise(lines)
    assert (advice.counted, advice.chosen.arm) == (False, "none_frozen")
    text = " ".join([*explain(advice), *alternatives(advice, lines)])
    assert "The cost was not counted" in text
    assert "FLOPs." not in text.replace("have no training FLOPs", "")
    for result in lines:
        result["train_seconds"] = 1000 - result["train_seconds"]
    assert " ".join([*explain(advise(lines)), *alternatives(advise(lines), lines)]) == text


def test_unfinished_counts_seeds_and_settings():
    lines = study()[:-1]
    failures = [{"arm": "top_4", "seed": 1}, {"arm": "top_4", "seed": 7}]
    found = unfinished(lines, failures)
    assert {arm: str(runs) for arm, runs in found.items()} == {
        "all_frozen": "2 of 4 seeds",
        "backbone_frozen": "3 of 4 seeds",
        "top_2": "3 of 4 seeds",
        "top_4": "0 of 4 seeds",
        "none_frozen": "3 of 4 seeds",
        "gradual": "3 of 4 seeds",
    }
    sizes = [
        line("top_1", seed, 0.8, 10) | {"setting": {"max_train_examples": size}}
        for size in (64, None)
        for seed in (0, 1)
    ]
    assert unfinished(sizes) == {}
    assert str(unfinished(sizes[:-1])["top_1"]) == "3 of 4 runs"


def apart(seeds: int) -> list[dict[str, Any]]:
    return [
        line(arm, seed, score + 0.0001 * seed * sign, seconds)
        for arm, score, seconds, sign in (("top_1", 0.793, 10, 1), ("none_frozen", 0.80, 90, -1))
        for seed in range(seeds)
    ]


def test_certainty_is_that_of_t_with_few_seeds_and_of_flips_with_six():
    for seeds, p_value in ((5, "< 0.001"), (6, "= 0.031")):
        text = " ".join(explain(advise(apart(seeds))))
        assert "which rules out losses of more than 0.01" in text
        assert f"the test tells the two apart (p {p_value}, corrected over 1 com" in text


def test_a_comparison_has_the_p_value_of_the_table_of_differences():
    # Five seeds of `deep` lose 0.1 and one gains as much: where that one flips, its statistic is
    # sqrt(6), above that of the 0.007 to 0.006 that the recommended arm loses.
    deep = [line("deep", seed, 0.5, 100) for seed in range(6)]
    for result in deep:
        result["test"] = metrics(0.9 if result["seed"] == 0 else 0.7)
    flat = [{**result, "test": metrics(0.8)} for result in apart(6) if result["arm"] != "top_1"]
    lines = [*[result for result in apart(6) if result["arm"] == "top_1"], *flat, *deep]
    advice = advise(lines)
    assert (advice.chosen.arm, advice.family, advice.p_value) == ("top_1", 2, 4 / 64)
    assert advice.difference is not None
    assert advice.difference.p_value == 2 / 64
    table = difference_table(lines, "none_frozen", advice.chosen.arm)
    assert table is not None
    (row,) = [row for row in table.rows if row.cells[0].text == "`top_1`"]
    assert [cell.text for cell in row.cells[-2:]] == ["0.031", "0.062"]
    text = " ".join(explain(advice))
    assert "the test does not tell the two apart (p = 0.062, corrected over 2 comp" in text


def test_a_p_value_above_the_level_is_not_shown_as_if_at_it():
    shown = [formatting.p_text(p) for p in (0.0496, 0.05, 0.0503, 0.05004, 0.0004, None)]
    assert shown == ["0.050", "0.050", "0.0503", "0.05004", "< 0.001", "—"]


def test_an_interval_around_0_tells_nothing_apart():
    noisy = [
        line(arm, seed, score + 0.02 * (-1) ** seed * sign, seconds)
        for arm, score, seconds, sign in (("top_1", 0.80, 10, 1), ("none_frozen", 0.80, 90, -1))
        for seed in range(6)
    ]
    text = " ".join(explain(advise(noisy)))
    assert "which includes losses of more than 0.01; the test does not tell the two apart" in text
    assert "(p = 1.000," in text


def test_one_seed_is_said_and_has_no_interval():
    text = " ".join(explain(advise(study(seeds=(0,)))))
    assert "1 seed: there is no interval" in text
    assert "95 %" not in text


def test_alternatives_say_what_they_trade():
    lines = study()
    sentences = alternatives(advise(lines), lines)
    # The runner-up, gradual, is in the recommendation.
    assert len(sentences) == 2
    assert sentences[0].startswith("`backbone_frozen` gives up 0.0")
    assert sentences[0].endswith("for 8.0× fewer training FLOPs.")
    assert sentences[1].startswith("`none_frozen` gains 0.005 [0.003, 0.007] of test macro-F1 ")


def test_a_better_and_dearer_arm_gains():
    lines = [
        line(arm, seed, score, seconds)
        for arm, score, seconds in (
            ("top_1", 0.8, 10),
            ("top_2", 0.801, 20),
            ("deep", 0.805, 50),
            ("none_frozen", 0.8, 90),
        )
        for seed in (0, 1)
    ]
    gains, dominated = alternatives(advise(lines), lines)
    assert gains.startswith("`deep` gains 0.005")
    assert gains.endswith("for 5.0× more training FLOPs.")
    assert dominated.startswith("`none_frozen` takes at least as many training FLOPs as `top_1`")
