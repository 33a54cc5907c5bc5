"""A user's own head, loss, metric, schedule and callback: what is no such thing is refused."""

import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import read_lines
from mtl_jax.runs.loop import train
from mtl_jax.training.inputs import Inputs

PARTS = """
import flax.linen as nn
import jax.numpy as jnp
import optax


class Narrow(nn.Module):
    def __call__(self, vectors):
        return vectors[..., :2]


class Stubborn(nn.Module):
    width: int

    def __call__(self, vectors):
        return vectors


def plain(logits, labels):
    there = labels >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return jnp.where(there, losses, 0.0).sum(), there.sum().astype(jnp.float32)


def doubled(logits, labels):
    total, count = plain(logits, labels)
    return 2 * total, count


def mean_alone(logits, labels):
    return logits.mean()


def of_one(logits):
    return logits.sum(), logits.size


def words(labels, predicted):
    return "good"


def broken(labels, predicted):
    raise ValueError("no such\\nthing")


def undefined(labels, predicted):
    return float("nan")


def no_schedule(peak, warmup, total):
    return peak


def two_rates(peak, warmup, total):
    return lambda count: jnp.full(2, peak) * count


number = 3
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    (tmp_path / "own_kinds.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture(scope="module")
def inputs(small_settings):
    return Inputs(TrainConfig(**small_settings, workdir=""))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"heads": {"classifier": "own_kinds:Gone"}}, "module own_kinds has no Gone: correct the"),
        ({"heads": {"classifier": "no_kinds:A"}}, "module no_kinds can't be imported (No module"),
        (
            {"heads": {"classifier": "own_kinds:number"}},
            "classifier: 3 is not a Flax module",
        ),
        ({"heads": {"classifier": "own_kinds:Narrow"}}, "makes (2, 3, 2) of vectors [2, 3, 16]"),
        ({"heads": {"classifier": "own_kinds:Stubborn"}}, "Stubborn can't be made ("),
        ({"loss": "own_kinds:number"}, "--loss classifier own_kinds:number is not a function"),
        (
            {"loss": "own_kinds:mean_alone"},
            "own_kinds:mean_alone returns ShapeDtypeStruct(shape=()",
        ),
        ({"loss": {"sentiment": "own_kinds:of_one"}}, "--loss sentiment own_kinds:of_one can't be"),
        ({"metrics": {"a": "own_kinds:number"}}, "--metrics a own_kinds:number is not a function"),
        ({"metrics": {"a": "own_kinds:words"}}, "own_kinds:words makes no number of 3 labels and"),
        ({"metrics": {"a": "own_kinds:broken"}}, "(ValueError: no such): correct it"),
        ({"metrics": {"accuracy": "own_kinds:words"}}, "--metrics accuracy already exists"),
        ({"schedule": "own_kinds:number"}, "--schedule own_kinds:number is not a function"),
        ({"schedule": "own_kinds:no_schedule"}, "no_schedule makes no schedule of a peak rate"),
        ({"schedule": "own_kinds:two_rates"}, "let its schedule return one number"),
        ({"callbacks": ("own_kinds:number",)}, "--callbacks own_kinds:number is not a function"),
        (
            {"callbacks": ("own_kinds",)},
            "--callbacks 'own_kinds' is not an import path: write module:",
        ),
    ],
)
def test_what_is_of_another_kind_is_refused_before_training(
    setting, words, small_settings, inputs, tmp_path
):
    folder = tmp_path / "run"
    with pytest.raises(UserError) as caught:
        train(TrainConfig(**{**small_settings, **setting}, workdir=str(folder)), inputs)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not folder.exists()


def trained(small_settings, inputs, folder, **changes):
    still = {"epochs": 1, "head_learning_rate": 0.0, "backbone_learning_rate": 0.0}
    config = TrainConfig(**{**small_settings, **still, **changes}, workdir=str(folder))
    return train(config, inputs)


def test_two_losses_in_one_process_share_nothing_that_is_compiled(small_settings, inputs, tmp_path):
    found = {
        name: trained(small_settings, inputs, tmp_path / name, loss=f"own_kinds:{name}")
        for name in ("plain", "doubled")
    }
    built_in = trained(small_settings, inputs, tmp_path / "built_in")
    logged = {name: read_lines(tmp_path / name / "metrics.jsonl") for name in found}
    for task in ("classifier", "sentiment"):
        plain, doubled = (found[name]["validation"][task]["loss"] for name in ("plain", "doubled"))
        assert doubled == 2 * plain
        assert plain == pytest.approx(built_in["validation"][task]["loss"], rel=1e-6)
        (plain,), (doubled,) = (
            [line["train_loss"][task] for line in logged[name] if line["event"] == "epoch"]
            for name in ("plain", "doubled")
        )
        assert doubled == pytest.approx(2 * plain, rel=1e-6)


def test_a_metric_that_is_not_defined_is_null(small_settings, inputs, tmp_path):
    metrics = {"own": "own_kinds:undefined"}
    result = trained(small_settings, inputs, tmp_path / "run", metrics=metrics)
    assert [result["validation"][task]["own"] for task in ("classifier", "sentiment")] == [None] * 2
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
