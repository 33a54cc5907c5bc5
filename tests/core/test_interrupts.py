"""SIGINT at the moments at which Python makes nothing, or a traceback, of it."""

import signal
import subprocess
import sys
import threading

from mtl_jax.core.command_line import guarded


def test_an_interrupt_stays_one_whatever_an_import_makes_of_it(capsys):
    def main(argv):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as stop:
            raise ImportError("half imported") from stop

    before = signal.getsignal(signal.SIGINT)
    assert guarded(main, []) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_in_a_finalizer_is_not_lost(capsys):
    class Interrupted:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def main(argv):
        Interrupted()
        assert threading.Event().wait(60)

    assert guarded(main, []) == 130
    assert capsys.readouterr().err == "interrupted\n"


AT_THE_END = """
import atexit, os, signal, sys
from mtl_jax.core.command_line import guarded

def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)

atexit.register(interrupt)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(guarded(interrupt, []))
"""


def test_a_second_interrupt_ends_the_process_without_a_traceback():
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "interrupted\n")
