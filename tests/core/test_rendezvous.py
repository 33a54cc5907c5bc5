"""How the processes of a run come together, on real sockets; the others are threads here."""

import contextlib
import os
import signal
import socket
import threading

import pytest

from mtl_jax.core import preemption, rendezvous
from mtl_jax.core.errors import Preempted
from mtl_jax.core.rendezvous import LeftError, Meeting, Peers, PeersError, has_left

HOST = "127.0.0.1"


@contextlib.contextmanager
def taken_port(greeting=b""):
    """A port at which another program listens; it greets a caller, where it greets at all."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server((HOST, 0)))

        def greet():
            caller = stack.enter_context(server.accept()[0])
            caller.sendall(greeting)

        thread = threading.Thread(target=greet)
        if greeting:
            thread.start()
            stack.callback(thread.join)
        yield server.getsockname()[1]


def others(port, count, meet):
    """Runs ``meet`` for each process but the first, in a thread; gives what they come to."""
    found = {}

    def run(index):
        try:
            with Meeting(f"{HOST}:{port}", HOST, count, index, "run").met() as met:
                found[index] = meet(met)
        except PeersError as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(1, count)]
    for thread in threads:
        thread.start()
    return found, threads


# Nobody; one who says nothing, one of HTTP's kind, the first process of another run.
@pytest.mark.parametrize(
    "greeting", [None, b"", b"HTTP/1.1 400 Bad Request\r\n", b"mtl_jax another 3\n"]
)
def test_all_meet_though_another_program_has_the_port(greeting, monkeypatch):
    monkeypatch.setattr(rendezvous, "_ANSWER_SECONDS", 0.5)
    with contextlib.ExitStack() as stack:
        if greeting is None:
            with socket.create_server((HOST, 0)) as server:
                port = server.getsockname()[1]
        else:
            port = stack.enter_context(taken_port(greeting))
        found, threads = others(port, 3, lambda met: (met[0], met[1]))
        with Meeting(f"{HOST}:{port}", HOST, 3, 0, "run").met() as (own, address, bind_address):
            assert address == bind_address
            served = int(address.rpartition(":")[2])
            assert served != port
            # No other program can have JAX's port in the meantime.
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind((HOST, served))
        for thread in threads:
            thread.join()
        assert {index: met[1] for index, met in found.items()} == {1: address, 2: address}
        # The connections stay: one says that it leaves, and the first process hears it.
        found[2][0].tell_left()
        heard = [connection.recv(100) for connection in own.connections if is_of(connection, found)]
        assert [has_left(line) for line in heard] == [True]
        for each in (own, found[1][0], found[2][0]):
            each.close()


def is_of(connection, found):
    """Whether a connection of the first process is that of the last one."""
    return connection.getpeername() == found[2][0].connections[0].getsockname()


def call(port, index, count):
    """Comes to the first process of a run as another one of it would."""
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            caller = socket.create_connection((HOST, port))
            assert caller.makefile("rb").readline() == f"mtl_jax run {count}\n".encode()
            caller.sendall(f"{index}\n".encode())
            return caller


@pytest.fixture
def port():
    with socket.create_server((HOST, 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(
    ("last_words", "kind", "words"),
    [
        (b"", PeersError, "process 0 of 3 lost another one, which ended before the run had begun"),
        (b"left\n", LeftError, "another process of this run was ended by SIGTERM"),
    ],
)
def test_when_one_ends_before_all_have_come_all_end(last_words, kind, words, port):
    def come_and_go():
        with call(port, 1, 3) as caller:
            caller.sendall(last_words)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    meeting = Meeting(f"{HOST}:{port}", HOST, 3, 0, "run")
    with pytest.raises(kind, match=words), meeting.met():
        raise AssertionError
    thread.join()


def test_when_the_first_ends_the_others_do(port):
    with socket.create_server((HOST, port)) as server:
        found, threads = others(port, 2, Peers)
        caller, _ = server.accept()
        with caller:
            caller.sendall(b"mtl_jax run 2\n")
            assert caller.recv(10) == b"1\n"
        for thread in threads:
            thread.join()
    assert str(found[1]).startswith("process 1 of 2 lost another one, which ended before")


@pytest.mark.parametrize("busy", [False, True])
def test_sigterm_ends_the_waiting_of_all(busy, port, monkeypatch):
    heard, called, start = [], threading.Event(), threading.Thread.start

    def start_late(thread):
        start(thread)
        # The processor is given to the new thread, as may be on a busy machine.
        if thread.name.startswith("ThreadPool"):
            called.wait(0.3)

    if busy:
        monkeypatch.setattr(threading.Thread, "start", start_late)

    def come_and_tell():
        with call(port, 1, 3) as caller:
            called.set()
            os.kill(os.getpid(), signal.SIGTERM)
            heard.append(caller.recv(100))

    thread = threading.Thread(target=come_and_tell)
    thread.start()
    meeting = Meeting(f"{HOST}:{port}", HOST, 3, 0, "run")
    with pytest.raises(Preempted, match="ended by SIGTERM"), preemption.heeded(), meeting.met():
        raise AssertionError
    thread.join()
    assert heard == [b"left\n"]


def test_who_does_not_come_is_named(port, monkeypatch):
    monkeypatch.setattr(rendezvous, "_FIND_SECONDS", 0.0)
    for index, said in ((0, "2 of 3 processes, 1 first, did not"), (1, "process 0 did not come")):
        meeting = Meeting(f"{HOST}:{port}", HOST, 3, index, "run")
        with pytest.raises(PeersError, match=f"{said}.*within 0 s"), meeting.met():
            raise AssertionError


def test_where_no_port_is_left_it_is_said(monkeypatch):
    monkeypatch.setattr(rendezvous, "PORTS", 1)
    with taken_port() as port:
        meeting = Meeting(f"{HOST}:{port}", HOST, 2, 0, "run")
        with pytest.raises(PeersError, match=f"none of the ports {port} to {port}"), meeting.met():
            raise AssertionError


def test_the_first_process_listens_at_all_addresses_of_its_machine(port):
    meeting = Meeting(f"localhost:{port}", None, 1, 0, "run")
    with meeting.met() as (own, address, bind_address):
        assert own.connections == []
        assert address.startswith("localhost:")
        host = "[::]" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104
        assert bind_address == f"{host}:{address.rpartition(':')[2]}"
