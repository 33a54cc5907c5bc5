"""How a run can be watched, as a frozen dataclass. Nothing here imports jax."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re

from mtl_jax.core.errors import UserError
from mtl_jax.core.type_checks import refuse_types


@dataclasses.dataclass(frozen=True)
class MonitoringConfig:
    """What a run shows of itself while it works; nothing here changes a number that it computes."""

    heartbeat: float = 60.0
    """seconds between two progress lines if standard error is not a terminal (a terminal shows a \
progress bar); 0: none"""
    profile: str | None = None
    """START:STOP: write a trace of the steps after step START, up to step STOP, to the folder \
profile in --workdir"""
    wandb: str | None = None
    """Weights & Biases project to send the metrics to; pip install 'mtl-jax[wandb]'"""

    measure_layers: bool = False
    """at the end, measure each trained layer: the validation score with the layer reset to its \
pre-trained weights, and that of a nearest-neighbour probe on its vectors"""

    def __post_init__(self) -> None:
        refuse_types(self, MonitoringConfig)
        if not 0 <= self.heartbeat < math.inf:
            raise UserError(
                f"--heartbeat {self.heartbeat} must be a number of seconds, 0 for no heartbeat"
            )
        _ = self.profiled
        if self.wandb is not None and not self.wandb.strip():
            raise UserError("--wandb names no project: name one, or leave the flag out")
        if self.wandb is not None and not _installed("wandb"):
            raise UserError(
                f"--wandb {self.wandb} needs a package that is not installed: pip install "
                "'mtl-jax[wandb]', or leave the flag out"
            )

    @property
    def profiled(self) -> range:
        """The steps that ``profile`` asks a trace of, counted from 0; none where it is None."""
        if self.profile is None:
            return range(0)
        if not (bounds := re.fullmatch(r"(\d+):(\d+)", self.profile, re.ASCII)):
            raise UserError(
                f"--profile {self.profile!r} is not START:STOP: give two numbers of steps, as in "
                "10:13"
            )
        if not (steps := range(int(bounds[1]), int(bounds[2]))):
            raise UserError(
                f"--profile {self.profile} starts at or after its stop: give the smaller number "
                "of steps first, as in 10:13"
            )
        return steps


def _installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    # A folder of that name, such as the package itself leaves behind, has no origin.
    return spec is not None and spec.origin is not None
