"""How the processes of a run come together, and how they tell each other that they leave.

The first process listens at the coordinator's port, or at the next one that is free where another
program has that; the others ask at each of these ports in turn, and take nobody but their own
first process for it. When all have come it tells them the port for JAX's own service, which it
holds until then. The connections stay: a process that leaves before the others expect it says so.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent import futures

# How many ports are tried, the coordinator's own and those above it.
PORTS = 10
# What jax.distributed waits for all processes by default.
_FIND_SECONDS = 300.0
# How long who listens at a port may take to say who it is.
_ANSWER_SECONDS = 2.0
_LOOK_EVERY = 0.2
_LONGEST_LINE = 500
_LEFT = "left"
_HIGHEST_PORT = 65_535


class PeersError(RuntimeError):
    """The processes of a run have not come together, in words for the user."""


class LeftError(RuntimeError):
    """Another process of the run was told to end before all had come, and so all have to."""


class Peers:
    """The connections of this process: the first one's to all others, or another's to that.

    Attributes:
        connections: Those that are open.
    """

    def __init__(self, connections: Sequence[socket.socket]):
        self.connections = list(connections)

    def tell_left(self) -> None:
        """Says that this process leaves at once, and so all have to."""
        for connection in self.connections:
            with contextlib.suppress(OSError):
                _say(connection, _LEFT)

    def close(self) -> None:
        """Ends the connections."""
        for connection in self.connections:
            connection.close()
        self.connections = []


def has_left(heard: bytes) -> bool:
    """Whether what has come on a connection says that its process leaves at once."""
    return _LEFT.encode() in heard


class Meeting:
    """Waits for the other processes of a run; the first of them is where they meet.

    Args:
        address: ``host:port`` of the first process, as all know it.
        bind_host: At which address of its machine the first one listens; None for all of them.
        count: How many processes there are.
        index: Which of them this is.
        name: Tells this start of this run from others; the same in all of its processes.
    """

    def __init__(self, address: str, bind_host: str | None, count: int, index: int, name: str):
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        dual = bind_host is None and socket.has_dualstack_ipv6()
        self._bind_host = bind_host or ("::" if dual else "0.0.0.0")  # noqa: S104  (as JAX does)
        self._count, self._index = count, index
        self._greeting = f"mtl_jax {name} {count}"
        self._until = time.monotonic() + _FIND_SECONDS

    @contextlib.contextmanager
    def met(self) -> Iterator[tuple[Peers, str, str]]:
        """Waits until all have come; JAX's service has to be started within this.

        Yields:
            The connections, the address of JAX's service, and where the first one binds it.

        Raises:
            PeersError: Not all have come, or one has ended meanwhile.
            LeftError: One of them was told to end.
        """
        peers = Peers(())
        with contextlib.ExitStack() as held:
            try:
                if self._index == 0:
                    self._gather(peers)
                    port = held.enter_context(self._reserved()).getsockname()[1]
                    for connection in peers.connections:
                        _say(connection, str(port))
                else:
                    peers.connections.append(self._found())
                    port = int(self._answer(peers.connections[0]))
            except BaseException as error:
                # SIGTERM and the like come as what is no Exception.
                if isinstance(error, LeftError) or not isinstance(error, Exception):
                    peers.tell_left()
                peers.close()
                raise
            yield peers, _address(self._host, port), _address(self._bind_host, port)

    @property
    def _ports(self) -> list[int]:
        last = min(self._port + PORTS - 1, _HIGHEST_PORT)
        return [*range(self._port, last + 1), *range(last - PORTS + 1, self._port)]

    def _socket(self) -> socket.socket:
        own = socket.socket(socket.AF_INET6 if ":" in self._bind_host else socket.AF_INET)
        if own.family == socket.AF_INET6:
            own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, self._bind_host != "::")
        return own

    def _reserved(self) -> socket.socket:
        """Holds a free port, which JAX's service can have, and no other program."""
        held = self._socket()
        # The service sets this, too: so it, being of the same user, may share the port.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((self._bind_host, 0))
        return held

    def _listening(self) -> socket.socket:
        reason = ""
        for port in self._ports:
            listener = self._socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((self._bind_host, port))
                listener.listen(min(self._count, socket.SOMAXCONN))
            except OSError as error:
                listener.close()
                reason = error.strerror or str(error)
            else:
                return listener
        raise PeersError(
            f"none of the ports {self._ports[0]} to {self._ports[-1]} can be used for the "
            f"coordinator ({reason}): name another one in JAX_COORDINATOR_ADDRESS"
        )

    def _gather(self, peers: Peers) -> None:
        """Takes the connections of all other processes.

        A thread does, which no signal interrupts: a connection that it has taken is among
        ``peers`` whenever a signal ends this, so that the other side hears of it.
        """
        ended = threading.Event()
        with futures.ThreadPoolExecutor(1) as pool:
            # The thread is there before anyone can call. Of one whose start a signal interrupts
            # the pool knows nothing, and would not wait for it.
            pool.submit(ended.is_set).result()
            try:
                calls = pool.submit(self._take_calls, peers, ended)
                # A signal that comes just before a wait is heeded only when the wait ends.
                while not calls.done():
                    futures.wait([calls], _LOOK_EVERY)
                calls.result()
            finally:
                ended.set()

    def _take_calls(self, peers: Peers, ended: threading.Event) -> None:
        there: dict[int, socket.socket] = {}
        with self._listening() as listener, selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            while len(there) < self._count - 1:
                missing = sorted({*range(1, self._count)} - {*there})
                self._refuse_late(f"{len(missing)} of {self._count} processes, {missing[0]} first,")
                ready = selector.select(_LOOK_EVERY)
                # Who has called already is heard before.
                if not ready and ended.is_set():
                    return
                for key, _ in ready:
                    if key.fileobj is not listener:
                        self._answer(there[key.data])
                        continue
                    connection, _ = listener.accept()
                    index = self._greeted(connection)
                    if index is None or index in there:
                        connection.close()
                        continue
                    selector.register(connection, selectors.EVENT_READ, index)
                    there[index] = connection
                    peers.connections.append(connection)

    def _greeted(self, connection: socket.socket) -> int | None:
        """Which process has called; None where it is none of this run."""
        connection.settimeout(_ANSWER_SECONDS)
        with contextlib.suppress(OSError, ValueError):
            _say(connection, self._greeting)
            index = int(_heard(connection))
            return index if 0 < index < self._count else None
        return None

    def _found(self) -> socket.socket:
        """Finds the first process at one of the ports."""
        while True:
            self._refuse_late("process 0")
            for port in self._ports:
                with contextlib.suppress(OSError):
                    found = socket.create_connection((self._host, port), _ANSWER_SECONDS)
                    with contextlib.ExitStack() as stack:
                        stack.enter_context(found)
                        if _heard(found) == self._greeting:
                            _say(found, str(self._index))
                            stack.pop_all()
                            return found
            time.sleep(_LOOK_EVERY)

    def _answer(self, connection: socket.socket) -> str:
        """What the other side says, where it is not that it leaves."""
        connection.settimeout(max(self._until - time.monotonic(), _LOOK_EVERY))
        try:
            heard = _heard(connection)
        except TimeoutError:
            self._refuse_late("another process")
            heard = ""
        except OSError:
            heard = ""
        if heard == _LEFT:
            raise LeftError("another process of this run was ended by SIGTERM")
        if not heard:
            raise PeersError(
                f"process {self._index} of {self._count} lost another one, which ended before "
                "the run had begun: what that one said tells why"
            )
        return heard

    def _refuse_late(self, who: str) -> None:
        if time.monotonic() > self._until:
            raise PeersError(
                f"{who} did not come to {self._host}:{self._port} within {_FIND_SECONDS:.0f} s of "
                f"process {self._index}: look at what the others said, and whether the machines "
                "can reach each other"
            )


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _say(connection: socket.socket, line: str) -> None:
    connection.sendall(f"{line}\n".encode())


def _heard(connection: socket.socket) -> str:
    """One line; empty where the other side has closed, or says something longer."""
    line = b""
    while not line.endswith(b"\n"):
        # One by one: what follows the line is not for this.
        if len(line) > _LONGEST_LINE or not (byte := connection.recv(1)):
            return ""
        line += byte
    return line.decode(errors="replace").rstrip("\n")
