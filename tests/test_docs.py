"""The documents against the code: commands are understood, links lead somewhere, Python runs."""

import ast
import contextlib
import functools
import importlib
import inspect
import itertools
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

import mtl_jax as mtl
from experiments.benchmarks.__main__ import Benchmark
from experiments.benchmarks.many_arms import ManyArms
from mtl_jax.cli.flags import Check, Command, Evaluate, Export, Extract, Plan, Predict, Train
from mtl_jax.cli.study import run_study
from mtl_jax.config.files import defaults_of, with_file
from mtl_jax.core.command_line import parse
from mtl_jax.core.errors import UserError
from mtl_jax.freezing.recipes import recipe_named
from mtl_jax.launch.__main__ import Place
from mtl_jax.launch.command import read_work
from mtl_jax.launch.kubernetes import Kubernetes
from mtl_jax.launch.local import Local
from mtl_jax.launch.sky import Sky
from mtl_jax.launch.slurm import Slurm
from mtl_jax.studies.command import StudyCommand
from mtl_jax.studies.judge import Judge
from mtl_jax.studies.registry import JUDGE, STATUS, built_in, find_study
from mtl_jax.studies.stats.results import read_results, results_file
from mtl_jax.studies.status import ShowStatus
from tests.conftest import WORDS
from tests.faults.__main__ import Faults
from tests.faults.workers import Kills

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "experiments" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
CODE = re.compile(r"`([^`]+)`")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)


def flags_of_a_study(words):
    """What the flags of a study are read into, and those of its words that are flags."""
    main = find_study(words[0]).main
    assert isinstance(main, StudyCommand)
    return main.kind, with_file(words[1:], main.kind)


# The programs beside the command line that have flags, and what these are read into.
PROGRAMS = {
    "experiments.benchmarks": Benchmark,
    "experiments.benchmarks.many_arms": ManyArms,
    "tests.faults": Faults,
    "tests.faults.workers": Kills,
}
FLAGS = {"--config", "--help", "--version", "--account"}.union(
    f"--{no}{name.replace('_', '-')}"
    for kind in (
        *(Train, Check, Plan, Evaluate, Predict, Extract, Export, Judge),
        *(Local, Slurm, Kubernetes, Sky, ShowStatus, *PROGRAMS.values()),
        *(flags_of_a_study([name])[0] for name in built_in()),
    )
    for name, default in defaults_of(kind).items()
    for no in (("", "no-") if isinstance(default, bool) else ("",))
)


def blocks(page, language):
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def commands(page):
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            # What follows is read or written by the shell.
            ends = [i for i, word in enumerate(words) if word in ("<", ">", "|", "&&")]
            yield words[: ends[0]] if ends else words


def in_sentences(page):
    """The words of each piece of code that stands in a sentence, but for three dots."""
    for span in CODE.findall(BLOCK.sub("", page.read_text())):
        with contextlib.suppress(ValueError):  # No piece for a shell: it has one quotation mark.
            words = shlex.split(span)
            yield [word for word in words if word not in ("…", "...")]


def read(words):
    """Reads a command as the program that it calls does, and runs nothing.

    Raises:
        UserError: The program refuses it.
        AssertionError: There is no such program here.
    """
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    match words:
        case [] | [".", ".venv/bin/activate"] | ["tensorboard" | "sky", *_]:
            pass
        case ["pip", "install", *needed]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            for name in re.findall(r"\[(.*?)\]", " ".join(needed)):
                assert name in extras["optional-dependencies"]
        case ["python", "-m", "mtl_jax", "study", *argv] | ["mtl-jax", "study", *argv]:
            read_study(argv)
        case ["python", "-m", "mtl_jax", *argv] | ["mtl-jax", *argv]:
            if argv[0] in ("train", "check", "plan"):
                kind = {"train": Train, "check": Check, "plan": Plan}[argv[0]]
                argv = [argv[0], *with_file(argv[1:], kind, of_train=kind is not Train)]
            parse(Command, argv, "mtl-jax", "")
        case ["python", "-m", module, *argv] if module in PROGRAMS:
            own, flags = split(argv)
            parse(PROGRAMS[module], own, module, "")
            if flags:
                parse(Command, ["train", "--workdir=x", *flags], "mtl-jax", "")
        case ["python", "-m", module, *argv]:
            main = importlib.import_module(module).main
            if isinstance(main, StudyCommand):
                parse(main.kind, with_file(argv, main.kind), module, "")
            else:
                assert not [word for word in argv if word.startswith("-")]
        case ["python", file, *argv]:
            read_study([file, *argv])
        case ["./launch.sh", "status", *argv]:
            parse(ShowStatus, argv, "./launch.sh", "")
        case ["./launch.sh", "test" | "lint", *argv]:
            for word in argv:
                assert (ROOT / word).exists() or not word.startswith("tests/"), word
        case ["./launch.sh", "local" | "slurm" | "kubernetes" | "sky", *_]:
            own, work = split(words[1:])
            parse(Place, own, "./launch.sh", "")
            read_work(work, "id", "runs")
        case ["./launch.sh", *argv]:
            read_study(["freezing", "--workdir=x", *argv])
        case _:
            raise AssertionError(f"nothing reads {words}")


def split(words):
    """What stands before the first ``--``, and what stands behind it."""
    cut = words.index("--") if "--" in words else len(words)
    return words[:cut], words[cut + 1 :]


def read_study(words):
    if not words:
        assert run_study(words) == 0
    elif words[0] == JUDGE:
        parse(Judge, words[1:], "mtl-jax study judge", "")
    elif words[0] == STATUS:
        parse(ShowStatus, words[1:], "mtl-jax study status", "")
    else:
        parse(*flags_of_a_study(words), "mtl-jax study", "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        read(words)
    for words in in_sentences(page):
        if words[:2] == ["python", "-m"] or words[:1] in (["mtl-jax"], ["./launch.sh"]):
            # Some are named, or asked for help, and not written out.
            with contextlib.suppress(SystemExit):
                read(words if any(word.startswith("--") for word in words) else words[:0])
        flags = [word.partition("=")[0] for word in words if re.match("--[a-z]", word)]
        assert not [flag for flag in flags if flag not in FLAGS and "xla" not in flag]


@pytest.mark.parametrize(
    "command",
    [
        "python -m mtl_jax train --workdir runs/x --epoch 3",
        "python -m mtl_jax evaluate --workdir runs/x --splits test",
        "mtl-jax study freezing --workdir runs/x --arm top_1",
        "mtl-jax study frezing --workdir runs/x",
        "mtl-jax study judge runs/x --digit 2",
        "python -m experiments.freezing --workdir runs/x --seed 1",
        "python -m experiments.benchmarks --workdir runs/x --row top_2",
        "python experiments/examples/own_study.py --workdir runs/x --arms top_1",
        "python -m tests.faults --workdir runs/x -- --senario top_2",
        "./launch.sh --seed 1",
        "./launch.sh local --task 2 -- train --workdir runs/x",
        "./launch.sh local --tasks 2 -- train --workdir runs/x --epoch 3",
        "./launch.sh status --folder runs/x",
        "pip install '.[tensorflow]'",
        "mtl_jax train --workdir runs/x",
    ],
)
def test_a_wrong_command_is_noticed(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((UserError, AssertionError)):
        read(shlex.split(command))


def test_the_launcher_says_what_it_takes():
    said = subprocess.run(
        ["./launch.sh", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for words in ("test", "lint", "local|slurm|kubernetes|sky", "status --workdir DIR"):
        assert f"\n./launch.sh {words} " in said
    assert "#" not in said
    assert "set -e" not in said


def test_files_of_the_pages_are_understood(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (settings,) = blocks(ROOT / "docs" / "data.md", "yaml")
    Path("settings.yaml").write_text(settings)
    argv = with_file(["--config", "settings.yaml", "--workdir=x"], Train)
    asked = parse(Command, ["train", *argv], "mtl-jax", "")
    assert asked.scenario == "top_2"
    assert asked.data.tasks == ("topic", "mood")
    (phases,) = blocks(ROOT / "docs" / "scenarios.md", "json")
    Path("mine.json").write_text(phases)
    labels = {"classifier": 9, "sentiment": 9}
    found = recipe_named("mine.json")(mtl.RecipeContext(6, 3, labels))
    assert [phase.scenario for phase in found] == ["backbone_frozen", "top_2", "none_frozen"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_what_sentences_name_is_there():
    """Files of the repository, names of the library, and what those take by keyword."""
    checked, texts = 0, (BLOCK.sub("", page.read_text()) for page in PAGES)
    for span in itertools.chain.from_iterable(map(CODE.findall, texts)):
        if re.fullmatch(r"(mtl_jax|experiments|tests)/[\w/.]+", span):
            assert (ROOT / span).exists(), span
        try:
            tree = ast.parse(" ".join(span.split()), mode="eval")
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            called = node.func if isinstance(node, ast.Call) else node
            name = re.sub(r"^mtl(_jax)?\.", "", whole := ast.unparse(called))
            if not name.replace(".", "").isidentifier() or (
                name == whole and name not in mtl.__all__
            ):
                continue
            found: Any = functools.reduce(getattr, name.split("."), mtl)
            if isinstance(node, ast.Call):
                known = {*inspect.signature(found).parameters}
                # It takes those of the data, too.
                known |= {*mtl.DataConfig.__dataclass_fields__} if name == "load_data" else set()
                assert {keyword.arg for keyword in node.keywords} <= known, span
                checked += len(node.keywords)
    assert checked > 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles(page):
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1500


@pytest.mark.parametrize("page", ["README.md", "docs/library.md"])
def test_the_loop_of_a_page_runs(page, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{WORDS[5 + i % 20]} film,{'ab'[i % 2]},{'xyz'[i % 3]}" for i in range(40)]
    Path("train.csv").write_text("\n".join(["text,topic,mood", *rows]) + "\n")
    (loop,) = blocks(ROOT / page, "python")
    found = {}
    exec(loop.replace("sentence-transformers/all-MiniLM-L6-v2", str(tiny)), found)  # noqa: S102
    assert found["scores"].keys() == {"topic", "mood"}


def test_the_code_on_studies_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept, study = ROOT / "experiments" / "results" / "freezing-quick", Path("runs/freezing")
    line = next(line for line in read_results(results_file(kept)) if line["arm"] == "top_2")
    name = f"arms/top_2-seed{line['seed']}"
    shutil.copytree(kept / name, study / name)
    (study / "results.jsonl").write_text(json.dumps(line) + "\n")
    lines, own = blocks(ROOT / "docs" / "studies.md", "python")
    exec(lines, found := {"mtl": mtl})  # noqa: S102
    assert found["lines"] == [line]
    assert found["found"].tasks["sentiment"].probabilities.shape == (1500, 3)
    exec(own, found := {})  # noqa: S102
    assert isinstance(found["main"], StudyCommand)
    assert parse(found["main"].kind, ["--workdir=x"], "", "").seeds == tuple(range(6))
