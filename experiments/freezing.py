"""Which parts of the model should be frozen? Every scenario, several seeds, one report.

    python -m experiments.freezing --workdir DIR

The defaults are the quick study that ``./launch.sh`` runs, on a part of the Sentences
corpus. ``experiments/README.md`` has the answers of real runs, with their commands, times
and machines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.machine import circumstances
from mtl_jax.cli import guarded, one_line, parse, prepare
from mtl_jax.config import DataConfig, Settings, TrainConfig
from mtl_jax.errors import UserError

if TYPE_CHECKING:
    from mtl_jax.inputs import Inputs

_SETTINGS = tuple(field.name for field in dataclasses.fields(Settings))


def _limits(data: DataConfig) -> dict[str, int | None]:
    return {
        "max_train_examples": data.max_train_examples,
        "max_evaluation_examples": data.max_evaluation_examples,
    }


# Few enough sentences for four seeds of seven scenarios in some minutes on two cores.
_QUICK = DataConfig(max_train_examples=384, max_evaluation_examples=320)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Freezing(Settings):
    """Train every scenario with every seed, and report what freezing costs and buys."""

    workdir: str
    """folder for the arms, results.jsonl and the report; run again to go on"""
    scenarios: tuple[str, ...] = (
        "all_frozen",
        "backbone_frozen",
        "top_1",
        "top_2",
        "classifier_frozen",
        "sentiment_frozen",
        "none_frozen",
    )
    """the scenarios to compare"""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """the seeds to train each with"""
    data: DataConfig = _QUICK
    batch_size: int = 16
    """examples per step, over all devices"""
    head_learning_rate: float = 1e-2
    """peak learning rate of the two heads; high, as the steps of the quick study are few"""
    keep_checkpoints: bool = False
    """keep the checkpoints of finished arms"""
    seeds_at_once: int | None = None
    """seeds of a scenario that are trained in one program, each on one device; by default all of \
them on an accelerator, which a batch of short sentences leaves idle, and 1 on a CPU"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scenarios", "seeds"):
            values = tuple(dict.fromkeys(getattr(self, name)))
            if not values:
                raise UserError(f"--{name} is empty: name at least one")
            object.__setattr__(self, name, values)
        if self.seeds_at_once is not None and self.seeds_at_once < 1:
            raise UserError(f"--seeds-at-once {self.seeds_at_once} must be at least 1")
        own = self.data.train_file or self.data.dataset != _QUICK.dataset
        if own and _limits(self.data) == _limits(_QUICK):
            # The quick study's limits are meant for the default corpus alone.
            unlimited = dict.fromkeys(_limits(_QUICK))
            object.__setattr__(self, "data", dataclasses.replace(self.data, **unlimited))

    def groups(self, at_once: int) -> Iterator[list[TrainConfig]]:
        """The arms that are trained at once.

        They come seed by seed, or so many seeds by so many, so that a study cut short has
        whole seeds to compare.
        """
        shared = {name: getattr(self, name) for name in _SETTINGS}
        for start in range(0, len(self.seeds), at_once):
            for scenario in self.scenarios:
                group = []
                for seed in self.seeds[start : start + at_once]:
                    workdir = str(Path(self.workdir) / "arms" / f"{scenario}-seed{seed}")
                    arm = TrainConfig(**shared, workdir=workdir, scenario=scenario, seed=seed)
                    group.append(arm)
                yield group


def run(study: Freezing, command: str) -> int:
    """Trains the arms that are not done yet, and writes the report.

    Args:
        study: The settings.
        command: How it was called, for the report.

    Returns:
        How many arms failed.

    Raises:
        UserError: The settings are wrong, or the folder holds a study with others.
    """
    from experiments.report import print_table, write_report
    from mtl_jax.console import say
    from mtl_jax.inputs import Inputs
    from mtl_jax.scenarios import scenario_rules
    from mtl_jax.workdir import Workdir, read_lines

    started = time.time()
    study = study.absolute()
    at_once = study.seeds_at_once or _default_at_once(study)
    groups = list(study.groups(at_once))
    inputs = Inputs(study)
    for scenario in study.scenarios:
        scenario_rules(scenario, inputs.bert.num_hidden_layers)
    texts = {name: len(inputs.split(name).texts) for name in ("train", "validation")}
    inputs.refuse_long()
    count = len(study.scenarios) * len(study.seeds)
    folder = Workdir(study.workdir)
    with contextlib.closing(folder):
        folder.claim(_record(study, inputs))
        for note in inputs.notes():
            say(note)
        say(
            f"{count} arms on {texts['train']:,} texts, {texts['validation']:,} to validate; "
            "--max-train-examples and --max-evaluation-examples set the limits, None lifts them"
        )
        results_file = folder.path / "results.jsonl"
        failures = _train_arms(groups, study.keep_checkpoints, inputs, results_file)
        results = _wanted(read_lines(results_file), study)
        if not results:
            raise UserError(
                f"no arm of the study in {study.workdir} could be trained; the first failed with: "
                f"{failures[0]['error']}"
            )
        context = _context(
            dataclasses.replace(study, seeds_at_once=at_once), inputs, command, started
        )
        report = write_report(folder.path, results, failures, context)
    print_table(results, failures)
    say(f"{len(results)} arms in {time.time() - started:.0f} s; the report is {report}")
    return len(failures)


def _default_at_once(study: Freezing) -> int:
    import jax

    return 1 if jax.default_backend() == "cpu" else len(study.seeds)


def _train_arms(
    groups: Sequence[Sequence[TrainConfig]],
    keep_checkpoints: bool,
    inputs: Inputs,
    results_file: Path,
) -> list[dict[str, Any]]:
    from mtl_jax.console import say
    from mtl_jax.workdir import append_line, read_lines, rewrite_lines

    finished = read_lines(results_file)
    # Without a line that a kill left unfinished, which the next one would else be glued to.
    rewrite_lines(results_file, finished)
    done = {(result["arm"], result["seed"]) for result in finished}
    failures = []
    total, before = sum(map(len, groups)), 0
    for group in groups:
        numbers = {arm.workdir: before + place for place, arm in enumerate(group, start=1)}
        before += len(group)
        todo = [arm for arm in group if (arm.scenario, arm.seed) not in done]
        for arm in todo:
            say(f"arm {numbers[arm.workdir]} of {total}: {arm.scenario}, seed {arm.seed}")
        for arm, outcome in zip(todo, _train_group(todo, inputs), strict=True):
            if isinstance(outcome, str):
                failures.append({"arm": arm.scenario, "seed": arm.seed, "error": outcome})
                say(f"arm {numbers[arm.workdir]} failed: {outcome}")
                continue
            append_line(results_file, _line(arm, outcome))
            if not keep_checkpoints:
                shutil.rmtree(Path(arm.workdir) / "checkpoints", ignore_errors=True)
    return failures


def _train_group(arms: Sequence[TrainConfig], inputs: Inputs) -> Sequence[dict[str, Any] | str]:
    """Per arm its result, or in words what it failed with: an exception holds the arrays."""
    from mtl_jax.train import train_seeds

    if not arms:
        return []
    try:
        outcomes = train_seeds(arms, inputs)
    except Exception as error:  # noqa: BLE001  (one scenario must not take the others with it)
        return [one_line(error)] * len(arms)
    return [one_line(each) if isinstance(each, UserError) else each for each in outcomes]


def _line(arm: TrainConfig, result: dict[str, Any]) -> dict[str, Any]:
    """One line of ``results.jsonl``: the run's result and its learning curve."""
    from mtl_jax.workdir import Workdir

    curve = [record for record in Workdir(arm.workdir).records() if record["event"] == "epoch"]
    kept = {name: value for name, value in result.items() if name not in ("event", "scenario")}
    return {"arm": arm.scenario, "seed": arm.seed, **kept, "curve": curve}


def _wanted(results: list[dict[str, Any]], study: Freezing) -> list[dict[str, Any]]:
    """What this call asks for, where the folder holds more."""
    return [
        result
        for result in results
        if result["arm"] in study.scenarios and result["seed"] in study.seeds
    ]


def _record(study: Freezing, inputs: Inputs) -> dict[str, Any]:
    """What may not change from one call on a folder to the next; arms may be added."""
    settings = {
        name: value for name, value in dataclasses.asdict(study).items() if name in _SETTINGS
    }
    return {"study": "freezing", "settings": settings, **inputs.record()}


def _context(study: Freezing, inputs: Inputs, command: str, started: float) -> dict[str, Any]:
    settings = {
        name: value
        for name, value in dataclasses.asdict(study).items()
        if name not in ("data", "workdir", "scenarios", "seeds", "keep_checkpoints")
    }
    return {
        **circumstances(command, started),
        "data": inputs.notes(),
        "seeds": list(study.seeds),
        "settings": settings | dataclasses.asdict(study.data),
    }


def _main(argv: Sequence[str]) -> None:
    study = parse(Freezing, argv, "python -m experiments.freezing", __doc__ or "")
    prepare()
    if run(study, shlex.join(["python", "-m", "experiments.freezing", *argv])):
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(guarded(_main, sys.argv[1:]))
