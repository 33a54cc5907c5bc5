"""The command line: flags to settings to one call."""

from __future__ import annotations

import sys

from mtl_jax.core import interrupts


def main() -> None:
    """Runs the command line of this process; the console command ``mtl-jax`` is this."""
    # A second of imports, in which there is nothing to be saved.
    with interrupts.heeded():
        interrupts.end_at_once()
        from mtl_jax.cli.commands import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
