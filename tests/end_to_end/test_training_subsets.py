"""Each seed of a study has training texts of its own, and what can be shared is."""

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.json_files import read_lines
from mtl_jax.runs.loop import train
from mtl_jax.runs.workdir import Workdir
from mtl_jax.studies.builtin.freezing import Freezing, run
from mtl_jax.training import inputs as inputs_module
from tests.faults.runs import without_times

ARMS = ("backbone_frozen", "top_1", "none_frozen")


@pytest.fixture(scope="module")
def study(small_settings, tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("study"))
    data = dataclasses.replace(small_settings["data"], max_train_examples=32, max_test_examples=20)
    settings = {**small_settings, "data": data, "workdir": workdir, "seeds": (0, 1, 5)}
    return Freezing(**settings, arms=ARMS, seeds_at_once=3)


@pytest.fixture(scope="module")
def results(study):
    with pytest.MonkeyPatch.context() as patch:
        read = []
        load = inputs_module.load_corpus
        patch.setattr(inputs_module, "load_corpus", lambda data: read.append(data) or load(data))
        assert run(study, "the command") == 0
    # The files are read once for all seeds.
    assert len(read) == 1
    return read_lines(Path(study.workdir) / "results.jsonl", {})


def trained_on(study, line):
    folder = f"{study.workdir}/arms/{line['arm']}-seed{line['seed']}"
    return pq.read_table(f"{folder}/predictions-train.parquet")["example"].to_pylist()


def test_seeds_have_subsets_and_arms_of_a_seed_the_same(study, results):
    texts = {}
    for line in results:
        assert line["train_subset"] == line["seed"]
        assert line["train_examples"] == 32
        assert line["test_examples"] == 20
        texts.setdefault(line["seed"], set()).add(tuple(trained_on(study, line)))
    assert [len(each) for each in texts.values()] == [1, 1, 1]
    assert len(set.union(*texts.values())) == 3
    report = (Workdir(study.workdir).path / "report.md").read_text()
    assert "train_subset | one for each seed |" in report
    assert "32 of 96 texts, others for each seed" not in report
    # Batches have one shape for all, so that an update costs each of them the same.
    for arm in ARMS:
        steps = {
            phase["step"]
            for line in results
            if line["arm"] == arm
            for phase in line["flops_of_phases"]
        }
        assert len(steps) == 1
    own = dataclasses.replace(study, data=dataclasses.replace(study.data, train_subset=4))
    assert own.drawn(0) == own.drawn(1) == own.data
    assert study.at_once() == 1
    assert own.at_once() == 3


def test_an_arm_is_what_train_makes_of_its_settings(study, results, tmp_path):
    for line in results[3:6]:
        shared = {**study.of_a_run(), "data": study.drawn(line["seed"])}
        config = TrainConfig(
            **shared, workdir=str(tmp_path / line["arm"]), seed=1, scenario=line["arm"]
        )
        alone = without_times(train(config))
        assert {name: without_times(line[name]) for name in alone if name in line} == {
            name: value for name, value in alone.items() if name in line
        }
        assert alone["test"] == line["test"]
