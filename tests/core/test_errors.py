"""What the system refuses, in its words, whatever a library makes of them."""

import errno
import os
from pathlib import Path

import pytest

from mtl_jax.core.errors import cannot_read, cannot_write, reason, system_number

FILLED = OSError("Error writing bytes to file. Detail: [errno 28] No space left on device")
FILLED.filename = "v.parquet"


@pytest.mark.parametrize(
    ("error", "number", "words"),
    [
        (OSError(errno.EIO, "Input/output error", "a"), errno.EIO, "Input/output error"),
        (OSError(errno.EIO, "[Errno 5] Input/output error"), errno.EIO, "Input/output error"),
        (OSError(errno.EINVAL, "it is a pipe", "a"), errno.EINVAL, "it is a pipe"),
        (FILLED, errno.ENOSPC, "No space left on device"),
        (OSError("I/O error: gone (os error 30)"), errno.EROFS, "Read-only file system"),
        (OSError("Io error, code: 27"), errno.EFBIG, os.strerror(errno.EFBIG)),
        (OSError("no words of\nthe system"), 0, "no words of the system"),
        (OSError(), 0, "OSError()"),
    ],
)
def test_number_and_reason(error, number, words):
    assert (system_number(error), reason(error)) == (number, words)


def test_an_errno_in_the_text_alone_has_its_remedy():
    error = OSError("Error reading bytes from file. Detail: [errno 5] Input/output error")
    for told, verb in ((cannot_read, "read"), (cannot_write, "written")):
        words = f"v can't be {verb} (Input/output error): check the disk"
        assert str(told(Path("v"), error)) == words
    gone = OSError("Failed to open local file 'v'. Detail: [errno 2] No such file or directory")
    assert str(cannot_read(Path("v"), gone)).startswith("v is missing: ")
