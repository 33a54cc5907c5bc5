"""The command ``mtl-jax study``: a study by its name, module or file."""

from __future__ import annotations

from collections.abc import Sequence

from mtl_jax.core.errors import UserError
from mtl_jax.studies.registry import JUDGE, STATUS, built_in, find_study, questions

_USAGE = "mtl-jax study NAME|module|FILE.py [flags]"


def run_study(argv: Sequence[str]) -> int:
    """Runs the study that the first word names; without one, lists what there is.

    Args:
        argv: What follows ``study``.

    Returns:
        The exit status.

    Raises:
        UserError: There is no such study, or its flags come first.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_listing())
        return 0
    if argv[0].startswith("-"):
        raise UserError(
            f"{argv[0]} stands where the name of the study should be: write {_USAGE}, with "
            f"{', '.join(built_in())} for NAME, or a study of your own"
        )
    if argv[0] == JUDGE:
        # With JAX, which no help waits for.
        from mtl_jax.studies.judge import judge_study

        return judge_study(argv[1:])
    if argv[0] == STATUS:
        from mtl_jax.studies.status import show_status

        show_status(argv[1:], f"mtl-jax study {STATUS}")
        return 0
    return find_study(argv[0]).run(argv[1:])


def _listing() -> str:
    width = max(map(len, built_in()))
    return "\n".join(
        [
            f"usage: {_USAGE}",
            "",
            "Run a study: many runs, compared in one report. The built-in studies:",
            "",
            *(f"  {name:{width}}  {question}" for name, question in questions().items()),
            "",
            "mtl-jax study NAME --help shows the flags of a study. Your own study is a module or",
            "file with a function main(argv), such as mtl_jax.studies.study makes; see",
            "docs/studies.md.",
            "",
            f"mtl-jax study {STATUS} --workdir DIR shows the progress of a study's workers.",
            f"mtl-jax study {JUDGE} DIR writes the report of a study again without training.",
        ]
    )
