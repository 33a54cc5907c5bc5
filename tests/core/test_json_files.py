import json
import os

import pytest

from mtl_jax.core.errors import UserError
from mtl_jax.core.json_files import OBJECT, read_json, read_lines

SCHEMA = {
    "type": "object",
    "required": ["weight_map"],
    "properties": {"weight_map": {"type": "object", "additionalProperties": {"type": "string"}}},
}


def test_a_file_that_follows_its_schema_is_given_as_it_is(tmp_path):
    path = tmp_path / "index.json"
    path.write_text('{"weight_map": {"a": "b"}, "other": 1}')
    assert read_json(path, SCHEMA, "fetch it again") == {"weight_map": {"a": "b"}, "other": 1}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[1]", "[1] is not of type 'object'"),
        (b"{}", "'weight_map' is a required property"),
        (b'{"weight_map": 3}', "weight_map: 3 is not of type 'object'"),
        (b'{"weight_map": {"x": null}}', "weight_map.x: None is not of type 'string'"),
        (b'{"weight_map": {}, "weight_map": {}}', "'weight_map' is there twice"),
        (b"{", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'"\xff"', "is not UTF-8 text"),
        (b"9" * 5000, "is not valid JSON"),
    ],
)
def test_any_other_content_is_one_line_that_names_file_place_and_remedy(tmp_path, content, words):
    path = tmp_path / "index.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(path, SCHEMA, "fetch it again")
    message = str(caught.value)
    assert message.startswith(str(path))
    assert words in message
    assert message.endswith(": fetch it again")


def test_of_a_long_value_the_reason_is_told(tmp_path):
    path = tmp_path / "index.json"
    path.write_text(json.dumps(["x" * 100_000]))
    with pytest.raises(UserError, match="is not of type 'object': again") as caught:
        read_json(path, OBJECT, "again")
    assert len(str(caught.value)) < 1000


def test_what_is_no_file_or_is_missing_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"is missing: correct the path"):
        read_json(tmp_path / "none.json", OBJECT, "again")
    os.mkfifo(tmp_path / "pipe.json")
    links = {"loop.json": "loop.json", "zero.json": "/dev/zero"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    reasons = {
        ".": "it is a folder",
        "pipe.json": "it is a pipe",
        "zero.json": "it is a device",
        "loop.json": "Too many levels of symbolic links",
    }
    for name, reason in reasons.items():
        for read in (lambda path: read_json(path, OBJECT, "again"), read_lines):
            with pytest.raises(UserError, match=rf"can't be read \({reason}\): "):
                read(tmp_path / name)


def test_a_repeated_key_damages_a_line(tmp_path):
    (tmp_path / "lines.jsonl").write_text('{"a": 1}\n{"a": 1, "a": 2}\n')
    with pytest.raises(UserError, match=r"line 2 is damaged \('a' is there twice\)"):
        read_lines(tmp_path / "lines.jsonl")
