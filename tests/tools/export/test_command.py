"""Exporting as a command: folders whole or not at all, cards, mistakes in one line, the hub."""

import ast
import base64
import dataclasses
import http.server
import json
import shlex
import threading
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from mtl_jax.cli.commands import run
from mtl_jax.cli.flags import Command
from mtl_jax.config.train import TrainConfig
from mtl_jax.core.atomic_write import atomic_folder
from mtl_jax.core.command_line import parse
from mtl_jax.runs.workdir import Workdir
from mtl_jax.tools.export import card
from tests.tools.export.conftest import of_pairs


def export(trained, output, *flags):
    return run(["export", f"--workdir={trained}", f"--output={output}", *flags])


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def complaint(capsys):
    """Reads the one line of a mistake."""

    def read():
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ")
        return line

    return read


def test_a_folder_for_each_task_with_its_card(trained, tmp_path, capsys):
    output = tmp_path / "there" / "exported"
    assert export(trained, output, "--format=huggingface") == 0
    assert capsys.readouterr().err.splitlines()[-1] == f"wrote huggingface to {output}"
    files = ["README.md", "config.json", "model.safetensors", "modeling_pooled.py"]
    files += ["tokenizer_config.json", "vocab.txt"]
    tasks = ("classifier", "sentiment")
    assert names(output) == [f"{task}/{name}" for task in tasks for name in files]
    assert [path.name for path in output.parent.iterdir()] == ["exported"]

    _, front, text = (output / "sentiment" / "README.md").read_text().split("---\n", 2)
    said = yaml.safe_load(front)
    assert said == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["mtl_jax"],
    }
    workdir = Workdir(trained)
    record, result = workdir.config(), workdir.result() or {}
    for words in (
        record["data"]["fingerprint"],
        record["weights_sha256"],
        "| scenario | `top_1` |",
        "This folder holds code, `modeling_pooled.py`",
        "One of `neg`, `neu`, `pos`.",
        'folder = "exported/sentiment"',
    ):
        assert words in text
    for split in ("validation", "test"):
        scores = result[split]["sentiment"]
        row = f"| sentiment | {split} | {scores['accuracy']:.4g} | {scores['macro_f1']:.4g} |"
        assert row in text
    # Nobody else need know where files are on this machine.
    assert str(trained.parent.parent) not in text
    (line,) = [line for line in text.splitlines() if line.startswith("python -m mtl_jax train ")]
    asked = parse(Command, shlex.split(line)[3:], "", "").config()
    original = TrainConfig(
        **{name: value for name, value in record["settings"].items() if name != "data"},
        data=type(asked.data)(**record["settings"]["data"]),
        workdir="DIR",
    )
    assert asked.scenario == original.scenario
    assert asked.epochs == original.epochs
    assert asked.head_learning_rate == original.head_learning_rate
    assert asked.data.label_columns == original.data.label_columns
    assert asked.data.train_file == Path(str(original.data.train_file)).name


def test_names_of_users_are_neither_markup_nor_code_in_a_card(opened):
    folder = "a\"b\\r\n```\n'+x|\N{GRINNING FACE}"
    settings, file = opened.record["settings"], "/where/a|`b.csv"
    data = {"label_columns": ["mood=mood"], "train_file": file}
    record = {**opened.record, "settings": {**settings, "data": {**settings["data"], **data}}}
    labels = ("`", "``` x", "two\nlines", "pi|pe", "\u202eabc", "<b>")
    head = dataclasses.replace(opened.heads[0], classes=labels)
    run_of_them = dataclasses.replace(opened, record=record)
    for use in (
        card.classifier_use(folder, native=True),
        card.encoder_use(folder),
        card.onnx_use(folder),
    ):
        text = card.card(run_of_them, (head,), use).split("---\n", 2)[2]
        tokens = MarkdownIt().enable("table").parse(text)
        loads, trains = (token.content for token in tokens if token.type == "fence")
        nodes = ast.walk(ast.parse(loads))
        assert folder in [node.value for node in nodes if isinstance(node, ast.Constant)]
        assert "a|`b.csv" in shlex.split(trains)
        inside = [child for token in tokens for child in token.children or ()]
        spans = [child.content for child in inside if child.type == "code_inline"]
        assert spans[:6] == ["`", "``` x", r"two\nlines", "pi|pe", r"\u202eabc", "<b>"]
        assert any(span.startswith("a|`b.csv") for span in spans)


def test_a_card_of_pairs_is_of_pairs(opened):
    of_both = of_pairs(opened)
    for use in (
        card.classifier_use("folder", native=True, pairs=True),
        card.onnx_use("folder", pairs=True),
        card.program_use(pairs=True),
    ):
        text = card.card(of_both, of_both.heads, use)
        assert "A pair of texts becomes the mean" in text
        assert ast.parse(use.code)
        assert "a text" in use.code
        assert "its other text" in use.code
    assert "A text becomes the mean" in card.card(opened, opened.heads, card.program_use())


def test_some_tasks_and_other_formats(trained, tmp_path, capsys):
    assert export(trained, tmp_path / "one", "--tasks", "sentiment", "--dtype=float16") == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["sentiment"]
    capsys.readouterr()
    flags = ("--format=sentence-transformers", "--tasks=sentiment")
    assert export(trained, tmp_path / "encoder", *flags) == 0
    assert "note: --tasks is without effect: sentence-transf" in capsys.readouterr().err
    files = ["1_Pooling/config.json", "README.md", "config.json", "model.safetensors"]
    files += ["modules.json", "sentence_bert_config.json", "tokenizer_config.json", "vocab.txt"]
    assert names(tmp_path / "encoder") == files
    text = (tmp_path / "encoder" / "README.md").read_text()
    assert 'SentenceTransformer("encoder")' in text
    assert "| classifier | test |" in text


def test_what_can_not_be_written_is_one_line_and_leaves_nothing(
    trained, tmp_path, complaint, small_disk
):
    there = tmp_path / "there"
    (there / "own").mkdir(parents=True)
    (tmp_path / "file").touch()
    new = tmp_path / "new"
    for output, flags, words in (
        (there, [], f"--output {there} is not empty: name a new folder"),
        (tmp_path / "file", [], "is no folder: name a new folder"),
        (tmp_path / "file" / "x", [], "can't be "),
        ("", [], "--output names no folder"),
        (
            new,
            ["--tasks", "stars"],
            "--tasks names 'stars', which the run does not have: use classifier",
        ),
        (new, ["--format=onnx", "--dtype=float16"], "onnx is written in float32: leave"),
        (new, ["--push-to-hub=a/b/c"], "'a/b/c' can't be the name of a repository"),
    ):
        assert export(trained, output, *flags) == 2
        assert words in complaint()
    assert export(tmp_path, new) == 2
    assert "is not the folder of a run" in complaint()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]
    assert [path.name for path in there.iterdir()] == ["own"]
    disk = small_disk(1, files=6)
    assert export(trained, disk / "exported") == 2
    assert "can't be written" in complaint()
    assert list(disk.iterdir()) == []


def interrupted(path):
    with atomic_folder(path) as draft:
        (draft / "half").touch()
        assert not path.exists()
        raise KeyboardInterrupt


def test_an_interrupted_folder_is_not_there(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty") as draft:
        (draft / "whole").touch()
    assert names(tmp_path) == ["empty/whole"]
    with pytest.raises(OSError, match="empty"), atomic_folder(tmp_path / "empty"):
        pass
    assert names(tmp_path) == ["empty/whole"]


class Hub(http.server.BaseHTTPRequestHandler):
    """What of the hub an upload needs: it keeps what it is sent."""

    def do_POST(self):
        server: Stand = self.server  # pyright: ignore[reportAssignmentType]
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size).decode() if size else ""
        if self.headers.get("Authorization") != "Bearer hf_right":
            self.answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            private = asked.get("private") or asked.get("visibility") == "private"
            server.made.append((asked["name"], private))
            self.answer(200, {"url": f"{server.address}/me/{asked['name']}"})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif self.path.endswith("/commit/main"):
            name = self.path.split("/")[-3]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    server.kept[f"{name}/{line['value']['path']}"] = content
            url = f"{server.address}/me/{name}/commit/{'0' * 40}"
            self.answer(200, {"commitUrl": url, "commitOid": "0" * 40, "success": True})
        else:
            self.answer(200, {})

    def do_GET(self):
        self.answer(404, {"error": "Entry not found"})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):  # noqa: A002
        pass


class Stand(http.server.ThreadingHTTPServer):
    """The server, and what it has got."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Hub)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.made: list[tuple[str, bool]] = []
        self.kept: dict[str, bytes] = {}


@pytest.fixture
def stand(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with Stand() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_each_task_is_pushed_to_a_repository_of_its_own(stand, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    output = tmp_path / "exported"
    assert export(trained, output, "--push-to-hub=me/mine", "--private") == 0
    assert stand.made == [("mine-classifier", True), ("mine-sentiment", True)]
    assert {f"mine-{name}" for name in names(output)} == stand.kept.keys()
    for name in names(output):
        assert stand.kept[f"mine-{name}"] == (output / name).read_bytes()


@pytest.mark.parametrize("why", ["refused", "no network", "offline"])
def test_a_push_that_fails_is_one_line_and_keeps_the_folder(
    why, stand, trained, tmp_path, monkeypatch, complaint
):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    if why == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if why == "no network":
        # Nothing listens on port 9, discard.
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    output = tmp_path / "exported"
    assert export(trained, output, "--tasks", "sentiment", "--push-to-hub=me/mine") == 2
    line = complaint()
    assert f"{output}/sentiment is written, and can't be pushed to me/mine (" in line
    assert "hf auth login" in line
    assert (output / "sentiment" / "model.safetensors").exists()
