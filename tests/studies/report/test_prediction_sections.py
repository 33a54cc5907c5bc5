"""What a report says of predictions: from files of runs, with labels that look like markup."""

import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mtl_jax.cli.summary import report_table
from mtl_jax.config.tasks import Task
from mtl_jax.core.console import Terminal
from mtl_jax.data.examples import Examples
from mtl_jax.runs.predictions import write_predictions
from mtl_jax.studies.best_run import run_folder
from mtl_jax.studies.report.document import Document, Table, Verbatim
from mtl_jax.studies.report.render import to_html, to_markdown
from mtl_jax.studies.report.scenarios_report import build
from tests.synthetic_study import study

# Markup of rich, mathtext, Markdown and HTML; what steers a terminal, or turns writing round.
CLASSES = ("[/b]", "$\\frac$", "<b>x</b>", "`a|b`", "\x1b[31mred", "\u202eabc", "_y_" * 12)
ARMS = ("backbone_frozen", "top_2")


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> Document:
    """Of two arms and two seeds, whose model has the seventh class for every text."""
    folder = tmp_path_factory.mktemp("study")
    results = [r for r in study((0, 1)) if r["arm"] in ARMS]
    tasks = {"mood": Task("mood", classes=CLASSES), "stars": Task("stars", "regression")}
    count = 2 * len(CLASSES)
    examples = Examples(
        [""] * count,
        {"mood": np.arange(count, dtype=np.int32) % 7, "stars": np.arange(count) / 2.0},
        None,
        rows=np.arange(100, 100 + count),
    )
    for result in results:
        logits = np.zeros((count, 7), np.float32)
        logits[:, 6] = 1 + result["seed"]
        place = run_folder(folder, result)
        (place / "checkpoints").mkdir(parents=True)
        for split in ("validation", "test"):
            path = place / f"predictions-{split}.parquet"
            found = {"mood": logits, "stars": np.zeros((count, 1), np.float32)}
            write_predictions(path, examples, found, tasks, ("d",))
    trials = [
        {"arm": arm, "trial": n, "rates": {"head_learning_rate": 0.1**n}, "length": {"epochs": 3}}
        | {"validation": score, "flops": 1e9 * (1 + n)}
        for arm in ARMS
        for n, score in enumerate((0.5, 0.75, None))
    ]
    (folder / "tuning.jsonl").write_text("".join(json.dumps(trial) + "\n" for trial in trials))
    return build(results, [], {"folder": folder})


class Boxes(HTMLParser):
    """Where tables and pictures stand, and which cells of cards have no name."""

    def __init__(self):
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.outside: list[str] = []
        self.unnamed = self.cards = 0
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        of_tag = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        if tag in ("table", "img") and ("div", "scroll") not in self.open:
            self.outside.append(tag)
        if tag == "td" and ("table", "textual") in self.open:
            self.cards += 1
            self.unnamed += not of_tag.get("data-label")
        if tag not in ("meta", "img"):
            self.open.append((tag, of_tag.get("class", "")))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass


def test_the_order_is_from_the_answer_to_the_statistics(document):
    sections = re.findall(r"^## (.*)$", to_markdown(document), re.MULTILINE)
    assert sections == [
        *("Results", "Scores by class", "Confusion matrices", "Calibration"),
        *("The most confident mistakes", "Scores by source", "Learning curves", "Cost"),
        *(
            "What a smaller search would have found",
            "Statistics",
            "Runs",
            "How this was made",
            "Use the model",
        ),
    ]


def test_the_figures_are_those_of_the_predictions(document):
    tables = {block.title: block for block in document.blocks if isinstance(block, Table)}
    scores = tables["mood: scores by class on the test split"]
    # Two of fourteen are right: precision 1/7, recall 1, F1 2 / 8.
    assert [cell.text for cell in scores.rows[6].cells[1:]] == ["0.143", "1.000", "0.250", "2"]
    assert "Never predicted rightly" in scores.note
    confusion = tables["mood: what is taken for what on the test split"]
    assert [cell.text for cell in confusion.rows[0].cells[1:]] == ["0.0"] * 6 + ["2.0"]
    calibration = tables["Calibration on the test split"]
    sure = [np.exp(z) / (6 + np.exp(z)) for z in (1, 2)]
    ece = calibration.rows[-1].cells[2].text
    assert ece == f"{np.mean(sure) - 1 / 7:.3f}"
    mistakes = tables["mood: the most confident mistakes on the test split"]
    assert [cell.text for cell in mistakes.rows[0].cells] == [
        *("example 100", "[/b]", CLASSES[6], f"{np.mean(sure):.3f}", "2 of 2")
    ]
    errors = tables["stars: the largest errors on the test split"]
    assert [cell.text for cell in errors.rows[0].cells] == ["example 113", "6.5", "0", "−6.500"]


def test_tuning_is_told_with_what_a_smaller_budget_would_have_found(document):
    (table,) = [b for b in document.blocks if isinstance(b, Table) and b.title == "Tuning"]
    # Of one trial the mean of 0, 0.5 and 0.75; of two the largest of all nine pairs.
    two = (0 + 3 * 0.5 + 5 * 0.75) / 9
    assert [cell.text for cell in table.rows[0].cells] == [
        *("`backbone_frozen`", "head_learning_rate 0.1, epochs 3", "0.750"),
        *(f"{1.25 / 3:.3f}", f"{two:.3f}", "3", "6 G"),
    ]


def test_labels_are_shown_as_they_stand_and_do_nothing(document):
    page, notes = to_html(document), to_markdown(document)
    terminal = Terminal(width=80, color_system=None)
    with terminal.capture() as captured:
        terminal.print(*(report_table(b) for b in document.blocks if isinstance(b, Table)))
    printed = captured.get()
    for text in (page, notes, printed):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "\N{REPLACEMENT CHARACTER}[31mred" in notes.replace("\\", "")
    for name in CLASSES[:4]:
        assert f"<bdi>{html.escape(name)}</bdi>" in page
        assert name in printed
    assert "b" not in (boxes := read(page)).tags
    assert "code" in boxes.tags
    assert Verbatim("a\n b") == "a b"
    # Folded, and never dropped.
    assert max(map(len, printed.splitlines())) <= 80
    assert printed.replace("\n", "").count("…") == 0


def test_on_a_phone_nothing_is_wider_than_the_page(document):
    page = to_html(document)
    boxes = read(page)
    assert boxes.outside == []
    assert boxes.cards > 20
    assert boxes.unnamed == 0
    # A name without a place to break may break anywhere.
    assert f'<th scope="row" class="long"><bdi>{CLASSES[6]}</bdi>' in page


def read(page: str) -> Boxes:
    boxes = Boxes()
    boxes.feed(page)
    return boxes
