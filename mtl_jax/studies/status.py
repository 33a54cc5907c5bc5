"""How far the workers of a study are, from the small files of their claims alone."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from mtl_jax.core.command_line import parse
from mtl_jax.core.console import Terminal, duration
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import OBJECT, read_json
from mtl_jax.core.paths import expanded
from mtl_jax.studies.leases import Holder, Standing, holder, is_here, standings
from mtl_jax.studies.work_queue import ARMS, FOLDER, MOST_DEATHS, why_lacking

_ARMS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["arm", "seed", "claim"],
        "properties": {"claim": {"type": "string"}},
    },
}
# Of so many arms, the last ones, the time is looked at: of a thousand it would take its own.
_TIMED = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShowStatus:
    """Show the progress of a study: arms done, running (and where), and failed (and why)."""

    workdir: str
    """folder of the study"""
    json: bool = False
    """print JSON in a terminal, too"""


@dataclasses.dataclass(frozen=True)
class Status:
    """How far a study is.

    Attributes:
        arms: How many it has.
        done: How many have a result.
        running: Of each that a worker has, its identity with ``host``, ``pid``, and ``seconds``
            since it was claimed, as the worker last said; ``dead`` where it is known to be.
        failed: Of each that has failed last, or been given up, its identity, ``error``, and
            ``tries``.
        waiting: How many nobody has, with those that have failed and are tried again.
        seconds_left: What is left to do over the workers that are there, if both are known.
    """

    arms: int
    done: int
    running: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    waiting: int
    seconds_left: float | None


def show_status(argv: Sequence[str], called: str) -> None:
    """Prints how far a study is: tables in a terminal, JSON elsewhere.

    Args:
        argv: The flags of ``ShowStatus``.
        called: The command that they belong to, for help and errors.

    Raises:
        UserError: As of ``status_of``, or the flags are wrong.
    """
    asked = parse(ShowStatus, argv, called, ShowStatus.__doc__ or "")
    status = status_of(asked.workdir)
    if asked.json or not sys.stdout.isatty():
        print(json.dumps(dataclasses.asdict(status)))
        return
    console = Terminal()
    for each in status_tables(status):
        console.print(each)


def status_of(workdir: str) -> Status:
    """Reads how far a study is, whoever is at work in it.

    Args:
        workdir: Its folder.

    Raises:
        UserError: No study has begun there, or its files are damaged.
    """
    folder = expanded(workdir) / FOLDER
    if not (folder / ARMS).exists():
        raise UserError(
            f"no study has begun in {workdir} yet (no {FOLDER}/{ARMS}): wait for its first worker, "
            "or name the folder of another study"
        )
    arms = read_json(folder / ARMS, _ARMS, "run the study again, which makes it")
    known = standings(folder)
    done, running, failed, seconds = [], [], [], []
    for arm in arms:
        claim = arm["claim"]
        identity = {name: value for name, value in arm.items() if name != "claim"}
        standing = known.get(claim, Standing())
        if standing.done:
            done.append(folder / f"{claim}.{standing.ends.index('done') + 1}.done")
            continue
        where = {}
        if standing.claimed:
            where = _where(folder / f"{claim}.{len(standing.ends)}")
        # After so many deaths nobody takes the arm over from the last one.
        given_up = where.get("dead") and standing.deaths + 1 >= MOST_DEATHS
        if where and not given_up:
            running.append({**identity, **where})
        elif standing.failures or given_up:
            why = why_lacking(folder, claim, standing)
            tries = standing.failures or standing.deaths + 1
            failed.append({**identity, "error": why["error"], "tries": tries})
    for mark in done[-_TIMED:]:
        found = read_json(mark, OBJECT, "remove it").get("seconds")
        seconds.extend([found] if isinstance(found, (int, float)) else [])
    left = len(arms) - len(done)
    workers = {(each["host"], each["pid"]) for each in running if not each.get("dead")}
    spent = sum(each["seconds"] for each in running if not each.get("dead"))
    seconds_left = None
    if not left:
        seconds_left = 0.0
    elif seconds and workers:
        whole = statistics.fmean(seconds) * (left - len(failed))
        seconds_left = round(max(whole - spent, 0.0) / len(workers), 1)
    waiting = left - len(running) - len(failed)
    return Status(len(arms), len(done), running, failed, waiting, seconds_left)


def _where(claim: Path) -> dict[str, Any]:
    found = holder(claim) or Holder("unknown", 0, 0, "", "", 0.0)
    dead = {"dead": True} if is_here(found) is False else {}
    return {"host": found.host, "pid": found.pid, "seconds": found.seconds, **dead}


def status_tables(status: Status) -> Iterator[Table | str]:
    """The same for a reader: a line, and a table of what runs and of what has failed."""
    left = "" if status.seconds_left is None else f", {duration(status.seconds_left)} left"
    yield (
        f"{status.done} of {status.arms} arms done, {len(status.running)} running, "
        f"{status.waiting} waiting, {len(status.failed)} failed{left if status.running else ''}"
    )
    if status.running:
        table = Table("running", "seed", "where", "for", title_justify="left")
        for each in status.running:
            where = f"{each['host']}, process {each['pid']}"
            where += " (dead: another worker takes it over)" if each.get("dead") else ""
            table.add_row(_named(each), str(each["seed"]), where, duration(each["seconds"]))
        yield table
    if status.failed:
        table = Table("failed", "seed", "tries", "why")
        for each in status.failed:
            table.add_row(_named(each), str(each["seed"]), str(each["tries"]), each["error"])
        yield table


def _named(arm: Mapping[str, Any]) -> str:
    setting = "".join(f", {name} {value}" for name, value in arm.get("setting", {}).items())
    return f"{arm['arm']}{setting}"
