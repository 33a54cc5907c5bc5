"""How whole splits are run, batch by batch."""

import numpy as np

from mtl_jax.config.train import TrainConfig
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.training.inputs import Inputs


def test_a_batch_is_made_and_sent_before_the_last_is_waited_for(settings):
    """In the order of what happens, not by the clock; the rows are real."""
    config = TrainConfig(**settings, workdir="unused")
    evaluator, texts = (run := PhaseRun(config, Inputs(config))).evaluator, run.split("train").texts
    events = []

    class Rows:
        """Tells when it is turned into an array on the host."""

        def __init__(self, number, rows):
            self.number, self.rows = number, rows

        def __array__(self, dtype=None, copy=None):
            events.append(("waited for", self.number))
            return np.asarray(self.rows, dtype)

    def batches():
        for number, batch in enumerate(evaluator.batches(texts)):
            # Three times as many batches as the texts need: the order shows from the second on.
            for again in range(3):
                events.append(("made", 3 * number + again))
                yield batch

    def step(batch):
        number = events[-1][1]
        events.append(("sent", number))
        return Rows(number, batch["pooled"])

    found = []
    for batch, rows in evaluator._run(step, texts, batches()):
        events.append(("given", len(found)))
        np.testing.assert_array_equal(rows, batch["pooled"])
        found.append(batch["example"])
    count = len(found)
    assert count == 3 * len(list(evaluator.batches(texts))) >= 3
    expected = [("made", 0), ("sent", 0)]
    for i in range(1, count):
        expected += [("made", i), ("sent", i), ("waited for", i - 1), ("given", i - 1)]
    assert events == [*expected, ("waited for", count - 1), ("given", count - 1)]
