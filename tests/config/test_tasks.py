"""The tasks as data: their names, and pairs that name them."""

import math

import pytest

from mtl_jax.config.data import DataConfig
from mtl_jax.config.tasks import Task
from mtl_jax.core.errors import UserError


def test_a_task_is_read_from_the_column_of_its_name():
    assert Task("topic") == Task("topic", "single_label", "topic", (), 1.0)
    assert Task("topic", column="label").column == "label"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((name, "is taken by the model") for name in ("backbone", "params", "text", "target_a")),
        *((name, "is taken by the model") for name in ("segment_ids", "token_type_ids")),
        ("all", "would make all_frozen ambiguous"),
        ("none", "would make none_frozen ambiguous"),
        *((name, "can't be the name of a task") for name in ("a/b", "*", "1a", "", "a b")),
    ],
)
def test_what_can_be_no_name_is_refused(name, words):
    with pytest.raises(UserError, match=words):
        Task(name)
    with pytest.raises(UserError, match=words if name else "is not a pair: write task=column"):
        DataConfig(label_columns=(f"{name}=column",))


@pytest.mark.parametrize("weight", [-1, math.nan, math.inf])
def test_a_weight_is_a_number_of_0_or_more(weight):
    with pytest.raises(UserError, match=f"weight of the task 'topic' is {weight}: it must be"):
        Task("topic", weight=weight)


def test_a_task_is_named_once():
    with pytest.raises(UserError, match="--label-columns names the task 'topic' twice"):
        DataConfig(label_columns=("topic=a", "topic=b"))
    with pytest.raises(UserError, match="--label-columns is empty"):
        DataConfig(label_columns=())


def test_the_tasks_keep_their_order():
    pairs = ("queue=c", "topic=a", "mood=b")
    assert DataConfig(label_columns=pairs).tasks == ("queue", "topic", "mood")
