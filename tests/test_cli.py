"""The command line: what it prints, and its exit codes."""

import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from compressor.models.architectures import Architecture
from compressor_command import main
from tests.conftest import executed
from tests.test_data import write_folder

ROOT = Path(__file__).parent.parent

TINY = """\
name: tiny
data: {name: digits, validation: 200}
stages:
  - {stage: train, id: teacher, model: resnet, arguments: {blocks: [1], widths: [4]}, epochs: 2}
  - {stage: quantize, id: int8, mode: ptq}
  - {stage: export, id: shipped}
measure: {engines: [onnxruntime], devices: [cpu]}
"""


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def test_run_and_report(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(pipeline), "--device", "cpu", "--set", "stages.teacher.epochs=1"]) == 0
    out = capsys.readouterr().out
    for words in (
        "[1/3] teacher (train)",
        "epoch 1/1",
        "validation",
        "shipped against teacher",
        "runs/tiny/model.onnx",
    ):
        assert words in out
    assert "\x1b[" not in out  # no colours or cursor movements where there is no terminal
    folder = tmp_path / "runs" / "tiny"
    assert "epochs: 1" in (folder / "pipeline.yaml").read_text()
    written = (folder / "report.md").read_text()
    (folder / "report.md").unlink()
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.md").read_text() == written


def test_a_network_in_a_file_beside_the_pipeline_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, elsewhere = tmp_path / "mine", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (folder / "network_beside.py").write_text(
        "from torch import nn\n"
        "def make(num_classes: int) -> nn.Module:\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, num_classes))\n"
    )
    (folder / "tiny.yaml").write_text(
        TINY.replace("model: resnet, arguments: {blocks: [1], widths: [4]}", 'model: "network_beside:make"')
    )
    assert main(["validate", "../mine/tiny.yaml"]) == 0
    assert "It can run" in capsys.readouterr().out
    assert main(["validate", "../mine/tiny.yaml", "--set", "stages.teacher.model=network_above:make"]) == 2
    assert "in a file beside the pipeline" in capsys.readouterr().err


def test_quantize_only_takes_weights_and_a_folder_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos", count=30, classes=("cat", "dog", "emu"))
    torch.manual_seed(0)
    network = Architecture(model="resnet8", num_classes=3, in_channels=3).build()
    safetensors.torch.save_file(network.state_dict(), tmp_path / "mine.safetensors")
    settings = ("data.root=photos", "data.size=[12, 16]", "data.validation=20", "stages.float.model=resnet8",
                "stages.float.weights=mine.safetensors", "stages.shipped.agreement=0.9")  # fmt: skip
    options = [option for setting in settings for option in ("--set", setting)]
    assert main(["run", str(ROOT / "pipelines" / "quantize_only.yaml"), "--device", "cpu", *options]) == 0
    operators = executed((tmp_path / "runs" / "quantize-only" / "model.onnx").read_bytes(), tmp_path)
    assert (operators["QLinearConv"], operators["QLinearAdd"], operators["QGemm"]) == (9, 3, 1)


def test_stages_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stages"]) == 0
    out = capsys.readouterr().out
    for tag in ("train", "distill", "prune", "quantize", "export"):
        assert tag in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "missing.yaml"], 2, "missing.yaml: cannot be read"),
        (["run", "tiny.yaml", "--set", "stages.teacher.epochs=x"], 2, "--set stages.teacher.epochs=x: stages.0.epochs"),
        (["run", "tiny.yaml", "--set", "stages.teacher.model=resnet21"], 2, "6 n + 2"),
        (["run", "tiny.yaml", "--set", "data={name: image_folder, root: nowhere}"], 2, "/nowhere; give one with a sub-folder"),
        (["run", "tiny.yaml", "--set", "stages.teacher.weights=none.pt"], 2, "there is no file none.pt"),
        (["run", "tiny.yaml", "--device", "tpu"], 2, "there is no device 'tpu'"),
        (["run", "tiny.yaml", "--set", "stages.teacher.learning_rate=10", "--set", "stages.teacher.model=tests.networks:Exploding", "--set", "stages.teacher.arguments={}"], 1, "loss is nan"),
        (["run", "tiny.yaml", "--set", "stages.shipped.opset=17"], 2, "got 17; expected at least 18"),
        (["report", "nowhere"], 2, "there is no report to read"),
    ],
)  # fmt: skip
def test_errors_are_one_sentence_and_a_code(
    pipeline: Path, arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert words in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_interruption_is_130(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("compressor.commands.main.run", interrupt)
    assert main(["run", str(pipeline)]) == 130
    assert "goes on from there" in capsys.readouterr().err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--debug", "run", "missing.yaml"], ["run", "missing.yaml", "--debug"]):
        assert main(arguments) == 2
        assert "Traceback" in capsys.readouterr().err


def test_a_fault_of_ours_is_one_sentence_too(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("compressor.commands.main.run", fail)
    assert main(["run", str(pipeline)]) == 1
    err = capsys.readouterr().err
    assert "KeyError: 'oops'" in err
    assert "Traceback" not in err
