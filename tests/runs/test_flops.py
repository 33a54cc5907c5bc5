"""Training FLOPs, against products counted by hand, and the same however a run is trained."""

import dataclasses

import jax
import numpy as np
import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.errors import UserError
from mtl_jax.models.encoder_module import EncoderModule
from mtl_jax.runs.flops import (
    PhaseFlops,
    counted,
    flops_record,
    prefix_flops,
    run_flops,
    step_flops,
)
from mtl_jax.runs.loop import train, train_seeds
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.tools.cost import EvaluationBatches, _flops
from mtl_jax.training.inputs import Inputs
from tests import conftest


@pytest.fixture(scope="module")
def inputs(shared_settings):
    return Inputs(TrainConfig(**shared_settings, workdir=""))


def run_of(settings, inputs, scenario="none_frozen", together=False, **changes):
    what = "recipe" if scenario == "gradual_unfreezing" else "scenario"
    config = TrainConfig(**{**settings, **changes, what: scenario}, workdir="")
    return PhaseRun(config, inputs, together=together)


@pytest.fixture(scope="module")
def wide(shared_settings, tmp_path_factory):
    """A backbone whose products outweigh everything else, without dropout."""
    folder = conftest.write_checkpoint(tmp_path_factory.mktemp("wide") / "b", conftest.WIDE)
    settings = {**shared_settings, "backbone": str(folder)}
    return settings, Inputs(TrainConfig(**settings, workdir=""))


def test_the_count_is_that_of_the_matrix_products(wide):
    settings, inputs = wide
    run = run_of(settings, inputs)
    layout, width, inner = run.plan.layout, 256, 1024
    tokens = layout.rows * layout.length
    # A product of n x k by k x m is 2 n k m: with N parameters in the layers' kernels, 2 N a token.
    dense = 2 * tokens * (4 * width**2 + 2 * width * inner)
    attention = 4 * width * layout.rows * sum(n * length**2 for n, length in layout.blocks)
    pooling = 2 * tokens * layout.slots * width
    heads = 2 * layout.rows * layout.slots * width * (3 + 3)
    forward = 2 * (dense + attention) + pooling + heads
    # Each product has two in the backward pass, but for the first of a frozen bottom.
    assert step_flops(run) == pytest.approx(3 * forward, rel=0.05)
    frozen = run_of(settings, inputs, "backbone_frozen")
    assert step_flops(frozen) < step_flops(run) / 1000
    batches = prefix_flops(frozen) / (2 * (dense + attention) + pooling)
    # As many tokens as an epoch has, in batches of another size and with their padding.
    assert run.plan.steps <= batches <= 1.6 * run.plan.steps


def test_no_gradient_of_a_frozen_kernel_is_computed(wide):
    """A product is computed again for its input's gradient, and a third time for its kernel's."""
    settings, inputs = wide
    whole = step_flops(run_of(settings, inputs, "none_frozen"))
    # Of 2 x 12 units in the layers' products three are of the lowest query, key and value, whose
    # input has no gradient where the embeddings are frozen.
    shares = {"bias_only": 2 / 3, "layer_norm_only": 2 / 3, "lora_1": (2 * 24 - 3) / (3 * 24)}
    for scenario, share in shares.items():
        step = step_flops(run_of(settings, inputs, scenario))
        assert step == pytest.approx(share * whole, rel=0.05), scenario


@pytest.mark.parametrize(
    ("part", "products"),
    [
        ({"gated_mlp": True}, 2 * 256 * 1024),
        ({"embedding_size": 128}, 128 * 256),
        ({"family": "mpnet", "type_vocab_size": 0, "relative_attention_num_buckets": 32}, 0),
    ],
)
def test_what_a_family_has_besides_is_counted(part, products):
    def forward(config):
        encoder, ids = EncoderModule(config), np.ones((4, 32), np.int32)
        params = jax.eval_shape(encoder.init, jax.random.key(0), ids)
        return counted(encoder.apply, params, ids)

    more = forward(dataclasses.replace(conftest.WIDE, **part)) - forward(conftest.WIDE)
    small = 0.02 * forward(conftest.WIDE)
    assert more == pytest.approx(2 * 4 * 32 * products, abs=small)


@pytest.mark.parametrize("scenario", ["all_frozen", "backbone_frozen", "top_1", "none_frozen"])
def test_the_count_is_the_same_however_a_run_is_trained(scenario, shared_settings, inputs):
    ways = (
        (False, {"parallel": "jit"}),
        (False, {"parallel": "pmap"}),
        (False, {"parallel": "mesh"}),
        (False, {"scan_layers": True}),
        (True, {}),
        (True, {"parallel": "pmap"}),
    )
    counts = [
        run_flops(run_of(shared_settings, inputs, scenario, together, **changes), [12])
        for together, changes in ways
    ]
    assert all(each == counts[0] for each in counts)
    (phase,) = counts[0]
    assert (phase.step > 0) is (scenario != "all_frozen")
    assert (phase.prefix > 0) is (scenario != "none_frozen")
    assert phase.total == 12 * phase.step + phase.prefix


def test_the_count_is_that_of_plan(shared_settings, inputs):
    for scenario in ("backbone_frozen", "top_1", "none_frozen"):
        run = run_of(shared_settings, inputs, scenario)
        told = _flops(run, run.compiled_step().template, EvaluationBatches(inputs))
        (phase,) = run_flops(run, [run.plan.steps])
        of_steps = phase.step * run.plan.steps / run.plan.places
        assert told["forward"] + told["backward"] == pytest.approx(of_steps, abs=2)
        assert told["prefix"] == pytest.approx(phase.prefix / 96, abs=1)


def test_what_an_earlier_phase_has_computed_is_counted_once(shared_settings, inputs):
    run = run_of(shared_settings, inputs, "gradual_unfreezing", epochs=4)
    phases = run_flops(run, [6, 6, 6])
    whole = prefix_flops(run)
    # Later phases start from states that the first one has computed on its way.
    assert [phase.prefix for phase in phases] == [whole, 0, 0]
    assert phases[0].step < phases[1].step < phases[2].step
    # A phase that takes no step costs none; one that is not begun is not counted.
    assert run_flops(run, [6, 0]) == [phases[0], PhaseFlops(0, 0, 0)]


def test_a_result_has_the_count_whatever_was_kept_and_however_it_was_trained(
    settings, inputs, tmp_path
):
    def config(name, **changes):
        folder = str(tmp_path / name)
        return TrainConfig(**{**settings, **changes}, workdir=folder, scenario="top_1", epochs=1)

    settings.pop("epochs")
    # The second finds all activations of the first.
    first, again = (train(config(name), inputs) for name in ("first", "again"))
    both = train_seeds([config("a"), dataclasses.replace(config("b"), seed=1)], inputs)
    spread = train(config("spread", parallel="pmap"), inputs)
    (phase,) = run_flops(run_of(settings, inputs, "top_1"), [6])
    assert isinstance(first["train_flops"], int)
    for result in (first, again, *both, spread):
        assert not isinstance(result, UserError)
        assert result["train_flops"] == phase.total
        assert result["flops_of_phases"] == [dataclasses.asdict(phase)]


def test_the_baseline_costs_its_pass_and_its_probe(settings, inputs, tmp_path):
    config = TrainConfig(**settings, workdir=str(tmp_path), scenario="all_frozen")
    result = train(config, inputs)
    labels = sum(int((each >= 0).sum()) for each in inputs.split("train").examples.labels.values())
    # Vectors of 16 numbers, of 32 texts to predict.
    probe = 2 * 16 * labels * 32
    assert result["train_flops"] == prefix_flops(run_of(settings, inputs, "all_frozen")) + probe
    assert result["train_seconds"] > 0
    assert result["step_seconds_median"] is result["step_seconds_range"] is None


def test_without_a_cpu_backend_nothing_is_counted_and_that_is_said(
    shared_settings, inputs, monkeypatch, tmp_path, capsys
):
    devices = jax.local_devices()

    def none(*_, backend=None):
        if backend == "cpu":
            raise RuntimeError("Unknown backend cpu")
        return devices

    run = run_of(shared_settings, inputs, "top_1")
    counted_before = flops_record(run, [3], 0)
    monkeypatch.setattr("mtl_jax.runs.flops._known", {})
    monkeypatch.setattr("jax.local_devices", none)
    # What another process has counted needs no backend.
    assert flops_record(run, [3], 0) == counted_before
    monkeypatch.setattr("mtl_jax.runs.flops._known", {})
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path))
    record = flops_record(run, [3], 0)
    assert record == {"train_flops": None, "flops_of_phases": None}
    assert "which JAX_PLATFORMS leaves out: add cpu to it" in capsys.readouterr().err


def test_two_passes_are_counted_where_they_differ(shared_settings, inputs, wide):
    once, twice = (
        step_flops(run_of(shared_settings, inputs, r_drop=weight)) for weight in (None, 1.0)
    )
    # Less the optimizer's update, of which there is one.
    assert 1.7 * once < twice < 2.05 * once
    settings, without_dropout = wide
    plain, same = (run_of(settings, without_dropout, r_drop=weight) for weight in (None, 1.0))
    assert step_flops(plain) == step_flops(same)
    assert plain.useless_r_drop is None
    assert same.useless_r_drop is not None
