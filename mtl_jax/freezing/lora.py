"""Low-rank factors in a tree of parameters: put beside kernels, and merged into them.

Beside ``kernel`` [in, out] stand ``lora_a`` [in, r] and ``lora_b`` [r, out]; ``Dense`` then
computes x W + s (x A) B, W being the kernel. Two scalars stand there where they change something:
``lora_scale``, s where it is not 1, and ``lora_dropout``, the rate of dropout of what A reads. So
the tree alone says what is computed, and any part of the package takes it as it is.

Source: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mtl_jax.config.lora import KERNELS, Lora
from mtl_jax.core.errors import UserError, require_type

FACTORS = ("lora_a", "lora_b")
_CONSTANTS = ("lora_scale", "lora_dropout")


def _flat(params: Mapping[str, Any]) -> dict[str, Any]:
    return dict(flatten_dict(dict(params), sep="/"))


def plain_paths(paths: Iterable[str]) -> list[str]:
    """Those of some paths that are of no factors."""
    return [path for path in paths if path.rpartition("/")[2] not in (*FACTORS, *_CONSTANTS)]


def factor_paths(params: Mapping[str, Any], lora: Lora) -> list[str]:
    """The paths of all leaves that factors have.

    Args:
        params: All parameters by their paths.
        lora: The factors.

    Raises:
        UserError: A target is none of the layers' kernels, or one is smaller than the rank.
    """
    constants = {"lora_scale": lora.scale != 1, "lora_dropout": lora.dropout != 0}
    leaves = [*FACTORS, *(name for name, there in constants.items() if there)]
    return [f"{dense}/{leaf}" for dense in _adapted(params, lora) for leaf in leaves]


def _adapted(params: Mapping[str, Any], lora: Lora) -> list[str]:
    """The paths of the dense layers whose kernels have factors; see ``factor_paths``."""
    # By what patterns are held against: "layer_0/attention/query".
    dense = {
        path.removeprefix("backbone/").removesuffix("/kernel"): path.removesuffix("/kernel")
        for path in params
        if path.startswith("backbone/layer_") and path.endswith("/kernel")
    }
    found: dict[str, None] = {}
    for target in lora.targets:
        pattern = f"layer_*/{KERNELS[target]}" if target in KERNELS else target
        if not (matched := [each for each in dense if fnmatchcase(each, pattern)]):
            inside = sorted({path.partition("/")[2] for path in dense})
            named = [name for name, path in KERNELS.items() if path in inside]
            raise UserError(
                f"lora_targets {target!r} is not a kernel of this backbone, whose layers have "
                f"{', '.join(inside)}: use one of {', '.join(named)}, or a pattern of paths such "
                f"as layer_0/{inside[0]}"
            )
        found |= dict.fromkeys(matched)
    for each in found:
        rows, columns = np.shape(params[f"{dense[each]}/kernel"])
        if lora.rank > min(rows, columns):
            raise UserError(
                f"lora_{lora.rank} is of a higher rank than the kernel of {each}, {rows} x "
                f"{columns}: use lora_{min(rows, columns)} at most"
            )
    return [dense[each] for each in dense if each in found]


def with_factors(params: Mapping[str, Any], lora: Lora | None, key: jax.Array) -> dict[str, Any]:
    """The parameters with the factors that a scenario trains, and with no other.

    Those that are there already go on; others are merged into their kernels, and fresh ones begin
    at what changes nothing: B is 0, and A uniform within 1 / sqrt(in), as in the code of Hu et al.
    (``kaiming_uniform_`` with a = sqrt(5)).

    Args:
        params: All parameters.
        lora: The factors; None for none.
        key: What A is drawn from, and the path of its kernel; whatever else has factors.

    Raises:
        UserError: As of ``factor_paths``.
    """
    flat = _flat(params)
    if lora is None:
        return dict(params) if len(plain_paths(flat)) == len(flat) else merge_lora(params)
    dense = _adapted(flat, lora)
    fresh: dict[str, tuple[int, int]] = {}
    for each in dense:
        rows, columns = np.shape(flat[f"{each}/kernel"])
        fresh |= {f"{each}/lora_a": (rows, lora.rank), f"{each}/lora_b": (lora.rank, columns)}
    scales = {f"{each}/lora_scale": np.float32(lora.scale) for each in dense if lora.scale != 1}
    if not _goes_on(flat, fresh, scales):
        flat = _flat(merge_lora(params))
        for path, shape in fresh.items():
            flat[path] = _drawn(key, path, shape)
    plain = {path: leaf for path, leaf in flat.items() if not path.endswith(_CONSTANTS)}
    constants = {path: np.array(scale) for path, scale in scales.items()}
    if lora.dropout:
        constants |= {f"{each}/lora_dropout": np.array(lora.dropout, np.float32) for each in dense}
    return unflatten_dict({**plain, **constants}, sep="/")


def _goes_on(
    flat: Mapping[str, Any], fresh: Mapping[str, tuple[int, int]], scales: Mapping[str, Any]
) -> bool:
    """Whether the factors that are there are those that are asked for."""
    factors = {path: np.shape(leaf) for path, leaf in flat.items() if path.endswith(FACTORS)}
    found = {path: leaf for path, leaf in flat.items() if path.endswith("/lora_scale")}
    same = found.keys() == scales.keys() and all(found[path] == scales[path] for path in scales)
    return factors == fresh and same


def _drawn(key: jax.Array, path: str, shape: tuple[int, int]) -> np.ndarray:
    if path.endswith("/lora_b"):
        return np.zeros(shape, np.float32)
    own, bound = jax.random.fold_in(key, zlib.crc32(path.encode())), shape[0] ** -0.5
    return np.array(jax.random.uniform(own, shape, np.float32, -bound, bound))


def merge_lora(params: Mapping[str, Any]) -> dict[str, Any]:
    """Merges low-rank factors into their kernels.

        params = mtl.merge_lora(step.params(state))

    The result computes the same function, up to rounding.

    Args:
        params: All parameters, or a subtree such as the backbone's. Leaves that are not merged
            are not copied.

    Returns:
        The parameters without factors; each kernel W with factors is replaced by W + s A B, in
        float32.

    Raises:
        UserError: ``params`` are no parameters.
    """
    require_type(params, Mapping, "params", "give the parameters of a model, model.params")
    flat = _flat(params)
    merged = {path: flat[path] for path in plain_paths(flat)}
    for path in flat:
        if path.endswith("/lora_a"):
            dense = path.removesuffix("/lora_a")
            a, b, kernel = (
                np.asarray(flat[f"{dense}/{leaf}"], np.float32) for leaf in (*FACTORS, "kernel")
            )
            scale = np.float32(flat.get(f"{dense}/lora_scale", 1))
            merged[f"{dense}/kernel"] = kernel + scale * (a @ b)
    return unflatten_dict(merged, sep="/")
