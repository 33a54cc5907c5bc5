"""What every place has options for, and how a command is written down for a shell."""

from __future__ import annotations

import dataclasses
import posixpath
import re
import secrets
import shlex
import shutil
import signal
import sys
import unicodedata
from collections.abc import Sequence
from datetime import datetime

from mtl_jax.core.errors import SAVED, UserError

# What a run ends with that can be gone on with: it has saved, or SIGTERM came before it had
# begun to heed that.
GONE_ON_WITH = (SAVED, 128 + signal.SIGTERM)
# What a mistake of the user's ends with, which no further try mends.
MISTAKE = 2

# Names of files and jobs begin with it.
_LONGEST_ID = 100
# What of a wrong value is said.
_LONGEST_SHOWN = 80

# A name of Kubernetes' (RFC 1123): a label, of at most 63 characters, and several with dots.
LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
DOTTED = rf"{LABEL}(\.{LABEL})*"
SUBDOMAIN = rf"(?=.{{1,253}}$){DOTTED}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What every place has options for."""

    run_id: str | None = None
    """name of the run's folder if --workdir does not name one; by default made from the time"""
    dry_run: bool = False
    """print exactly what would be executed, and execute nothing"""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str):
                    # Of the options only this one is a piece of a script.
                    refuse_unprintable(_flag(field.name), text, lines=field.name == "setup")
        if self.run_id is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.run_id):
            raise UserError(
                f"--run-id {self.run_id} may have letters, digits, '.', '_' and '-' only"
            )
        if self.run_id is not None and len(self.run_id) > _LONGEST_ID:
            raise UserError(
                f"--run-id has {len(self.run_id)} characters: use at most {_LONGEST_ID}"
            )

    def known_run_id(self) -> str:
        """The run id, made anew where none is given."""
        return self.run_id or f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"

    def runs_folder(self) -> str | None:
        """Where a run that names no folder has one; None where no folder is fit for it."""
        return "runs"

    def _refuse_outside(self, least: int, most: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            # Written so that nan is refused, too.
            if value is None or least <= value <= most:
                continue
            end = f"at most {most}" if value > most else f"at least {least}"
            raise UserError(f"{_flag(name)} {_shortened(str(value))} must be {end}")

    def _refuse_unlike(self, pattern: str, example: str, *names: str) -> None:
        """Refuses texts that a regular expression does not match as a whole."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not re.fullmatch(pattern, value, re.ASCII):
                raise UserError(f"{_flag(name)} {_shortened(value)} must be written as {example}")

    def _refuse_unlike_options(self, name: str, example: str) -> None:
        for option in getattr(self, name):
            if not option.startswith("-"):
                raise UserError(f"{_flag(name)} {option!r} must be one option, as {example}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def refuse_unprintable(flag: str, text: str, *, lines: bool = False) -> None:
    """Refuses a text that is empty, or that a line of a script or manifest can't hold.

    Args:
        flag: What it is the value of.
        text: The value.
        lines: Whether it may have several lines.

    Raises:
        UserError: It is empty, has a control character or a line break, or is no UTF-8.
    """
    if not text.strip():
        raise UserError(f"{flag} is empty: give it a value, or leave it out")
    for character in text:
        kind = unicodedata.category(character)
        if kind == "Cs":
            raise UserError(f"{flag} {_shortened(ascii(text))} is not UTF-8: use another name")
        if kind in ("Cc", "Zl", "Zp") and not (lines and character in "\n\t"):
            raise UserError(
                f"{flag} {_shortened(ascii(text))} has a line break or another control "
                "character: leave it out"
            )


def refuse_other_folders(flag: str, path: str) -> None:
    """Refuses a path that leads elsewhere than its words say.

    Raises:
        UserError: It does not begin with /, or has "..", "." or an empty part.
    """
    plain = path.removesuffix("/") or "/"
    if not path.startswith("/") or posixpath.normpath(path) != plain or path.startswith("//"):
        raise UserError(
            f"{flag} {_shortened(path)} must be a folder from / on, without '..', '.' and '//', "
            "as /runs"
        )


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
