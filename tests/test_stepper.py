"""What the training steps are compiled for."""

import dataclasses

import pytest

from mtl_jax.config import TrainConfig
from mtl_jax.evaluate import ModelSpec
from mtl_jax.inputs import Inputs
from mtl_jax.run import Run


class OnACard(ModelSpec):
    """The model that a device with cuDNN would be given."""

    def model(self):
        return super().model().clone(fused="cudnn")


@pytest.mark.parametrize(("together", "fused"), [(False, "cudnn"), (True, None)])
def test_seeds_trained_at_once_have_no_fused_attention(together, fused, settings):
    config = TrainConfig(**settings, workdir="unused")
    run = Run(config, Inputs(config), together=together)
    fields = dataclasses.fields(run._model)
    run._model = OnACard(**{field.name: getattr(run._model, field.name) for field in fields})
    assert run.stepper(2).program.model.fused == fused
