"""What is to be run, wherever that is: a training run or an experiment, and its folder."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path

from mtl_jax.core.command_line import parse
from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError

# The experiments that can be trained in parts.
STUDIES = ("backbones", "freezing", "scarce_task", "unfreezing")

_EXPERIMENTS = Path(__file__).parents[2] / "experiments"
_WORKDIR = "--workdir"


@dataclasses.dataclass(frozen=True)
class Work:
    """A command of this project.

    Attributes:
        name: What it is called in names of jobs and folders.
        module: What Python runs.
        words: Its arguments.
        workdir: The folder that they name.
    """

    name: str
    module: str
    words: tuple[str, ...]
    workdir: str

    @property
    def study(self) -> bool:
        """Whether it has arms, which can be trained in parts."""
        return self.name in STUDIES

    @property
    def trains(self) -> bool:
        """Whether it is one training run."""
        return self.module == "mtl_jax"

    @property
    def shared(self) -> bool:
        """Whether several processes can share it."""
        return self.trains or self.study

    def refuse_tasks(self, tasks: int) -> None:
        """Refuses several processes where they can't share the work.

        Raises:
            UserError: They can't.
        """
        if tasks > 1 and not self.shared:
            raise UserError(f"--tasks {tasks}: {self.name} runs in one process: use --tasks 1")

    def command(self, python: str, *more: str) -> list[str]:
        """Its command line, with further arguments."""
        return [python, "-m", self.module, *self.words, *more]

    @property
    def launched(self) -> list[str]:
        """The words behind the ``--`` that ask for it."""
        return list(self.words) if self.trains else ["experiment", self.name, *self.words]

    def flagged(self, flag: str, value: str = "") -> Work:
        """The same with a further flag, where it is not there yet."""
        if any(word.partition("=")[0] == flag for word in self.words):
            return self
        return dataclasses.replace(self, words=(*self.words, f"{flag}={value}" if value else flag))

    def distributed(self) -> Work:
        """What each of several processes runs, who train it, or each of its arms, together."""
        return self.flagged("--distributed") if self.shared else self


def read_work(words: Sequence[str], run_id: str, runs: str | None) -> Work:
    """What the words behind ``--`` ask for.

    Args:
        words: ``train``, or ``experiment`` and a name, and the flags of that.
        run_id: Tells the run from others.
        runs: The folder to put one for the run in, where they name none; None where there is
            no such folder.

    Raises:
        UserError: There is no such thing, its flags are wrong, or it needs a ``--workdir``.
    """
    kind, *flags = words or [""]
    if kind == "train":
        name, module, first = "train", "mtl_jax", ["train"]
    elif kind == "experiment":
        name, first = _experiment(flags[0] if flags else ""), []
        module, flags = f"experiments.{name}", flags[1:]
    else:
        raise UserError(
            f"{kind!r} can't be launched: write train, or experiment and a name, behind the --"
        )
    workdir = _workdir(flags)
    if workdir is not None and not workdir.strip():
        raise UserError(f"{_WORKDIR} is empty: name a folder, or leave it out for one of its own")
    if workdir is None and "--help" not in flags:
        if runs is None:
            raise UserError(
                "there is no folder that every machine sees by itself: name one with --workdir"
            )
        workdir = f"{runs.rstrip('/')}/{name}-{run_id}"
        say(f"--workdir is {workdir}: name it to go on with this run")
        flags = [*flags, f"{_WORKDIR}={workdir}"]
    work = Work(name, module, (*first, *flags), workdir or "")
    if work.trains:
        _check_training(work.words)
    return work


def _experiment(name: str) -> str:
    module = name.replace("-", "_")
    there = sorted(
        file.stem
        for file in _EXPERIMENTS.glob("*.py")
        if 'if __name__ == "__main__":' in file.read_text(encoding="utf-8")
    )
    if module in there:
        return module
    close = difflib.get_close_matches(module, there, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"unknown experiment {name!r}: {hint}use one of {', '.join(there)}")


def _workdir(flags: Sequence[str]) -> str | None:
    """The folder that the flags name; None where they name none."""
    found = None
    for place, word in enumerate(flags):
        flag, equals, value = word.partition("=")
        if flag == _WORKDIR:
            found = value if equals else "".join(flags[place + 1 : place + 2])
    return found


def _check_training(words: Sequence[str]) -> None:
    """Refuses wrong flags now, and not when the run's turn has come."""
    from mtl_jax.cli.commands import Command

    parse(Command, words, "python -m mtl_jax", "")
