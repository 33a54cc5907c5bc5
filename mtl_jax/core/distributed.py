"""One run in several processes: how they find each other, agree, and end.

Every process runs the same program on its share of each batch. What is written, and what is
decided by what lies on a disk, is done by the first one and told to the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from mtl_jax.core.errors import Preempted, SharedError, UserError, first_line, shortened
from mtl_jax.core.rendezvous import LeftError, Meeting, Peers, PeersError

T = TypeVar("T")

# A process that has been silent for so long is taken for dead, and the others are ended.
_HEARTBEAT_SECONDS = 60
# The others, who may be about to say the same, end before the one that they are served by.
LAST_SECONDS = 1.0

# How long ``awaited`` waits: NFS shows a folder as it was for up to 60 s.
PATIENCE_SECONDS = 75.0
_LOOK_EVERY = 0.2

# In what the runtime says of a collective that can't be completed.
_SIGNS_OF_LOSS = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "Barrier")

# What Slurm tells a start of a job step by.
_START = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
# How long JAX asks a cloud for the address of the first machine.
_DETECTION_SECONDS = 300

_joined = False
_peers: Peers | None = None
# Called with the connections to the others, once all have met; what it gives is called when this
# process has joined them.
when_met: Callable[[Peers], Callable[[], None]] | None = None


class RelayedError(SharedError):
    """A ``SharedError`` in any process but the first, which is the one that prints it."""


def join() -> None:
    """Makes this process one of those of a run, before the first array.

    ``jax.distributed`` finds the others under Slurm, on TPU pods, in Kubernetes and under Open
    MPI by itself; for processes that are started by hand, ``JAX_COORDINATOR_ADDRESS`` (host:port
    of the first one), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` tell.

    Where another program has the port of that address, one of the next ones is used.

    Raises:
        PeersError: The others did not come, or one has ended meanwhile.
        Preempted: One of them was told to end.
        UserError: There is nothing to be found.
    """
    # A process joins one run, for as long as it lives.
    global _joined, _peers
    if _joined:
        return
    import jax

    place = _place()
    bind_host = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", "").rpartition(":")[0].strip("[]")
    meeting = Meeting(place.address, bind_host or None, place.count, place.index, place.run)
    with _leaving_with_others(), meeting.met() as (peers, address, bind_address):
        joined = when_met(peers) if when_met is not None else None
        try:
            jax.distributed.initialize(
                address,
                place.count,
                place.index,
                place.devices,
                cluster_detection_method="deactivate",
                coordinator_bind_address=bind_address,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            )
        except RuntimeError as error:
            raise PeersError(
                f"process {place.index} of {place.count} can't use the coordinator at {address} "
                f"({first_line(error)}): look at what the others said"
            ) from error
        except BaseException as error:
            # SIGTERM and the like come as what is no Exception.
            if not isinstance(error, Exception):
                peers.tell_left()
            raise
        if joined is not None:
            joined()
    _joined, _peers = True, peers
    _divert_notes()
    devices = Counter(device.process_index for device in jax.devices())
    if len(set(devices.values())) > 1:
        raise UserError(
            f"the processes have {sorted(devices.values())} devices: give each as many as the "
            "others"
        )


@contextlib.contextmanager
def _leaving_with_others() -> Iterator[None]:
    try:
        yield
    except LeftError as error:
        raise Preempted(f"{error} before it had begun: run the same command again") from error


@dataclasses.dataclass(frozen=True)
class _Place:
    """What a launcher tells a process of the run.

    Attributes:
        address: ``host:port`` of the first process.
        count: How many there are.
        index: Which of them this is.
        devices: Which devices of the machine it has; None where that is told by other means.
        run: Tells this start of the run from others.
    """

    address: str
    count: int
    index: int
    devices: Sequence[int] | None
    run: str


def _place() -> _Place:
    """Asks the environment, or what JAX knows of launchers.

    Raises:
        UserError: Neither tells.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    count, index = _number("JAX_NUM_PROCESSES"), _number("JAX_PROCESS_ID")
    devices, reason = None, "no launcher is known here"
    # Where all is known, JAX would look for what a launcher says of devices, and warn.
    if None in (address, count, index):
        from jax._src.clusters import ClusterEnv

        try:
            address, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
                address, count, index, None, None, _DETECTION_SECONDS
            )
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            reason = first_line(error)
    host, _, port = (address or "").rpartition(":")
    found = host and port.isdecimal() and 0 < int(port) < 2**16
    if not found or count is None or index is None or not 0 <= index < count:
        if address is not None and count is not None and index is not None:
            reason = f"process {index} of {count}, coordinator at {address}"
        raise UserError(
            f"--distributed: the processes of this run were not found ({reason}): "
            "start them by ./launch.sh, Slurm or another launcher that JAX knows, or set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        )
    # JAX reads that list itself.
    devices = None if "JAX_LOCAL_DEVICE_IDS" in os.environ else devices
    start = (address, *(os.environ.get(name, "") for name in _START))
    return _Place(str(address), count, index, devices, "/".join(map(str, start)))


def _divert_notes() -> None:
    """Lets what the collectives say of their connections go to standard error.

    They write it to the standard output of the process, which is for results.
    """
    sys.stdout.flush()
    results = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.stdout = results


def _number(name: str) -> int | None:
    value = os.environ.get(name)
    if value is None:
        return None
    try:
        return int(value)
    except ValueError as error:
        raise UserError(f"{name}={value!r} is not a whole number: correct or unset it") from error


def count() -> int:
    """How many processes the run has."""
    if not _joined:
        return 1
    import jax

    return jax.process_count()


def index() -> int:
    """Which of them this is, from 0."""
    if not _joined:
        return 0
    import jax

    return jax.process_index()


def is_main() -> bool:
    """Whether this is the one that writes."""
    return index() == 0


def part(rows: int, process: int, of: int) -> slice:
    """Which of ``rows`` that are spread evenly over all devices are those of a process."""
    each = rows // of
    return slice(process * each, (process + 1) * each)


def share(rows: int) -> slice:
    """Which of them are this process's."""
    return part(rows, index(), count())


def broadcast(value: Any) -> Any:
    """The first process's value, in all.

    Args:
        value: JSON; of the others' nothing is looked at.
    """
    if count() == 1:
        return value
    import numpy as np
    from jax.experimental import multihost_utils

    text = json.dumps(value).encode() if is_main() else b""
    # Two trips, for the others do not know how much is to come.
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.frombuffer(text, np.uint8) if is_main() else np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def call_on_main(action: Callable[[], Any]) -> Any:
    """What ``action`` gives in the first process, in all of them; the others do not call it.

    Args:
        action: Gives JSON.

    Raises:
        SharedError: It raised a ``UserError``.
    """
    if count() == 1:
        return action()
    error = None
    found: dict[str, Any] = {}
    if is_main():
        try:
            found = {"value": action()}
        except UserError as raised:
            error, found = raised, {"error": str(raised)}
    found = broadcast(found)
    if "error" in found:
        raise _shared(found["error"]) from error
    return found["value"]


def call_on_all(action: Callable[[], T]) -> T:
    """What ``action``, called in every process, gives in this one, when all have ended it.

    Args:
        action: Waits for nothing that the others do.

    Raises:
        SharedError: It raised a ``UserError`` here or in any other.
    """
    with collective_errors():
        return action()


@contextlib.contextmanager
def collective_errors() -> Iterator[None]:
    """Ends in all processes together, with the first error that any of them has met within.

    Within, no process waits for another.

    Raises:
        SharedError: A ``UserError`` was raised here or in any other process.
    """
    if count() == 1:
        yield
        return
    error = None
    try:
        yield
    except UserError as raised:
        error = raised
    for words in _of_each(str(error or "")):
        if words:
            raise _shared(words) from error


def of_any(condition: bool) -> bool:
    """Whether a condition holds in any of the processes, all of which ask together."""
    return condition if count() == 1 else any(_of_each("x" if condition else ""))


def _of_each(text: str) -> list[str]:
    """The texts that the processes have given, in their order."""
    import numpy as np
    from jax.experimental import multihost_utils

    own = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(own.size)))
    if not sizes.any():
        return []
    padded = np.pad(own, (0, sizes.max() - own.size))
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def _shared(words: str) -> SharedError:
    return (SharedError if is_main() else RelayedError)(words)


def is_collective(error: BaseException) -> bool:
    """Whether all processes have come to this error, so that none waits for another."""
    return count() == 1 or isinstance(error, (SharedError, Preempted))


def awaited(seen: Callable[[], bool]) -> bool:
    """Whether what another process has left on a disk is seen here, now or before long."""
    last = time.monotonic() + PATIENCE_SECONDS
    while not (there := seen()) and time.monotonic() < last:
        time.sleep(_LOOK_EVERY)
    return there


def loss_in_words(error: Exception) -> str | None:
    """What to say of an error that another process's end has led to; None for any other."""
    if isinstance(error, PeersError):
        return str(error)
    if count() == 1:
        return None
    import jax

    text = " ".join(str(error).split())
    # Where a collective is dispatched, in the place of waited for, it fails with a ValueError.
    kinds = (jax.errors.JaxRuntimeError, ValueError)
    if not isinstance(error, kinds) or not any(sign in text for sign in _SIGNS_OF_LOSS):
        return None
    return (
        f"process {index()} of {count()} lost another one, which has ended "
        f"({shortened(text, 300)}): what that one said tells why; run the same command again to go "
        "on from the last checkpoint"
    )


def leave() -> None:
    """Ends the run's service, once every process has come to this."""
    global _joined  # noqa: PLW0603
    if _joined:
        import jax

        jax.distributed.shutdown()
        _joined = False
        if _peers is not None:
            _peers.close()


def abandon(status: int) -> None:
    """Ends this process of several at once, so that those who wait for it learn of it.

    Of a process by itself nothing happens: it can end as any other.
    """
    if count() == 1:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if is_main():
        time.sleep(LAST_SECONDS)
    # An orderly end would wait for the others, who may be waiting for a result of this one.
    os._exit(status)
