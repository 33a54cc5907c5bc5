"""What a study can tell, said before it trains anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtl_jax.studies.inputs_pool import InputsPool
from mtl_jax.studies.settings import Plan
from mtl_jax.studies.stats import power
from mtl_jax.studies.stats.results import BASELINE, by_setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtl_jax.studies.stats.results import Result


def power_note(plan: Plan, pool: InputsPool, done: Sequence[Result] = ()) -> list[str]:
    """The difference that a study of these sizes can tell, as a note.

    Args:
        plan: The study.
        pool: What has been read for it; of data that have not been read nothing is said.
        done: The results that there are: their scatter takes the place of what is assumed.
    """
    arms = [arm for group in plan.groups for arm in group]
    inputs = next((found for arm in arms if (found := pool.opened(arm.config))), None)
    if inputs is None:
        return []
    seeds = len({arm.config.seed for arm in arms})
    trained = len({arm.name for arm in arms if arm.name != BASELINE})
    first = next(iter(by_setting(done).values()), [])
    return [power.before(seeds, trained, inputs.corpus.test_counts(), first)]
