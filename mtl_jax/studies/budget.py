"""What tuning an arm may cost: so many trials, or so many training FLOPs."""

from __future__ import annotations

import dataclasses
import math
import re

from mtl_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Budget:
    """What each arm of a study, in each setting, is given to be tuned; one of them is None.

    Attributes:
        trials: Runs, those that are pruned included.
        flops: Training FLOPs of all runs together.
    """

    trials: int | None = None
    flops: float | None = None

    @classmethod
    def parse(cls, words: str) -> Budget:
        """Reads ``12``, as trials, or ``3e15FLOPs``.

        Raises:
            UserError: It is neither.
        """
        found = re.fullmatch(r"\s*([0-9.]+(?:e\+?[0-9]+)?)\s*(flops)?\s*", words, re.IGNORECASE)
        try:
            number = float(found.group(1)) if found else math.nan
        except ValueError:
            number = math.nan
        if found and found.group(2) and 0 < number < math.inf:
            return cls(flops=number)
        if found and not found.group(2) and number >= 1 and number == int(number):
            return cls(trials=int(number))
        raise UserError(
            f"--tune {words}: write a number of trials for each arm, as 12, or of training FLOPs, "
            "as 3e15FLOPs"
        )

    def has_room(self, trials: int, flops: float, next_flops: float) -> bool:
        """Whether another trial may begin after so many; the first one always may.

        Args:
            trials: Those before.
            flops: What they took.
            next_flops: What the next one takes if it is not pruned.
        """
        if self.trials is not None:
            return trials < self.trials
        return not trials or flops + next_flops <= (self.flops or 0.0)

    def __str__(self) -> str:
        if self.trials is not None:
            return f"{self.trials} trial{'' if self.trials == 1 else 's'}"
        return f"{self.flops:.3g} FLOPs"
