"""The lines of results by setting."""

import pytest

from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import read_lines
from mtl_jax.studies.stats.results import RESULT, by_setting, read_results


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


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1]", r"\[1\] is not of type 'object'"),
        ('{"arm": "top_1"}', "'seed' is a required property"),
        ('{"arm": 3, "seed": 0}', "arm: 3 is not of type 'string'"),
        ('{"arm": "a", "seed": 0, "test": [1]}', r"test: \[1\] is not of type 'object', 'null'"),
        ("{", r"is not valid JSON \(.*\)"),
        ("\xff", r"is not valid JSON \(.*\)"),
    ],
)
def test_a_line_that_is_no_result_is_named(line, reason, tmp_path):
    """By whoever reads it: the report, and the study that goes on."""
    file = tmp_path / "results.jsonl"
    file.write_bytes(b'{"arm": "top_1", "seed": 0}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(
        UserError, match=rf"results\.jsonl, line 2:? {reason}: remove that line and run"
    ):
        read_results(file)
    with pytest.raises(UserError, match=r"results\.jsonl, line 2 is damaged \("):
        read_lines(file, RESULT)


def test_a_path_may_be_a_string(tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_text('{"arm": "top_1", "seed": 0}\n')
    assert read_results(str(file)) == read_results(file) == [{"arm": "top_1", "seed": 0}]


def test_results_that_can_not_be_read_are_named(tmp_path):
    with pytest.raises(UserError, match=r"can't be read \(Is a directory\): there should be a"):
        read_results(tmp_path)
