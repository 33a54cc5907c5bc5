import dataclasses
from typing import get_type_hints

import pytest

from mtl_jax.config.data import DataConfig
from mtl_jax.config.train import TrainConfig
from mtl_jax.core.converted import Converted, default


@dataclasses.dataclass(frozen=True)
class Sized:
    size: Converted[int | str, int] = default(1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", int(self.size))


def test_what_is_read_is_of_the_type_that_is_kept():
    # A type checker refuses this file unless the constructor takes both and one is read.
    kept: tuple[int, int] = (Sized("2").size, Sized(2).size)
    assert kept == (2, 2)
    assert Sized() == Sized("1")
    assert [field.default for field in dataclasses.fields(Sized)] == [1]


@pytest.mark.parametrize(
    ("settings", "name", "expected"),
    [
        (Sized, "size", int),
        (TrainConfig, "loss", tuple[str, ...]),
        (TrainConfig, "scenario", str | None),
        (TrainConfig, "data", DataConfig),
    ],
)
def test_the_flags_have_the_types_that_are_kept(settings, name, expected):
    assert get_type_hints(settings)[name] == expected
