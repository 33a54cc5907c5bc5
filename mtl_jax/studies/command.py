"""A study's command line: flags to settings to one call."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mtl_jax.config.earlier import FLAGS
from mtl_jax.config.files import with_file
from mtl_jax.config.train import Settings
from mtl_jax.core import distributed, preemption
from mtl_jax.core.command_line import guarded, parse
from mtl_jax.runs.startup import prepare
from mtl_jax.studies.settings import Plan, StudySettings

if TYPE_CHECKING:
    from mtl_jax.studies.inputs_pool import InputsPool


def planned(plan_of: Callable[[Any, InputsPool], Plan]) -> Callable[[Any, str], int]:
    """What ``StudyCommand`` carries out of a study that is laid out as a plan.

    Args:
        plan_of: The plan, from the settings and what is read for them.

    Returns:
        See ``runner.carry_out``: from the settings and the command, how many arms failed.
    """

    def run(study: Any, command: str) -> int:
        from mtl_jax.studies.runner import carry_out

        return carry_out(study, plan_of, command)

    return run


@dataclasses.dataclass(frozen=True)
class StudyCommand:
    """The ``main`` of a study's module.

    Attributes:
        kind: The study's settings.
        question: What it asks, for ``--help``.
        carry_out: What is done with the settings, and with the command as the report has it;
            how many arms failed.
        called: The words that it is called by, as a shell reads them.
    """

    kind: type[Settings]
    question: str
    carry_out: Callable[[Any, str], int]
    called: str

    @property
    def has_parts(self) -> bool:
        """Whether it has arms that several processes can share."""
        return issubclass(self.kind, StudySettings)

    def called_as(self, words: str) -> StudyCommand:
        """The same, called by other words."""
        return dataclasses.replace(self, called=words)

    def __call__(self, argv: Sequence[str]) -> int:
        """Runs a command line; returns the exit status, which is 1 where an arm failed."""
        return guarded(self._main, argv)

    def _main(self, argv: Sequence[str]) -> None:
        # A terminal has no use for the marks of code in a docstring.
        question = self.question.replace("``", "")
        study = parse(self.kind, with_file(argv, self.kind), self.called, question, FLAGS)
        # No help waits for it.
        from mtl_jax.core.console import say_awaited

        # What has no arms has no place to stop at, and ends at once.
        with preemption.heeded() if self.has_parts else contextlib.nullcontext():
            several = isinstance(study, StudySettings) and study.distributed
            if not several:
                say_awaited("loading the data and the encoder")
            prepare()
            if several:
                distributed.join()
            failed = self.carry_out(study, f"{self.called} {shlex.join(argv)}")
        if failed:
            sys.exit(1)
