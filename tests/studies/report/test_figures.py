from itertools import combinations
from typing import Any

import pytest
from matplotlib.text import Annotation, Text

from mtl_jax.studies.report import figures, tables
from mtl_jax.studies.report.axes import LONGEST_LABEL, cost_axis, panel_row
from mtl_jax.studies.report.palette import looks
from tests.synthetic_study import line, study


def by_source(results):
    return figures.by_source(results, "sentiment")


ALL = (figures.quality_against_cost, figures.learning_curves, figures.gap_bars, by_source)


@pytest.mark.parametrize("plot", ALL)
def test_nothing_to_draw(plot: figures.Plot):
    assert plot([]) is None
    assert plot([{"arm": "all_frozen", "seed": 0, "test": None}]) is None


@pytest.mark.parametrize("plot", ALL)
def test_one_seed_without_intervals(plot: figures.Plot):
    drawn = plot(study(seeds=(0,)))
    assert drawn is not None
    assert figures.png(drawn.figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("plot", ALL)
def test_the_name_of_a_file_leaves_room_for_the_numbers(plot: figures.Plot):
    arms = ("/of a study/" * 20 + "a.json", "/of a study/" * 20 + "b.json")
    drawn = plot([*study(seeds=(0,)), *(line(arm, 0, 0.8, 200) for arm in arms)])
    assert drawn is not None
    figures.png(drawn.figure)
    shown = [text.get_text() for text in drawn.figure.findobj(Text)]
    for name in ("a.json", "b.json"):
        assert {len(text) for text in shown if name in text} == {LONGEST_LABEL}


def test_what_no_training_gives_is_the_mean_over_the_draws_of_training_texts():
    probes = [{"sentiment": {"macro_f1": score}} for score in (0.6, 0.6, 0.68)]
    words = [
        {"sentiment": {"examples": 9, "accuracy": 0.9, "macro_f1": score}}
        for score in (0.5, 0.5, 0.6)
    ]
    results = [
        {**line("all_frozen", seed, 0.3, 1), "train_subset": subset, "probe": probe}
        | {"text_baseline": words[seed]}
        for seed, (subset, probe) in enumerate(zip((0, 0, 1), probes, strict=True))
    ]
    results += [line("top_1", seed, 0.7, 10) for seed in range(3)]
    # The first two seeds have the same texts, and count once.
    table = tables.quality_table(results, None)
    (cells,) = [row.cells for row in table.rows if row.cells[0].text == "20-NN probe"]
    assert (cells[1].text, cells[2].text) == ("2", "0.640")
    assert (
        " Without an encoder, on validation (means over 2 draws of the training texts): TF-IDF "
        "with a linear model, sentiment accuracy 0.900, macro-F1 0.550."
    ) in table.note
    drawn = figures.quality_against_cost(results)
    assert drawn is not None
    shown = [text.get_text() for text in drawn.figure.findobj(Text)]
    assert "20-NN probe, no training: 0.640" in shown


def test_names_of_crowded_points_stay_apart():
    arms = ("top_4", "top_6", "classifier_frozen", "sentiment_frozen", "none_frozen", "gradual")
    crowd = [line(arm, 0, 0.8 + 0.001 * i, 100 + i) for i, arm in enumerate(arms)]
    drawn = figures.quality_against_cost([*crowd, line("backbone_frozen", 0, 0.7, 3)])
    assert drawn is not None
    drawn.figure.draw_without_rendering()
    (axes,) = drawn.figure.axes
    names = [
        text.get_window_extent()
        for text in axes.texts
        if isinstance(text, Annotation) and text.get_text().removesuffix(" (control)") in arms
    ]
    assert len(names) == len(arms)
    assert not any(one.overlaps(other) for one, other in combinations(names, 2))


def test_looks_are_distinct_and_do_not_depend_on_order():
    arms = ["none_frozen", "top_10", "top_2", "gradual", "lp_ft", "backbone_frozen", "all_frozen"]
    found = looks(arms)
    assert list(found) == [
        "all_frozen",
        "backbone_frozen",
        "top_2",
        "top_10",
        "none_frozen",
        "gradual",
        "lp_ft",
    ]
    assert len({look.colour for look in found.values()}) == len(arms)
    assert looks(arms[::-1])["top_2"] == found["top_2"]


def test_costs_that_differ_in_their_last_digit_are_one_place():
    """The mean of six equal ones may, and an axis from the one to the other shows nothing."""
    _, (axes,) = panel_row(1, 4.0)
    axes.scatter([3.0, 3.0 + 2**-51], [0.1, 0.2])
    cost_axis(axes)
    assert axes.get_xlim() == pytest.approx((1.5, 6.0))


def test_costs_are_counted_and_controls_are_hollow():
    lines = [
        line(arm, 0, 0.8, cost) for arm, cost in (("sentiment_frozen", 50), ("none_frozen", 100))
    ]
    drawn = figures.quality_against_cost(lines)
    assert drawn is not None
    (axes,) = drawn.figure.axes
    assert axes.get_xlabel() == "training FLOPs of one run, none_frozen = 1 (log scale)"
    containers: Any = axes.containers
    places = {bars.lines[0].get_xdata()[0]: bars.lines[0] for bars in containers}
    assert sorted(places) == [0.5, 1.0]
    assert places[0.5].get_markerfacecolor() == "white"
    assert places[1.0].get_markerfacecolor() != "white"
    assert "sentiment_frozen (control)" in [text.get_text() for text in axes.texts]
    for result in lines:
        del result["train_flops"], result["flops_of_phases"]
    assert figures.quality_against_cost(lines) is None
    assert figures.learning_curves(lines) is None


def test_a_curve_is_drawn_over_the_cost_so_far():
    result = line("recipe", 0, 0.8, 100)
    # 10 steps of 1 TFLOP after a pass of 5, then steps of 3; the second was measured twice.
    result["flops_of_phases"] = [
        {"steps": 10, "step": 10**12, "prefix": 5 * 10**12},
        {"steps": 4, "step": 3 * 10**12, "prefix": 0},
    ]
    for point, (step, phase) in zip(result["curve"], ((10, 1), (12, 2), (14, 2)), strict=True):
        point |= {"step": step, "phase": phase}
    drawn = figures.learning_curves([result])
    assert drawn is not None
    curve: Any = drawn.figure.axes[0].lines[0]
    assert list(curve.get_xdata()) == [15, 21, 27]
