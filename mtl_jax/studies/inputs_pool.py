"""The data and the backbones that the arms of a study share, each read once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mtl_jax.config.train import Settings
from mtl_jax.core.command_line import one_line
from mtl_jax.core.errors import UserError
from mtl_jax.studies.settings import StudySettings

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
    "attention_dropout_on",
    "cache_size",
    "cache_folder",
)


class InputsPool:
    """The data and the backbones that arms share: those of equal settings are read once.

    So are those that differ in nothing but which of the training texts, or of their labels, they
    have: all are parts of the whole.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[Any, ...], Inputs] = {}
        self._parts: dict[tuple[Any, ...], Inputs] = {}
        self._refused: dict[tuple[Any, ...], str] = {}
        self._notes: dict[str, None] = {}

    def get(self, settings: Settings) -> Inputs:
        """The inputs of these settings.

        Raises:
            UserError: They can't be read; what was refused once is not tried again.
        """
        whole = self.whole(settings)
        if settings.data == settings.data.whole():
            return whole
        key = _inputs_key(settings)
        if key not in self._parts:
            self._parts[key] = whole.limited(settings.data)
        return self._parts[key]

    def whole(self, settings: Settings) -> Inputs:
        """The same with all training texts and all their labels.

        Raises:
            UserError: See ``get``.
        """
        from mtl_jax.training.inputs import Inputs

        settings = _of_whole(settings)
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
        """Those inputs where the data have been read already, else None."""
        there = _inputs_key(_of_whole(settings)) in self._open
        return self.get(settings) if there else None

    def keep_only(self, needed: Sequence[Settings]) -> None:
        """Drops what none of these need: a study may have more backbones than fit in memory."""
        keys = {_inputs_key(_of_whole(settings)) for settings in needed}
        for key in self._open.keys() - keys:
            self._notes |= dict.fromkeys(self._open.pop(key).notes())
        parts = {_inputs_key(settings) for settings in needed}
        for key in self._parts.keys() - parts:
            del self._parts[key]

    def corpora(self) -> dict[DataConfig, Corpus]:
        """The data that are open, by their settings."""
        place = _OF_INPUTS.index("data")
        return {key[place]: inputs.corpus for key, inputs in self._open.items()}

    def notes(self) -> list[str]:
        """What a user should see of all the data that has been read, each once."""
        still_open = (note for inputs in self._open.values() for note in inputs.notes())
        return list(self._notes | dict.fromkeys(still_open))


def sizes(study: StudySettings, pool: InputsPool) -> str:
    """How many texts a study trains, validates and tests on, in words."""
    data, whole = study.drawn(study.seeds[0]), pool.whole(study)
    texts, there = (
        len(inputs.corpus.places("train"))
        for inputs in (pool.get(dataclasses.replace(study, data=data)), whole)
    )
    words = f"{texts:,} texts"
    if data.train_subset is not None and texts < there:
        own = "" if study.data.train_subset is not None else ", others for each seed"
        words = f"{texts:,} of {there:,} texts{own}"
    words += f", {len(whole.corpus.places('validation')):,} to validate"
    if "test" not in whole.corpus.splits:
        return words
    limit = study.data.max_test_examples
    return f"{words}, {'all' if limit is None else f'up to {limit:,}'} of the test texts"


def _of_whole(settings: Settings) -> Settings:
    return dataclasses.replace(settings, data=settings.data.whole())


def _inputs_key(settings: Settings) -> tuple[Any, ...]:
    return tuple(getattr(settings, name) for name in _OF_INPUTS)
