"""AdamW with a learning rate per label, clipping over the trainable part, moments that last."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from mtl_jax.config.optimizer import Schedule
from mtl_jax.core.errors import UserError, first_line
from mtl_jax.freezing.partition import Params, Partition, longest_prefix
from mtl_jax.freezing.scenarios import LORA

# Howard & Ruder 2018, section 3.2: how much smaller the lowest rate is than the peak.
_RATIO = 32
# Steps whose learning rates are worked out together.
_BLOCK = 4096


MakeSchedule = Callable[[float, int, int], optax.Schedule]
"""Peak rate, warm-up steps and total steps to a schedule."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """What the update depends on, beside the gradient.

    Attributes:
        learning_rates: ``(group, peak learning rate)``; ``backbone`` also serves
            ``backbone/layer_5`` unless that has a rate of its own.
        total_steps: Steps after which the schedule is at its end.
        warmup_steps: Steps in which the learning rate rises.
        weight_decay: AdamW's.
        clip_norm: Largest global norm of the trainable part's gradient.
        schedule: How the learning rates go from step to step.
    """

    learning_rates: tuple[tuple[str, float], ...]
    total_steps: int
    warmup_steps: int
    weight_decay: float
    clip_norm: float
    schedule: Schedule | MakeSchedule = "linear"

    def rate(self, group: str) -> float:
        """The peak learning rate that a group has."""
        rates = dict(self.learning_rates)
        return rates[longest_prefix(group, rates)]

    def rates(self, groups: Sequence[str], count: int) -> dict[str, float]:
        """The learning rate that each of ``groups`` has after ``count`` steps of the schedule."""
        block, place = divmod(count, _BLOCK)
        factor = _factors(self.schedule, self.warmup_steps, self.total_steps, block)[place]
        return {group: float(np.float32(self.rate(group)) * factor) for group in groups}


def warmup_linear(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Rises linearly to ``peak`` in ``warmup_steps``, then falls linearly to 0 at the end.

    The first step already has a rate above 0, so that no step is spent on nothing; without
    warm-up, and where it is the only one, it has ``peak``.
    """
    return _joined(peak / (warmup_steps + 1), peak, 0.0, warmup_steps, total_steps)


def slanted_triangular(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Rises from a 32nd of ``peak`` in ``warmup_steps``, falls back to it at the end.

    Without warm-up, and in a run of one step, the first step has ``peak``.

    Source: Howard & Ruder 2018 (arXiv:1801.06146), equation 3, with ratio 32; but that the cut,
    which is the floor of T x cut_frac there, is rounded in a run, as every warm-up is.
    """
    return _joined(peak / _RATIO, peak, peak / _RATIO, warmup_steps, total_steps)


def warmup_constant(peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Rises linearly to ``peak`` in ``warmup_steps``, and stays there."""
    return _joined(peak / (warmup_steps + 1), peak, peak, warmup_steps, total_steps)


def _joined(
    first: float, peak: float, last: float, warmup_steps: int, total_steps: int
) -> optax.Schedule:
    """From ``first`` to ``peak`` in ``warmup_steps``, and on to ``last`` at the end."""
    # A single step is the one with the peak rate.
    if warmup_steps == 0 or total_steps == 1:
        return optax.linear_schedule(peak, last, total_steps)
    rise = optax.linear_schedule(first, peak, warmup_steps)
    left = total_steps - warmup_steps
    fall = optax.linear_schedule(peak, last, left) if left > 0 else optax.constant_schedule(last)
    return optax.join_schedules([rise, fall], [warmup_steps])


_SCHEDULES = {
    "linear": warmup_linear,
    "slanted_triangular": slanted_triangular,
    "constant": warmup_constant,
}


def _schedule(schedule: Schedule | MakeSchedule) -> MakeSchedule:
    return _SCHEDULES[schedule] if isinstance(schedule, str) else schedule


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
def _factors(
    schedule: Schedule | MakeSchedule, warmup_steps: int, total_steps: int, block: int
) -> np.ndarray:
    """What the peak is multiplied by in each step of a block of them, float32 [_BLOCK].

    Many at once: a single number would wait for the steps that the device has still to take.
    Not all: a run may be of billions of steps.
    """
    made = _schedule(schedule)(1.0, warmup_steps, total_steps)
    # One of optax's takes a step at a time.
    make = made if isinstance(schedule, str) else jax.vmap(made)
    steps = np.arange(block * _BLOCK, (block + 1) * _BLOCK)
    factors = make(np.minimum(steps, total_steps).astype(np.int32))
    return np.broadcast_to(np.asarray(factors, np.float32), _BLOCK)


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


def decayed(params: Any) -> Any:
    """True at the leaves that weight decay applies to: all but biases and layer norms."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key not in ("bias", "scale"), params)


class Moments(NamedTuple):
    """Adam's state: each tree has the leaves of the trainable partition.

    Attributes:
        steps: Per leaf how many it has been trained for, int32 scalars.
        mu: Means of the gradients.
        nu: Means of their squares.
    """

    steps: Params
    mu: Params
    nu: Params


def scale_by_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """``optax.scale_by_adam``, but that each leaf counts its own steps.

    A leaf that starts to train beside others that have trained for long has empty moments;
    corrected for the others' steps instead of its own, its first updates would be three
    times too large.

    Source: Kingma & Ba 2015 (arXiv:1412.6980), algorithm 1.
    """

    def init(params: Any) -> Moments:
        steps = jax.tree.map(lambda _: jnp.zeros((), jnp.int32), params)
        return Moments(steps, *(jax.tree.map(jnp.zeros_like, params) for _ in range(2)))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Moments]:
        del params
        steps = jax.tree.map(lambda taken: taken + 1, state.steps)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)

        def scaled(m: jax.Array, n: jax.Array, taken: jax.Array) -> Any:
            mean: Any = optax.tree.bias_correction(m, b1, taken)
            square: Any = optax.tree.bias_correction(n, b2, taken)
            return mean / (jnp.sqrt(square) + eps)

        return jax.tree.map(scaled, mu, nu, steps), Moments(steps, mu, nu)

    return optax.GradientTransformation(init, update)


def make_optimizer(
    partition: Partition,
    learning_rates: Mapping[str, float],
    total_steps: int,
    *,
    warmup_steps: int | None = None,
    weight_decay: float = 0.01,
    clip_norm: float = 1.0,
    schedule: Schedule | MakeSchedule = "linear",
) -> optax.GradientTransformation:
    """Returns AdamW over what a partition trains, with a learning rate for each of its labels.

        optimizer = mtl.make_optimizer(partition, {"head": 1e-3, "backbone": 1e-4}, len(batches))

    Args:
        partition: What trains.
        learning_rates: The peak rate of each label, ``head``, ``backbone``, ``lora``; ``backbone``
            also serves ``backbone/layer_5`` unless that has a rate of its own.
        total_steps: Steps of the schedule.
        warmup_steps: Steps in which the rates rise; by default a tenth of ``total_steps``.
        weight_decay: AdamW's, for everything but biases and layer norms.
        clip_norm: Largest global norm of the gradient of what trains.
        schedule: ``linear``, ``slanted_triangular`` or ``constant``, or a function from peak
            rate, warm-up steps and total steps to an ``optax.Schedule``.

    Raises:
        UserError: A label of the partition has no rate.
    """
    config = OptimizerConfig(
        learning_rates=tuple(learning_rates.items()),
        total_steps=total_steps,
        warmup_steps=round(0.1 * total_steps) if warmup_steps is None else warmup_steps,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        schedule=schedule,
    )
    return build_optimizer(partition, config)


def build_optimizer(partition: Partition, config: OptimizerConfig) -> optax.GradientTransformation:
    """The optimizer over the trainable partition of ``partition``.

    AdamW: Loshchilov & Hutter 2019 (arXiv:1711.05101). The norm that is clipped is taken
    over the tree that the optimizer is given, and that tree holds no frozen leaf. Its state
    is a dict: ``moments`` outlast a phase, the ``rates`` are the schedules' places.
    """
    make = _schedule(config.schedule)
    rates = {
        group: optax.scale_by_learning_rate(make(peak, config.warmup_steps, config.total_steps))
        for group, peak in config.learning_rates
    }
    return optax.named_chain(
        ("clip", optax.clip_by_global_norm(config.clip_norm)),
        ("moments", scale_by_adam()),
        ("decay", optax.add_decayed_weights(config.weight_decay, decayed)),
        ("rates", partition.multi_transform(rates)),
    )


def carried(fresh: Any, before: Any, schedule_steps: int = 0, anew: Collection[str] = ()) -> Any:
    """The state to begin a phase with: the moments of what stays trainable are kept.

    Args:
        fresh: The phase's own state, as initialised.
        before: The state at the end of the phase before.
        schedule_steps: Steps of the phase's schedule that have been taken before it.
        anew: Names of leaves that begin anew, whatever was there under their paths.

    Returns:
        A state of the shape of ``fresh``: leaves that trained before go on with their moments
        and their count of steps, the others are as in ``fresh``; those that are frozen now
        are dropped.
    """
    moments = Moments(
        *(_merged(*trees, anew) for trees in zip(fresh["moments"], before["moments"], strict=True))
    )
    rates = jax.tree.map(lambda count: jnp.full_like(count, schedule_steps), fresh["rates"])
    state = fresh.copy()
    state.update(moments=moments, rates=rates)
    return state


def _merged(fresh: Params, before: Params, anew: Collection[str]) -> Params:
    old = {
        path: leaf
        for path, leaf in flatten_dict(before, sep="/").items()
        if path.rpartition("/")[2] not in anew
    }
    new = flatten_dict(fresh, sep="/")
    return unflatten_dict({path: old.get(path, leaf) for path, leaf in new.items()}, sep="/")
