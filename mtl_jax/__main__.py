"""The command line: flags to settings to one call."""

from __future__ import annotations

import sys

from mtl_jax.cli.commands import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
