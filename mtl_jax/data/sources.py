"""The data sets that the settings name, opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtl_jax.config import DataConfig
    from mtl_jax.data.table import Source
    from mtl_jax.data_config import Origin


def open_sources(config: DataConfig) -> list[tuple[Source, dict[str, str]]]:
    """Opens one data set, or two where each task has one of its own.

    Args:
        config: Names them.

    Returns:
        Each data set with the label columns of the tasks that it serves.

    Raises:
        UserError: One cannot be found or fetched, or lacks a column.
    """
    return [(_open(origin, columns), columns) for origin, columns in config.origins.items()]


def _open(origin: Origin, columns: dict[str, str]) -> Source:
    if origin.files:
        from mtl_jax.data import files

        return files.open_files(dict(origin.files), origin.text_column, columns)
    if origin.dataset == "sentences":
        from mtl_jax.data import sentences

        return sentences.open_sentences(origin.text_column, columns)
    from mtl_jax.data import tfds_source

    return tfds_source.open_dataset(origin.dataset, origin.text_column, columns)
