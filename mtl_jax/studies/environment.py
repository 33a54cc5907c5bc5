"""On what machine, with what, and when an experiment was run."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mtl_jax.core.versions import version

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers")


def circumstances(command: str, started: float) -> dict[str, Any]:
    """What a report says of how its numbers came to be.

    Args:
        command: The command line.
        started: Seconds since the epoch.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "command": command,
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": time.time() - started,
        "machine": f"{processor()}, {os.cpu_count()} cores, {_devices()}",
        "memory": f"{peak:.1f} GiB at the peak",
        "versions": {
            "mtl-jax": version("mtl-jax"),
            **commit(),
            **{name: version(name) for name in _PACKAGES},
            "python": platform.python_version(),
        },
    }


def commit() -> dict[str, str]:
    """The commit of the checkout that this package is in, under ``commit``; none elsewhere."""
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():
        return {}
    git = ["git", "-C", str(here)]
    try:
        head, changes = (
            subprocess.run(  # noqa: S603  (git, in the checkout that runs)
                [*git, *words], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": f"{head}, with changes" if changes else head}


def processor() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _devices() -> str:
    import jax

    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
