"""What every command line here does alike: flat flags, one-line errors, exit statuses."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import logging
import os
import re
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tyro

from mtl_jax.core import distributed, flag_mistakes, interrupts, streams
from mtl_jax.core.errors import (
    REMEDIES,
    SAVED,
    Preempted,
    UserError,
    first_line,
    reason,
    refuse_undecodable,
    shortened,
)

# Columns that a help page is laid out for at least, and at most.
NARROWEST, _WIDEST = 60, 250
# What tyro frames and divides its messages with.
_CORNERS, _RULES = "╭╮╰╯┌┐└┘+", set("│|─- ")
# Columns in which no message breaks.
_ONE_LINE = 10**6
# Letters of an error's line.
_LONGEST = 4000
# The status of a user's mistake, and of what the machine refuses.
_MISTAKEN = 2
# A shell's of what SIGINT has ended.
_INTERRUPTED = 130

# What the loader of shared libraries says where there is no memory (ulimit -v) for one.
_NO_MAP = "failed to map segment"

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def parse(
    kind: Any,
    argv: Sequence[str],
    prog: str,
    description: str,
    earlier: Mapping[str, str] | None = None,
) -> Any:
    """Flags to a dataclass, or to one of a union of them, by subcommand.

    Args:
        kind: The dataclass, or the union.
        argv: The flags.
        prog: How the command is called.
        description: What stands above the flags in the help.
        earlier: As of ``flag_mistakes.in_words``.

    Raises:
        SystemExit: ``--help`` was asked for (status 0).
        UserError: The flags are wrong.
    """
    for word in argv:
        refuse_undecodable(word)
    errors = io.StringIO()
    helps = bool({"-h", "--help"} & set(argv))
    try:
        with contextlib.redirect_stderr(errors), _columns(_help_width() if helps else _ONE_LINE):
            return tyro.cli(
                kind,
                args=list(argv),
                prog=prog,
                description=description,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        message = _unboxed(errors.getvalue())
        # Of a command of several words tyro names the first one alone.
        first = re.escape(prog.partition(" ")[0])
        told = re.sub(rf"(?<=\bin ){first} (?=(\S+ )?--help\b)", f"{prog} ", message)
        raise UserError(flag_mistakes.in_words(kind, argv, prog, told, earlier or {})) from None
    except TypeError:
        # tyro 1.0 ends in one where flags of several commands are similar to a wrong one.
        if words := flag_mistakes.in_words(kind, argv, prog, "", earlier or {}):
            raise UserError(words) from None
        raise


def _help_width() -> int:
    """Columns of the terminal, within what a help page can be laid out for."""
    return min(max(shutil.get_terminal_size().columns, NARROWEST), _WIDEST)


@contextlib.contextmanager
def _columns(width: int) -> Iterator[None]:
    """Lets tyro take the terminal for one of a width."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _unboxed(message: str) -> str:
    """The text of a message that is framed for a terminal, as one line."""
    lines = []
    for framed in message.splitlines():
        # The escapes of a terminal.
        line = re.sub(r"\x1b\[[0-9;]*m", "", framed).strip()
        if line[:1] in _CORNERS or set(line) <= _RULES:
            line = line.strip("".join(_RULES) + _CORNERS)
        elif line[0] in "│|" and line[-1] in "│|":
            line = line[1:-1].strip()
        if line:
            lines.append(line)
    title, *body = lines
    text = " ".join(body)
    return text if text.startswith(title) else f"{title}: {text}"


def guarded(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Runs a command; a user's mistake becomes one line on standard error and status 2.

    So does what the machine refuses: a file, a folder, room on a disk, a device. What nobody
    has foreseen is a defect of this program, and its traceback is shown. What a scheduler has
    ended, and may start again, has status 75 (``EX_TEMPFAIL``).
    """
    for name in ("absl", "asyncio"):
        # Orbax logs a traceback from each of its threads for an error that it also raises.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    streams.keep_descriptors()
    threads = _Threads(threading.excepthook)
    threading.excepthook, shown = threads, sys.excepthook
    sys.excepthook = functools.partial(_show, shown)
    with interrupts.heeded():
        try:
            with streams.words():
                status = _ended(main, argv, threads)
        finally:
            threading.excepthook, sys.excepthook = threads.told, shown
            streams.end()
        # What is saved is saved by all at the same step.
        if status not in (0, SAVED):
            distributed.abandon(status)
        distributed.leave()
        return status


def _ended(main: Callable[[Sequence[str]], None], argv: Sequence[str], threads: _Threads) -> int:
    try:
        status = _status(main, argv)
    except Exception as error:
        if words := distributed.loss_in_words(error) or _shortage_in_words(error):
            complain(words)
            status = 1
        elif words := _refusal_in_words(error):
            complain(words)
            status = _MISTAKEN
        elif distributed.count() > 1:
            threads.tell()
            traceback.print_exc()
            status = 1
        else:
            threads.tell()
            raise
    else:
        if status == 0:
            threads.tell()
    return status


def complain(message: str) -> None:
    """Prints the line of an error, of which no reader has to see more than some thousand letters.

    The middle goes: the beginning names the thing, the end the reason and the remedy.
    """
    line = shortened(message, _LONGEST).encode(errors="backslashreplace").decode()
    # Where standard error can't be written either, the status is all that there is to tell.
    with contextlib.suppress(OSError):
        print(f"error: {line}", file=sys.stderr, flush=True)


def _show(told: Callable[..., Any], kind: type[BaseException], error: Any, trace: Any) -> None:
    """Shows an error that nobody has caught, but for those of TensorStore's threads.

    What they could not write, the main thread has been told before it closed its event loop.
    """
    if str(error) != "Event loop is closed":
        told(kind, error, trace)


class _Threads:
    """Holds back what threads say of a refusal that the main one may be about to tell.

    An argument is the hook that shows what ends a thread.
    """

    def __init__(self, told: Callable[[threading.ExceptHookArgs], Any]):
        self.told = told
        self._held: list[threading.ExceptHookArgs] = []

    def __call__(self, ended: threading.ExceptHookArgs) -> None:
        if ended.exc_value and _system_error(ended.exc_value):
            self._held.append(ended)
        else:
            self.told(ended)

    def tell(self) -> None:
        """Shows what was held back."""
        for ended in self._held:
            self.told(ended)


def _shortage_in_words(error: Exception) -> str | None:
    """What to say where an array finds no room; None for any other error."""
    text = " ".join(str(error).split())
    # What XLA raises is known by its text alone.
    if isinstance(error, RuntimeError) and text.startswith("RESOURCE_EXHAUSTED"):
        place, reason = "the device", text.partition(": ")[2]
    elif isinstance(error, MemoryError) or (isinstance(error, ImportError) and _NO_MAP in text):
        place, reason = "the machine", text or "an array found no room"
    else:
        return None
    return (
        f"{place} has not enough memory ({shortened(reason, 200)}): a smaller "
        "--batch-size or --max-length takes less, and so do --remat, --dtype bfloat16 and, where "
        "seeds are trained at once, a smaller --seeds-at-once"
    )


def _refusal_in_words(error: Exception) -> str | None:
    """What to say where the system, and not this program, is at fault; None for any other error."""
    if refusal := _system_error(error):
        return _system_error_in_words(refusal)
    if why := _no_device(error):
        return (
            f"JAX can't use the devices that it was told to ({why}): set JAX_PLATFORMS to what "
            "this machine has, such as cpu, or unset it"
        )
    text = first_line(error)
    if isinstance(error, RuntimeError) and text.startswith("Could not determine home directory"):
        return "there is no home folder for a path with ~: set HOME, or write the path in full"
    return None


def _no_device(error: Exception) -> str | None:
    """Why JAX has no device of those it was told to use, where that is what an error says."""
    text = first_line(error)
    if isinstance(error, RuntimeError):
        told = re.match(r"Unable to initialize backend|Unknown backend|No known backend", text)
        return text if told else None
    # JAX passes CUDA over without a GPU that it can see, and asserts that some device is left.
    if isinstance(error, AssertionError) and os.environ.get("JAX_PLATFORMS"):
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__") == "jax._src.xla_bridge":
            return "no GPU is visible"
    return None


def _system_error(error: BaseException) -> OSError | None:
    """What the system refused, where an error says that it is nothing else."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause
        # TensorStore, below Orbax, gives what the system said in its text alone.
        if found := re.search(r"\[OS error (\d+): ", str(cause)):
            number, path = int(found[1]), re.search(r'"(/[^"]*)"', str(cause))
            return OSError(number, os.strerror(number), path and path[1])
        cause = cause.__cause__
    return None


def _current_folder() -> str | None:
    with contextlib.suppress(OSError):
        return os.getcwd()  # noqa: PTH109
    return None


def _system_error_in_words(error: OSError) -> str:
    name: Any = error.filename
    thing = os.fsdecode(name) if isinstance(name, str | bytes) else "a file"
    if name is None and error.errno == errno.ENOENT and not _current_folder():
        return "the current folder is gone: change to another one (cd)"
    verb = "written" if error.errno in _NO_ROOM else "used"
    remedy = REMEDIES.get(error.errno or 0, "correct it, or name another")
    return f"{thing} can't be {verb} ({reason(error)}): {remedy}"


def _status(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    try:
        with streams.answers():
            status = _outcome(main, argv)
            if status != _MISTAKEN:
                sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read standard output has left; the interpreter must not flush it again.
        streams.drop(sys.stdout)
        return 1
    return status


def _outcome(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    try:
        if sys.stdout is None:
            raise UserError(
                "standard output is closed: give it a file or a pipe, or > /dev/null for none"
            )
        main(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except (Exception, KeyboardInterrupt, Preempted) as error:
        # Also where C code that is being imported makes an error of its own of it.
        stop = _asked_to_end(error)
        if isinstance(stop, Preempted):
            print(stop, file=sys.stderr)
            return SAVED
        if stop is not None:
            # A second one, by someone who is in a hurry.
            interrupts.end_at_once()
            print("interrupted", file=sys.stderr)
            return _INTERRUPTED
        if not isinstance(error, UserError):
            raise
        if not isinstance(error, distributed.RelayedError):
            complain(str(error))
        return _MISTAKEN
    return 0


def _asked_to_end(error: BaseException | None) -> Preempted | KeyboardInterrupt | None:
    """The end by SIGTERM or SIGINT that an error came of, if it did."""
    while error is not None and not isinstance(error, (Preempted, KeyboardInterrupt)):
        error = error.__cause__ or error.__context__
    return error


def one_line(error: Exception) -> str:
    """What failed, for a report that goes on: a user's mistake as told, else with its type."""
    text = shortened(" ".join(str(error).split()), 1000)
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
