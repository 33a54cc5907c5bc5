"""Claims of a study's arms, as files in a folder that workers on many machines share.

Each worker has a file of its own, in which a thread counts up: its heartbeat. It claims an arm by
a hard link to that file, ``ARM.1``, and so at most one worker can. How the claim has ended, a mark
beside it says: ``ARM.1.done``, ``.failed``, or ``.left`` where the worker was told to end. Where
the heartbeat has stood still for a lease, the worker is dead, and another one claims ``ARM.2``.
Names are never used twice, so whoever has an old view of the folder fails to claim, and who has
lost an arm sees the next number and ends.

What is asked of the file system holds on NFSv3, without its lock service:

* ``link`` makes a name only where there is none. A client that got no reply sends the request
  again and is told that the name is there: the link counts if it leads to the worker's own file.
* ``rename`` puts a mark there whole.
* A client may see folders and attributes as they were for up to 60 s (``acdirmax``, ``acregmax``),
  but a file that is opened as its writer has closed it (close-to-open). So a heartbeat is opened
  anew for each look, and a lease is longer than 60 s.
* Clocks differ between machines. None is compared: a lease is over where the same bytes have been
  read throughout it, by the monotonic clock of the one who reads.

On the machine of the dead one its process is looked for, and no lease is waited for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import platform
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from mtl_jax.core import streams
from mtl_jax.core.atomic_write import atomic_write
from mtl_jax.core.errors import SAVED, UserError, cannot_read, cannot_write
from mtl_jax.core.file_lock import LEASE_SECONDS, machine

How = Literal["done", "failed", "left"]

# So many heartbeats are lost before a worker is taken for dead.
_BEATS_OF_LEASE = 8
# A heartbeat is written in place: as long as any, so that no reader meets the end of a longer one.
_BEAT_BYTES = 512
_WORKER = ".worker"
_NAME = re.compile(r"(?P<arm>.+)\.(?P<number>\d{1,9})(?:\.(?P<how>done|failed|left))?")
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


@dataclasses.dataclass
class Standing:
    """What the names of the files tell of an arm.

    Attributes:
        ends: How each claim has ended, from the first; None of one that has no mark: it is under
            way if it is the last, and else its worker is dead.
    """

    ends: list[How | None] = dataclasses.field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether it has a result."""
        return "done" in self.ends

    @property
    def claimed(self) -> bool:
        """Whether a worker has it, dead or alive."""
        return bool(self.ends) and self.ends[-1] is None and not self.done

    @property
    def failures(self) -> int:
        """How many of its trainings have ended in an error."""
        return self.ends.count("failed")

    @property
    def deaths(self) -> int:
        """How many workers have died of it, or with it, and been replaced."""
        return self.ends[:-1].count(None)


@dataclasses.dataclass(frozen=True)
class Holder:
    """The worker that a claim is of, as its file tells.

    Attributes:
        host: The name of its machine.
        pid: Its process there.
        user: Whose that is: of another one's it may be hidden whether it lives.
        started: When that began, as the machine's kernel counts; tells it from a later one.
        machine: Tells the machine, since it was started last, and the container from others.
        lease: Seconds for which its heartbeat may stand still.
        seconds: Since it claimed what it trains.
        beats: How often its heart has beaten.
    """

    host: str
    pid: int
    user: int
    started: str
    machine: str
    lease: float
    seconds: float = 0.0
    beats: int = 0


def standings(folder: Path) -> dict[str, Standing]:
    """What the names in a folder of claims tell of each arm that has been claimed.

    Raises:
        UserError: The folder can't be read.
    """
    found: dict[str, dict[int, How | None]] = {}
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise cannot_read(folder, error) from error
    for name in names:
        if not name.startswith(".") and (match := _NAME.fullmatch(name)):
            ends = found.setdefault(match["arm"], {})
            number, how = int(match["number"]), match["how"]
            ends[number] = how or ends.get(number)  # pyright: ignore[reportArgumentType]
    return {
        arm: Standing([ends.get(number) for number in range(1, max(ends) + 1)])
        for arm, ends in found.items()
    }


def holder(claim: Path) -> Holder | None:
    """Whose a claim is; None where its file is being written just now, or is gone."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Holder(**json.loads(claim.read_bytes()))
    return None


def is_here(of: Holder) -> bool | None:
    """Whether a worker's process lives on this machine; None where that can't be seen here."""
    if of.machine != _place() or of.user != os.getuid():
        return None
    return _started(of.pid) == of.started


class Claims:
    """The claims of this process, whose heart beats until this is closed.

    Args:
        folder: For the files; made where there is none.
        lease: Seconds for which the heartbeat may stand still.
        lost: Called from a thread, with a reason, where an arm has been lost to another worker;
            by default the process is ended at once, as what was saved is there.
        alone: Whether no other worker can be in the folder, so that no hard links are needed.

    Raises:
        UserError: The folder can't be written.
    """

    def __init__(
        self,
        folder: Path,
        lease: float = LEASE_SECONDS,
        lost: Callable[[str], None] | None = None,
        *,
        alone: bool = False,
    ):
        self.folder, self.lease, self._alone = folder, lease, alone
        self._lost = lost or _end_process
        self.held: dict[str, int] = {}
        self._since = self._last = time.monotonic()
        # Of each worker of another machine what its file was, and since when, as seen here.
        self._seen: dict[tuple[str, int, str], tuple[int, float, bool]] = {}
        host, pid = platform.node(), os.getpid()
        self._self = Holder(host, pid, os.getuid(), _started(pid) or "", _place(), lease)
        plain = re.sub(r"[^A-Za-z0-9-]+", "-", host)[:60]
        self._file = folder / f"{plain}-{pid}-{secrets.token_hex(4)}{_WORKER}"
        self._ended = threading.Event()
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file.touch(exist_ok=False)
            self._beat()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)
            raise cannot_write(folder, error) from error
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """What no other worker is called."""
        return self._file.stem

    def close(self) -> None:
        """Ends the heartbeat, and leaves what has been claimed and not ended to others."""
        self._ended.set()
        self._thread.join()
        for arm in list(self.held):
            # Where that can't be written, it is found out as the claim of a dead one.
            with contextlib.suppress(UserError):
                self.end(arm, "left")
        # The claims are links to it, and stay.
        with contextlib.suppress(OSError):
            self._file.unlink()

    def claim(self, arm: str, number: int) -> bool:
        """Claims an arm for the ``number``-th time; whether this process has it.

        Raises:
            UserError: The file system has no hard links, or can't be written.
        """
        name = self.folder / f"{arm}.{number}"
        try:
            os.link(self._file, name)
        except OSError as error:
            if not self._is_own(name):
                if error.errno == errno.EEXIST:
                    return False
                if not self._alone or error.errno not in _NO_LINKS:
                    raise self._refused(error) from error
                name.touch()
        with self._lock:
            if not self.held:
                self._since = time.monotonic()
            self.held[arm] = number
        return True

    def end(self, arm: str, how: How, content: Mapping[str, Any] | None = None) -> None:
        """Says how the training of an arm that this process has claimed has ended.

        Raises:
            UserError: That can't be written.
        """
        # Whoever sees the mark may claim the arm: it must not look lost to the thread by then.
        with self._lock:
            number = self.held.pop(arm)
        try:
            leave_mark(self.folder, arm, number, how, content or {})
        except UserError:
            with self._lock:
                self.held[arm] = number
            raise

    def lives(self, arm: str, number: int) -> bool | None:
        """Whether the worker that has claimed an arm is alive; None where that is not known yet.

        Of another machine's it is known when its heartbeat has moved, or stood still for its
        lease, since it was looked at first.
        """
        claim = f"{arm}.{number}"
        # One that can't be read is given a lease's time, too.
        found = holder(self.folder / claim) or Holder("", 0, 0, "", claim, self.lease)
        if (here := is_here(found)) is not None:
            return here
        now, key = time.monotonic(), (found.machine, found.pid, found.started)
        beats, since, moved = self._seen.get(key, (found.beats, now, False))
        if beats != found.beats:
            since, moved = now, True
        self._seen[key] = (found.beats, since, moved)
        if now - since > found.lease:
            return False
        return True if moved else None

    def _is_own(self, name: Path) -> bool:
        try:
            return name.samefile(self._file)
        except OSError:
            return False

    def _refused(self, error: OSError) -> UserError:
        if error.errno in _NO_LINKS:
            return UserError(
                f"the file system of {self.folder} has no hard links ({error.strerror}), by which "
                "workers claim arms: name a folder on another one, as NFS or Lustre, or train the "
                "study in one process, without --worker"
            )
        return cannot_write(self.folder, error)

    def _beat(self) -> None:
        seconds = time.monotonic() - self._since if self.held else 0.0
        beats = self._self.beats + 1
        self._self = dataclasses.replace(self._self, seconds=round(seconds, 1), beats=beats)
        text = json.dumps(dataclasses.asdict(self._self)).ljust(_BEAT_BYTES - 1) + "\n"
        # Opened and closed each time: that is when others are sure to see it.
        with self._file.open("r+b") as file:
            file.write(text.encode())
        self._last = time.monotonic()

    def _run(self) -> None:
        while not self._ended.wait(self.lease / _BEATS_OF_LEASE):
            reason = "its heartbeat could not be written"
            try:
                self._beat()
            except OSError as error:
                reason = f"{reason} ({error.strerror})"
            taken = self._taken()
            with self._lock:
                held = list(self.held)
            silent = time.monotonic() - self._last > self.lease
            if held and (taken or silent):
                arm = (taken or held)[0]
                self._lost(f"this worker has lost {arm}: " + (reason if silent else _TAKEN))

    def _taken(self) -> list[str]:
        """The arms of this process that another one has claimed since."""
        with self._lock:
            before = list(self.held.items())
        found = [(arm, n) for arm, n in before if (self.folder / f"{arm}.{n + 1}").exists()]
        # What has ended here meanwhile is another's by right.
        with self._lock:
            return [arm for arm, number in found if self.held.get(arm) == number]


_TAKEN = "it was silent for its lease, and another one goes on with it"


def leave_mark(folder: Path, arm: str, number: int, how: How, content: Mapping[str, Any]) -> None:
    """Writes how a claim has ended.

    Raises:
        UserError: It can't be written.
    """
    path = folder / f"{arm}.{number}.{how}"
    try:
        with atomic_write(path, f".{secrets.token_hex(4)}") as draft:
            draft.write_text(json.dumps(content), encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error


def _end_process(reason: str) -> None:
    """Ends this process at once: what it would write now is another one's to write."""
    streams.tell(reason)
    os._exit(SAVED)


def _place() -> str:
    """What tells this machine, since it was started last, and this container from others."""
    container = ""
    with contextlib.suppress(OSError):
        container = str(Path("/proc/self/ns/pid").readlink())
    return f"{machine().decode(errors='replace')} {container}"


def _started(pid: int) -> str | None:
    """When a process of this machine began, in ticks of its kernel; None where it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (OSError, ValueError):
        return _known_to_system(pid)
    # The name in brackets may hold spaces; the state follows it, the start 19 fields later.
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] == b"Z" else fields[19].decode()


def _known_to_system(pid: int) -> str | None:
    """The same of a system without ``/proc``, which tells only whether there is such a process."""
    if Path("/proc/self").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return ""
    return ""
