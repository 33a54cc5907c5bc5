from typing import Any

import pytest
from synthetic_study import line, study

from experiments.recommendation import Recommendation, alternatives, explain, recommend


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
    assert "The 95 % interval of that difference is [" in text
    assert "It rests on 3 seeds: the interval is wide, 4.3 standard errors" in text


def test_certainty_follows_the_interval():
    apart = [
        line(arm, seed, score + 0.0001 * seed * sign, seconds)
        for arm, score, seconds, sign in (("top_1", 0.793, 10, 1), ("none_frozen", 0.80, 90, -1))
        for seed in range(3)
    ]
    text = " ".join(explain(advise(apart)))
    assert "it excludes 0" in text
    assert "a loss of more than 0.01 is ruled out" in text
    noisy = [
        line(arm, seed, score + 0.02 * seed * sign, seconds)
        for arm, score, seconds, sign in (("top_1", 0.80, 10, 1), ("none_frozen", 0.80, 90, -1))
        for seed in (-1, 0, 1)
    ]
    text = " ".join(explain(advise(noisy)))
    assert "it includes 0" in text
    assert "is not ruled out" in text


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
