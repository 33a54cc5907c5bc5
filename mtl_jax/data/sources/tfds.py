"""Any TFDS data set as a source of examples, read without TensorFlow."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import reprlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from mtl_jax.config.tasks import Kind
from mtl_jax.core import downloads
from mtl_jax.core.errors import UserError, first_line
from mtl_jax.core.file_lock import exclusive
from mtl_jax.data.kinds import KINDS, Label
from mtl_jax.data.pairs import Pair
from mtl_jax.data.sources.base import ALL_SINGLE_LABEL, Source, Table

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

FILE_FORMAT = "array_record"
_OWN_FEATURES = "tensorflow_datasets.core.features."


def open_dataset(
    name: str,
    text_column: str,
    columns: dict[str, str],
    kinds: Mapping[str, Kind] = ALL_SINGLE_LABEL,
    pair_column: str | None = None,
) -> Source:
    """Finds or prepares a data set under ``$TFDS_DATA_DIR``, else in the cache.

    Args:
        name: A TFDS name, or a folder that holds a prepared data set.
        text_column: The feature that holds the text.
        columns: The label feature of each task that has one.
        kinds: The kind of each task; ``single_label`` where it is left out.
        pair_column: The feature that holds the second text, where each example is a pair.

    Raises:
        UserError: It is not known, cannot be prepared, or lacks a feature.
    """
    return source(prepare(_builder(name)), text_column, columns, kinds, pair_column)


def source(
    builder: tfds.core.DatasetBuilder,
    text_column: str,
    columns: dict[str, str],
    kinds: Mapping[str, Kind] = ALL_SINGLE_LABEL,
    pair_column: str | None = None,
    group_column: str | None = None,
    notes: tuple[str, ...] = (),
) -> Source:
    """Reads a prepared builder as a source of examples.

    Args:
        builder: A prepared builder.
        text_column: The feature that holds the text.
        columns: The label feature of each task that has one.
        kinds: As of ``open_dataset``.
        pair_column: As of ``open_dataset``.
        group_column: A feature that says where an example comes from.
        notes: What a reader of the data should know.

    Raises:
        UserError: A feature is not there or cannot be a text or a label.
    """
    name = builder.info.full_name
    splits = tuple(s for s in ("train", "validation", "test") if s in builder.info.splits)
    if "train" not in splits:
        raise UserError(
            f"{name} has no train split (it has {', '.join(builder.info.splits)}): "
            "name another data set"
        )
    of_text = [text_column, *([] if pair_column is None else [pair_column])]
    for column in of_text:
        _check_text(builder, column)
    of_tasks: dict[str, Kind] = {task: kinds.get(task, "single_label") for task in columns}
    names = {
        task: _class_names(builder, columns[task], of_kind) for task, of_kind in of_tasks.items()
    }
    groups = None if group_column is None else _class_names(builder, group_column, "single_label")

    def read(split: str) -> Table:
        try:
            # TFDS wraps the method in a way that hides its parameters.
            records = list(builder.as_data_source(split))  # pyright: ignore[reportCallIssue]
        except Exception as error:
            raise UserError(
                f"cannot read {name} in {builder.data_dir} ({_first_line(error)}): delete that "
                f"folder, or set TFDS_DATA_DIR to another, so that it is prepared as {FILE_FORMAT}"
            ) from error

        def place(i: int) -> str:
            return f"{name}, {split} example {i}"

        def text(i: int, record: Any) -> str:
            found = [_text(record[feature], place(i)) for feature in of_text]
            return found[0] if pair_column is None else Pair(*found)

        def labels(task: str) -> Iterator[Label]:
            for i, record in enumerate(records):
                value = record[columns[task]]
                yield _label(value, names[task], of_tasks[task], f"{place(i)}: {columns[task]!r}")

        return Table(
            texts=[text(i, record) for i, record in enumerate(records)],
            labels={task: list(labels(task)) for task in columns},
            groups=None
            if group_column is None
            else [_class(record[group_column], groups) or "" for record in records],
            place=place,
        )

    sizes = [
        (s, builder.info.splits[s].num_examples, builder.info.splits[s].num_bytes) for s in splits
    ]
    return Source(
        name=name,
        fingerprint=hashlib.sha256(f"{name} {sizes}".encode()).hexdigest(),
        splits=splits,
        classes={
            task: classes
            for task, of_kind in of_tasks.items()
            if (classes := names[task]) is not None and of_kind != "regression"
        },
        notes=notes,
        read=read,
    )


def prepare(
    builder: tfds.core.DatasetBuilder, log: TextIO | None = None
) -> tfds.core.DatasetBuilder:
    """Prepares a data set, once, however many processes ask for it.

    Args:
        builder: A builder of the data set.
        log: Where TFDS's words go, standard error by default.

    Returns:
        A builder that is ready for ``as_data_source``.

    Raises:
        UserError: TFDS cannot prepare it.
    """
    import tensorflow_datasets as tfds

    if builder.info.splits:
        return builder
    folder = Path(builder.data_dir)
    with exclusive(folder):
        if folder.exists():
            # Another process has prepared it since this builder looked.
            with _own_features_only(str(folder)):
                return tfds.builder_from_directory(folder)
        # Under the lock such a folder can only be what a killed process left.
        for stale in folder.parent.glob(f"incomplete.*_{folder.name}"):
            shutil.rmtree(stale, ignore_errors=True)
        try:
            # TFDS prints on standard output, which belongs to the caller's results.
            with contextlib.redirect_stdout(log or sys.stderr):
                builder.download_and_prepare(file_format=FILE_FORMAT)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"TFDS cannot prepare {builder.info.full_name} ({_first_line(error)}): connect to "
                f"the network, or set TFDS_DATA_DIR to a folder that has it as {FILE_FORMAT}"
            ) from error
    return builder


def _builder(name: str) -> tfds.core.DatasetBuilder:
    import tensorflow_datasets as tfds

    if (Path(name) / "dataset_info.json").is_file():
        try:
            with _own_features_only(name):
                return tfds.builder_from_directory(name)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"TFDS cannot open {name} ({_first_line(error)}): prepare the data set again"
            ) from error
    root = os.environ.get("TFDS_DATA_DIR") or downloads.cache_dir() / "tfds"
    try:
        with _own_features_only(name):
            return tfds.builder(name, data_dir=root, file_format=FILE_FORMAT)
    except UserError:
        raise
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name.partition("/")[0], known)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise UserError(
            f"there is no TFDS data set {name!r}{hint}: name one that TFDS has, or the folder "
            "with the dataset_info.json of one that was prepared"
        ) from error
    except Exception as error:
        raise UserError(
            f"TFDS cannot open {name!r} ({_first_line(error)}): correct the name, or set "
            f"TFDS_DATA_DIR to a folder that has it as {FILE_FORMAT}"
        ) from error


@contextlib.contextmanager
def _own_features_only(data_set: str) -> Iterator[None]:
    """Lets TFDS make features of its own classes, and of those that are imported already.

    It would import whatever module a ``features.json`` names, at any depth.
    """
    import tensorflow_datasets as tfds

    connector = tfds.features.FeatureConnector
    as_it_was = connector.__dict__["cls_from_name"]

    def known(_: type, name: str) -> type[tfds.features.FeatureConnector]:
        if name not in connector._registered_features and not name.startswith(_OWN_FEATURES):
            raise UserError(
                f"{data_set}: features.json names {reprlib.repr(name)}, which is none of TFDS's "
                "own features, and no other code is run: prepare the data set with those of TFDS"
            )
        return as_it_was.__func__(connector, name)

    connector.cls_from_name = classmethod(known)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        connector.cls_from_name = as_it_was


def _check_text(builder: tfds.core.DatasetBuilder, column: str) -> None:
    if not _is_string(_feature(builder, column)):
        raise UserError(
            f"{builder.info.full_name}: feature {column!r} is not a text: "
            "name another with --text-column"
        )


def _class_names(
    builder: tfds.core.DatasetBuilder, column: str, kind: Kind
) -> tuple[str, ...] | None:
    """The names of a label feature's classes, None where the data must tell them."""
    import tensorflow_datasets as tfds

    feature = _feature(builder, column)
    if kind == "multi_label" and isinstance(feature, tfds.features.Sequence):
        feature = feature.feature
    if isinstance(feature, tfds.features.ClassLabel):
        return tuple(feature.names)
    if _is_string(feature) or _is_of(np.integer, feature):
        return None
    if _is_of(np.floating if kind == "regression" else np.bool_, feature):
        return None
    wanted = {
        "single_label": "a class, an integer, a boolean nor a string",
        "multi_label": "a class, an integer, a boolean, a string nor a sequence of such",
        "regression": "a number nor a string",
    }
    raise UserError(
        f"{builder.info.full_name}: feature {column!r} is neither {wanted[kind]}: name another "
        "with --label-columns"
    )


def _feature(builder: tfds.core.DatasetBuilder, column: str) -> tfds.features.FeatureConnector:
    import tensorflow_datasets as tfds

    features = builder.info.features
    there = list(features) if isinstance(features, tfds.features.FeaturesDict) else []
    if not isinstance(features, tfds.features.FeaturesDict) or column not in there:
        raise UserError(
            f"{builder.info.full_name} has no feature {column!r}; it has "
            f"{', '.join(map(repr, there))}: name features with --text-column and --label-columns"
        )
    return features[column]


def _is_string(feature: tfds.features.FeatureConnector) -> bool:
    import tensorflow_datasets as tfds

    return (
        isinstance(feature, tfds.features.Tensor)
        and feature.shape == ()
        and (feature.np_dtype in (np.object_, np.str_))
    )


def _is_of(kind: type[np.generic], feature: tfds.features.FeatureConnector) -> bool:
    dtype = feature.np_dtype
    return feature.shape == () and isinstance(dtype, type) and np.issubdtype(dtype, kind)


def _text(value: bytes | str, place: str) -> str:
    try:
        return value if isinstance(value, str) else value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: invalid UTF-8 ({error.reason}): prepare the data set with UTF-8 texts"
        ) from error


def _label(value: Any, names: tuple[str, ...] | None, kind: Kind, place: str) -> Label:
    """What an example's label is; ``place`` names it in an error."""
    if kind == "single_label":
        return _class(value, names)
    many = isinstance(value, list | np.ndarray) and np.ndim(value) == 1
    if names is not None:
        value = [_class(each, names) for each in value] if many else _class(value, names)
    elif many:
        value = [_class(each, None) for each in value]
    try:
        return KINDS[kind].read(value)
    except ValueError as error:
        raise UserError(f"{place} is {error}") from error


def _class(value: Any, names: tuple[str, ...] | None) -> str | None:
    if names is not None:
        return names[int(value)] if int(value) >= 0 else None
    if isinstance(value, bool | np.bool_):
        return str(value).lower()  # as JSON's are
    label = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return None if label.strip() in ("", "-1") else label.strip()


def _first_line(error: BaseException) -> str:
    # TFDS wraps an error in its own circumstances; the cause says what happened.
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}"
