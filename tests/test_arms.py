"""The lines of results by setting."""

from experiments.arms import by_setting


def results(*settings):
    return [{"arm": "joint", "setting": setting} for setting in settings]


def test_settings_are_in_the_order_of_their_numbers():
    """Also where a study has gone on with smaller ones."""
    thinned = [{"scarce_task": "sentiment", "fraction": part} for part in (0.03, 0.1, 0.01)]
    names = [f"{percent} % of the sentiment labels" for percent in (1, 3, 10)]
    assert list(by_setting(results(*thinned))) == names
    sizes = [{"max_train_examples": size} for size in (64, 256, 1024)]
    assert by_setting(results(*sizes[::-1])) == by_setting(results(*sizes))
    assert [lines[0]["setting"] for lines in by_setting(results(*sizes[::-1])).values()] == sizes


def test_names_are_in_the_order_of_the_file_and_a_study_may_have_none():
    names = [{"backbone": name} for name in ("large", "base")]
    assert [lines[0]["setting"] for lines in by_setting(results(*names, *names)).values()] == names
    assert list(by_setting([{"arm": "joint"}])) == [""]
