"""When a run is saved between its measurements: by time, the same in all of its processes."""

from __future__ import annotations

import time

from mtl_jax.core import distributed

# Of several processes, which have to ask each other, so many looks at the clock come to one.
_LOOKS = 32


class SaveClock:
    """Says when so many minutes have passed since the last save.

    Args:
        minutes: 0 for a save at each measurement.
    """

    def __init__(self, minutes: float):
        self._minutes, self._looks = minutes, 0
        self.start()

    def start(self) -> None:
        """Begins anew: there has been a save."""
        self._since = time.monotonic()

    def due(self, *, measures: bool) -> bool:
        """Whether to save now; to be asked by every process at the same places.

        Args:
            measures: Whether there is a measurement here.
        """
        if not self._minutes:
            return measures
        self._looks += 1
        several = distributed.count() > 1
        if several and not measures and self._looks % _LOOKS:
            return False
        return distributed.broadcast(time.monotonic() - self._since >= 60 * self._minutes)
