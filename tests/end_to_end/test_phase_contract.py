"""The freeze contract and the moments, over random lists of phases."""

from typing import Any

import jax
import numpy as np
from hypothesis import Phase as Stage
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_jax.freezing.partition import Partition, certificate, digest, state_bytes
from mtl_jax.freezing.scenarios import FROZEN, scenario_rules
from mtl_jax.training.optimizer import carried
from mtl_jax.training.step import train_step
from tests.conftest import TASKS
from tests.freezing.test_partition import PARAMS, PATHS, RULES, copy, depth_of, raw
from tests.training.test_step import flat, make_program, random_batch

NAMES = (
    "backbone_frozen",
    "classifier_frozen",
    "sentiment_frozen",
    "none_frozen",
    "top_1",
    "top_2",
)
# A scenario by name, or any rules at all, and how many steps it is trained for.
PHASES = st.lists(
    st.tuples(
        st.one_of(st.sampled_from(NAMES).map(lambda name: scenario_rules(name, 2, TASKS)), RULES),
        st.integers(1, 2),
    ),
    min_size=2,
    max_size=4,
)


def trained_in(partition):
    return {path for path, label in partition.labels if label != FROZEN}


@settings(max_examples=8, deadline=None, phases=(Stage.explicit, Stage.generate))
@given(phases=PHASES)
def test_every_phase_keeps_the_contract(phases):
    before: Any = {}
    params, taken, step = copy(PARAMS), dict.fromkeys(PATHS, 0), 0
    for rules, steps in phases:
        partition, program = make_program(params, rules)
        trainable, frozen = partition.split(jax.tree.map(jax.numpy.asarray, params))
        paths = trained_in(partition)
        start, held = raw(params), digest(frozen)
        state = program.init(trainable, 3)
        fresh: Any = state.opt_state
        opt_state: Any = carried(fresh, before) if before else fresh
        moments = {k: flat(v) for k, v in opt_state["moments"]._asdict().items()}
        assert all(part.keys() == paths for part in moments.values())
        # Carried over where it stays trainable; else as if it had never been trained.
        taken = {path: taken[path] if path in paths else 0 for path in PATHS}
        for path in paths:
            assert int(moments["steps"][path]) == taken[path]
            for name in ("mu", "nu"):
                leaf = np.asarray(moments[name][path])
                if taken[path]:
                    old = flat(getattr(before["moments"], name))[path]
                    assert leaf.tobytes() == np.asarray(old).tobytes()
                else:
                    assert not leaf.any()
        state = state.replace(step=np.int32(step), opt_state=opt_state)
        for _ in range(steps if paths else 0):
            state, _ = train_step(program, state, frozen, random_batch(seed=step))
            step += 1
        after = Partition.merge(state.trainable, frozen)
        moved = {path for path in PATHS if raw(after)[path] != start[path]}
        assert moved <= paths
        # What is decayed moves even without a gradient.
        assert {path for path in paths if path.endswith(("kernel", "embedding"))} <= moved
        proof = certificate(partition, after, state.opt_state, held)
        assert proof["frozen_digest_unchanged"] is True
        size = sum(flat(PARAMS)[path].size for path in paths)
        assert proof["trainable_parameters"] == size
        counters = len(paths) + len(partition.groups)
        assert state_bytes(state.opt_state) == 4 * (2 * size + counters)
        assert program.frozen_depth == depth_of(partition.labels)
        taken = {path: n + (steps if path in paths else 0) for path, n in taken.items()}
        params, before = copy(after), state.opt_state
