"""What is told of a run before it trains."""

import re

from mtl_jax.config.train import TrainConfig
from mtl_jax.runs.notes import mostly_padding
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.training.inputs import Inputs


def test_batches_too_small_for_their_devices_are_told_with_the_size_that_mends_it(settings):
    """Four devices, one text of a batch for each; heads alone read one vector of a text."""

    def told(**changes):
        config = TrainConfig(**settings | {"parallel": "mesh", **changes}, workdir="")
        return mostly_padding(PhaseRun(config, inputs))

    inputs = Inputs(TrainConfig(**settings, workdir=""))
    (warning,) = told(batch_size=4, scenario="none_frozen")
    found = re.match(
        r"warning: (\d+)% of what is computed is padding: each of 4 devices has a row as long as "
        r"the longest text, which its part of 4 texts does not fill: --batch-size (\d+) mends it",
        warning,
    )
    assert found
    assert int(found[1]) > 35
    assert told(batch_size=int(found[2]), scenario="none_frozen") == []
    assert told(batch_size=4, scenario="backbone_frozen") == []
    assert told(batch_size=4, scenario="none_frozen", parallel="jit") == []
