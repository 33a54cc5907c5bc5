"""Learning rates from step to step, and from layer to layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax.core.errors import UserError, first_line
from mtl_jax.freezing.scenarios import LORA

# Howard & Ruder 2018, section 3.2: how much smaller the lowest rate is than the peak.
_RATIO = 32
BLOCK = 4096
"""Steps whose learning rates are worked out together."""


MakeSchedule = Callable[[float, int, int], optax.Schedule]
"""Peak rate, warm-up steps and total steps to a schedule."""


class Ramps(NamedTuple):
    """Learning rates that go in a straight line to the peak, and in another one to the end.

    All are numbers that a compiled step is given, and not made for. G is the number of groups.

    Attributes:
        rise: The first rate less the peak, float32 [G].
        peak: The peak rate, float32 [G].
        fall: The peak rate less the last, float32 [G].
        last: The rate after the last step, float32 [G].
        warmup_steps: Steps of the first line, int32.
        left_steps: Steps of the second, int32.
        rise_part: One divided by the former, float32; 0 where that is 0.
        fall_part: One divided by the latter, float32; 0 where that is 0.
    """

    rise: Any
    peak: Any
    fall: Any
    last: Any
    warmup_steps: Any
    left_steps: Any
    rise_part: Any
    fall_part: Any

    @classmethod
    def of(cls, schedule: str, peaks: Sequence[Any], warmup_steps: int, total_steps: int) -> Ramps:
        """Those of a schedule; without warm-up its first step has the peak rate.

        Args:
            schedule: Its name.
            peaks: The peak rate of each group.
            warmup_steps: Steps in which the rates rise.
            total_steps: Steps of the schedule.
        """
        ends = [_SCHEDULES[schedule](peak, warmup_steps) for peak in peaks]
        # A single step is the one with the peak rate.
        warmup_steps = 0 if total_steps == 1 else warmup_steps
        left_steps = max(total_steps - warmup_steps, 0)
        each = list(zip(ends, peaks, strict=True))
        return cls(
            as_float32([first - peak for (first, _), peak in each]),
            as_float32(peaks),
            as_float32([peak - last if left_steps else 0.0 * peak for (_, last), peak in each]),
            as_float32([last for (_, last), _ in each]),
            *(np.int32(steps) for steps in (warmup_steps, left_steps)),
            *(_part(steps) for steps in (warmup_steps, left_steps)),
        )

    def rate(self, group: int, count: Any) -> Any:
        """The rate of a group after ``count`` steps, an int32 array of either JAX or numpy.

        Multiplied by a part of one, as XLA makes of a division by a constant.
        """
        numpy: Any = jnp if isinstance(count, jax.Array) else np
        rises = count < self.warmup_steps
        up = numpy.clip(count, 0, self.warmup_steps).astype(np.float32) * self.rise_part
        down = numpy.clip(count - self.warmup_steps, 0, self.left_steps).astype(np.float32)
        return numpy.where(
            rises,
            self.rise[group] * (1 - up) + self.peak[group],
            self.fall[group] * (1 - down * self.fall_part) + self.last[group],
        )


def _linear(peak: Any, warmup_steps: int) -> tuple[Any, Any]:
    """Rises linearly to ``peak``, then falls linearly to 0 at the end.

    The first step already has a rate above 0, so that no step is spent on nothing.
    """
    return peak / (warmup_steps + 1), 0.0 * peak


def _slanted_triangular(peak: Any, warmup_steps: int) -> tuple[Any, Any]:
    """Rises from a 32nd of ``peak``, and falls back to it at the end.

    Source: Howard & Ruder 2018 (arXiv:1801.06146), equation 3, with ratio 32; but that the cut,
    which is the floor of T x cut_frac there, is rounded in a run, as every warm-up is.
    """
    del warmup_steps
    return peak / _RATIO, peak / _RATIO


def _constant(peak: Any, warmup_steps: int) -> tuple[Any, Any]:
    """Rises linearly to ``peak``, and stays there."""
    return peak / (warmup_steps + 1), peak


# From a peak rate and the steps of the warm-up to the first rate and the one after the last step.
_SCHEDULES = {
    "linear": _linear,
    "slanted_triangular": _slanted_triangular,
    "constant": _constant,
}


def _part(steps: int) -> np.float32:
    return np.float32(1) / np.float32(steps) if steps else np.float32(0)


def as_float32(numbers: Any) -> Any:
    """float32 of a number or a list of them, of the host or, in a sweep, of the device."""
    on_device = any(isinstance(number, jax.Array) for number in jax.tree.leaves(numbers))
    return jnp.asarray(numbers, np.float32) if on_device else np.asarray(numbers, np.float32)


def refuse_no_schedule(make: MakeSchedule, what: str) -> None:
    """Refuses a function that makes no schedule.

    Args:
        make: A user's own.
        what: What it is called, as the error begins.

    Raises:
        UserError: It can't be called, or what it makes gives no rate for a step.
    """
    try:
        rate = jax.eval_shape(make(1.0, 1, 10), jax.ShapeDtypeStruct((), np.int32))
    except Exception as error:
        raise UserError(
            f"{what} makes no schedule of a peak rate, warm-up and total steps ({first_line(error)}"
            "): let it return a function from the step, an int32 array, to its rate"
        ) from error
    if getattr(rate, "shape", None) != ():
        raise UserError(f"{what} makes {rate} of a step: let its schedule return one number")


@functools.lru_cache(maxsize=4)
def factors_of_block(
    schedule: MakeSchedule, warmup_steps: int, total_steps: int, block: int
) -> np.ndarray:
    """What the peak is multiplied by in each step of a block of them, float32 [BLOCK].

    Many at once: a single number would wait for the steps that the device has still to take.
    Not all: a run may be of billions of steps.
    """
    # One of optax's takes a step at a time.
    make = jax.vmap(schedule(1.0, warmup_steps, total_steps))
    steps = np.arange(block * BLOCK, (block + 1) * BLOCK)
    factors = make(np.minimum(steps, total_steps).astype(np.int32))
    return np.broadcast_to(np.asarray(factors, np.float32), BLOCK)


def layer_rates(
    learning_rates: tuple[tuple[str, float], ...], decay: float, num_layers: int
) -> tuple[tuple[str, float], ...]:
    """Discriminative rates: each layer's is that of the layer above times ``decay``.

    The top layer and what is above it have the rate of ``backbone``; the embeddings come
    below layer 0. A layer that ``learning_rates`` names keeps its own. The same goes for ``lora``.

    Source: Howard & Ruder 2018 (arXiv:1801.06146), section 3.2.
    """
    given = dict(learning_rates)
    stages = [*(f"layer_{i}" for i in reversed(range(num_layers))), "embeddings"]
    decayed = {
        f"{label}/{stage}": given[label] * decay**depth
        for label in ("backbone", LORA)
        if label in given
        for depth, stage in enumerate(stages)
    }
    return tuple({**decayed, **given}.items())
