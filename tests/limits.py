"""What the system refuses, made to happen."""

import contextlib
import resource


@contextlib.contextmanager
def largest_file(size):
    """Has the system refuse to write files of more than ``size`` bytes (EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
