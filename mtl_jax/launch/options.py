"""What every place has options for, and how a command is written down for a shell."""

from __future__ import annotations

import dataclasses
import re
import secrets
import shlex
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime

from mtl_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What every place has options for."""

    run_id: str | None = None
    """names the run's folder where --workdir does not; by default made from the time"""
    dry_run: bool = False
    """print exactly what would run, and run nothing"""

    def __post_init__(self) -> None:
        if self.run_id is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.run_id):
            raise UserError(
                f"--run-id {self.run_id} may have letters, digits, '.', '_' and '-' only"
            )

    def known_run_id(self) -> str:
        """The run id, made anew where none is given."""
        return self.run_id or f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"

    def runs_folder(self) -> str | None:
        """Where a run that names no folder has one; None where no folder is fit for it."""
        return "runs"

    def _refuse_below(self, least: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name.replace('_', '-')} {value} must be at least {least}")


def python() -> str:
    """This interpreter, by a path that holds from any folder."""
    return sys.executable


def quoted(words: Sequence[str]) -> str:
    """A command line as a shell reads it."""
    return " ".join(map(shlex.quote, words))


def commented(line: str) -> str:
    """A line of a script, with what keeps shellcheck from taking quoted ``$`` for a mistake."""
    expands = "$" in line or "`" in line
    return f"# shellcheck disable=SC2016\n{line}" if expands and "'" in line else line


def device_flags(devices: int | None) -> str:
    """What ``XLA_FLAGS`` needs in addition for so many CPU devices in each process."""
    return f"--xla_force_host_platform_device_count={devices}" if devices else ""


def need(tool: str, where: str) -> None:
    """Refuses to go on where a program is missing.

    Raises:
        UserError: It is.
    """
    if shutil.which(tool) is None:
        raise UserError(f"{tool} was not found: {where}, or use --dry-run to see what would be run")
