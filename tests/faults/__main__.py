"""Does a run survive whatever happens to it? Kills, signals and damage, and a tally.

    python -m tests.faults --workdir DIR

A small run is trained without interruption. Then, again and again, it is killed by SIGKILL at
a random moment, some of them while it saves, and started again; ended by SIGTERM likewise; and
the checkpoints in a copy of its folder are damaged. Each time it has to come to the end of the
uninterrupted run: parameters, optimizer state, metrics.jsonl and certificate, bit for bit. After
damage it may also refuse, in one line. By default these are 55 trials, half an hour on two cores.

What comes after ``--`` are flags of ``python -m mtl_jax train``, in the place of the default's:

    python -m tests.faults --workdir DIR --kills 5 -- --scenario top_2 --checkpoint-every 10
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mtl_jax.core.command_line import guarded, parse
from mtl_jax.core.errors import UserError
from mtl_jax.core.paths import expanded

if TYPE_CHECKING:
    from tests.faults.trials import Outcome

# Two phases, kept activations, many steps at once, and a checkpoint of everything.
DEFAULT_RUN = (
    "--recipe=lp_ft",
    "--epochs=4",
    "--batch-size=16",
    "--max-train-examples=192",
    "--max-validation-examples=64",
    "--max-test-examples=64",
    "--checkpoint-every=5",
    "--checkpoint-minutes=0.01",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faults:
    """What is tried, and how often."""

    workdir: str
    """a new folder for the runs and faults.json"""
    kills: int = 25
    """runs killed by SIGKILL"""
    terms: int = 10
    """runs ended by SIGTERM"""
    corruptions: int = 20
    """folders whose checkpoints are damaged"""
    seed: int = 0
    """of every moment and place"""

    def __post_init__(self) -> None:
        for name in ("kills", "terms", "corruptions", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} {getattr(self, name)} must not be negative")


def carry_out(
    faults: Faults, flags: Sequence[str], start: Callable[..., Any] = subprocess.Popen
) -> bool:
    """Tries it all, prints the tally, and writes ``faults.json``.

    Args:
        faults: What is tried.
        flags: Of ``train``, but for ``--workdir``.
        start: Starts the processes, as ``subprocess.Popen``.

    Returns:
        Whether every trial was passed.

    Raises:
        UserError: The folder is not new, or the run can't be trained.
    """
    import jax

    # An accelerator is for the runs, and is not shared with who looks at them.
    jax.config.update("jax_platforms", "cpu")
    from mtl_jax.core.console import say
    from mtl_jax.core.json_files import write_json
    from tests.faults.runs import Command
    from tests.faults.trials import Trials

    folder = expanded(faults.workdir).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--workdir {folder} is there already: name a new folder")
    started = time.monotonic()
    trials = Trials(Command(flags, folder / "logs", start), folder, faults.seed)
    pace = trials.prepare()
    say(
        f"uninterrupted: {pace.seconds:.1f} s, {pace.saves} saves of {pace.save_seconds:.2f} s in "
        "the background"
    )
    kinds: dict[str, tuple[Callable[[int], Outcome], int]] = {
        "SIGKILL": (trials.kill, faults.kills),
        "SIGTERM": (trials.terminate, faults.terms),
        "damage": (trials.corrupt, faults.corruptions),
    }
    outcomes: dict[str, list[Outcome]] = {name: [] for name in kinds}
    for name, (attempt, count) in kinds.items():
        for number in range(count):
            outcome = attempt(number)
            outcomes[name].append(outcome)
            verdict = "passed" if outcome.passed else "FAILED"
            say(f"{name} {number + 1} of {count}: {outcome.what}: {verdict}, {outcome.how}")
    record: dict[str, Any] = {
        **dataclasses.asdict(faults),
        "flags": list(flags),
        "pace": dataclasses.asdict(pace),
        "seconds": time.monotonic() - started,
        "trials": {
            name: [dataclasses.asdict(each) for each in those] for name, those in outcomes.items()
        },
    }
    write_json(folder / "faults.json", record)
    for line in tally(outcomes):
        print(line)
    return all(outcome.passed for those in outcomes.values() for outcome in those)


def tally(outcomes: dict[str, list[Outcome]]) -> list[str]:
    """How many of each kind were passed, and how, one line each."""
    lines = []
    for name, those in outcomes.items():
        ways: dict[str, int] = {}
        for outcome in those:
            how = outcome.how if outcome.passed else "FAILED"
            ways[how] = ways.get(how, 0) + 1
        said = "; ".join(f"{count} {how}" for how, count in ways.items())
        saving = sum(outcome.while_saving for outcome in those)
        also = f" ({saving} while a checkpoint was being written)" if saving else ""
        passed = sum(outcome.passed for outcome in those)
        lines.append(f"{name}{also}: {passed} of {len(those)} passed: {said or 'not tried'}")
    return lines


def _main(argv: Sequence[str]) -> None:
    own, flags = list(argv), list(DEFAULT_RUN)
    if "--" in own:
        place = own.index("--")
        own, flags = own[:place], own[place + 1 :]
    if any(flag.startswith("--workdir") for flag in flags):
        raise UserError("--workdir after --: the runs have folders in that before it")
    if not carry_out(parse(Faults, own, "python -m tests.faults", __doc__ or ""), flags):
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(guarded(_main, sys.argv[1:]))
