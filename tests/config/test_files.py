"""Settings from a file: the names of the flags, overridden by flags, unknown keys refused."""

import dataclasses
import json

import pytest

from mtl_jax.cli.flags import Check, Plan
from mtl_jax.config.files import with_file
from mtl_jax.config.train import TrainConfig
from mtl_jax.core.command_line import parse
from mtl_jax.core.errors import UserError
from mtl_jax.studies.settings import StudySettings

YAML = """
scenario: [["backbone/*", "frozen"], ["*", "head"]]
epochs: 3
label-columns: {topic: category, stars: rating}
task_weights: {stars: 0.5}
prefix_cache: false
data:
  max_length: 64
  train_file: "a: file.csv"
watch: {wandb: null}
"""


def read(*argv):
    return parse(TrainConfig, with_file([*argv, "--workdir=w"], TrainConfig), "prog", "words")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(YAML)
    return path


def test_a_file_has_the_names_of_the_flags(file):
    config = read("--config", str(file))
    assert config.scenario == '[["backbone/*", "frozen"], ["*", "head"]]'
    assert (config.epochs, config.prefix_cache, config.data.max_length) == (3, False, 64)
    assert config.data.columns == {"topic": "category", "stars": "rating"}
    assert config.weights == {"topic": 1.0, "stars": 0.5}
    assert config.data.train_file == "a: file.csv"


def test_words_that_yaml_takes_for_switches_or_numbers_are_names_where_names_stand(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(
        "label_columns: {on: yes, no: off, other: true}\ntask_weights: {no: 2, other: 0.5}\n"
        "class_weights: {on: {007: 2.5, yes: 3}}\nprefix_cache: no\n"
    )
    config = read("--config", str(path))
    assert config.data.columns == {"on": "yes", "no": "off", "other": "true"}
    assert config.weights == {"on": 1.0, "no": 2.0, "other": 0.5}
    assert config.class_weights == ('on={"007": 2.5, "yes": 3}',)
    assert config.prefix_cache is False


def test_flags_override_the_file_wherever_they_stand(file):
    for argv in (("--epochs=5", f"--config={file}"), (f"--config={file}", "--epochs", "5")):
        assert read(*argv).epochs == 5


def test_a_runs_record_is_a_file_of_settings(tmp_path):
    config = TrainConfig(workdir="w", scenario="top_2", epochs=2, keep_latest=5)
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    del settings["workdir"], settings["distributed"], settings["keep_latest"]
    record = {"settings": settings, "phases": [], "environment": {"limits": {"keep_latest": 5}}}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(record))
    assert read("--config", str(path)) == config
    assert read("--config", str(path), "--scenario=top_1").scenario == "top_1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch: 3", "there is no setting 'epoch': did you mean epochs"),
        ("data: {max_lenght: 3}", "no setting 'max_lenght': did you mean max_length"),
        ('{"study": "freezing", "settings": {}}', "is the record of a study, not of a run: name"),
        ("- epochs", "does not contain settings by name"),
        ("epochs: [", "is neither YAML nor JSON"),
        ("epochs: [[1]]", "epochs is a list of lists"),
        ("3: 4", "there is no setting '3'"),
        ("heads: {topic: my_module:Head}", "--trust my_module"),
        ("schedule: my_module:rises", "--trust my_module"),
    ],
)
def test_what_a_file_may_not_hold_is_told_by_name(text, words, tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read(f"--config={path}")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_that_a_file_names_is_taken_where_its_module_is_trusted(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("label_columns: {topic: t}\nheads: {topic: my_module:Head}")
    config = read(f"--config={path}", "--trust", "my_module")
    assert config.heads == ("topic=my_module:Head",)


def test_a_file_that_is_not_there_or_not_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.yaml"):
        read(f"--config={tmp_path}/gone.yaml")
    with pytest.raises(UserError, match="needs a file name"):
        read("--config")


def test_a_check_and_a_plan_take_the_file_of_a_run_and_a_study_its_record_alone(tmp_path):
    file, record = tmp_path / "settings.yaml", tmp_path / "config.json"
    file.write_text("scenario: top_2\nseed: 3\nlabel-columns: {topic: label}\n")
    settings = {"scenario": "top_2", "seed": 3, "data": {"label_columns": ["topic=label"]}}
    record.write_text(json.dumps({"settings": settings, "phases": []}))
    columns = ["--label-columns", "topic=label"]
    for path in (file, record):
        argv = [f"--config={path}"]
        assert with_file(argv, Check, of_train=True) == columns
        assert with_file(argv, Plan, of_train=True) == ["--scenario", "top_2", *columns]
    assert with_file([f"--config={record}", "--workdir=w"], StudySettings) == [
        *columns,
        "--workdir=w",
    ]
    with pytest.raises(UserError, match="there is no setting 'scenario'"):
        with_file([f"--config={file}"], StudySettings)
    file.write_text("epoch: 3\n")
    with pytest.raises(UserError, match="no setting 'epoch': did you mean epochs"):
        with_file([f"--config={file}"], Check, of_train=True)


def test_an_empty_file_says_nothing(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("# nothing yet\n")
    assert read(f"--config={path}") == TrainConfig(workdir="w")
