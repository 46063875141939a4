"""The JSON Schema for editors, checked against the code and the shipped pipelines."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from compressor import Pipeline
from compressor.config.yaml_file import read
from compressor_command import main

ROOT = Path(__file__).parent.parent
COMMITTED: dict[str, Any] = json.loads((ROOT / "compressor.schema.json").read_text())
CHECK = jsonschema.Draft202012Validator(COMMITTED)
SHIPPED = sorted({*(ROOT / "pipelines").glob("*.yaml")} - {*(ROOT / "pipelines").glob("search_*.yaml")})


def test_the_committed_schema_is_that_of_the_code() -> None:
    """To renew it: compress schema > compressor.schema.json."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "compressor_command", "schema"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed == (ROOT / "compressor.schema.json").read_text()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_pipelines_follow_it_and_say_so(path: Path) -> None:
    assert path.read_text().startswith("# yaml-language-server: $schema=../compressor.schema.json\n")
    CHECK.validate(read(path).content)


@pytest.mark.parametrize(
    "change",
    [
        {"stage": None},
        {"stage": "trian"},
        {"epochs": -1},
        {"epochs": "many"},
        {"learning_rate": 1e9},
        {"temprature": 4},
        {"model": 5},
    ],
)
def test_it_refuses_what_the_code_refuses(change: dict[str, Any]) -> None:
    stage = {"stage": "train", "model": "resnet20", "epochs": 1}
    good = {"name": "x", "data": {"name": "digits"}, "stages": [stage]}
    assert CHECK.is_valid(good)
    changed = {key: value for key, value in {**stage, **change}.items() if value is not None}
    assert not CHECK.is_valid({**good, "stages": [changed]})


def test_settings_are_described_where_one_types() -> None:
    for name, definition in COMMITTED["$defs"].items():
        assert definition["description"], name
        missing = [key for key, value in definition["properties"].items() if "description" not in value]
        assert missing in ([], ["stage", "id"], ["name"]), name


def test_init_writes_a_valid_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine.yaml"]) == 0
    assert Pipeline.load(tmp_path / "mine.yaml").warnings == ()
    assert "compress run mine.yaml" in (tmp_path / "mine.yaml").read_text()
    assert (tmp_path / "compressor.schema.json").is_file()
    (tmp_path / "mine.yaml").write_text("changed")
    assert main(["init", "mine.yaml"]) == 2
    assert "mine.yaml already exists" in capsys.readouterr().err
    assert (tmp_path / "mine.yaml").read_text() == "changed"
    assert main(["init", "nowhere/mine.yaml"]) == 2
