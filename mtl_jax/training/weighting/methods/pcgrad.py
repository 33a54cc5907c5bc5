"""PCGrad: what a task's gradient has against another task is taken out of it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mtl_jax.freezing.partition import Params
from mtl_jax.training.weighting.base import Seen, State, Weighting


@dataclasses.dataclass(frozen=True)
class PcGrad(Weighting):
    """Projecting conflicting gradients: Yu et al. 2020 (arXiv:2001.06782), Algorithm 1.

    The gradient of each task with respect to the shared parameters is, where its inner product
    with another task's is negative, projected onto the plane normal to that one, for all other
    tasks in random order; the sum of what remains is the gradient. All of that lies in the span
    of the tasks' gradients, and so it is reckoned in coefficients of them, from their inner
    products, and ends in a weight for each. A projection is linear in the gradient that is
    projected, and takes no notice of the other's length: with the user's weights it is that of
    the weighted losses. The heads share nothing, and their gradients are left as they are.
    """

    name = "pcgrad"
    of_shared_only = True
    compares_gradients = True

    def compared(self, shared: Params) -> Params:
        """See ``Weighting``: all of the shared parameters."""
        return shared

    def weights(self, state: State, seen: Seen) -> jax.Array:
        """See ``Weighting``."""
        del state
        tasks = len(seen.fixed)
        gram = jnp.where(seen.balanced[:, None] & seen.balanced, seen.gram, 0.0)

        def projected(own: jax.Array, key: jax.Array) -> jax.Array:
            def project(mixed: jax.Array, other: jax.Array) -> tuple[jax.Array, None]:
                inner = mixed @ gram[other]
                conflict = (inner < 0) & (other != own)
                length = jnp.where(conflict, gram[other, other], 1.0)
                return mixed.at[other].add(jnp.where(conflict, -inner / length, 0.0)), None

            others = jax.random.permutation(key, tasks)
            return jax.lax.scan(project, jax.nn.one_hot(own, tasks), others)[0]

        keys = jax.random.split(seen.key, tasks)
        return seen.fixed @ jax.vmap(projected)(jnp.arange(tasks), keys)
