"""What is to be run, wherever that is: a training run or an experiment, and its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mtl_jax.config.files import with_file
from mtl_jax.core.command_line import parse
from mtl_jax.core.console import say
from mtl_jax.core.errors import UserError
from mtl_jax.core.paths import expanded
from mtl_jax.studies.command import StudyCommand
from mtl_jax.studies.registry import FoundStudy, find_study
from mtl_jax.studies.settings import ANY_DEPTH, StudySettings
from mtl_jax.studies.work_queue import FOLDER

_WORKDIR = "--workdir"


@dataclasses.dataclass(frozen=True)
class Work:
    """A command of this project.

    Attributes:
        name: What it is called in names of jobs and folders.
        words: Those behind ``python -m mtl_jax``.
        workdir: The folder that they name.
        study: Whether it has arms, which several workers can share.
        file: That of a study that a path names.
    """

    name: str
    words: tuple[str, ...]
    workdir: str
    study: bool = False
    file: Path | None = None

    @property
    def trains(self) -> bool:
        """Whether it is one training run."""
        return self.words[0] == "train"

    @property
    def shared(self) -> bool:
        """Whether several processes can share it."""
        return self.trains or self.study

    def refuse_workers(self, workers: int, tasks: int) -> None:
        """Refuses several workers where there are no arms for them.

        Raises:
            UserError: It is no study of arms, or each worker would be several processes.
        """
        if workers > 1 and not self.study:
            raise UserError(f"--workers {workers}: {self.name} has no arms to share: leave it out")
        if workers > 1 and tasks > 1:
            raise UserError(
                f"--workers {workers} and --tasks {tasks} cannot be used together here: use "
                "--workers for arms at once, or --tasks for each arm on several devices"
            )

    def refuse_tasks(self, tasks: int) -> None:
        """Refuses several processes where they can't share the work.

        Raises:
            UserError: They can't.
        """
        if tasks > 1 and not self.shared:
            raise UserError(f"--tasks {tasks}: {self.name} runs in one process: use --tasks 1")

    def command(self, python: str, *more: str) -> list[str]:
        """Its command line, with further arguments."""
        return [python, "-m", "mtl_jax", *self.words, *more]

    @property
    def launched(self) -> list[str]:
        """The words behind the ``--`` that ask for it."""
        return list(self.words) if self.trains else ["experiment", *self.words[1:]]

    def flagged(self, flag: str, value: str = "") -> Work:
        """The same with a further flag, where it is not there yet."""
        if any(word.partition("=")[0] == flag for word in self.words):
            return self
        return dataclasses.replace(self, words=(*self.words, f"{flag}={value}" if value else flag))

    @property
    def claims(self) -> Path:
        """The folder of the workers' claims of the arms of a study."""
        return expanded(self.workdir) / FOLDER

    def worker(self) -> Work:
        """What each of the workers of a study runs."""
        return self.flagged("--worker")

    def distributed(self) -> Work:
        """What each of several processes runs, who train it, or each of its arms, together."""
        return self.flagged("--distributed") if self.shared else self


def read_work(words: Sequence[str], run_id: str, runs: str | None) -> Work:
    """What the words behind ``--`` ask for.

    Args:
        words: ``train``, or ``experiment`` and what names a study, and the flags of that.
        run_id: Tells the run from others.
        runs: The folder to put one for the run in, where they name none; None where there is
            no such folder.

    Raises:
        UserError: There is no such thing, its flags are wrong, or it needs a ``--workdir``.
    """
    kind, *flags = words or [""]
    study = None
    if kind == "train":
        work = Work("train", ("train",), "")
    elif kind == "experiment":
        study = find_study(flags[0] if flags else "")
        work = Work(study.name, ("study", study.word), "", study.has_parts, study.file)
        flags = flags[1:]
    else:
        raise UserError(
            f"{kind!r} can't be launched: write train, or experiment and a name, after the --"
        )
    workdir = _workdir(flags)
    if workdir is not None and not workdir.strip():
        raise UserError(f"{_WORKDIR} is empty: name a folder, or leave it out for one of its own")
    if workdir is None and "--help" not in flags:
        if runs is None:
            raise UserError(
                "there is no folder that every machine sees by itself: name one with --workdir"
            )
        workdir = f"{runs.rstrip('/')}/{work.name}-{run_id}"
        say(f"--workdir is {workdir}: name it to resume this run")
        flags = [*flags, f"{_WORKDIR}={workdir}"]
    work = dataclasses.replace(work, words=(*work.words, *flags), workdir=workdir or "")
    if work.trains:
        _check_training(work.words)
    elif study is not None:
        _check_study(study, flags)
    return work


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
    from mtl_jax.cli.flags import Command

    parse(Command, words, "python -m mtl_jax", "")


def _check_study(study: FoundStudy, flags: Sequence[str]) -> None:
    """The same of a study and its arms, as far as no text and no weights are needed for it."""
    main = study.main
    if not isinstance(main, StudyCommand) or "--help" in flags:
        return
    settings = parse(main.kind, with_file(flags, main.kind), f"mtl-jax study {study.word}", "")
    if isinstance(settings, StudySettings):
        settings.check(_depth(settings.backbone))


def _depth(backbone: str) -> int:
    """How many layers a backbone has, where its folder is here; else more than any has."""
    folder = expanded(backbone)
    if not folder.is_dir():
        return ANY_DEPTH
    from mtl_jax.models.pretrained import load_config

    return load_config(folder).num_hidden_layers
