"""First-match rules over parameter paths."""

import string
from fnmatch import fnmatchcase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_jax.core.errors import UserError
from mtl_jax.freezing.rules import assign_labels

PATHS = [
    "backbone/layer_1/mlp/output/bias",
    "backbone/embeddings/word/embedding",
    "backbone/layer_10/mlp/output/bias",
    "classifier/kernel",
]


def test_the_first_match_wins_and_the_order_of_the_paths_is_kept():
    rules = [
        ("backbone/*/bias", "a"),
        ("backbone/layer_*", "b"),
        ("backbone/*", "c"),
        ("*", "d"),
    ]
    assert list(assign_labels(iter(PATHS), rules).items()) == [
        (PATHS[0], "a"),
        (PATHS[1], "c"),
        (PATHS[2], "a"),
        (PATHS[3], "d"),
    ]
    assert set(assign_labels(PATHS, rules[::-1]).values()) == {"d"}


def test_layer_1_is_not_layer_10():
    labels = assign_labels(PATHS, [("backbone/layer_1/*", "one"), ("*", "rest")])
    assert [labels[path] for path in PATHS] == ["one", "rest", "rest", "rest"]
    with pytest.raises(UserError, match="'backbone/layer_1/\\*' -> 'one' matches no parameter"):
        assign_labels(PATHS[1:], [("backbone/layer_1/*", "one"), ("*", "rest")])


def test_a_pattern_matches_the_whole_path_and_its_case():
    for pattern in ("classifier", "kernel", "lassifier/kernel", "Classifier/*", "classifier/"):
        with pytest.raises(UserError, match="matches no parameter"):
            assign_labels(PATHS, [(pattern, "a"), ("*", "b")])


def test_every_problem_is_in_the_one_line():
    with pytest.raises(UserError) as caught:
        assign_labels(PATHS, [("backbone/layer_1/*", "a"), ("backbne/*", "b"), ("head/*", "c")])
    assert str(caught.value) == (
        "no rule matches parameter 'backbone/embeddings/word/embedding': add a rule for it; "
        "no rule matches parameter 'backbone/layer_10/mlp/output/bias': add a rule for it; "
        "no rule matches parameter 'classifier/kernel': add a rule for it; "
        "rule 'backbne/*' -> 'b' matches no parameter: correct the pattern or remove it; "
        "rule 'head/*' -> 'c' matches no parameter: correct the pattern or remove it"
    )


def test_a_rule_to_which_others_leave_nothing_is_legal():
    labels = assign_labels(PATHS, [("backbone/*", "a"), ("classifier/*", "b"), ("*", "c")])
    assert set(labels.values()) == {"a", "b"}


def test_no_rules_and_no_paths():
    assert assign_labels([], []) == {}
    with pytest.raises(UserError, match="no rule matches parameter 'a'"):
        assign_labels(["a"], [])
    with pytest.raises(UserError, match="rule '\\*' -> 'b' matches no parameter"):
        assign_labels([], [("*", "b")])


NAMES = st.text(string.ascii_lowercase[:3] + "_/1", min_size=1, max_size=6)
PATTERNS = st.text(string.ascii_lowercase[:3] + "_/1*?", min_size=1, max_size=4)
RULES = st.lists(st.tuples(PATTERNS, st.sampled_from("xyz")), max_size=5)


@settings(max_examples=300, deadline=None)
@given(paths=st.lists(NAMES, max_size=6, unique=True), rules=RULES)
def test_labels_or_an_error_for_any_rules(paths, rules):
    matching = {path: [label for p, label in rules if fnmatchcase(path, p)] for path in paths}
    idle = [p for p, _ in rules if not any(fnmatchcase(path, p) for path in paths)]
    bare = [path for path in paths if not matching[path]]
    if not idle and not bare:
        assert assign_labels(paths, rules) == {path: found[0] for path, found in matching.items()}
        return
    with pytest.raises(UserError) as caught:
        assign_labels(paths, rules)
    assert str(caught.value).count("no rule matches parameter") == len(bare)
    assert str(caught.value).count("matches no parameter") == len(idle)
    assert all(repr(name) in str(caught.value) for name in bare + idle)
