"""The data and the backbones that the arms of a study share, each read once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mtl_jax.config.train import Settings
from mtl_jax.core.command_line import one_line
from mtl_jax.core.errors import UserError

if TYPE_CHECKING:
    from mtl_jax.config.data import DataConfig
    from mtl_jax.data.corpus import Corpus
    from mtl_jax.training.inputs import Inputs

# What an ``Inputs`` is made from.
_OF_INPUTS = (
    "backbone",
    "data",
    "pooling",
    "attention_dropout",
    "cache_size",
    "cache_folder",
)


class InputsPool:
    """The data and the backbones that arms share: those of equal settings are read once."""

    def __init__(self) -> None:
        self._open: dict[tuple[Any, ...], Inputs] = {}
        self._refused: dict[tuple[Any, ...], str] = {}
        self._notes: dict[str, None] = {}

    def get(self, settings: Settings) -> Inputs:
        """The inputs of these settings.

        Raises:
            UserError: They can't be read; what was refused once is not tried again.
        """
        from mtl_jax.training.inputs import Inputs

        key = _inputs_key(settings)
        if key in self._refused:
            raise UserError(self._refused[key])
        if key not in self._open:
            try:
                self._open[key] = Inputs(settings)
            except UserError as error:
                self._refused[key] = one_line(error)
                raise
        return self._open[key]

    def opened(self, settings: Settings) -> Inputs | None:
        """Those inputs where they have been read already, else None."""
        return self._open.get(_inputs_key(settings))

    def keep_only(self, needed: Sequence[Settings]) -> None:
        """Drops what none of these need: a study may have more backbones than fit in memory."""
        keys = {_inputs_key(settings) for settings in needed}
        for key in self._open.keys() - keys:
            self._notes |= dict.fromkeys(self._open.pop(key).notes())

    def corpora(self) -> dict[DataConfig, Corpus]:
        """The data that are open, by their settings."""
        place = _OF_INPUTS.index("data")
        return {key[place]: inputs.corpus for key, inputs in self._open.items()}

    def notes(self) -> list[str]:
        """What a user should see of all the data that has been read, each once."""
        still_open = (note for inputs in self._open.values() for note in inputs.notes())
        return list(self._notes | dict.fromkeys(still_open))


def _inputs_key(settings: Settings) -> tuple[Any, ...]:
    return tuple(getattr(settings, name) for name in _OF_INPUTS)
