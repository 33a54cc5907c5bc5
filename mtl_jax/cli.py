"""What every command line here does alike: flat flags, one-line errors, exit statuses."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from mtl_jax import process, processes, tokenizer
from mtl_jax.errors import SAVED, Preempted, UserError


def parse(kind: Any, argv: Sequence[str], prog: str, description: str) -> Any:
    """Flags to a dataclass, or to one of a union of them, by subcommand.

    Raises:
        SystemExit: ``--help`` was asked for (status 0).
        UserError: The flags are wrong.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
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
        raise UserError(_unboxed(errors.getvalue())) from None


def _unboxed(message: str) -> str:
    """The text of a message that is framed for a terminal, as one line."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in message.splitlines()]
    lines = [line.strip("│╭╮╰╯─┌┐└┘ ") for line in lines]
    title, *body = [line for line in lines if line]
    text = " ".join(body)
    return text if text.startswith(title) else f"{title}: {text}"


def guarded(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Runs a command; a user's mistake becomes one line on standard error and status 2.

    What a scheduler has ended, and may start again, has status 75 (``EX_TEMPFAIL``).
    """
    for name in ("absl", "asyncio"):
        # Orbax logs a traceback from each of its threads for an error that it also raises.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        status = _status(main, argv)
    except Exception as error:
        if words := processes.loss_in_words(error) or _shortage_in_words(error):
            print(f"error: {words}", file=sys.stderr)
        elif processes.count() > 1:
            traceback.print_exc()
        else:
            raise
        status = 1
    # What is saved is saved by all at the same step.
    if status not in (0, SAVED):
        processes.abandon(status)
    processes.leave()
    return status


def _shortage_in_words(error: Exception) -> str | None:
    """What to say where an array finds no room; None for any other error."""
    text = " ".join(str(error).split())
    # What XLA raises is known by its text alone.
    if not isinstance(error, RuntimeError) or not text.startswith("RESOURCE_EXHAUSTED"):
        return None
    return (
        f"the device has not enough memory ({text.partition(': ')[2][:120]}): a smaller "
        "--batch-size or --max-length takes less, and so do --remat, --dtype bfloat16 and, where "
        "seeds are trained at once, a smaller --seeds-at-once"
    )


def _status(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    try:
        main(argv)
    except UserError as error:
        if not isinstance(error, processes.RelayedError):
            print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Preempted as stop:
        print(stop, file=sys.stderr)
        return SAVED
    except BrokenPipeError:
        # Whoever read standard output has left; the interpreter must not flush it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def one_line(error: Exception) -> str:
    """What failed, for a report that goes on: a user's mistake as told, else with its type."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def prepare() -> None:
    """What a command does before its first array; for processes of our own only."""
    import_transformers_alone()
    process.keep_freed_memory()
    process.keep_compiled()


def import_transformers_alone() -> None:
    """Imports transformers before it can import PyTorch or TensorFlow.

    For processes of our own only: afterwards it takes them for absent.
    """
    with process.without("torch", "tensorflow"):
        tokenizer.tokenizer_class()
