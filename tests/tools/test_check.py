"""What ``check`` says of data."""

import json

import pytest

from mtl_jax.cli.commands import run

TEXT = "the plot is thin but the cast makes up for it with charm and good timing throughout"


@pytest.fixture
def flags(tmp_path, tiny):
    """Flags for files with duplicates, near ones and contradictions."""
    rows = [(f"text {i} on number {i * 7919}", "up" if i % 3 else "down") for i in range(60)]
    train = [*rows, *rows[:4], (rows[7][0], "down"), (TEXT, "up")]
    validation = [(f"other {i} on {i * 104729}", "up") for i in range(9)] + [(f"{TEXT}!", "down")]
    test = [rows[0], rows[1], ("a third one", "up")]
    named = {"train": train, "validation": validation, "test": test}
    for split, of in named.items():
        lines = [f"{text},{label}\n" for text, label in of]
        (tmp_path / f"{split}.csv").write_text("text,mood\n" + "".join(lines))
    files = [f"--{split}-file={tmp_path / split}.csv" for split in named]
    return [*files, "--label-columns", "mood=mood", "--max-length=8", f"--backbone={tiny}"]


def test_lines(flags, capsys):
    assert run(["check", *flags]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "texts: train 66, validation 10, test 3"
    assert (
        "mood: 2 classes, texts in train / validation / test: down 23 / 1 / 1; up 43 / 9 / 2"
        in said
    )
    assert "train: 5 of 66 texts repeat another one" in said
    assert "warning: test: 2 of 3 texts are among those of training" in said
    assert "warning: train: 1 of 61 distinct texts occur with different mood labels" in said
    assert "warning: validation: 1 of 10 texts compared are nearly the same as one of train" in said
    assert any(
        line.startswith("compared for a similarity of 0.8 or more: 61 of tr") for line in said
    )
    (lengths,) = [line for line in said if line.startswith("train: 66 texts have ")]
    assert lengths.endswith(" are longer than --max-length 8")
    assert said[-1].startswith("to compare: TF-IDF with logistic regression reaches mood accuracy")


def test_json_and_a_page(flags, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert run(["check", *flags, "--json", f"--html={page}"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["texts"] == {"train": 66, "validation": 10, "test": 3}
    assert found["classes"]["mood"]["down"] == {"train": 23, "validation": 1, "test": 1}
    near = {(each["split"], each["other"]): each["texts"] for each in found["near_duplicates"]}
    assert near[("validation", "train")] == 1
    assert sum(near.values()) == 1
    assert found["lengths"]["train"]["texts"] == 66
    assert found["lengths"]["train"]["cut"] <= 66
    contents = page.read_text()
    for words in ("<title>Data: ", "Nearly the same", f"{TEXT}!", "Tokens of a text"):
        assert words in contents


def test_a_page_that_can_not_be_written_and_a_backbone_that_is_not_there(flags, tmp_path, capsys):
    assert run(["check", *flags, f"--html={tmp_path}"]) == 2
    assert "can't be written" in capsys.readouterr().err
    assert run(["check", *flags[:-1], f"--backbone={tmp_path / 'nowhere'}"]) == 2
    assert "nowhere" in capsys.readouterr().err
