"""What ends a command other than success: a user's mistake, and a scheduler's notice."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

# The status of a run that has saved what it had after a SIGTERM, and can be gone on with:
# EX_TEMPFAIL of sysexits.h.
SAVED = 75

REMEDIES = {
    errno.ENOSPC: "make room, of bytes and of files (df, df -i), or name another place",
    errno.EDQUOT: "make room in the quota, or name another place",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f), or name another place",
    errno.EROFS: "name a place that can be written",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit on open files",
    errno.EACCES: "give access to it, or name another",
    errno.EPERM: "give access to it, or name another",
    errno.ENOENT: "correct the path, or put it there",
    errno.ENOTDIR: "a file stands where the path has a folder: correct the path",
    errno.ELOOP: "a link in it leads back to itself: correct that",
    errno.EISDIR: "it is a folder: name a file",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "check the disk",
    errno.ENOMEM: "free memory",
}
"""What to do about what the system refuses, by its number."""

# How pyarrow and safetensors spell an errno.
_NUMBER = re.compile(r"(?:errno|os error|code:) (\d+)", re.IGNORECASE)
# Of a long text that is refused, what is shown on both sides of the fault.
_AROUND = 100


class UserError(Exception):
    """A mistake the user can mend: one line that names the thing and the remedy.

        try:
            model = mtl.Predictor("runs/mine")
        except mtl.UserError as error:
            print(error)

    The command line prints it on standard error and exits with status 2; from
    Python it is an ordinary exception.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def require_type(value: object, kind: type | tuple[type, ...], what: str, remedy: str) -> None:
    """Requires an argument to be of a type.

    Args:
        value: The argument.
        kind: The type, or those that it may have.
        what: What the argument is called.
        remedy: What to give in its place.

    Raises:
        UserError: It is of another type.
    """
    if not isinstance(value, kind):
        raise UserError(f"{what} has the type {type(value).__name__}: {remedy}")


class SharedError(UserError):
    """One that every process of a run meets at the same place, so that all can go on after it.

    Any other may be that of one process alone, which the others know nothing of.
    """


class UnsavedError(UserError):
    """A checkpoint could not be saved, as on a full disk: other runs beside it would fare alike."""


class Preempted(BaseException):
    """The process was asked to end, and has saved what it had: the same command goes on.

    The command line prints its one line and exits with status 75, ``EX_TEMPFAIL`` of
    sysexits.h. Like ``KeyboardInterrupt`` it is no ``Exception``: it may come at any moment,
    and who catches whatever goes wrong must not take it for a failure.
    """


class NoFileError(OSError):
    """Something else, as a folder or a device, is in the place of a file that is to be written."""


def shortened(words: str, most: int) -> str:
    """A text of at most ``most`` characters, about, without its middle.

    A message names its thing at the beginning, and the reason and the remedy at the end.
    """
    half = most // 2
    return words if len(words) <= most else f"{words[:half]} ... {words[-half:]}"


def refuse_undecodable(text: str) -> None:
    """Refuses a text that is not UTF-8, as the name of a file may be.

    Names end up in JSON files and in scripts, and in libraries that take UTF-8 alone.

    Raises:
        UserError: The text has bytes that are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(error.start - _AROUND, 0) : error.end + _AROUND]
        name = os.fsencode(around).decode("utf-8", "backslashreplace")
        raise UserError(f"{name!r} is not UTF-8 text: rename the file or folder") from None


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without its middle where it is long."""
    # TensorStore adds where in its own source it was, and with what settings.
    words = str(error).partition("[source locations=")[0]
    lines = [line for line in words.splitlines() if line.strip()]
    return shortened(lines[0].strip(), 1000) if lines else repr(error)


def system_number(error: BaseException) -> int:
    """The errno of an error, from its text where a library gives it only there; 0 without one."""
    number = error.errno if isinstance(error, OSError) else None
    found = None if number else _NUMBER.search(" ".join(map(str, error.args)))
    return int(found[1]) if found else number or 0


def reason(error: OSError) -> str:
    """The system's message of an error, without the text that a library has put around it."""
    # Not ``str(error)``: of an error without an errno that is "[Errno None] None" and its file.
    words = error.strerror or " ".join(map(str, error.args)) or repr(error)
    found = _NUMBER.search(words)
    return os.strerror(int(found[1])) if found else shortened(" ".join(words.split()), 1000)


def cannot_write(path: Path, error: OSError) -> UserError:
    """What to say where a file or folder can't be written."""
    error = _with_errno(error)
    remedy = _of_another_kind(error)
    if isinstance(error, FileNotFoundError):
        remedy = "put back the folder that it is in, or name another"
    remedy = remedy or REMEDIES.get(error.errno or 0, "make room or access")
    return UserError(f"{path} can't be written ({reason(error)}): {remedy}")


def cannot_read(path: Path, error: OSError) -> UserError:
    """What to say where a file or folder is there, or not, and can't be read."""
    error = _with_errno(error)
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} is missing: correct the path, or put the file there")
    remedy = _of_another_kind(error)
    if not isinstance(error, PermissionError):
        remedy = remedy or REMEDIES.get(error.errno or 0)
    remedy = remedy or "give read access to it"
    return UserError(f"{path} can't be read ({reason(error)}): {remedy}")


def _with_errno(error: OSError) -> OSError:
    """The error as the system raises it, of its own class, where only its text has an errno."""
    number = system_number(error)
    return OSError(number, os.strerror(number)) if number and error.errno is None else error


def _of_another_kind(error: OSError) -> str | None:
    """What to do where there is a folder in the place of a file, or the other way round."""
    if isinstance(error, NoFileError):
        return "there should be a file: name one, or move that away"
    if isinstance(error, IsADirectoryError):
        return "there should be a file: move that folder away"
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return "there should be a folder: move that file away"
    return None


def no_trained_head(weight: float, why: str) -> UserError:
    """The refusal of ``--hold-frozen-heads`` where there is no head to hold.

    Args:
        weight: What was asked for.
        why: A reason, and what to use instead, to be gone on with an example of a recipe.
    """
    return UserError(
        f"--hold-frozen-heads {weight:g} is for a head that an earlier phase has trained, and "
        f"{why}, such as sequential_heads, or leave --hold-frozen-heads out"
    )
