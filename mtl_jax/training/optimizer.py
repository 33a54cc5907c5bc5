"""AdamW with a learning rate per label, clipping over the trainable part, moments that last."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from mtl_jax.config.optimizer import WEIGHT_DECAY, Schedule
from mtl_jax.core.errors import UserError, require_type
from mtl_jax.core.type_checks import refuse_arguments
from mtl_jax.freezing.partition import Params, Partition, longest_prefix
from mtl_jax.freezing.scenarios import LORA
from mtl_jax.training.schedules import (
    BLOCK,
    MakeSchedule,
    Ramps,
    as_float32,
    factors_of_block,
    refuse_no_schedule,
)


class AdamWNumbers(NamedTuple):
    """The numbers of ``AdamW``: scalars, float32, beside the learning rates."""

    ramps: Ramps
    weight_decay: Any
    clip_norm: Any


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
        ema: Decay of the moving average of what trains; None for none.
    """

    learning_rates: tuple[tuple[str, float], ...]
    total_steps: int
    warmup_steps: int
    weight_decay: float
    clip_norm: float
    schedule: Schedule | MakeSchedule = "linear"
    ema: float | None = None

    def rate(self, group: str) -> float:
        """The peak learning rate that a group has."""
        rates = dict(self.learning_rates)
        return rates[longest_prefix(group, rates)]

    def rates(self, groups: Sequence[str], count: int) -> dict[str, float]:
        """The learning rate that each of ``groups`` has after ``count`` steps of the schedule."""
        if isinstance(self.schedule, str):
            of_one = Ramps.of(self.schedule, [1.0], self.warmup_steps, self.total_steps)
            factor = of_one.rate(0, np.int32(count))
        else:
            block, place = divmod(count, BLOCK)
            steps = self.warmup_steps, self.total_steps
            factor = factors_of_block(self.schedule, *steps, block)[place]
        return {group: float(np.float32(self.rate(group)) * factor) for group in groups}

    def numbers(self, groups: Sequence[str]) -> AdamWNumbers | None:
        """What ``AdamW`` is given for these settings; None for a schedule of the user's own.

        Raises:
            UserError: A group has no rate.
        """
        if not isinstance(self.schedule, str):
            return None
        peaks = [self.rate(group) for group in groups]
        ramps = Ramps.of(self.schedule, peaks, self.warmup_steps, self.total_steps)
        return AdamWNumbers(ramps, as_float32(self.weight_decay), as_float32(self.clip_norm))


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


def clip_by_global_norm(limit: Any) -> optax.GradientTransformation:
    """``optax.clip_by_global_norm``, but that a gradient is multiplied by one factor.

    Of a gradient divided by its norm XLA makes a copy of its own on a CPU, as large as the model,
    to be read by each moment; a product by a number it computes in the loops that use it. The two
    differ by rounding where the norm is above the limit.

    Args:
        limit: Of the norm, above 0; a number or a scalar array.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        norm = optax.tree.norm(updates)
        factor = jnp.where(norm < limit, 1.0, limit / norm)
        return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), updates), state

    return optax.GradientTransformation(optax.identity().init, update)


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
        # Of parameters on the host on the host: a device may not have the room for all moments.
        def zeros(leaf: Any, shape: Any = None, dtype: Any = None) -> Any:
            numpy: Any = jnp if isinstance(leaf, jax.Array) else np
            return numpy.zeros_like(leaf, dtype, shape=shape)

        steps = jax.tree.map(lambda leaf: zeros(leaf, (), np.int32), params)
        return Moments(steps, *(jax.tree.map(zeros, params) for _ in range(2)))

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


class Average(NamedTuple):
    """The state of ``average_params``.

    Attributes:
        steps: Updates that are in it, int32 scalar.
        params: The average, with the leaves of the trainable partition.
    """

    steps: Any
    params: Params


_AVERAGE = "average"


def average_params(decay: float) -> optax.GradientTransformation:
    """Keeps an exponential moving average of the parameters, and leaves the updates as they are.

    It is to come last: it averages what the updates lead to. After t updates the average is moved
    by ``1 - min(decay, t / (9 + t))`` of the way, so that the parameters that training began with
    are soon forgotten, however short the run.

    Source: Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging"; the
    smaller decay of the first updates is that of TensorFlow's ``ExponentialMovingAverage`` with
    ``num_updates``.
    """

    def init(params: Any) -> Average:
        on_device = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
        numpy: Any = jnp if on_device else np
        return Average(numpy.zeros((), np.int32), jax.tree.map(numpy.array, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Average]:
        taken = state.steps + 1
        kept = jnp.minimum(jnp.float32(decay), taken / (9 + taken))
        after = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, state.params, after)
        return updates, Average(taken, average)

    return optax.GradientTransformation(init, update)


def swapped(trainable: Params, opt_state: Any) -> tuple[Params, Any]:
    """Exchanges what trains and its average; to do it twice changes nothing.

    Args:
        trainable: What trains.
        opt_state: The optimizer's state.

    Returns:
        The average, and the state with ``trainable`` in its place; what was given, where there is
        no average.
    """
    if not isinstance(opt_state, dict) or _AVERAGE not in opt_state:
        return trainable, opt_state
    average = opt_state[_AVERAGE]
    return average.params, {**opt_state, _AVERAGE: average._replace(params=trainable)}


def make_optimizer(
    partition: Partition,
    learning_rates: Mapping[str, float],
    total_steps: int,
    *,
    warmup_steps: int | None = None,
    weight_decay: float = WEIGHT_DECAY,
    clip_norm: float = 1.0,
    schedule: Schedule | MakeSchedule = "linear",
    ema: float | None = None,
) -> optax.GradientTransformation:
    """Returns AdamW for the trained parameters of a partition, with a learning rate per label.

        optimizer = mtl.make_optimizer(partition, {"head": 1e-3, "backbone": 1e-4}, len(batches))

    Args:
        partition: Which parameters are trained.
        learning_rates: The peak learning rate of each label: ``head``, ``backbone``, ``lora``.
            ``backbone`` also applies to ``backbone/layer_5``, unless that has a rate of its own.
        total_steps: Steps of the schedule.
        warmup_steps: Steps in which the rates rise; by default a tenth of ``total_steps``.
        weight_decay: Weight decay of AdamW, for everything except biases and layer norms.
            ``train`` uses a larger value if only heads are trained: see
            ``config.optimizer.head_weight_decay``.
        clip_norm: Maximum global norm of the gradient of the trained parameters.
        schedule: ``linear``, ``slanted_triangular`` or ``constant``, or a function from peak
            rate, warm-up steps and total steps to an ``optax.Schedule``.
        ema: As of ``TrainConfig``; ``TrainStep.params`` then gives the average.

    Raises:
        UserError: A label of the partition has no learning rate, a rate is for a label that there
            is not, ``schedule`` is unknown or makes none, or a number is none that training can
            have.
    """
    require_type(partition, Partition, "partition", "give a Partition of the model's parameters")
    remedy = 'give one rate for each label, such as {"head": 1e-3, "backbone": 1e-4}'
    require_type(learning_rates, Mapping, "learning_rates", remedy)
    _refuse_rates(partition, learning_rates)
    if not callable(schedule) and schedule not in get_args(Schedule):
        known = ", ".join(get_args(Schedule))
        raise UserError(f"schedule {schedule!r} is unknown: use {known}, or a function")
    if callable(schedule):
        refuse_no_schedule(schedule, "schedule")
    refuse_arguments(make_optimizer, locals())
    if total_steps < 1:
        raise UserError(f"total_steps {total_steps} must be at least 1")
    for name, number in (("weight_decay", weight_decay), ("warmup_steps", warmup_steps or 0)):
        if not 0 <= number < math.inf:
            raise UserError(f"{name} {number} must be a number of 0 or more")
    if not clip_norm > 0:
        raise UserError(f"clip_norm {clip_norm} must be above 0")
    if ema is not None and not 0 < ema < 1:
        raise UserError(f"ema {ema} must be above 0 and below 1")
    config = OptimizerConfig(
        learning_rates=tuple(learning_rates.items()),
        total_steps=total_steps,
        warmup_steps=round(0.1 * total_steps) if warmup_steps is None else warmup_steps,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        schedule=schedule,
        ema=ema,
    )
    return build_optimizer(partition, config)


# What most partitions have: a rate of the backbone is no slip where heads alone are trained.
_USUAL = ("head", "backbone", LORA)


def _refuse_rates(partition: Partition, rates: Mapping[str, float]) -> None:
    """Refuses a rate that is none, and a label that nothing has."""
    for label, rate in rates.items():
        if not 0 <= rate < math.inf:
            raise UserError(f"the learning rate of {label} is {rate}: it must be 0 or more")
        of_it = [each for each in partition.groups if f"{each}/".startswith(f"{label}/")]
        if not of_it and label.partition("/")[0] not in _USUAL:
            raise UserError(
                f"learning_rates names {label!r}, which is not a label of anything that is "
                f"trained: use {', '.join(partition.groups)}"
            )


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW over what a partition trains; its numbers come with each update.

    So a step that is compiled for it serves any learning rates, steps, decay and clipping.
    Hashable, for steps are kept by it. Its state is a dict: ``moments`` outlast a phase, the
    ``rates`` are the schedules' places, and where there is one ``average`` is that of what trains.

    Source: Loshchilov & Hutter 2019 (arXiv:1711.05101).

    Attributes:
        partition: What trains.
        own: The settings with a schedule that is the user's function, which may do with its
            numbers what can't be traced: they are constants of what is compiled.
        ema: As of ``OptimizerConfig``.
    """

    partition: Partition
    own: OptimizerConfig | None = None
    ema: float | None = None

    @classmethod
    def of(cls, partition: Partition, config: OptimizerConfig) -> AdamW:
        """That of some settings, whose ``numbers`` it then is to be given."""
        return cls(partition, None if isinstance(config.schedule, str) else config, config.ema)

    def init(self, params: Params) -> optax.OptState:
        """The state before the first update."""
        return self._chain(lambda _: optax.constant_schedule(0.0), 0.0, 1.0).init(params)

    def with_numbers(self, numbers: AdamWNumbers | None) -> optax.GradientTransformation:
        """The transformation with the numbers of ``OptimizerConfig.numbers``, maybe traced."""
        own, groups = self.own, self.partition.groups
        if own and not isinstance(own.schedule, str):
            make = own.schedule
            steps = own.warmup_steps, own.total_steps
            return self._chain(
                lambda group: make(own.rate(group), *steps), own.weight_decay, own.clip_norm
            )
        if numbers is None:
            raise ValueError("it has no schedule of its own: give it numbers")
        return self._chain(
            lambda group: functools.partial(numbers.ramps.rate, groups.index(group)),
            numbers.weight_decay,
            numbers.clip_norm,
        )

    def _chain(
        self, schedule: Callable[[str], optax.Schedule], weight_decay: Any, clip_norm: Any
    ) -> optax.GradientTransformation:
        # The norm that is clipped is taken over the tree that the optimizer is given, and that
        # tree holds no frozen leaf.
        rates = {
            group: optax.scale_by_learning_rate(schedule(group)) for group in self.partition.groups
        }
        averages = [] if self.ema is None else [(_AVERAGE, average_params(self.ema))]
        return optax.named_chain(
            ("clip", clip_by_global_norm(clip_norm)),
            ("moments", scale_by_adam()),
            ("decay", optax.add_decayed_weights(weight_decay, decayed)),
            ("rates", self.partition.multi_transform(rates)),
            *averages,
        )


class Optimizer(optax.GradientTransformation):
    """An ``AdamW`` with its numbers, as any other of optax's.

    Attributes:
        adamw: Without them.
        numbers: See ``OptimizerConfig.numbers``.
    """

    adamw: AdamW
    numbers: AdamWNumbers | None


def build_optimizer(partition: Partition, config: OptimizerConfig) -> Optimizer:
    """The optimizer over the trainable partition of ``partition``.

    Raises:
        UserError: A label of the partition has no rate.
    """
    adamw, numbers = AdamW.of(partition, config), config.numbers(partition.groups)
    made = Optimizer(*adamw.with_numbers(numbers))
    made.adamw, made.numbers = adamw, numbers
    return made


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
        are dropped. An average begins anew, from the parameters that the phase begins with.
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
