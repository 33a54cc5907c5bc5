"""Each method of weighting against numbers worked out by hand, and the published formula."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.core.errors import UserError
from mtl_jax.freezing.partition import Partition
from mtl_jax.freezing.scenarios import scenario_rules
from mtl_jax.training.weighting.base import Seen
from mtl_jax.training.weighting.gradient import weighted_gradient
from mtl_jax.training.weighting.methods.dynamic_average import DynamicAverage
from mtl_jax.training.weighting.methods.famo import Famo
from mtl_jax.training.weighting.methods.fixed import Fixed
from mtl_jax.training.weighting.methods.gradnorm import GradNorm
from mtl_jax.training.weighting.methods.pcgrad import PcGrad
from mtl_jax.training.weighting.methods.uncertainty import Uncertainty
from mtl_jax.training.weighting.registry import METHODS, make_weighting, useless
from tests.conftest import TASKS
from tests.training.test_step import random_params

BALANCING = [make_weighting(name, 2) for name in METHODS if name != "fixed"]


def seen(means, fixed=None, counts=None, gram=None, seed=0):
    """A step with these mean losses, of four labels each unless said otherwise."""
    means = jnp.array(means, jnp.float32)
    counts = jnp.full(len(means), 4.0) if counts is None else jnp.array(counts, jnp.float32)
    fixed = jnp.ones(len(means)) if fixed is None else jnp.array(fixed, jnp.float32)
    gram = jnp.zeros((len(means),) * 2) if gram is None else jnp.array(gram, jnp.float32)
    return Seen(fixed, means * counts, counts, gram, jax.random.key(seed))


def adam(gradients, rate):
    """Where Adam leads from 0 in float64: Kingma & Ba 2015 (arXiv:1412.6980), Algorithm 1."""
    first = second = value = np.zeros_like(gradients[0])
    for step, gradient in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        root = np.sqrt(second / (1 - 0.999**step))
        value = value - rate * first / (1 - 0.9**step) / (root + 1e-8)
    return value


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


def same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert jax.tree.all(jax.tree.map(np.array_equal, found, wanted))


# Uncertainty.


def test_the_gradient_of_a_log_variance_is_that_of_the_published_loss():
    method, means = Uncertainty(learning_rate=0.1), jnp.array([2.0, 0.25])

    def loss(s):
        return (jnp.exp(-s) * means + s / 2).sum()

    state, gradients = method.init(2), []
    for _ in range(3):
        s = state["log_variances"]
        gradients.append(np.asarray(jax.grad(loss)(s), np.float64))
        close(method.weights(state, seen(means, [3.0, 1.0])), np.array([3.0, 1.0]) * np.exp(-s))
        state = method.update(state, seen(means, [3.0, 1.0]), jnp.zeros(2))
        close(state["log_variances"], adam(gradients, 0.1))
    # By hand: exp(-0) 2 is more than a half, exp(-0) / 4 is less.
    close(gradients[0], [-1.5, 0.25])


def test_a_log_variance_settles_where_the_loss_is_twice_its_variance():
    method, step = Uncertainty(learning_rate=0.02), seen([2.0, 0.05])
    update = jax.jit(method.update)
    state = method.init(2)
    for _ in range(400):
        state = update(state, step, step.sums)
    np.testing.assert_allclose(state["log_variances"], np.log([4.0, 0.1]), atol=1e-2)
    np.testing.assert_allclose(method.weights(state, step), [0.25, 10.0], rtol=1e-2)


def test_a_task_without_a_label_keeps_its_variance():
    method, step = Uncertainty(), seen([0.0, 1.0], counts=[0, 4])
    first, second = method.update(method.init(2), step, step.sums)["log_variances"]
    assert float(first) == 0.0
    assert float(second) == pytest.approx(3e-3, rel=1e-5)


# Dynamic weight average.


def dynamic_weights(epochs, fixed=(1.0, 1.0), counts=None):
    """The weights at the start of each step, of two in an epoch, with these mean losses."""
    method = DynamicAverage(steps_per_epoch=2)
    state, found = method.init(len(fixed)), []
    for losses in itertools.chain.from_iterable(epochs):
        step = seen(losses, fixed, counts)
        found.append(np.asarray(method.weights(state, step)))
        state = method.update(state, step, step.sums)
    return found


def test_weights_follow_the_ratio_of_the_last_two_epochs_by_hand():
    # Means of the epochs: (4, 2), (2, 2), (3, 1): first 2/4 and 2/2, then 3/2 and 1/2.
    epochs = [[(5, 1), (3, 3)], [(1, 2), (3, 2)], [(3, 1), (3, 1)], [(1, 1), (1, 1)]]
    found = dynamic_weights(epochs)
    for weights in found[:4]:
        close(weights, [1, 1])
    second = 2 / (1 + math.exp(0.5 / 2 - 1 / 2))
    for weights in found[4:6]:
        close(weights, [2 - second, second])
    first = 2 / (1 + math.exp(0.5 / 2 - 1.5 / 2))
    for weights in found[6:]:
        close(weights, [first, 2 - first])
    assert second == pytest.approx(1.1243530)
    assert first == pytest.approx(1.2449187)
    for weights, plain in zip(dynamic_weights(epochs, (0.5, 3.0)), found, strict=True):
        close(weights, plain * [0.5, 3.0])


def test_an_epochs_mean_is_over_its_labels():
    method = DynamicAverage(steps_per_epoch=2)
    state = method.init(2)
    for losses, counts in [((1, 1), (3, 1)), ((5, 2), (1, 1))]:
        step = seen(losses, counts=counts)
        state = method.update(state, step, step.sums)
    close(state["last"], [(3 * 1 + 1 * 5) / 4, 1.5])
    close(state["counts"], [0, 0])
    assert int(state["step"]) == 0


def test_a_task_without_labels_in_an_epoch_is_taken_as_unchanged():
    method = DynamicAverage(steps_per_epoch=1)
    state = method.init(2)
    for losses, counts in [((4, 3), (1, 1)), ((2, 0), (1, 0))]:
        step = seen(losses, counts=counts)
        state = method.update(state, step, step.sums)
    second = 2 / (1 + math.exp(0.5 / 2 - 1 / 2))
    close(method.weights(state, seen((1, 1))), [2 - second, second])


def test_the_average_counts_the_tasks_that_are_in():
    *_, weights = dynamic_weights([[(4, 2, 1)] * 2, [(2, 2, 9)] * 2, [(1, 1, 1)] * 2], (1, 1, 0))
    second = 2 / (1 + math.exp(0.5 / 2 - 1 / 2))
    close(weights, [2 - second, second, 0])


# FAMO.


def test_famo_weighs_by_the_slope_of_the_logarithm():
    method = Famo()
    # (1/2)/1 and (1/2)/2, scaled to sum to 1; then the user's weights.
    close(method.weights(method.init(2), seen([1.0, 2.0])), [2 / 3, 1 / 3])
    close(method.weights(method.init(2), seen([1.0, 2.0], [2.0, 6.0])), [4 / 3, 2])
    state = {**method.init(2), "xi": jnp.log(jnp.array([1.0, 3.0]))}
    # Shares of 1/4 and 3/4: (1/4)/1 and (3/4)/2.
    close(method.weights(state, seen([1.0, 2.0])), [0.4, 0.6])


def test_famo_turns_to_the_task_that_has_improved_less():
    method = Famo()
    before, after = seen([1.0, 2.0]), jnp.array([0.5, 2.0]) * 4
    state = method.update(method.init(2), before, after)
    # J^T (log 2, 0) with J = [[1, -1], [-1, 1]] / 4.
    gradients = [np.array([math.log(2), -math.log(2)]) / 4]
    close(state["xi"], adam(gradients, 0.025))
    close(state["xi"], [-0.025, 0.025])
    z = np.exp([-0.025, 0.025]) / np.exp([-0.025, 0.025]).sum()
    jacobian = np.diag(z) - np.outer(z, z)
    delta = np.log([0.5 / 1.0, 2.0 / 1.5])
    gradients.append(jacobian @ delta + 0.01 * np.array([-0.025, 0.025]))
    state = method.update(state, seen([0.5, 2.0]), jnp.array([1.0, 1.5]) * 4)
    close(state["xi"], adam(gradients, 0.025))


def test_famo_decays_towards_equal_shares():
    method = Famo()
    state = {**method.init(2), "xi": jnp.array([1.0, -1.0])}
    step = seen([1.0, 1.0])
    state = method.update(state, step, step.sums)
    # Nothing has changed but by gamma xi, of which Adam's first step takes the sign.
    close(state["xi"], [1 - 0.025, -1 + 0.025])


def test_a_loss_of_0_does_not_take_all_of_famo():
    method = Famo(floor=0.01)
    step = seen([0.0, 1.0])
    close(method.weights(method.init(2), step), [100 / 101, 1 / 101])
    state = method.update(method.init(2), step, step.sums)
    assert np.isfinite(state["xi"]).all()


def test_a_step_that_lacks_a_task_leaves_famo_as_it_is():
    method = Famo()
    state = {**method.init(3), "xi": jnp.array([0.5, 0.0, -0.5])}
    step = seen([1.0, 0.0, 2.0], counts=[4, 0, 4])
    first, second, third = np.asarray(method.weights(state, step))
    assert second == 0
    assert first / third == pytest.approx(2 * math.e)
    assert first + third == pytest.approx(1)
    same(method.update(state, step, jnp.ones(3)), state)


# PCGrad.


def pcgrad_weights(gradients, fixed=None, seed=0):
    gradients = np.asarray(gradients, np.float64)
    step = seen([1.0] * len(gradients), fixed, gram=gradients @ gradients.T, seed=seed)
    return np.asarray(PcGrad().weights((), step))


def projected(gradients, orders):
    """Algorithm 1 of the paper on the vectors themselves."""
    total = np.zeros(len(gradients[0]))
    for own, order in enumerate(orders):
        mixed = np.array(gradients[own], np.float64)
        for other in order:
            inner = mixed @ gradients[other]
            if inner < 0:
                mixed = mixed - inner / (gradients[other] @ gradients[other]) * gradients[other]
        total += mixed
    return total


def test_conflicting_gradients_are_projected_by_hand():
    # (1, 0) loses what it has against (-1, 1): (1/2, 1/2); (-1, 1) is left (0, 1).
    gradients = np.array([[1.0, 0.0], [-1.0, 1.0]])
    weights = pcgrad_weights(gradients)
    close(weights, [2.0, 1.5])
    close(weights @ gradients, [0.5, 1.5])


@pytest.mark.parametrize("second", [(0.5, 1.0), (0.0, 1.0), (0.0, 0.0)])
def test_gradients_without_a_conflict_are_left(second):
    close(pcgrad_weights([[1.0, 0.0], second], (0.7, 2.0)), [0.7, 2.0])


def test_the_users_weights_are_those_of_the_gradients_that_are_projected():
    gradients = np.array([[1.0, 0.0], [-1.0, 1.0]])
    weighted = gradients * [[0.5], [3.0]]
    found = pcgrad_weights(gradients, (0.5, 3.0)) @ gradients
    close(found, projected(weighted, [[1], [0]]))


def test_three_tasks_are_projected_in_random_orders():
    gradients = np.array([[1.0, 0.0, 0.2], [-1.0, 0.5, 0.0], [-0.3, -1.0, 0.1]])
    orders = itertools.product(*(itertools.permutations({0, 1, 2} - {own}) for own in range(3)))
    possible = np.array([projected(gradients, each) for each in orders])
    found = set()
    for seed in range(20):
        mixed = pcgrad_weights(gradients, seed=seed) @ gradients
        close(mixed, pcgrad_weights(gradients, seed=seed) @ gradients)
        distances = np.abs(possible - mixed).max(1)
        assert distances.min() < 1e-5
        found.add(int(distances.argmin()))
    assert len(found) > 2


def test_a_task_that_is_out_is_nothing_to_project_on():
    gradients = np.array([[1.0, 0.0], [-1.0, 1.0], [-1.0, -0.1]])
    close(pcgrad_weights(gradients, (1.0, 1.0, 0.0)), [2.0, 1.5, 0.0])


# GradNorm.


def norms(*lengths):
    return np.diag(np.square(np.array(lengths, np.float64)))


def gradnorm_update(method, means, lengths, state=None, **changes):
    state = {**(state or method.init(len(means))), **changes}
    step = seen(means, gram=norms(*lengths))
    return method.update(state, step, step.sums)


def test_weights_fall_along_the_published_gradient_by_hand():
    method = GradNorm(alpha=1.0)
    first = jnp.array([2.0, 1.0])
    # L / L(first): (1/2, 1), r = (2/3, 4/3); G = (3, 1), mean 2: targets (4/3, 8/3).
    state = gradnorm_update(method, [1.0, 1.0], [3.0, 1.0], first=first)
    close(state["weights"], [1 - 0.025, 1 + 0.025])
    # r = 1; G = (0.975, 2.05), mean 1.5125: the first gets a pull up now, the second down.
    state = gradnorm_update(method, [2.0, 1.0], [1.0, 2.0], state)
    moved = (
        np.array([0.975, 1.025])
        + adam([np.array([3.0, -1.0]), np.array([-1.0, 2.0])], 0.025)
        - adam([np.array([3.0, -1.0])], 0.025)
    )
    close(state["weights"], moved * 2 / moved.sum())


@pytest.mark.parametrize(("alpha", "sign"), [(0.0, -1), (1.0, -1), (3.0, 1)])
def test_alpha_is_the_power_of_the_relative_rate(alpha, sign):
    # r = (4/3, 2/3), G = (3, 1), mean 2: the first one's target is 2, 8/3, or 128/27 > 3.
    state = gradnorm_update(GradNorm(alpha), [2.0, 1.0], [3.0, 1.0], first=jnp.ones(2))
    assert np.sign(float(state["weights"][0]) - 1) == sign
    assert float(state["weights"].sum()) == pytest.approx(2)


def test_the_first_losses_are_kept_task_by_task():
    method = GradNorm()
    step = seen([3.0, 0.0], counts=[4, 0], gram=norms(1.0, 0.0))
    state = method.update(method.init(2), step, step.sums)
    close(state["first"], [3.0, 0.0])
    close(state["weights"], [1.0, 1.0])
    assert int(state["adam"][0].count) == 0
    state = gradnorm_update(method, [2.0, 5.0], [1.0, 2.0], state)
    close(state["first"], [3.0, 5.0])
    assert int(state["adam"][0].count) == 1
    close(gradnorm_update(method, [1.0, 1.0], [1.0, 2.0], state)["first"], [3.0, 5.0])


def test_weights_stay_positive_and_sum_to_the_number_of_tasks():
    method = GradNorm(learning_rate=0.5, floor=0.1)
    state = method.init(2)
    for _ in range(5):
        state = gradnorm_update(method, [1.0, 1.0], [100.0, 1.0], state)
        assert float(state["weights"].min()) > 0
        assert float(state["weights"].sum()) == pytest.approx(2)
    close(
        method.weights(state, seen([1.0, 1.0], [2.0, 3.0])), np.array([2.0, 3.0]) * state["weights"]
    )


def test_the_norm_is_that_of_the_last_stage_that_is_trained():
    stages = {"embeddings": 0, "layer_2": 1, "layer_10": 2}
    assert GradNorm().compared(stages) == {"layer_10": 2}
    assert GradNorm().compared({**stages, "pooler": 3}) == {"pooler": 3}
    assert GradNorm().compared({"embeddings": 0}) == {"embeddings": 0}
    assert GradNorm().compared({}) == {}


# What they have in common: two linear losses, whose gradients are their coefficients.

SLOPES = {
    "backbone": {"embeddings": [[0.0, 9.0], [5.0, 0.0]], "layer_0": [[1.0, 0.0], [-1.0, 1.0]]},
    "classifier": {"kernel": [[3.0, 4.0], [0.0, 0.0]]},
    "sentiment": {"kernel": [[0.0, 0.0], [7.0, 1.0]]},
}
COUNTS = (2.0, 4.0)


def of_task(task, slopes=None):
    """The gradient of a task's mean loss."""

    def is_leaf(rows):
        return isinstance(rows, list)

    return jax.tree.map(lambda rows: np.array(rows[task]), slopes or SLOPES, is_leaf=is_leaf)


def vector(tree):
    return np.concatenate(jax.tree.leaves(tree))


def toy_gradient(method, state, fixed, slopes=None):
    params = jax.tree.map(jnp.ones_like, of_task(0, slopes))

    def loss_sums(params):
        flat = jnp.concatenate(jax.tree.leaves(params))
        means = [flat @ vector(of_task(task, slopes)) for task in range(2)]
        return jnp.stack(means) * jnp.array(COUNTS)

    return weighted_gradient(
        method,
        state,
        loss_sums,
        params,
        jnp.array(fixed),
        jnp.array(COUNTS),
        jax.random.key(0),
        lambda tree: tree,
    )


def mixed(weights) -> Any:
    return jax.tree.map(lambda a, b: weights[0] * a + weights[1] * b, *map(of_task, (0, 1)))


def test_pcgrad_projects_what_is_shared_and_leaves_the_heads():
    gradient, step, weights = toy_gradient(PcGrad(), (), (1.0, 1.0))
    # (0, 9, 1, 0) and (5, 0, -1, 1).
    close(step.gram, [[82, -1], [-1, 27]])
    close(weights, [1 + 1 / 82, 1 + 1 / 27])
    shared = [vector(of_task(task)["backbone"]) for task in range(2)]
    close(vector(gradient["backbone"]), projected(shared, [[1], [0]]))
    close(gradient["classifier"]["kernel"], [3.0, 4.0])
    close(gradient["sentiment"]["kernel"], [7.0, 1.0])


def test_gradnorm_compares_the_last_stage_alone_and_weighs_everything():
    state = {**GradNorm().init(2), "weights": jnp.array([0.5, 1.5])}
    gradient, step, weights = toy_gradient(GradNorm(), state, (2.0, 1.0))
    close(step.gram, [[1, -1], [-1, 2]])
    close(weights, [1.0, 1.5])
    jax.tree.map(close, gradient, mixed((1.0, 1.5)))


def test_one_backward_pass_gives_the_same_gradient():
    method = Uncertainty()
    state = {**method.init(2), "log_variances": jnp.log(jnp.array([2.0, 0.25]))}
    gradient, step, weights = toy_gradient(method, state, (1.0, 3.0))
    close(weights, [0.5, 12.0])
    close(step.gram, np.zeros((2, 2)))
    jax.tree.map(close, gradient, mixed((0.5, 12.0)))


@pytest.mark.parametrize("method", BALANCING, ids=lambda method: method.name)
@pytest.mark.parametrize("fixed", [(0.3, 0.0), (0.0, 2.0), (0.0, 0.0)])
def test_a_task_alone_is_weighed_as_the_user_says(method, fixed):
    gradient, step, weights = toy_gradient(method, method.init(2), fixed)
    close(weights, fixed)
    jax.tree.map(close, gradient, mixed(fixed))
    state = method.update(method.init(2), step, step.sums)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("method", BALANCING, ids=lambda method: method.name)
def test_without_a_shared_parameter_only_heads_are_weighed(method):
    heads = {name: SLOPES[name] for name in ("classifier", "sentiment")}
    gradient, _, weights = toy_gradient(method, method.init(2), (1.0, 2.0), heads)
    if method.compares_gradients:
        close(weights, [1.0, 2.0])
    close(gradient["classifier"]["kernel"], np.array([3.0, 4.0]) * weights[0])
    close(gradient["sentiment"]["kernel"], np.array([7.0, 1.0]) * weights[1])


# By name.


def test_every_name_has_a_method_of_that_name():
    assert set(METHODS) == {
        *("fixed", "uncertainty", "dynamic_average", "famo", "pcgrad", "gradnorm")
    }
    for name in METHODS:
        method = make_weighting(name, 3)
        assert method.name == name
        assert method == make_weighting(name, 3)
        assert hash(method) == hash(make_weighting(name, 3))
    assert len({make_weighting(name, 3) for name in METHODS}) == len(METHODS)
    assert make_weighting("dynamic_average", 3) != make_weighting("dynamic_average", 4)
    with pytest.raises(
        UserError, match="--weighting 'fixd' is unknown: use one of dynamic_average, "
    ):
        make_weighting("fixd", 3)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("scenario", "task_weights", "words"),
    [
        ("none_frozen", (1.0, 0.5), None),
        ("sentiment_frozen", (1.0, 0.5), None),
        ("all_frozen", (1.0, 1.0), "nothing is trained: --weighting {name} has no effect"),
        (
            "top_1",
            (0.0, 1.0),
            "--weighting {name} has no effect, for classifier has weight 0 or no",
        ),
        ("top_1", (0.0, 0.0), "has no effect, for classifier and sentiment has weight 0 or no"),
        ("backbone_frozen", (1.0, 1.0), "no parameter that is trained is shared: use a scenario"),
    ],
)
def test_why_a_method_can_do_nothing(name, scenario, task_weights, words):
    partition = Partition.from_rules(random_params(), scenario_rules(scenario, 2, TASKS))
    found = useless(
        make_weighting(name, 3), partition, dict(zip(TASKS, task_weights, strict=True)), 7
    )
    if words is None or name == "fixed":
        assert found is None
    else:
        assert found is not None
        assert words.format(name=name) in found


def test_what_a_loss_weighting_does_to_heads_alone_is_told_apart_from_gradient_surgery():
    partition = Partition.from_rules(random_params(), scenario_rules("backbone_frozen", 2, TASKS))
    for method in BALANCING:
        found = useless(method, partition, {"classifier": 1.0, "sentiment": 1.0}, 7)
        assert found is not None
        assert ("which Adam all but undoes" in found) is not method.compares_gradients
    assert useless(Fixed(), partition, {"classifier": 0.0, "sentiment": 0.0}, 7) is None


def test_a_phase_of_two_epochs_is_too_short_for_a_dynamic_average():
    partition = Partition.from_rules(random_params(), scenario_rules("none_frozen", 2, TASKS))
    for name in METHODS:
        method = make_weighting(name, 3)
        assert useless(method, partition, {"classifier": 1.0, "sentiment": 1.0}, 7) is None
        found = useless(method, partition, {"classifier": 1.0, "sentiment": 1.0}, 6)
        assert (found is None) == (name != "dynamic_average")
    assert useless(
        make_weighting("dynamic_average", 3), partition, {"classifier": 1.0, "sentiment": 1.0}, 6
    ) == (
        "--weighting dynamic_average has no effect, for it begins anew in each phase, after 6 "
        "steps, two epochs, and this one has 6: raise --epochs, or use another method"
    )
