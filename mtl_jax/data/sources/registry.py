"""The data sets that the settings name, opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtl_jax.data.soft_labels import soft_name
from mtl_jax.data.sources.base import Fields

if TYPE_CHECKING:
    from mtl_jax.config.data import Origin
    from mtl_jax.config.train import DataConfig
    from mtl_jax.data.sources.base import Source


def open_sources(config: DataConfig) -> list[tuple[Source, dict[str, str]]]:
    """Opens one data set, or two where each task has one of its own.

    Args:
        config: Names them.

    Returns:
        Each data set with the label columns of the tasks that it serves, and, by ``soft_name``,
        those of their distributions.

    Raises:
        UserError: One cannot be found or fetched, or lacks a column.
    """
    kinds, soft, found = config.kinds, config.soft_columns, []
    for origin, columns in config.origins.items():
        own = {soft_name(task): soft[task] for task in columns if task in soft}
        fields = Fields.of(origin.text_columns, columns | own, kinds)
        found.append((_open(origin, fields), columns | own))
    return found


def _open(origin: Origin, fields: Fields) -> Source:
    if origin.files:
        from mtl_jax.data.sources import files

        return files.open_files(dict(origin.files), fields)
    if origin.dataset == "sentences":
        from mtl_jax.data.sources import vader

        return vader.open_sentences(fields)
    if origin.dataset.startswith("hub:"):
        from mtl_jax.data.sources import hub

        return hub.open_dataset(origin.dataset, fields)
    from mtl_jax.data.sources import tfds

    return tfds.open_dataset(origin.dataset, fields)
