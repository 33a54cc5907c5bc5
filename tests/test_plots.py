import io
from itertools import combinations

import pytest
from matplotlib.text import Annotation
from synthetic_study import line, study

from experiments import plots
from experiments.palette import looks

ALL = (plots.quality_against_cost, plots.learning_curves, plots.gap_bars, plots.by_source)


@pytest.mark.parametrize("plot", ALL)
def test_nothing_to_draw(plot: plots.Plot):
    assert plot([]) is None
    assert plot([{"arm": "all_frozen", "seed": 0, "test": None}]) is None


@pytest.mark.parametrize("plot", ALL)
def test_one_seed_without_intervals(plot: plots.Plot):
    drawn = plot(study(seeds=(0,)))
    assert drawn is not None
    file = io.BytesIO()
    plots.save(drawn.figure, file)
    assert file.getvalue().startswith(b"\x89PNG")


def test_names_of_crowded_points_stay_apart():
    arms = ("top_4", "top_6", "classifier_frozen", "sentiment_frozen", "none_frozen", "gradual")
    crowd = [line(arm, 0, 0.8 + 0.001 * i, 100 + i) for i, arm in enumerate(arms)]
    drawn = plots.quality_against_cost([*crowd, line("backbone_frozen", 0, 0.7, 3)])
    assert drawn is not None
    drawn.figure.draw_without_rendering()
    (axes,) = drawn.figure.axes
    names = [
        text.get_window_extent()
        for text in axes.texts
        if isinstance(text, Annotation) and text.get_text() in arms
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
