"""Work that one of a study's workers does for all: what an arm is held against, or tuned to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mtl_jax.core.console import say
from mtl_jax.studies.leases import Claims, Standing, standings

_PAUSE_SECONDS = 0.2
_FIRST_WORD_AFTER = 2.0


@contextlib.contextmanager
def turn(
    folder: Path, name: str, is_done: Callable[[], bool], *, alone: bool = False
) -> Iterator[bool]:
    """Waits until a piece of work is done, or its turn has come to be done here.

    Whoever is at it has claimed it, as arms are claimed: see ``leases``. It is taken over from one
    that is dead, and from one that has failed.

    Args:
        folder: For the claims; made where there is none.
        name: What the work is called there.
        is_done: Whether there is nothing left to do.
        alone: Whether no other worker can be at it, so that there is nothing to claim.

    Yields:
        Whether it is to be done here.

    Raises:
        UserError: The folder can't be written.
    """
    done = is_done()
    if done or alone:
        yield not done
        return
    with contextlib.closing(Claims(folder)) as claims:
        mine = _claimed(claims, name, is_done)
        # Another one may have ended it just before.
        yield mine and not is_done()
        if mine:
            claims.end(name, "done")


def _claimed(claims: Claims, name: str, is_done: Callable[[], bool]) -> bool:
    began, told = time.monotonic(), False
    while not is_done():
        known = standings(claims.folder).get(name, Standing())
        number = len(known.ends)
        under_way = number > 0 and known.ends[-1] is None
        if not under_way or claims.lives(name, number) is False:
            if claims.claim(name, number + 1):
                return True
            continue
        if not told and time.monotonic() - began > _FIRST_WORD_AFTER:
            say(f"waiting for another worker, which makes {claims.folder / name}")
            told = True
        time.sleep(_PAUSE_SECONDS)
    return False
