import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from mtl_jax.config.train import TrainConfig
from mtl_jax.core.converted import Converted, PathText, default
from mtl_jax.core.errors import UserError
from mtl_jax.core.type_checks import refuse_arguments, refuse_type, refuse_types


@dataclasses.dataclass(frozen=True)
class Settings:
    count: int | None = None
    rate: float = 1.0
    folder: Converted[PathText | None, str | None] = default(None)

    def __post_init__(self) -> None:
        refuse_types(self, Settings)


@pytest.mark.parametrize(
    ("hint", "good", "bad", "words"),
    [
        (int, (1, np.int64(2)), (1.0, True, "1", None), "an integer"),
        (
            float,
            (1, 0.5, np.float32(1), float("inf")),
            ("1", True, None),
            "a number",
        ),
        (bool, (True,), (1, "yes", None), "True or False"),
        (str, ("a", ""), (b"a", 1), "a text"),
        (int | None, (None, 1), ("",), "an integer or None"),
        (Literal["a", 1, None], ("a", 1, None), ("b", True, 1.0), "'a', 1 or None"),
        (tuple[int, ...], ((), [1, 2], range(2)), ("12", (1, "2"), 1), "a tuple"),
        (tuple[str, float], (("a", 1), ["a", 0.5]), (("a",), ("a", "b"), "ab"), "a tuple"),
        (Sequence[str], (["a"], ("a", "b")), ("ab", [1], {"a": "b"}), "a list"),
        (Mapping[str, float], ({}, {"a": 1}), ({"a": "1"}, {1: 1}, [("a", 1)]), "a mapping"),
        (PathText, ("a", Path("a")), (1, b"a"), "a text or a path"),
        (Callable[..., Any], (len, dict), ("len", None), "a class or function"),
        (str | Any, (1, None), (), ""),
    ],
)
def test_values_of_another_type_are_refused(hint, good, bad, words):
    for value in good:
        refuse_type("it", value, hint)
    for value in bad:
        with pytest.raises(UserError, match=re.escape(f"it is {value!r}: give {words}")):
            refuse_type("it", value, hint)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("x" * 10_000, int),
        # JSON has it, and there is no such float.
        (10**400, float),
    ],
)
def test_a_long_value_is_told_in_short(value, hint):
    with pytest.raises(UserError) as caught:
        refuse_type("it", value, hint)
    assert len(str(caught.value)) < 200


def test_numbers_of_numpy_become_those_of_python():
    numbers: dict[str, Any] = {"count": np.int32(3), "rate": np.float32(0.5)}
    settings = Settings(**numbers)
    assert (type(settings.count), type(settings.rate)) == (int, float)
    numbers = {"seed": np.int64(2), "batch_size": np.int16(8)}
    config = TrainConfig(workdir="run", **numbers)
    assert config == TrainConfig(workdir="run", seed=2, batch_size=8)
    assert type(config.seed) is int


def test_a_field_is_asked_for_what_it_may_be_given():
    assert Settings(folder=Path("a")).folder == Path("a")
    wrong: Any = {"folder": 3}
    with pytest.raises(UserError, match="folder is 3: give a text, a path or None"):
        Settings(**wrong)


def test_the_arguments_of_a_function_are_looked_at_by_name():
    def called(one: int, other: Literal["a", "b"] = "a") -> None:
        refuse_arguments(called, locals())

    called(1, "b")
    wrong: Any = "c"
    with pytest.raises(UserError, match="other is 'c': give 'a' or 'b'"):
        called(1, wrong)
