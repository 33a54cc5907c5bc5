"""What ``check`` says of data."""

import dataclasses
import json

import pytest

from mtl_jax.cli.commands import run
from mtl_jax.config.data import DataConfig
from mtl_jax.tools.check import check

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
        line.startswith("near duplicates (similarity 0.8 or more) searched among 61 of tr")
        for line in said
    )
    (lengths,) = [line for line in said if line.startswith("train: 66 texts have ")]
    assert lengths.endswith(" are longer than --max-length 8")
    assert said[-1].startswith(
        "for comparison: TF-IDF with logistic regression reaches mood accuracy"
    )


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
    assert found["baseline_texts"] == 10
    contents = page.read_text()
    for words in ("<title>Data: ", "Nearly the same", f"{TEXT}!", "Tokens of a text"):
        assert words in contents


def test_what_is_of_a_sample_says_so(flags):
    words = dict(flag.removeprefix("--").split("=", 1) for flag in flags if "=" in flag[2:])
    files = {f"{split}_file": words[f"{split}-file"] for split in ("train", "validation")}
    checked = check(DataConfig(**files, label_columns=("mood=mood",)), words["backbone"])
    assert checked.lines()[-1].endswith(" on validation")
    some = dataclasses.replace(checked, judged=4)
    assert some.lines()[-1].endswith(" on validation, 4 of 10 texts")


def test_a_page_that_can_not_be_written_and_a_backbone_that_is_not_there(flags, tmp_path, capsys):
    assert run(["check", *flags, f"--html={tmp_path}"]) == 2
    # Before anything is looked at.
    assert capsys.readouterr().err == f"error: {tmp_path} is a folder: name an .html file\n"
    assert run(["check", *flags[:-1], f"--backbone={tmp_path / 'nowhere'}"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_every_kind_and_pairs_are_looked_at(tmp_path, tiny, capsys):
    rows = [
        {
            "premise": f"text {i} on number {i * 7919}",
            "hypothesis": f"other {i}" if i else "",
            "tags": (["a"], ["a", "b"], [], None)[i % 4],
            "stars": None if i % 7 == 0 else i * 0.5,
        }
        for i in range(60)
    ]
    # Of the same two texts one pair is, and the other, in another order, is not there twice.
    rows += [rows[5], rows[6] | {"premise": "other 6", "hypothesis": rows[6]["premise"]}]
    path, page = tmp_path / "t.jsonl", tmp_path / "page.html"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--label-columns", "tags=tags", "stars=stars", "--text-columns", "premise"]
    flags += ["hypothesis", "--task-kinds", "tags=multi_label", "stars=regression"]
    files = [f"--train-file={path}", f"--validation-file={path}", f"--backbone={tiny}"]
    assert run(["check", *files, *flags, "--json", f"--html={page}"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["classes"] == {
        "tags": {
            name: dict.fromkeys(("train", "validation"), count)
            for name, count in (("a", 31), ("b", 16))
        }
    }
    values = [row["stars"] for row in rows if row["stars"] is not None]
    spread = found["values"]["stars"]["train"]
    assert (spread["texts"], spread["least"], spread["most"]) == (len(values), 0.5, max(values))
    # Two texts without any label are left out of training.
    said = [finding["text"] for finding in found["findings"]]
    assert "train: 1 of 60 texts repeat another one" in said
    assert "train: 1 of 62 pairs lack one of their texts" in said
    assert any(text.startswith("tags: 1.0") and "classes a training text" in text for text in said)
    assert any(text.startswith("stars: values of a regression: train 53 from") for text in said)
    assert found["lengths"]["train"]["texts"] == 60
    assert {"tags", "stars"} == found["baseline"].keys()
    assert "deviation" in page.read_text()
