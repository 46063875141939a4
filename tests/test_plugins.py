"""A third party's stage, found through its entry point, and the errors for packages that do not fit."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from compressor import Pipeline, run
from compressor.errors import UserError
from compressor.pipeline.stage import discover
from tests.conftest import PLUGIN

CLIPPED = """\
name: clipped
data: {name: digits}
stages:
  - {stage: train, id: teacher, model: resnet, arguments: {blocks: [1], widths: [4]}, epochs: 0}
  - {stage: clip, limit: 0.1}
measure: {engines: []}
"""


def install(folder: Path, package: str, entry: str, code: str = "") -> None:
    """Lay a package into `folder` as an installer would."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[compressor.stages]\n{entry}\n")
    (folder / f"{package}.py").write_text(code)


def test_it_runs_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(CLIPPED)
    report = run(Pipeline.load(tmp_path / "p.yaml"), tmp_path / "out", device="cpu")
    assert report.row("clip").details == {"limit": 0.1}
    weights = safetensors.numpy.load_file(tmp_path / "out" / "stages" / "clip" / "weights.safetensors")
    assert max(np.abs(weights[name]).max() for name in weights if name.endswith("weight")) == np.float32(0.1)


def test_its_settings_are_checked(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(CLIPPED.replace("limit: 0.1", "limt: 0.1"))
    with pytest.raises(UserError, match="unknown key; did you mean `limit`") as caught:
        Pipeline.load(tmp_path / "p.yaml")
    assert "stages.1.limit: is missing" in str(caught.value)


def test_it_is_listed_and_in_the_schema_where_it_is_installed() -> None:
    for command in ("stages", "schema"):
        for installed in (True, False):
            environment = {**os.environ, "PYTHONPATH": str(PLUGIN) if installed else ""}
            shown = subprocess.run(
                [sys.executable, "-m", "compressor_command", command], env=environment, capture_output=True, text=True
            )
            assert shown.returncode == 0, shown.stderr
            assert ("Limit every weight to a range around 0." in shown.stdout) == installed


@pytest.mark.parametrize(
    ("package", "entry", "code", "says"),
    [
        ("rival", "train = rival:Train", "", "the stage 'train' is offered by two packages, compressor and rival; uninstall one"),
        ("broken", "mine = broken:Mine", "import nowhere", "the stage 'mine' of the package broken cannot be imported: No module"),
        ("odd", "mine = odd:Mine", "Mine = 3", "the stage 'mine' of the package odd is not a subclass of compressor.Stage"),
        ("alias", "mine = stages.train:Train", "", "the stage 'mine' of the package alias calls itself 'train'"),
    ],
)  # fmt: skip
def test_a_package_that_does_not_fit_is_named(
    package: str, entry: str, code: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, package, entry, code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as caught:
        discover.__wrapped__()  # type: ignore[attr-defined]
    assert says in str(caught.value)
