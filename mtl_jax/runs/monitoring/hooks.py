"""What shows the training of a run while it goes on: a heartbeat, and a trace of some steps."""

from __future__ import annotations

from mtl_jax.core import distributed
from mtl_jax.core.console import is_terminal
from mtl_jax.core.paths import expanded
from mtl_jax.runs.monitoring.profiling import Trace
from mtl_jax.runs.monitoring.progress_log import Heartbeat
from mtl_jax.runs.phase_run import PhaseRun


class Show:
    """Of several processes that train a run, the first one shows it.

    Attributes:
        heartbeat: Says where the training is, where there is no terminal for a bar.
        trace: Takes the steps.
    """

    def __init__(self, run: PhaseRun):
        watch, main = run.config.watch, distributed.is_main()
        total = sum(plan.steps for plan in run.plans)
        self.heartbeat = Heartbeat(
            watch.heartbeat if main and not is_terminal() else 0.0,
            total,
            len(run.plans),
            any(plan.may_end_early for plan in run.plans),
        )
        folder = expanded(run.config.workdir) / "profile"
        self.trace = Trace(watch.profiled if main else range(0), folder, total)

    def close(self) -> None:
        """Ends what is still under way."""
        self.trace.close()
