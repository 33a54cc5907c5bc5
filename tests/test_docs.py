"""The documents against the code: commands parse, links lead somewhere, Python runs."""

import re
import shlex
from pathlib import Path

import pytest

from mtl_jax.cli.flags import Command, Train
from mtl_jax.cli.study import JUDGE
from mtl_jax.config.files import with_file
from mtl_jax.core.command_line import parse
from mtl_jax.studies.command import StudyCommand
from mtl_jax.studies.judge import Judge
from mtl_jax.studies.registry import find_study
from tests.conftest import WORDS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "experiments" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.S | re.M)


def blocks(page, language):
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def commands(page):
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            # What follows is read or written by the shell.
            ends = [i for i, word in enumerate(words) if word in ("<", ">", "|", "&&")]
            yield words[: ends[0]] if ends else words


def assert_a_study_takes(words):
    if words[0] == JUDGE:
        parse(Judge, [f"--study={words[1]}", *words[2:]], "prog", "")
        return
    study = find_study(words[0]).main
    assert isinstance(study, StudyCommand)
    parse(study.kind, words[1:], "prog", "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        if words[:3] == ["python", "-m", "mtl_jax"]:
            argv = words[3:]
            assert "--help" not in argv
            if argv[0] == "train":
                argv = ["train", *with_file(argv[1:], Train)]
            parse(Command, argv, "prog", "")
        elif words[:2] == ["mtl-jax", "study"]:
            assert_a_study_takes(words[2:])
        elif "experiment" in words:
            assert_a_study_takes(words[words.index("experiment") + 1 :])
        elif words[:2] == ["python", "-m"]:
            module = ROOT / words[2].replace(".", "/")
            assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles(page):
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1500


def test_the_loop_of_the_readme_runs(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{WORDS[5 + i % 20]} film,{'ab'[i % 2]},{'xyz'[i % 3]}" for i in range(40)]
    Path("train.csv").write_text("\n".join(["text,topic,mood", *rows]) + "\n")
    (loop,) = blocks(ROOT / "README.md", "python")
    found = {}
    exec(loop.replace("sentence-transformers/all-MiniLM-L6-v2", str(tiny)), found)  # noqa: S102
    assert found["scores"].keys() == {"topic", "mood"}
