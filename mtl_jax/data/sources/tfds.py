"""Any TFDS data set as a source of examples, read without TensorFlow."""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import os
import reprlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from mtl_jax.core import downloads
from mtl_jax.core.errors import UserError, first_line
from mtl_jax.core.file_lock import exclusive
from mtl_jax.data.columns import Label
from mtl_jax.data.kinds import KINDS, LabelKind
from mtl_jax.data.sources.base import Fields, Rows, Source, Stream

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

FILE_FORMAT = "array_record"
_ROWS = 4096
_OWN_FEATURES = "tensorflow_datasets.core.features."


def open_dataset(name: str, fields: Fields) -> Source:
    """Finds or prepares a data set under ``$TFDS_DATA_DIR``, else in the cache.

    Args:
        name: A TFDS name, or a folder that holds a prepared data set.
        fields: The features that are read.

    Raises:
        UserError: It is not known, cannot be prepared, or lacks a feature.
    """
    return source(prepare(_builder(name)), fields)


def source(
    builder: tfds.core.DatasetBuilder,
    fields: Fields,
    group_column: str | None = None,
    notes: tuple[str, ...] = (),
) -> Source:
    """Reads a prepared builder as a source of examples.

    Args:
        builder: A prepared builder.
        fields: The features that are read.
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
    for column in fields.texts:
        _check_text(builder, column, fields.text_flag)
    names = {
        task: _class_names(builder, column, fields.kinds[task])
        for task, column in fields.labels.items()
    }
    of_group, single = None, KINDS["single_label"]
    if group_column is not None:
        of_group = _class_names(builder, group_column, single)

    def place(split: str, row: int) -> str:
        return f"{name}, {split} example {row}"

    def rows(split: str) -> Iterator[Rows]:
        records = _records(builder, split)
        start = 0
        for some in records:
            named = [place(split, start + i) for i in range(len(some))]
            labels = {
                task: [
                    _label(record[feature], names[task], fields.kinds[task], f"{at}: {feature!r}")
                    for record, at in zip(some, named, strict=True)
                ]
                for task, feature in fields.labels.items()
            }
            groups = None
            if group_column is not None:
                groups = [
                    str(_label(record[group_column], of_group, single, at) or "")
                    for record, at in zip(some, named, strict=True)
                ]
            texts = [
                [_text(record[feature], at) for record, at in zip(some, named, strict=True)]
                for feature in fields.texts
            ]
            yield Rows(fields.joined(texts), labels, range(start, start + len(some)), groups)
            start += len(some)

    def digest(split: str) -> str:
        read = [*fields.record(), group_column, *_files(builder, split)]
        return hashlib.sha256(f"{fingerprint} {split} {read}".encode()).hexdigest()

    sizes = [
        (s, builder.info.splits[s].num_examples, builder.info.splits[s].num_bytes) for s in splits
    ]
    fingerprint = hashlib.sha256(f"{name} {sizes}".encode()).hexdigest()
    return Source(
        name=name,
        fingerprint=lambda: fingerprint,
        splits=splits,
        classes={
            task: classes
            for task, kind in fields.kinds.items()
            if kind.has_classes and (classes := names[task]) is not None
        },
        notes=notes,
        stream=lambda split: Stream(rows(split), functools.partial(place, split)),
        digest=digest,
        size=lambda split: builder.info.splits[split].num_bytes,
    )


def _records(builder: tfds.core.DatasetBuilder, split: str) -> Iterator[list[Any]]:
    """The records of a split in their order, some at a time."""
    try:
        # TFDS wraps the method in a way that hides its parameters.
        records = builder.as_data_source(split)  # pyright: ignore[reportCallIssue]
        for start in range(0, len(records), _ROWS):
            some = range(start, min(start + _ROWS, len(records)))
            yield records.__getitems__(some)  # pyright: ignore[reportArgumentType]
    except Exception as error:
        raise UserError(
            f"cannot read {builder.info.full_name} in {builder.data_dir} ({_first_line(error)}): "
            f"delete that folder, or set TFDS_DATA_DIR to another, so that it is prepared as "
            f"{FILE_FORMAT}"
        ) from error


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


def _files(builder: tfds.core.DatasetBuilder, split: str) -> list[tuple[str, int, int]]:
    """The path of each file of a split, its bytes and when it was changed: -1 of one that is gone.

    TFDS does not say what is in them, and they may be too large to be read for a digest.
    """
    found = []
    for path in builder.info.splits[split].filepaths:
        try:
            about = Path(path).stat()
            found.append((str(path), about.st_size, about.st_mtime_ns))
        except OSError:
            found.append((str(path), -1, -1))
    return found


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


def _check_text(builder: tfds.core.DatasetBuilder, column: str, flag: str) -> None:
    if not _is_string(_feature(builder, column)):
        raise UserError(
            f"{builder.info.full_name}: feature {column!r} is not a text: name another with {flag}"
        )


def _class_names(
    builder: tfds.core.DatasetBuilder, column: str, kind: LabelKind
) -> tuple[str, ...] | None:
    """The names of a label feature's classes, None where the data must tell them."""
    import tensorflow_datasets as tfds

    feature = _feature(builder, column)
    if kind.lists and isinstance(feature, tfds.features.Sequence):
        feature = feature.feature
    if isinstance(feature, tfds.features.ClassLabel):
        return tuple(feature.names)
    if _is_string(feature) or _is_of(np.integer, feature):
        return None
    # Of a class a number with a fraction is no name.
    if _is_of(np.bool_ if kind.booleans else np.floating, feature):
        return None
    raise UserError(
        f"{builder.info.full_name}: feature {column!r} can't be a label of a "
        f"{kind.name} task: name one of classes, {kind.values} with --label-columns"
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
    # A type where the data set's code is there, a dtype where features.json is read.
    dtype: Any = feature.np_dtype
    return feature.shape == () and np.issubdtype(dtype, kind)


def _text(value: bytes | str, place: str) -> str:
    try:
        return value if isinstance(value, str) else value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: invalid UTF-8 ({error.reason}): prepare the data set with UTF-8 texts"
        ) from error


def _label(value: Any, names: tuple[str, ...] | None, kind: LabelKind, place: str) -> Label:
    """What an example's label is; ``place`` names it in an error."""
    try:
        return kind.read(value) if names is None else kind.declared(value, names)
    except ValueError as error:
        raise UserError(f"{place} is {error}") from error


def _first_line(error: BaseException) -> str:
    # TFDS wraps an error in its own circumstances; the cause says what happened.
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}"
