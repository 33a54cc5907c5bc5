"""A study of one's own: a question, arms by name, and the statistics and report of all studies."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.studies.command import StudyCommand, planned
from mtl_jax.studies.settings import Arm, Plan, StudySettings, by_seeds

if TYPE_CHECKING:
    from mtl_jax.studies.inputs_pool import InputsPool

Arms = Mapping[str, Mapping[str, Any]]
"""By the name of an arm, the fields of ``TrainConfig`` that it has to itself."""


def study(arms: Arms, question: str | None, command: str | None = None) -> StudyCommand:
    """Makes the command line of a study from its arms.

        ARMS = {"frozen": {"scenario": "backbone_frozen"}, "full": {"scenario": "none_frozen"}}
        main = mtl.studies.study(ARMS, __doc__)

        if __name__ == "__main__":
            sys.exit(main(sys.argv[1:]))

    It takes the flags of ``StudySettings`` (see ``--help``), trains each arm with each seed,
    resumes where it was stopped, and writes ``results.jsonl`` and ``report.html`` with intervals,
    paired comparisons and a recommendation. ``mtl-jax study FILE`` and the launchers can run it
    as well.

    Args:
        arms: The arms to compare, each with its fields of ``TrainConfig``. An arm named
            ``none_frozen`` is the reference for differences, and ``all_frozen`` the baseline.
        question: What the study asks, for ``--help``; the docstring of a module will do. Its
            first paragraph is the title of the report.
        command: How the study is called; by default ``python`` and the calling file.

    Returns:
        The command line: a function from flags to the exit status.

    Raises:
        UserError: There is no arm, or an arm has a field that ``TrainConfig`` does not have.
    """
    _refuse_unknown(arms)

    asked = " ".join(inspect.cleandoc(question or "").split("\n\n")[0].split())
    run = planned(lambda settings, pool: _plan(settings, pool, arms, asked))
    called = command or f"python {shlex.quote(Path(sys.argv[0]).name)}"
    return StudyCommand(StudySettings, question or "", run, called)


def _refuse_unknown(arms: Arms) -> None:
    if not arms:
        raise UserError("a study needs arms: name at least one")
    for name, fields in arms.items():
        if unknown := [field for field in fields if field not in TrainConfig.__dataclass_fields__]:
            raise UserError(f"arm {name}: TrainConfig has no field {unknown[0]!r}: correct it")
        if taken := [field for field in ("seed", "workdir") if field in fields]:
            raise UserError(f"arm {name}: {taken[0]} is set by the study: leave it out")


def _plan(settings: StudySettings, pool: InputsPool, arms: Arms, question: str) -> Plan:
    from mtl_jax.studies.report.write import leave_report

    inputs = pool.whole(settings)
    inputs.refuse_long()

    def arm(name: str, seed: int) -> Arm:
        return settings.arm(name, seed, arms[name])

    return Plan(
        workdir=settings.workdir,
        record={"study": "own", "settings": settings.record(), **inputs.record()},
        groups=list(by_seeds(tuple(arms), settings.seeds, settings.at_once(), arm)),
        report=leave_report,
        question=question.replace("``", "`") or "Which arm to use",
        settings=settings.described(),
        notes=inputs.notes(),
        keep_checkpoints=settings.keep_checkpoints,
    )
