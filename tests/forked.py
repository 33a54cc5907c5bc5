"""Real processes of ``python``, forked from one that has imported what they need.

Imports take a process four seconds, and a step's trace not much less: what tests kill, stop and
resume need not import again each time. A forked process has its own memory, signals, streams,
folder and environment, and runs the module, the code or the script as ``python`` does. How an
interpreter starts, and what it reads of the environment as it does, only a test with ``subprocess``
can see.

What a launcher starts is forked from the same process where ``interpreter`` is the interpreter that
it starts: a program that has one forked in its place, hands it its streams, folder, environment and
cores, passes signals on to it, ends as it ends, and takes it along when it is killed.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import warnings
from pathlib import Path
from typing import Any

_NEEDED = (
    "mtl_jax.cli.commands",
    "mtl_jax.runs.loop",
    "mtl_jax.studies.report.write",
    "mtl_jax.studies.runner",
    "mtl_jax.tools.plan",
    "mtl_jax.tools.predict",
    # What a run or a study imports late.
    "jaxlib.mlir.dialects.mhlo",
    "jsonschema",
    "mtl_jax.cli.summary",
    "mtl_jax.data.sources.files",
    "mtl_jax.data.sources.delimited",
    "mtl_jax.studies.baselines",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "sklearn.feature_extraction.text",
    "sklearn.linear_model",
    "sklearn.multiclass",
    "sklearn.neighbors",
    "sklearn.pipeline",
    "transformers.models.bert.tokenization_bert",
    "typeguard",
)
REPOSITORY = Path(__file__).parents[1]
PIPE = subprocess.PIPE
# Between two looks at what a process does: without a pause they would take the time that it needs.
_LOOK_SECONDS = 0.002
# Read late, in the process itself; all else that JAX is told by is read as it is imported.
_READ_LATE = (
    *("JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_BIND_ADDRESS"),
    *("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
)


def _named(environment, *prefixes):
    return {name: value for name, value in environment.items() if name.startswith(prefixes)}


def _read_early(environment):
    found = _named(environment, "JAX_", "PYTHON")
    return {name: value for name, value in found.items() if name not in _READ_LATE}


def _address():
    """Where the server of these tests listens: no file, so that none is left."""
    return f"\0tests.forked {os.getpid()}"


@functools.cache
def _server():
    """The socket and the environment of the process that forks the others."""
    ours, theirs = socket.socketpair()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(_address())
    listener.listen(64)
    # Another process's copy would keep the server when this one has ended.
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forked", str(theirs.fileno()), str(listener.fileno())],
        pass_fds=[theirs.fileno(), listener.fileno()],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    theirs.close()
    listener.close()
    environment = _read_early(os.environ)

    def end():
        ours.close()
        process.wait()

    atexit.register(end)
    return ours, environment


# As ``python``, but for options other than -m and -c.
_INTERPRETER = """
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
how, argv = sys.argv[1], sys.argv[2:]
if how not in ("-m", "-c"):
    how, argv = "script", sys.argv[1:]
request = {{
    "how": how,
    "argv": argv,
    "env": dict(os.environ),
    "cwd": os.getcwd(),
    "cores": sorted(os.sched_getaffinity(0)),
}}
content = json.dumps(request).encode()
socket.send_fds(server, [len(content).to_bytes(8, "big")], [0, 1, 2])
server.sendall(content)
told = server.makefile("r")
process = int(told.readline())
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, lambda number, _frame: os.kill(process, number))
status = int(told.readline())
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
os._exit(status)
"""


@functools.cache
def interpreter():
    """The path of a program that is called as ``sys.executable``, whose processes are forked."""
    _server()
    folder = tempfile.mkdtemp(prefix="interpreter-")
    atexit.register(shutil.rmtree, folder)
    path, program = Path(folder) / "python", Path(folder) / "python.py"
    program.write_text(_INTERPRETER.format(address=_address()))
    # A first line that names an interpreter may hold no long path, and no space.
    started = shlex.join([sys.executable, "-S", "-E", str(program)])
    path.write_text(f'#!/bin/sh\nexec {started} "$@"\n')
    path.chmod(0o755)
    return str(path)


class Popen:
    """``subprocess.Popen`` of ``[sys.executable, "-m", module, ...]``, for what tests ask of it.

    Or of ``[sys.executable, "-c", code, ...]``, or ``[sys.executable, "script.py", ...]``.

    Args:
        command: As of ``subprocess.Popen``.
        env: As there; what an interpreter or JAX reads as it starts must not differ from that of
            the tests.
        cwd: As there.
        stdin: As there: None for none, ``PIPE``, or a file.
        stdout: As there: None for that of the tests, ``PIPE``, or a file.
        stderr: Likewise.
        text: As there.
        executable: What the process takes for its ``sys.executable``.
    """

    def __init__(
        self,
        command,
        *,
        env=None,
        cwd=None,
        stdin=None,
        stdout=None,
        stderr=None,
        text=False,
        executable=sys.executable,
    ):
        self.args, self.returncode = list(command), None
        environment = dict(os.environ if env is None else env)
        server, known = _server()
        how, *argv = [str(word) for word in self.args[1:]]
        if how.endswith(".py"):
            how, argv = "script", [how, *argv]
        runs = self.args[0] == sys.executable and how in ("-m", "-c", "script")
        if not runs or _read_early(environment) != known:
            raise ValueError(f"{self.args} needs an interpreter of its own: use subprocess")
        self._status, theirs = socket.socketpair()
        request = {
            "how": how,
            "argv": argv,
            "env": {name: str(value) for name, value in environment.items()},
            "cwd": str(cwd or Path.cwd()),
            "executable": executable,
        }
        with theirs:
            fds, closed, streams = [theirs.fileno()], [], []
            for place, (given, mode) in enumerate([(stdin, "wb"), (stdout, "rb"), (stderr, "rb")]):
                stream = None
                if given == PIPE:
                    read, write = os.pipe()
                    own, other = (write, read) if place == 0 else (read, write)
                    stream = open(own, mode, 0 if text else -1)  # noqa: PTH123, SIM115
                    if text:
                        stream = _as_text(stream, mode)
                    closed.append(other)
                elif given is None or given == subprocess.DEVNULL:
                    other = os.open(os.devnull, os.O_RDWR) if given or not place else os.dup(place)
                    closed.append(other)
                else:
                    other = given.fileno()
                fds.append(other)
                streams.append(stream)
            content = json.dumps(request).encode()
            socket.send_fds(server, [len(content).to_bytes(8, "big")], fds)
            server.sendall(content)
            for fd in closed:
                os.close(fd)
        self.stdin, self.stdout, self.stderr = streams
        self._lines = self._status.makefile("r")
        self.pid = int(self._lines.readline())

    def poll(self):
        """The exit status, or None where the process goes on."""
        if self.returncode is None:
            self._status.settimeout(0)
            ended = True
            try:
                self._status.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                ended = False
            self._status.settimeout(None)
            if ended:
                self.returncode = int(self._lines.readline())
        return self.returncode

    def wait(self, timeout=None):
        """Waits for the end; returns the exit status."""
        if self.returncode is None:
            self._status.settimeout(timeout)
            try:
                self._status.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._status.settimeout(None)
        return self.poll()

    def send_signal(self, number):
        """Sends a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        """Sends SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, input=None, timeout=None) -> tuple[Any, Any]:  # noqa: A002
        """Writes the input, reads both streams to their ends, waits for the process."""
        found = {}
        readers = [
            threading.Thread(target=lambda s=stream, n=name: found.__setitem__(n, s.read()))
            for name, stream in (("stdout", self.stdout), ("stderr", self.stderr))
            if stream is not None
        ]
        for reader in readers:
            reader.start()
        if self.stdin is not None:
            try:
                if input:
                    self.stdin.write(input)
                self.stdin.close()
            except BrokenPipeError:
                pass
        deadline = None if timeout is None else time.monotonic() + timeout
        for reader in readers:
            reader.join(None if deadline is None else max(deadline - time.monotonic(), 0))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if deadline is None else max(deadline - time.monotonic(), 0.001))
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        return found.get("stdout"), found.get("stderr")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.wait()
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self._lines.close()
        self._status.close()

    def __del__(self):
        for name in ("_lines", "_status", "stdin", "stdout", "stderr"):
            stream = getattr(self, name, None)
            if stream is not None:
                stream.close()


def _as_text(stream, mode):
    import io

    if mode == "wb":
        return io.TextIOWrapper(io.BufferedWriter(stream), encoding="utf-8")
    return io.TextIOWrapper(io.BufferedReader(stream), encoding="utf-8")


def run(command, *, input=None, capture_output=False, check=False, timeout=None, **more):  # noqa: A002
    """``subprocess.run`` of such a process."""
    if capture_output:
        more |= {"stdout": PIPE, "stderr": PIPE}
    if input is not None:
        more["stdin"] = PIPE
    with Popen(command, **more) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    status: Any = process.returncode
    done = subprocess.CompletedProcess(process.args, status, out, err)
    if check:
        done.check_returncode()
    return done


def wait_until(there, process, seconds=240):
    """Waits for what a process brings about while it goes on.

    Args:
        there: Tells whether it is there.
        process: What must not end before.
        seconds: The longest wait.
    """
    deadline = time.monotonic() + seconds
    while not there():
        assert process.poll() is None, f"{process.args} has ended before"
        assert time.monotonic() < deadline
        time.sleep(_LOOK_SECONDS)


def _import_all():
    """Imports what the processes need, and starts nothing that a fork would lose."""
    from mtl_jax.core import runtime
    from mtl_jax.runs.startup import import_transformers_alone

    import_transformers_alone()
    for name in _NEEDED:
        importlib.import_module(name)
    # As a run does, too: it would import PyTorch where that is installed.
    with runtime.without("torch", "boto3"):
        importlib.import_module("tensorboardX")


def _serve(control, listener):
    """Forks a process for each request; returns, in that process, what it is to run."""
    _import_all()
    gc.collect()
    gc.freeze()
    # So their time counts among that of the tests.
    signal.signal(signal.SIGCHLD, _reap)
    while True:
        for ready in select.select([control, listener], [], [])[0]:
            if ready is control:
                request, fds = _received(control, 4)
                if request is None:
                    sys.exit(0)
            else:
                # Who has asked is told the end, and hung up on if it comes to its own first.
                asking, _ = listener.accept()
                request, streams = _received(asking, 3)
                fds = [asking.detach(), *streams]
                if request is None:
                    os.close(fds[0])
                    continue
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                process = os.fork()
                if process == 0:
                    return request, fds
                control.close()
                _tell(fds, process, alone=ready is control)
            for fd in fds:
                os.close(fd)


def _reap(_number, _frame):
    """Waits for the processes that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _received(asking, count):
    """A request and its open files; None where there comes none any more."""
    size, fds, _, _ = socket.recv_fds(asking, 8, count)
    if not size:
        return None, []
    content = b""
    while len(content) < int.from_bytes(size, "big"):
        if not (piece := asking.recv(2**16)):
            for fd in fds:
                os.close(fd)
            return None, []
        content += piece
    return json.loads(content), fds


def _tell(fds, process, *, alone):
    """Tells who has asked the number of a process and, when it has ended, its status.

    Unless it is ``alone``, it is killed when who has asked is gone.
    """
    status, *streams = fds
    for fd in streams:
        os.close(fd)
    with contextlib.suppress(OSError):
        os.write(status, f"{process}\n".encode())
    if not alone:
        there = os.pidfd_open(process)
        if there not in select.select([there, status], [], [])[0]:
            os.kill(process, signal.SIGKILL)
    _, ended = os.waitpid(process, 0)
    with contextlib.suppress(OSError):
        os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
    os._exit(0)


def _stream(fd, mode, buffering=-1, errors=None):
    return open(fd, mode, buffering, "utf-8", errors, closefd=False)


def _become(request, fds):
    """Runs the module, the code or the script as the main one of this process."""
    status, *streams = fds
    os.close(status)
    for place, fd in enumerate(streams):
        os.dup2(fd, place)
        os.close(fd)
    # Those of the server know their files as what they were.
    sys.stdin = sys.__stdin__ = _stream(0, "r")
    sys.stdout = sys.__stdout__ = _stream(1, "w")
    sys.stderr = sys.__stderr__ = _stream(2, "w", 1, "backslashreplace")
    if _read_early(request["env"]) != _read_early(os.environ):
        sys.exit("this process needs an interpreter of its own, for what that reads as it starts")
    if "cores" in request:
        os.sched_setaffinity(0, request["cores"])
    sys.executable = request.get("executable", sys.executable)
    hub = _named(os.environ, "HF_", "HUGGING")
    os.environ.clear()
    os.environ.update(request["env"])
    if _named(os.environ, "HF_", "HUGGING") != hub:
        # It is read as that package is imported, and so that is done again.
        for name in [name for name in sys.modules if name.startswith("huggingface_hub")]:
            del sys.modules[name]
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    main, *words = request["argv"]
    if request["how"] == "script":
        sys.argv = [main, *words]
        sys.path[0] = str(Path(main).absolute().parent)
        runpy.run_path(main, run_name="__main__")
    elif request["how"] == "-m":
        sys.argv = [main, *words]
        runpy.run_module(main, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *words]
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        exec(compile(main, "<string>", "exec"), module.__dict__)  # noqa: S102


if __name__ == "__main__":
    warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
    with (
        socket.socket(fileno=int(sys.argv[1])) as _control,
        socket.socket(fileno=int(sys.argv[2])) as _listener,
    ):
        _asked = _serve(_control, _listener)
    _become(*_asked)
