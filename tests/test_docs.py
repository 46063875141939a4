"""The documentation is true."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from compressor import Augment, Data, Measure, Pipeline, Stage
from compressor.config import keys_of
from compressor.pipeline.stage import discover

ROOT = Path(__file__).parent.parent
OURS = [kind for kind in discover().values() if kind.__module__.startswith("stages.")]
README = (ROOT / "README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_quick_start_is_two_commands() -> None:
    section = README.partition("## Quick start\n")[2].partition("\n## ")[0]
    first, second = blocks("bash", section)
    assert "compress run pipelines/digits_resnet.yaml" in first
    assert "pytest" in second


def test_the_stage_by_stage_example_runs_as_printed(tmp_path: Path) -> None:
    example, _ = blocks("python")  # the second is run by tests/test_report.py
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=True)
    found = re.fullmatch(r"([\d.]+)% of 359 test images, \d+ kB", done.stdout.strip())
    assert found
    assert float(found[1]) > 90
    assert (tmp_path / "model.onnx").stat().st_size > 10_000


def test_the_printed_pipeline_is_the_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "printed.yaml").write_text(blocks("yaml")[0])
    assert Pipeline.load(tmp_path / "printed.yaml") == Pipeline.load(ROOT / "pipelines" / "digits_resnet.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda path: path.name)
def test_every_pipeline_is_in_the_readme(path: Path) -> None:
    assert f"(pipelines/{path.name})" in README
    assert yaml.safe_load(path.read_text())["name"].replace("-", "_") == path.stem


@pytest.mark.parametrize("kind", [*OURS, Pipeline, Data, Augment, Measure], ids=lambda kind: kind.__name__)
def test_every_setting_is_described(kind: type[Stage]) -> None:
    text = (ROOT / "docs" / "stages.md").read_text()
    missing = [name for name in keys_of(kind) if f"`{name}`" not in text and f"`{name}:" not in text]
    assert missing in ([], ["stage"])


def test_the_printed_table_is_the_committed_report() -> None:
    report = json.loads((ROOT / "benchmarks" / "results" / "digits-resnet" / "report.json").read_text())
    for row in report["rows"]:
        (line,) = [line for line in README.splitlines() if line.startswith(f"| {row['id']} | {row['stage']} |")]
        (onnx,) = [e for e in row["latency"] if (e["engine"], e["device"]) == ("onnxruntime", "cpu")]
        expected = [
            f"{100 * row['accuracy']['correct'] / row['accuracy']['total']:.2f}% ({row['accuracy']['correct']}/359)",
            f"{row['parameters']:,}",
            f"{row['macs'] / 1e6:.2f}",
            f"{row['size_bytes'] / 1e3:.1f} kB",
            f"{onnx['median_ms']:.3f} ms",
            f"{onnx['speedup']:.2f}x ({onnx['speedup_low']:.2f} to {onnx['speedup_high']:.2f})",
        ]
        assert [cell.strip() for cell in line.strip("|").split("|")][2:] == expected


def test_links_lead_somewhere() -> None:
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_every_test_that_is_named_is_there(path: Path) -> None:
    named = set(re.findall(r"`(?:tests/)?(test_\w+)(?:\.py)?`", path.read_text()))
    assert {name for name in named if not (ROOT / "tests" / f"{name}.py").exists()} == set()
