"""Which study a word names, and what is said of one that can't be had."""

import importlib
import inspect
import sys
from pathlib import Path

import pytest

from mtl_jax.core.errors import UserError
from mtl_jax.studies.command import StudyCommand
from mtl_jax.studies.registry import built_in, find_study, questions

ROOT = Path(__file__).parents[2]
BUILT_IN = ("backbones", "freezing", "heads", "quality", "scarce_task", "unfreezing")
OWN = """
import mtl_jax as mtl
main = mtl.studies.study({"full": {"scenario": "none_frozen"}}, "What?")
"""


@pytest.fixture(autouse=True)
def forgotten(tmp_path, monkeypatch):
    """The current folder is an empty one, and what is imported from it is forgotten again."""
    before = {*sys.modules}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in {*sys.modules} - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_those_that_come_with_the_package():
    assert built_in() == BUILT_IN
    assert [name for name in BUILT_IN if not find_study(name).has_parts] == ["heads"]
    assert find_study("scarce-task") == find_study("scarce_task")


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_checkout_has_each_with_its_question_command_and_answer(name):
    module = importlib.import_module(f"experiments.{name}")
    question, empty, command, *_ = (module.__doc__ or "").splitlines()
    assert questions()[name].startswith(question)
    assert empty == ""
    assert module.main.called == f"python -m experiments.{name}"
    assert command.split("  #")[0].strip() == f"{module.main.called} --workdir DIR"
    shipped = find_study(name).main
    assert isinstance(shipped, StudyCommand)
    assert module.main.called_as("x") == shipped.called_as("x")
    assert len(Path(inspect.getfile(module)).read_text().splitlines()) < 30


def test_a_file_or_module_of_ones_own(tmp_path):
    (tmp_path / "pack").mkdir()
    for file in ("mine.py", "it's mine.py", "pack/__init__.py", "pack/inner.py"):
        (tmp_path / file).write_text(OWN)
    for word, name in (
        ("mine.py", "mine"),
        (str(tmp_path / "mine.py"), "mine"),
        ("./it's mine.py", "it_s_mine"),
        ("mine", "mine"),
        ("pack", "pack"),
        ("pack.inner", "inner"),
        ("experiments.freezing", "freezing"),
    ):
        found = find_study(word)
        assert (found.word, found.name, found.has_parts) == (word, name, True)
        path = "/" in word or word.endswith(".py")
        assert found.file == (tmp_path / word if path else None)
    assert not find_study("experiments.benchmarks").has_parts


def test_any_main_will_do(tmp_path):
    (tmp_path / "beside.py").write_text("STATUS = 7\n")
    (tmp_path / "own.py").write_text(
        "import sys\ncalls = []\n"
        "def main(argv, more=()):\n"
        "    from beside import STATUS\n"
        "    calls.append((argv, sys.argv))\n"
        "    return STATUS if argv else None\n"
    )
    study = find_study("own.py")
    before = sys.argv
    assert not study.has_parts
    assert [study.run(["--x"]), study.run([])] == [7, 0]
    assert sys.argv is before
    # What reads its command line by itself sees what it was called by.
    called = "mtl-jax study own.py"
    assert sys.modules["own"].calls == [(["--x"], [called, "--x"]), ([], [called])]


@pytest.mark.parametrize(
    ("word", "content", "said"),
    [
        ("frezing", None, "unknown study 'frezing': did you mean freezing? use backbones, "),
        ("", None, "unknown study '': use backbones, freezing, "),
        ("no.such", None, "unknown study 'no.such': use backbones, "),
        ("json.such", None, "unknown study 'json.such': use "),
        ("csv.such", None, "unknown study 'csv.such': use "),
        ("a b", None, "unknown study 'a b': use "),
        ("gone.py", None, "study gone.py is not there: correct the path"),
        ("./gone", None, "study ./gone is not there"),
        ("../", None, "study ../ is no .py file"),
        ("json", None, "study json has no main: give it a main(argv)"),
        ("made.py", "x = 1", "study made.py has no main: "),
        ("made.py", "def main(): ...", "study made.py has a main of other arguments: "),
        ("made.py", "1 / 0", "study made.py can't be imported (ZeroDivisionError: "),
        ("made.py", "x =", "study made.py can't be imported (SyntaxError: "),
        ("made.py", "exit(0)", "study made.py can't be imported (it ends the process"),
        ("made.py", "import not_there", "(ModuleNotFoundError: No module named 'not_there')"),
        ("made", "import not_there", "study made can't be imported (ModuleNotFoundError: "),
        ("made.py", OWN.replace("scenario", "scene"), "study made.py: arm full: TrainConfig has"),
    ],
)
def test_what_can_t_be_had_is_told_in_one_line(word, content, said, tmp_path):
    if content is not None:
        (tmp_path / "made.py").write_text(content)
    with pytest.raises(UserError) as error:
        find_study(word)
    assert said in str(error.value)
