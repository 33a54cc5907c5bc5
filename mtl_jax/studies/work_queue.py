"""Which arms of a study a worker trains next, among workers that share the study's folder.

The arms that a worker has begun with draw after them those of the same data and backbone, and of
these first the ones that share a compiled step: what is read, computed and compiled once serves
them all. The folder is listed now and then only, and not for each arm; a worker that does not know
yet that an arm has been claimed fails to claim it, and goes on to the next.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import time
from collections import Counter, deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.core.json_files import read_json
from mtl_jax.studies.leases import Claims, How, Standing, holder, is_here, leave_mark, standings

FOLDER = "queue"
"""Where in a study's folder its claims are."""
ARMS = "arms.json"
"""The file in it that names all arms of the study."""
MOST_DEATHS = 10
"""How many workers may die as they train an arm before it counts as failed."""
# How old what is known of the folder may be as the next arm is chosen, and how long is waited
# before it is looked again whether a worker of another machine is alive.
_LIST_EVERY, _LOOK_EVERY = 5.0, 1.0
# A name in a folder has 255 characters at most, and ours go on behind it.
_LONGEST_NAME = 200
_GO_ON = "let workers go on with the study"
_FAILURE = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}


@dataclasses.dataclass(frozen=True)
class Unit:
    """Arms that are trained at once.

    Attributes:
        place: Where it stands among all, from 0.
        arms: The names of their claims.
        inputs: A number that is the same for units that read the same data and backbone.
        step: The same for those whose steps are compiled alike, too.
    """

    place: int
    arms: Sequence[str]
    inputs: int
    step: Hashable


class WorkQueue:
    """The arms of a study that are to be trained, as one of its workers sees them.

    Args:
        claims: The worker's.
        units: The arms, in the order in which one worker by itself trains them.
        tries: How often an arm that fails is trained before it is given up.
        alone: Whether no other worker is in the study's folder: whoever has claimed an arm is
            gone, and what has failed before is tried again, once.
    """

    def __init__(self, claims: Claims, units: Sequence[Unit], tries: int, *, alone: bool = False):
        self._claims, self._tries, self._alone = claims, tries, alone
        self._units = {unit.place: unit for unit in units}
        self._known: dict[str, Standing] = {}
        self._waiting: deque[deque[Unit]] = deque()
        self._needed: Counter[int] = Counter()
        self._last: Unit | None = None
        self._listed = -_LIST_EVERY
        # Workers that come at the same moment do not go for the same arms.
        self._dice = random.Random()  # noqa: S311  (nothing secret)
        if alone:
            forgive(claims.folder, alone=True)

    def take(self) -> list[str]:
        """Claims what is to be trained next, at once, which are arms of one unit.

        Returns:
            Their names; none where nothing is left that this worker could do: every other arm is
            done, given up, or with a worker that is alive.

        Raises:
            UserError: The folder can't be read or written.
        """
        fresh = False
        if time.monotonic() - self._listed > _LIST_EVERY:
            fresh = self._list()
        while True:
            while self._waiting:
                if taken := self._claimed(self._next()):
                    return taken
            if not fresh:
                # Others may have left something meanwhile.
                fresh = self._list()
                continue
            lives = {unit.place: alive for unit, alive in self._with_others()}
            if all(lives.values()):
                return []
            if dead := [self._units[place] for place, alive in lives.items() if alive is False]:
                self._waiting.append(deque(dead))
            else:
                time.sleep(min(_LOOK_EVERY, self._claims.lease / 4))
                fresh = self._list()

    def was_left_by_dead(self, arm: str) -> bool:
        """Whether the worker that had a claimed arm before has died with it."""
        return self._known[arm].ends[-2:-1] == [None]

    def end(self, arm: str, how: How, content: Mapping[str, Any]) -> None:
        """Says how the training of a claimed arm has ended; see ``Claims.end``."""
        self._claims.end(arm, how, content)
        self._known[arm].ends[-1] = how

    @property
    def kept_inputs(self) -> list[int]:
        """What of ``Unit.inputs`` is needed here again: of many workers each goes to another."""
        if not self._alone:
            return []
        return [inputs for inputs, count in self._needed.items() if count > 0]

    def _standing(self, arm: str) -> Standing:
        return self._known.setdefault(arm, Standing())

    def _settled(self, arm: str) -> bool:
        """Whether nobody is to claim an arm again."""
        known = self._standing(arm)
        deaths = known.deaths + known.claimed
        return known.done or known.failures >= self._tries or deaths >= MOST_DEATHS

    def _list(self) -> bool:
        """Looks at the folder, and lays out what is free in the order in which to try it."""
        self._known = standings(self._claims.folder)
        self._listed = time.monotonic()
        free, busy, taken = [], Counter[Hashable](), Counter[Hashable]()
        for unit in self._units.values():
            claimed = {self._standing(arm).claimed for arm in unit.arms if not self._settled(arm)}
            if False in claimed:
                free.append(unit)
            if True in claimed:
                busy[unit.inputs] += 1
                taken[unit.step] += 1
        self._needed = Counter(unit.inputs for unit in free)
        if self._alone:
            self._waiting = deque([deque(free)] if free else [])
            return True
        buckets: dict[Hashable, deque[Unit]] = {}
        for unit in free:
            buckets.setdefault(unit.step, deque()).append(unit)

        lots = {inputs: self._dice.random() for inputs in self._needed}

        def rank(bucket: deque[Unit]) -> tuple[float, ...]:
            first, last = bucket[0], self._last or bucket[0]
            return (
                first.inputs != last.inputs,
                busy[first.inputs] / self._needed[first.inputs],
                lots[first.inputs],
                first.step != last.step,
                taken[first.step],
                self._dice.random(),
            )

        self._waiting = deque(sorted(buckets.values(), key=rank))
        return True

    def _next(self) -> Unit:
        bucket = self._waiting[0]
        unit = bucket.popleft()
        if not bucket:
            self._waiting.popleft()
        self._needed[unit.inputs] -= 1
        return unit

    def _claimed(self, unit: Unit) -> list[str]:
        """Claims what is free of a unit; where the first such arm is another's, it has them all."""
        taken: list[str] = []
        for arm in filter(self._is_free, unit.arms):
            ends = self._standing(arm).ends
            mine = self._claims.claim(arm, len(ends) + 1)
            ends.append(None)
            if mine:
                taken.append(arm)
                self._last = unit
            elif not taken:
                break
        return taken

    def _is_free(self, arm: str) -> bool:
        if self._settled(arm):
            return False
        return not self._standing(arm).claimed or self._lives(arm) is False

    def _lives(self, arm: str) -> bool | None:
        return self._claims.lives(arm, len(self._standing(arm).ends))

    def _with_others(self) -> Iterator[tuple[Unit, bool | None]]:
        """The units of which others have arms that another one could take; whether they live."""
        for unit in self._units.values():
            lives = {
                self._lives(arm)
                for arm in unit.arms
                if self._standing(arm).claimed and not self._settled(arm)
            }
            if lives:
                yield unit, False if False in lives else None if None in lives else True


def forgive(folder: Path, *, alone: bool = False) -> None:
    """Lets arms be tried again that have failed, or that workers have died of.

    Args:
        folder: Of the claims.
        alone: Whether no worker is at work, so that whoever has claimed an arm is gone.

    Raises:
        UserError: The folder can't be read or written.
    """
    for arm, known in standings(folder).items():
        if known.done:
            continue
        for number, how in enumerate(known.ends, start=1):
            claim = folder / f"{arm}.{number}"
            if how == "failed":
                Path(f"{claim}.failed").replace(f"{claim}.left")
            elif how is None and (alone or number < len(known.ends) or _is_gone(claim)):
                leave_mark(folder, arm, number, "left", {})


def _is_gone(claim: Path) -> bool:
    found = holder(claim)
    return found is not None and is_here(found) is False


def undo(folder: Path, arm: str, known: Standing) -> None:
    """Lets an arm be trained again that was done, and whose result is gone."""
    for number, how in enumerate(known.ends, start=1):
        if how == "done":
            claim = folder / f"{arm}.{number}"
            Path(f"{claim}.done").replace(f"{claim}.left")


def why_lacking(folder: Path, arm: str, known: Standing) -> dict[str, Any]:
    """Why there is no result of an arm: its failure, as ``WorkQueue.end`` was given it.

    One that workers may yet train is ``unfinished``, and has not failed.

    Args:
        folder: Of the claims.
        arm: Its name there.
        known: What the names of the files tell of it.

    Raises:
        UserError: What was kept of its failure is damaged.
    """
    for number in range(len(known.ends), 0, -1):
        if known.ends[number - 1] == "failed":
            file = folder / f"{arm}.{number}.failed"
            return read_json(file, _FAILURE, "remove it and run the study again")
    if known.deaths + known.claimed >= MOST_DEATHS:
        return {"error": f"{MOST_DEATHS} workers have died as they trained it: see what they said"}
    if known.claimed:
        return {"error": f"a worker has it, or has died with it: {_GO_ON}", "unfinished": True}
    how = "is not finished" if known.ends else "was not begun"
    return {"error": f"it {how}: {_GO_ON}", "unfinished": True}


def claim_name(workdir: str) -> str:
    """What the claims of an arm are called: as its folder, or in short where that is long."""
    name = Path(workdir).name
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME // 2]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
