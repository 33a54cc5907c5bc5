import html
import io
import itertools
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mtl_jax.studies.report import figures
from mtl_jax.studies.report.document import Cell, Document, Picture, Row, Table
from mtl_jax.studies.report.render import to_markdown
from mtl_jax.studies.report.write import print_table, write_report
from mtl_jax.studies.stats.recommendation import recommend
from tests.synthetic_study import line, study

CONTEXT = {
    "command": "python -m experiments.freezing --workdir <here> --seeds 0 1 2",
    "started": "2025-01-02 03:04",
    "seconds": 754.2,
    "machine": "8 CPU cores & no accelerator",
    "versions": {"jax": "0.10.0"},
    "data": ["Sentences of Hutto & Gilbert.", "1,000 <training> examples."],
    "seeds": [0, 1, 2],
    "settings": {"epochs": 3, "label_columns": ["a=b"]},
}
ERROR = "<b>ValueError</b> [here](http://example.com) | *pipe* & `code`"
FAILURES = [{"arm": "top_4", "seed": 1, "error": ERROR}]
FIGURES = {"quality_against_cost.png", "learning_curves.png", "gap.png", "by_source_sentiment.png"}


class Page(HTMLParser):
    """The tables of a page as text, and every address it refers to."""

    def __init__(self):
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.anchors: list[str] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.anchors += [value or "" for name, value in attrs if (tag, name) == ("h2", "id")]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self._open = True
            # A qualifier has a column of its own on the page, and none in Markdown.
            if ("class", "aside") in attrs:
                self.tables[-1][-1][-1] += " "
            else:
                self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        if self._open:
            self.tables[-1][-1][-1] += data


def read_html(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    for table in page.tables:
        for row in table:
            row[:] = [cell.strip() for cell in row]
    return page


def read_markdown(path: Path) -> list[list[list[str]]]:
    found = []
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        rows = [row for row in block.splitlines() if row.startswith("|")]
        cells = [
            [re.sub(r"\*+|`|\\", "", cell).strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
            for row in rows
        ]
        if cells:
            found.append([cells[0], *cells[2:]])
    return found


def report(folder: Path, results: list[dict[str, Any]], **more: Any) -> str:
    path = write_report(folder, results, **more)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    report(folder, study(), failures=FAILURES, context=CONTEXT)
    return folder


def test_files(full: Path):
    names = {path.name for path in full.iterdir()}
    assert names == {"report.md", "report.html"} | FIGURES
    for name in FIGURES:
        png = (full / name).read_bytes()
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        assert len(png) > 10_000


def test_html_and_markdown_hold_the_same_tables(full: Path):
    page, markdown = read_html(full / "report.html"), read_markdown(full / "report.md")
    assert len(markdown) >= 8
    assert page.tables == markdown
    # Its note says "in italics".
    assert "\n| *majority class* |  | *0.200* |" in (full / "report.md").read_text(encoding="utf-8")


def test_sections(full: Path):
    markdown = (full / "report.md").read_text(encoding="utf-8")
    sections = [text[3:] for text in markdown.splitlines() if text.startswith("## ")]
    assert sections == [
        "Results",
        "Scores by source",
        "Learning curves",
        "Cost",
        "Statistics",
        "What the design claims",
        "Runs",
        "How this was made",
        "Use the model",
    ]
    answer = (
        "Use `top_2`: it reaches 0.795 ± 0.002 macro-F1 on the test split (classifier and "
        "sentiment, their mean) for 40 G training FLOPs, 0.40× those of `none_frozen`. On "
        "validation nothing separates it from `gradual` and `none_frozen`, and it is the cheapest "
        "of these; the runner-up is `gradual`, 0.005 below it."
    )
    picture = markdown.index("](quality_against_cost.png)")
    assert markdown.index(answer) < picture < markdown.index("## Results")
    assert "Every frozen parameter kept its bytes: in all 15 runs" in markdown
    for name in FIGURES:
        assert f"]({name})" in markdown


def test_numbers(full: Path):
    quality, sources, gaps, cost, differences = read_html(full / "report.html").tables[:5]
    rows = {row[0]: row for row in quality}
    assert list(rows)[1:4] == ["all_frozen", "20-NN probe", "majority class"]
    assert rows["20-NN probe"][2] == "0.610"
    assert rows["majority class"][2] == "0.200"
    # 0.795 + 0.001 x (-1, 0, 1): mean 0.795, half width 4.3027 x 0.001 / sqrt(3).
    assert rows["top_2"][2] == "0.795 ± 0.002"
    assert [row[0] for row in differences[1:]] == ["backbone_frozen", "top_2", "gradual"]
    # -0.005 + 0.001 x (1, 0, -1): 4.3027 x 0.001 / sqrt(3) about it.
    # t = -0.005 / (0.001 / sqrt(3)) = -8.66 has p 0.0131, the second of three: times 2.
    assert differences[2][2:] == [*["−0.005 [−0.007, −0.003]"] * 3, "0.013", "0.026"]
    assert {row[0]: row[2] for row in cost}["top_2"] == "40 G (0.40×)"
    assert {row[0]: row[3] for row in cost}["top_2"] == "417 [400, 444]"
    assert {row[0]: row[4] for row in cost}["top_2"] == "40.0 [40.0, 40.0]"
    assert {row[0]: row[6] for row in cost}["top_2"] == "75.0"
    assert {row[0]: row[2] for row in cost}["all_frozen"] == "4 G (0.04×)"
    assert {row[0]: row[2] for row in gaps}["top_2"] == "+0.050 ± 0.000"
    assert {row[0]: row[2] for row in sources}["VADER"] == "0.96"


def test_claims(full: Path, tmp_path: Path):
    markdown = (full / "report.md").read_text(encoding="utf-8")
    assert "These hold by construction, and are not tested:" in markdown
    assert "A frozen backbone trains fewer parameters. 5,000 against 100,000 (0.05×)." in markdown
    results = study()
    for result in results:
        for of_task in result["test"].values():
            of_task["ece"] = 0.05 + 0.001 * result["seed"] * (result["arm"] == "none_frozen")
    report(tmp_path, results)
    (claims,) = (
        table
        for table in read_html(tmp_path / "report.html").tables
        if table[0] == ["claim", "verdict", "number", "of"]
    )
    assert [row[0] for row in claims[1:]] == ["A frozen backbone is better calibrated."]
    # 0, -0.001 and -0.002.
    assert claims[1][1].startswith("not supported: too small to matter")
    assert claims[1][2] == "−0.001 [−0.003, +0.001], corrected p 0.225, 3 seeds"
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Not asked by this study: A frozen backbone overfits less" in markdown
    assert "1 comparison is tested as one family, by Student's t with Holm's correction" in markdown


def test_an_arm_with_failed_seeds_is_a_warning_and_counted(tmp_path: Path):
    results = [r for r in study() if (r["arm"], r["seed"]) != ("top_2", 2)]
    failures = [{"arm": "top_2", "seed": 2, "error": "out of memory"}]
    text = report(tmp_path, results, failures=failures)
    warning = "unlike seeds are no fair match: <code>top_2</code> 2 of 3 seeds."
    assert text.index(warning) < text.index("Use <code>top_2</code>")
    assert "They are ranked on seeds 0 and 1, as not all of them have the others." in text
    quality = read_html(tmp_path / "report.html").tables[0]
    assert {row[0]: row[1] for row in quality}["top_2"] == "2 of 3"
    assert {row[0]: row[1] for row in quality}["gradual"] == "3"


def test_an_empty_cell_of_the_chosen_row_stays_empty():
    row = Row((Cell("`top_1`"), Cell(""), Cell("0.8")), "chosen")
    text = to_markdown(Document("Title", "", (Table("", ("arm", "note", "score"), (row,)),)))
    assert "| **`top_1`** |  | **0.8** |" in text


def test_self_contained_and_escaped(full: Path):
    page = read_html(full / "report.html")
    text = (full / "report.html").read_text(encoding="utf-8")
    assert page.addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    anchors = [address[1:] for address in page.addresses if address.startswith("#")]
    # Each heading is led to twice, from the table of contents and from itself.
    assert sorted(anchors) == sorted(2 * page.anchors)
    assert len(set(page.anchors)) == len(page.anchors) == 9
    assert not re.search(r"@import|url\(|<script|<link", text)
    assert "b" not in page.tags
    assert "&lt;b&gt;ValueError&lt;/b&gt;" in text
    assert html.escape(CONTEXT["command"]) in text
    markdown = (full / "report.md").read_text(encoding="utf-8")
    assert r"\<b>ValueError\</b> [here\](http://example.com)" in markdown
    assert f"    {CONTEXT['command']}" in markdown


def test_origin(full: Path):
    text = (full / "report.html").read_text(encoding="utf-8")
    for part in ("2025-01-02 03:04", "12 min 34 s", "8 CPU cores &amp; no accelerator", "0.10.0"):
        assert part in text
    # A study that was resumed, or trained by workers, has not begun and ended with this call.
    assert "last call took" in text
    assert "last call started" in text
    assert "1 run failed" in text


def test_one_seed(tmp_path: Path):
    text = report(tmp_path, study(seeds=(0,)))
    assert "±" not in text
    assert "One seed: there is no interval." in text


def test_without_test_split(tmp_path: Path):
    results = [result | {"test": None} for result in study()]
    text = report(tmp_path, results)
    assert "The data has no test split." in text
    assert "Quality on the validation split" in text


def test_other_sources_have_no_published_figures(tmp_path: Path):
    text = report(tmp_path, [line("top_1", 0, 0.7, 10, sources=("mail", "chat"))])
    assert "Weighted F1 of sentiment on the test split, by source" in text
    assert "VADER" not in text


def test_nothing_but_scores(tmp_path: Path):
    bare = {task: {"accuracy": None, "macro_f1": None} for task in ("classifier", "sentiment")}
    results = [
        {"arm": "top_1", "seed": 0, "test": bare, "train": bare, "validation": bare},
        {"arm": "all_frozen", "seed": 0, "test": bare, "train": None, "train_seconds": 0},
    ]
    text = report(tmp_path, results)
    assert "none is recommended" in text
    assert "same before and after in 0 of 2 runs" in text
    assert not list(tmp_path.glob("*.png"))


def test_only_failures(tmp_path: Path):
    text = report(tmp_path, [], failures=FAILURES)
    assert "1 run failed" in text
    assert "<code>top_4</code> seed 1" in text


def test_what_workers_have_not_ended_has_not_failed(tmp_path: Path):
    to_come = {"arm": "top_4", "seed": 2, "error": "it was not begun: go on", "unfinished": True}
    text = report(tmp_path, study(), failures=[*FAILURES, to_come])
    assert "1 run failed" in text
    assert "The study is not finished: workers have not ended 1 run yet." in text
    assert "<code>top_4</code> seed 2: it was not begun" in text


def test_a_changed_digest_is_a_warning(tmp_path: Path):
    results = study()
    results[0]["frozen_digest_unchanged"] = False
    text = report(tmp_path, results)
    warning = "Frozen parameters changed in <code>none_frozen</code> seed 0"
    assert warning in text
    assert text.index(warning) < text.index("Recommended")


def test_print_table_fits_a_terminal():
    console = Console(record=True, width=80, color_system=None)
    print_table(study(), FAILURES, console)
    text = console.export_text()
    assert "0.795 ± 0.002" in text
    assert "40 G (0.40×)" in text
    assert "Use top_2" in text
    assert "<b>ValueError</b> [here]" in text
    assert "…" not in text


def test_a_table_of_more_than_a_terminal_holds_is_whole():
    """As of many tasks, or of an arm that is a list of rules."""
    long = json.dumps([["backbone/layer_0/*", "frozen"], ["*", "head"]])
    printed = io.StringIO()
    console = Console(file=printed, width=40, color_system=None)
    print_table([line(long, seed, 0.7, 10) for seed in range(2)], (), console)
    (row,) = [row for row in printed.getvalue().splitlines() if row.startswith(f"  {long}  ")]
    assert row.split()[-6:] == ["±", "0.000", "0.700", "0.700", "10", "G"]
    assert "…" not in printed.getvalue()


@pytest.mark.parametrize("width", [60, 80])
def test_a_terminal_has_all_numbers_and_names_within_its_width(width):
    long = json.dumps([["backbone/layer_0/*", "frozen"], ["*", "head"]])
    results = [line(long, seed, 0.7, 10) for seed in range(2)]
    printed = io.StringIO()
    shown = Console(file=printed, width=width, color_system=None, force_terminal=True)
    print_table(results, (), shown)
    lines = printed.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    table = lines[: lines.index("")]
    assert "…" not in "".join(table)
    for number in ("0.700 ± 0.000", "10 G"):
        assert any(number in row for row in table)
    # A broken name is read down its column.
    rule = next(i for i, row in enumerate(table) if "─" in row)
    rows = itertools.takewhile(str.strip, table[rule + 1 :])
    assert "".join(row[2:29] for row in rows).split() == long.split()


# Markup of rich, mathtext, Markdown and HTML, an emoji's name, and what a legend leaves out.
NAMES = ["[/b]", "[bold red]x", "$\\frac$", "a_b^c$_1$", "<b>x</b>", ":warning:", "_mine.json"]


def test_names_of_users_are_no_markup(tmp_path):
    results = [
        line(name, seed, 0.7 + 0.01 * i + 0.001 * seed, 10 + i)
        for i, name in enumerate(NAMES)
        for seed in range(2)
    ]
    failures = [{"arm": name, "seed": 3, "error": f"{name}: gone"} for name in NAMES]
    printed = io.StringIO()
    console = Console(file=printed, width=200, force_terminal=True, color_system=None)
    print_table(results, failures, console)
    write_report(tmp_path, results, failures)
    curves, scatter = figures.learning_curves(results), figures.quality_against_cost(results)
    assert curves is not None
    assert scatter is not None
    legend = [text.get_text() for text in curves.figure.legends[0].get_texts()]
    page, notes = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    for name in NAMES:
        assert printed.getvalue().count(name) >= 2
        assert html.escape(name) in page
        assert f"`{name}`" in notes
        assert name in legend
    assert {text.get_text() for text in scatter.figure.axes[0].texts} >= set(NAMES)
    assert not any(text.get_parse_math() for text in scatter.figure.axes[0].texts)
    assert "<b>" not in page


def test_a_caption_ends_where_it_ends():
    picture = Picture("p.png", bytes, "minus [/b] and ] and $x$")
    assert to_markdown(Document("t", "", (picture,))).splitlines()[-1] == (
        r"![minus \[/b\] and \] and \$x\$](p.png)"
    )


def test_tasks_of_other_kinds_have_their_own_metrics(tmp_path):
    results = study((0, 1))
    for result in results:
        points = [point["validation"] for point in result["curve"]]
        found = [result.get(split) for split in ("train", "validation", "test", "probe", "chance")]
        for metrics in (each for each in (*found, *points) if each):
            score = metrics["sentiment"]["macro_f1"]
            metrics["stars"] = {"r2": score - 1, "rmse": 1.25, "mae": 1.0, "examples": 500}
            metrics["tags"] = {"micro_f1": score, "macro_f1": score, "subset_accuracy": 0.5}
    text = report(tmp_path, results, failures=FAILURES, context=CONTEXT)
    for words in ("stars RMSE", "stars R2", "tags micro-F1", "sentiment accuracy"):
        assert words in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "<code>stars</code> is a regression, whose score is R2. That of the other tasks" in text
    # A mean of macro-F1 and R2 is neither.
    assert "mean score" in read_html(tmp_path / "report.html").tables[0][0]
    assert "Score on the test split, minus that of none_frozen" in text
    assert "macro-F1 on the test split (" not in text
    assert ": it reaches a score of 0" in text
    # What nothing was measured of has no part in the mean that is named.
    for result in results:
        result["test"]["tags"] = {"macro_f1": None, "examples": 0}
    text = report(tmp_path, results)
    assert "on the test split (classifier, sentiment and stars, their mean)" in text
    assert "No test text has a label of <code>tags</code>." in text


def test_a_study_without_full_fine_tuning_compares_with_what_it_recommends(tmp_path):
    results = [
        {**result, "probe": None, "chance": None}
        for result in study((0, 1, 2))
        if result["arm"] not in ("none_frozen", "all_frozen")
    ]
    text = report(tmp_path, results, context={"question": "Which <depth>?"})
    assert "<h1>Which &lt;depth&gt;?</h1>" in text
    chosen = recommend(results)
    assert chosen is not None
    assert f"minus that of {chosen.chosen.arm} with the same seed" in text
    tables = read_html(tmp_path / "report.html").tables
    (table,) = [rows for rows in tables if rows[0][:2] == ["arm", "shared seeds"]]
    ranked = {each.arm for each in chosen.candidates}
    assert {row[0] for row in table[1:]} == ranked - {chosen.chosen.arm}
    # Nothing is explained that is not there.
    assert "Dashed lines" not in text
    assert "all_frozen" not in text
