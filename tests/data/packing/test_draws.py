"""Draws of texts share a layout, whichever texts they are of."""

import numpy as np

from mtl_jax.data.packing.draws import room_of_draws
from mtl_jax.data.packing.plan import PackingPlan
from tests.data.packing.test_plan import assert_fits, epoch


def test_draws_fit_into_one_layout_that_costs_little_more_than_their_own():
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(3, 0.5, 10_000), 3, 100).astype(np.int64)
    for count in (64, 416, 4096):
        room = room_of_draws(lengths, count)
        draws = [lengths[random.permutation(len(lengths))[:count]] for _ in range(100)]
        fitting = [draw for draw in draws if PackingPlan.has_room(draw, room)]
        assert len(fitting) >= 95
        plans = [PackingPlan(draw, 16, 1, 384, room=room) for draw in fitting[:3]]
        assert len({plan.layout for plan in plans}) == 1
        for plan, draw in zip(plans, fitting, strict=False):
            assert_fits(epoch(plan, count, 1), draw, plan.layout)
        own = np.mean([PackingPlan(d, 16, 1, 384).layout.length for d in fitting[:20]])
        assert plans[0].layout.length <= {64: 1.45, 416: 1.2, 4096: 1.05}[count] * own


def test_the_whole_is_a_draw_of_itself():
    lengths = np.random.default_rng(0).integers(3, 128, 777)
    np.testing.assert_array_equal(room_of_draws(lengths, 777), np.sort(lengths)[::-1])
    assert not PackingPlan.has_room(np.array([5, 9]), np.array([8, 8]))
    assert not PackingPlan.has_room(np.array([5]), np.array([8, 8]))
    assert PackingPlan.has_room(np.array([5, 8]), np.array([8, 6]))
