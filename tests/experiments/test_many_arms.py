"""A study of many arms whose training is left out, as the benchmark has it."""

from experiments.benchmarks.many_arms import measured


def test_many_arms_are_claimed_and_gathered_in_their_order(tmp_path):
    found = measured(30, tmp_path / "study")
    assert found["arms"] == 30
    assert {"claim_ms", "gather", "status"} <= {*found}
    assert len((tmp_path / "study" / "results.jsonl").read_text().splitlines()) == 30
