from typing import Any

import pytest
from synthetic_study import line, metrics, study

from experiments.arms import unfinished
from experiments.recommendation import Recommendation, alternatives, explain, recommend
from experiments.tables import difference_table


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
    assert advice.opponent is not None
    assert advice.opponent.arm == "gradual"


def test_a_single_arm_leaves_no_choice():
    advice = advise([line("top_1", 0, 0.7, 10)])
    assert advice.opponent is None
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
    assert text.startswith("Use `top_2`: it takes the least training time")
    assert "2.5× less training time" in text
    # The differences of the three seeds are -0.004, -0.005 and -0.006.
    assert "0.005 below `none_frozen`" in text
    assert "It rests on 3 seeds: a difference of so few has no 95 % bootstrap interval" in text
    assert "is 2/2^3 = 0.25. Run at least 6" in text


def test_an_arm_that_lacks_seeds_is_not_ranked():
    lines = [line for line in study() if (line["arm"], line["seed"]) != ("top_2", 1)]
    advice = advise(lines)
    # Without top_2 the cheapest arm within 0.01 of the best is gradual, at exactly 0.01.
    assert advice.chosen.arm == "gradual"
    assert {arm: str(runs) for arm, runs in advice.left_out.items()} == {"top_2": "2 of 3 seeds"}
    assert "Not ranked, for want of runs that others have: `top_2`, 2 of 3 seeds." in explain(
        advice
    )


def test_full_fine_tuning_that_lacks_seeds_is_still_compared_with():
    lines = [line for line in study() if (line["arm"], line["seed"]) != ("none_frozen", 0)]
    advice = advise(lines)
    assert (advice.chosen.arm, advice.best.arm) == ("top_2", "top_2")
    assert advice.opponent is not None
    assert advice.difference is not None
    assert advice.opponent.arm == "none_frozen"
    assert advice.difference.interval.n == 2
    assert "the smallest p-value that a permutation test of 2 can give is 2/2^2" in " ".join(
        explain(advice)
    )


def test_where_every_arm_lacks_seeds_all_are_ranked():
    lines = [line("top_1", 0, 0.80, 10), line("none_frozen", 1, 0.80, 90)]
    advice = advise(lines)
    assert [each.arm for each in advice.candidates] == ["top_1", "none_frozen"]
    assert not advice.left_out


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


def test_certainty_takes_six_seeds():
    few = " ".join(explain(advise(apart(5))))
    assert "95 % bootstrap interval of that difference is" not in few
    text = " ".join(explain(advise(apart(6))))
    assert "which holds no loss of more than 0.01" in text
    assert "these seeds tell the two apart (permutation p = 0.031, corrected over 1 comp" in text


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
    table = difference_table(lines, advice.chosen.arm)
    assert table is not None
    (row,) = [row for row in table.rows if row.cells[0].text == "`top_1`"]
    assert [cell.text for cell in row.cells[-2:]] == ["0.031", "0.062"]
    assert "do not tell the two apart (permutation p = 0.062, corrected over 2 comparisons)" in (
        " ".join(explain(advice))
    )


def test_an_interval_around_0_tells_nothing_apart():
    noisy = [
        line(arm, seed, score + 0.02 * (-1) ** seed * sign, seconds)
        for arm, score, seconds, sign in (("top_1", 0.80, 10, 1), ("none_frozen", 0.80, 90, -1))
        for seed in range(6)
    ]
    text = " ".join(explain(advise(noisy)))
    assert "which holds losses of more than 0.01; these seeds do not tell the two apart" in text
    assert "(permutation p = 1.000," in text


def test_one_seed_is_said_and_has_no_interval():
    text = " ".join(explain(advise(study(seeds=(0,)))))
    assert "1 seed: there is no interval" in text
    assert "95 %" not in text


def test_disjoint_seeds_are_said():
    lines = [line("top_1", 0, 0.80, 10), line("none_frozen", 1, 0.80, 90)]
    assert "shares no seed" in " ".join(explain(advise(lines)))


def test_alternatives_say_what_they_trade():
    lines = study()
    sentences = alternatives(advise(lines), lines)
    assert len(sentences) == 2
    assert sentences[0].startswith("`backbone_frozen` gives up 0.0")
    assert sentences[0].endswith("for 8.0× less training time.")
    assert sentences[1].startswith("`gradual` costs at least as much time as `top_2`")


def test_a_better_and_dearer_arm_gains():
    lines = [
        line(arm, seed, score, seconds)
        for arm, score, seconds in (
            ("top_1", 0.8, 10),
            ("deep", 0.805, 50),
            ("none_frozen", 0.8, 90),
        )
        for seed in (0, 1)
    ]
    (sentence,) = alternatives(advise(lines), lines)
    assert sentence.startswith("`deep` gains 0.005")
    assert sentence.endswith("for 5.0× more training time.")
