"""PyTorch's side of the benchmark: it computes what we compute, and freezes what we freeze."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.data.batches import TextSet
from mtl_jax.data.tokens import Tokens
from mtl_jax.runs.loop import train
from mtl_jax.runs.phase_run import PhaseRun
from mtl_jax.training.inputs import Inputs
from tests.conftest import TASKS


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def baseline(torch):
    from experiments.benchmarks import pytorch_baseline

    threads = torch.get_num_threads()
    # On a machine with other work the threads of a tiny model do little but wait for each other.
    torch.set_num_threads(1)
    yield pytorch_baseline
    torch.set_num_threads(threads)


@pytest.fixture
def config(settings, tiny, tmp_path):
    return TrainConfig(**settings, workdir=str(tmp_path / "run"), pooling="mean")


def copy_heads(torch, params, model):
    with torch.no_grad():
        for task in TASKS:
            head = getattr(model, task)
            head.weight.copy_(torch.tensor(np.array(params[task]["kernel"]).T))
            head.bias.copy_(torch.tensor(np.array(params[task]["bias"])))


def test_without_dropout_pytorch_gives_our_logits_and_loss(torch, baseline, config):
    tuning = baseline.FineTuning(replace(config, scenario="none_frozen"), "cpu")
    run = PhaseRun(replace(config, scenario="none_frozen"), Inputs(config))
    heads = run.evaluator.runner.replicate(run.params)
    # A bias of 0 would not show where it is added.
    heads = {**heads, **{task: jax.tree.map(lambda x: x + 0.1, heads[task]) for task in TASKS}}
    copy_heads(torch, heads, tuning.model)
    texts = run.split("train").texts
    logits, losses = run.evaluator.logits(heads, texts)
    tuning.model.eval()
    order = list(range(len(texts)))
    (batch,) = baseline.padded_batches(texts.tokens, order, len(texts), 0, "cpu")
    found = tuning.model(*batch[1:])
    for task in TASKS:
        assert np.abs(logits[task]).max() > 0.5
        np.testing.assert_allclose(found[task].detach(), logits[task], rtol=0, atol=1e-5)
    labels = {task: torch.from_numpy(texts.labels[task].astype(np.int64)) for task in TASKS}
    assert any((values < 0).any() for values in labels.values())
    weighted = replace(config, task_weights=("sentiment=3.0",))
    expected = (losses["classifier"] or 0) + 3 * (losses["sentiment"] or 0)
    loss = baseline.total_loss(found, labels, weighted)
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    missing = {task: torch.full_like(values, -1) for task, values in labels.items()}
    assert baseline.total_loss(found, missing, config).item() == 0


def test_grouped_batches_hold_every_text_once_and_pad_to_their_longest(torch, baseline):
    lengths = np.random.default_rng(0).integers(3, 40, 1000)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    # An id tells its text, and its place in it.
    ids = np.concatenate([1 + 100 * i + np.arange(n) for i, n in enumerate(lengths.tolist())])
    tokens = Tokens(ids.astype(np.int32), offsets, 0, 0)
    order = baseline.grouped_order(tokens, 8, torch.Generator().manual_seed(0))
    assert sorted(order) == list(range(1000))
    batches = list(baseline.padded_batches(tokens, order, 8, 7, "cpu"))
    assert [len(texts) for texts, _, _ in batches] == [8] * 125
    assert np.concatenate([texts for texts, _, _ in batches]).tolist() == order
    padded = 0
    for texts, found, mask in batches:
        assert found.shape == mask.shape == (8, lengths[texts].max())
        for text, row, kept in zip(texts, found.numpy(), mask.numpy(), strict=True):
            n = int(lengths[text])
            assert row[:n].tolist() == (1 + 100 * text + np.arange(n)).tolist()
            assert (row[n:] == 7).all()
            assert kept.tolist() == [1] * n + [0] * (len(row) - n)
        padded += mask.numel() - int(mask.sum())
    # 31 batches of 8 sorted together; unsorted, a third of the tokens would be padding.
    assert padded / (padded + lengths.sum()) < 0.05
    assert order != baseline.grouped_order(tokens, 8, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scenario", ["backbone_frozen", "top_1", "none_frozen"])
def test_pytorch_freezes_what_we_freeze(scenario, baseline, config):
    config = replace(config, scenario=scenario, epochs=1)
    tuning = baseline.FineTuning(config, "cpu")
    before = {name: value.clone() for name, value in tuning.model.state_dict().items()}
    assert 0 < tuning.epoch() < 20
    trained = []
    for name, parameter in tuning.model.named_parameters():
        moved = not (parameter == before[name]).all()
        assert (parameter.grad is not None) == parameter.requires_grad == moved, name
        assert (parameter in tuning.optimizer.state) == moved
        trained += [parameter.numel()] if moved else []
    result = train(config)
    assert sum(trained) == result["trainable_parameters"]
    # Two moments of each parameter in float32, and the counters of either side.
    for found in (baseline.state_bytes(tuning.optimizer), result["optimizer_state_bytes"]):
        assert 0 < found - 8 * sum(trained) < 1000


def test_pytorch_learns_the_task_and_reads_the_same_texts(baseline, config):
    config = replace(config, scenario="none_frozen", epochs=12)
    result = baseline.fine_tune(config, "cpu")
    assert 0 < result["train_seconds"] < result["seconds"]
    assert result["test"]["classifier"]["accuracy"] > 0.9
    texts: TextSet = Inputs(config).split("train").texts
    assert result["lengths"].tolist() == texts.tokens.lengths.tolist()
