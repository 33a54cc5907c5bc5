"""A study's command line: flags to settings to one call."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from mtl_jax.config.files import with_file
from mtl_jax.config.train import Settings
from mtl_jax.core import distributed, preemption
from mtl_jax.core.command_line import guarded, parse
from mtl_jax.runs.startup import prepare
from mtl_jax.studies.settings import StudySettings


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
        study = parse(self.kind, with_file(argv, self.kind), self.called, self.question)
        # What has no arms has no place to stop at, and ends at once.
        with preemption.heeded() if self.has_parts else contextlib.nullcontext():
            prepare()
            if isinstance(study, StudySettings) and study.distributed:
                distributed.join()
            failed = self.carry_out(study, f"{self.called} {shlex.join(argv)}")
        if failed:
            sys.exit(1)
