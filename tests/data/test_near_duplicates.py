"""Texts that are nearly the same."""

from mtl_jax.data.near_duplicates import near_duplicates, pieces

TEXT = "the plot is thin but the cast makes up for it with charm and very good timing throughout"


def test_pieces_are_of_letters_and_digits_alone():
    assert pieces("Ab,  cD!") == {"ab cd"}
    assert pieces("abcdefg") == {"abcde", "bcdef", "cdefg"}
    assert pieces(" ?! ") == set()


def test_near_duplicates_are_counted_within_and_between_splits():
    other = [f"number {i} about {i * 7919} things and {i * 104729} more" for i in range(40)]
    train = [TEXT, TEXT, TEXT.upper() + "!", *other, "", "?"]
    validation = [TEXT.replace("very ", ""), "nothing like any of those that are in training"]
    found = near_duplicates({"train": train, "validation": validation})
    assert found.compared == {"train": 42, "validation": 2}
    assert found.counts == {
        ("train", "train"): 2,
        ("validation", "validation"): 0,
        ("validation", "train"): 1,
    }
    assert found.examples[("train", "train")] == [(TEXT.upper() + "!", TEXT)]
    assert [str(finding) for finding in found.findings()] == [
        "warning: train: 2 of 42 texts compared are nearly the same as another of train",
        "warning: validation: 1 of 2 texts compared are nearly the same as one of train",
    ]


def test_equal_texts_are_no_near_duplicates():
    found = near_duplicates({"train": [TEXT, f" {TEXT} "], "validation": [TEXT]})
    assert set(found.counts.values()) == {0}
    assert found.findings() == []
