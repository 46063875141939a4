"""The command line: what it prints, and its exit codes."""

import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from compressor import Measure, Pipeline
from compressor.commands.main import compress
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
measure: {engines: []}
"""
LONG = """\
name: long
data: {name: digits, validation: 200}
stages:
  - {stage: train, id: teacher, model: resnet, arguments: {blocks: [1], widths: [4]}, epochs: 10000}
measure: {engines: []}
"""
INTERRUPTED = "interrupted; what is finished is kept, and the same command resumes from there"


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
    assert json.loads((folder / "report.json").read_text())["environment"]["threads"] == torch.get_num_threads()
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
    assert "It works" in capsys.readouterr().out
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
                "stages.float.weights=mine.safetensors", "stages.shipped.agreement=0.9", "measure={engines: []}")  # fmt: skip
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

    monkeypatch.setattr("compressor.runs.run", interrupt)
    assert main(["run", str(pipeline)]) == 130
    assert INTERRUPTED in capsys.readouterr().err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--debug", "run", "missing.yaml"], ["run", "missing.yaml", "--debug"]):
        assert main(arguments) == 2
        assert "Traceback" in capsys.readouterr().err


def test_a_fault_of_ours_is_one_sentence_too(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("compressor.runs.run", fail)
    assert main(["run", str(pipeline)]) == 1
    err = capsys.readouterr().err
    assert "KeyError: 'oops'" in err
    assert "Traceback" not in err


def test_what_needs_no_network_answers_without_torch(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(TINY.replace("epochs: 2", "epochs: 2, batch_sise: 8"))
    commands = [
        (["--help"], 0), (["--version"], 0), (["stages"], 0), (["stages", "prune"], 0), (["stages", "prun"], 2),
        (["schema"], 0), (["completion", "bash"], 0), (["init"], 0), (["run", "--nonsense"], 2), (["nonsense"], 2),
        (["run", "missing.yaml"], 2), (["run", "wrong.yaml"], 2), (["validate", "wrong.yaml"], 2),
        (["validate", "pipeline.yaml", "--set", "data.size=x"], 2), (["bench", "m.onnx", "--threads", "0"], 2),
        *(([name, "--help"], 0) for name in compress.commands),
    ]  # fmt: skip
    code = f"""
import contextlib, io, sys
from compressor_command import main
for arguments, code in {commands}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(arguments) == code, arguments
    heavy = {{"torch", "numpy", "onnx", "onnxruntime", "sklearn", "PIL"}} & set(sys.modules)
    assert not heavy, (arguments, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["", *compress.commands])
def test_every_help_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*filter(None, [name]), "--help"]) == 0
    examples = capsys.readouterr().out.partition("Example")[2].splitlines()[1:]
    assert any(f"compress {name}" in line for line in examples)


@pytest.mark.parametrize("name", ["", *compress.commands])
def test_an_unknown_option_shows_the_usage_of_its_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*filter(None, [name]), "--nonsense"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"Usage: {f'compress {name}'.strip()} ")
    assert "--nonsense" in shown.err


def test_an_unknown_command_suggests_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["valdate"]) == 2
    assert "'validate'" in capsys.readouterr().err


def test_one_stage_is_shown_with_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stages", "quantize"]) == 0
    out = capsys.readouterr().out
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:4]]
        for line in out.splitlines()
        if len(cells := line.split("│")) == 5
    }
    assert rows["observer"][0] == '"histogram"'
    assert rows["weight_bits"][0] == '"auto"'
    assert rows["weight_bits"][1].startswith("7 for x86 processors without VNNI, whose 8-bit products saturate;")
    assert rows["id"][0] == "quantize"
    assert main(["stages", "quantise"]) == 2
    assert "there is no stage 'quantise'; did you mean `quantize`?" in capsys.readouterr().err


def test_null_takes_a_key_out(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Pipeline.load(pipeline, ["data.validation=null"]).data.validation is None
    assert Pipeline.load(pipeline, ["measure=null"]).measure == Measure()
    assert Pipeline.load(pipeline, ["measure.engines=null"]).measure.engines == Measure().engines
    assert Pipeline.load(pipeline, ["measure.nowhere=null"]) == Pipeline.load(pipeline)
    assert main(["validate", str(pipeline), "--set", "stages.teacher.epochs=null"]) == 2
    assert "stages.0.epochs: is missing" in capsys.readouterr().err


def test_quiet_prints_nothing_and_verbose_every_epoch(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.write_text(LONG)
    command = ["run", str(pipeline), "--device", "cpu", "--fresh", "--set", "stages.teacher.epochs=20"]
    command += ["--set", "data.train=100"]
    assert main([*command, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main([*command, "--verbose"]) == 0
    out = capsys.readouterr().out
    assert [f"epoch {number}/20 " in out for number in range(1, 21)] == [True] * 20
    assert main([*command, "--quiet", "--verbose"]) == 2
    assert capsys.readouterr().err == "error: --quiet and --verbose contradict each other; leave one out\n"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data=" + "[" * 5000, "is nested too deeply"),
        ("data=" + "[" * 60 + "]" * 60, "is nested too deeply"),
        ("a." * 5000 + "b=1", "is nested too deeply"),
        ("seed=" + "9" * 5000, "a number of 5000 characters is longer than any setting"),
        ("seed=" + "9" * 300, "got 999"),
        ("stages.teacher.learning_rate=1e" + "9" * 5000, "a number of 5002 characters is longer than any setting"),
        ("stages." + "9" * 5000 + ".epochs=1", "there is no stage with the id '999"),
        ('data.root="a\\0b"', "data.root: a path cannot hold a NUL byte"),
        ('stages.teacher.weights="a\\0b"', "stages.0.weights: a path cannot hold a NUL byte"),
        ("data.size=16", "data.size: got 16; expected a list, as in [16, 16]"),
        ("stages.teacher={stage: train, id: teacher, epochs: 1, model: resnet1000000000000}", "unknown model 'resnet1000000000000'"),
        ("stages.teacher={stage: train, id: teacher, epochs: 1, model: resnet" + "9" * 5000 + "}", "at most 200 letters"),
        ("stages.teacher.model=\"a\\0b:Net\"", "a\\x00b"),
    ],
    ids=lambda value: value[:30],
)  # fmt: skip
def test_what_is_out_of_all_proportion_gets_one_short_sentence(
    pipeline: Path, override: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", str(pipeline), "--set", override]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert len(err) < 400


def test_100000_unknown_keys_get_one_short_sentence(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.write_text(TINY + "".join(f"key{number}: 1\n" for number in range(100_000)))
    assert main(["validate", str(pipeline)]) == 2
    assert (
        capsys.readouterr().err
        == "error: tiny.yaml: holds more than 200000 characters; a pipeline is smaller\n".replace(
            "tiny.yaml", str(pipeline)
        )
    )
    pipeline.write_text(TINY + "".join(f"key{number}: 1\n" for number in range(5_000)))
    assert main(["validate", str(pipeline)]) == 2
    first, *others = capsys.readouterr().err.splitlines()
    assert first == f"error: {pipeline}:1:1: 5000 errors here; the first 20 are shown"
    assert len(others) == 20


WITHOUT_DRY_RUN = """\
import sys
import compressor_command
from compressor.runs import runner
runner.try_stages = lambda *_, **__: None
sys.exit(compressor_command.main(["run", "long.yaml", "--device", "cpu", "--verbose"]))
"""


def started(folder: Path, text: str = LONG, until: str = "epoch 1/", **settings: Any) -> "subprocess.Popen[str]":
    """A run in a process of its own that has begun to train."""
    (folder / "long.yaml").write_text(text)
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", WITHOUT_DRY_RUN],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )
    wait_for(process, until)
    return process


def wait_for(process: "subprocess.Popen[str]", words: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return
    pytest.fail(f"it ended without {words!r}")


def test_a_lost_terminal_interrupts(tmp_path: Path) -> None:
    process = started(tmp_path)
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.strip()) == (130, INTERRUPTED)


def test_under_nohup_a_lost_terminal_interrupts_nothing(tmp_path: Path) -> None:
    process = started(tmp_path, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    time.sleep(0.1)
    wait_for(process, "epoch 30/")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.strip()) == (130, INTERRUPTED)


STUBBORN = """\
import time
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(64, num_classes)

    def forward(self, images):
        if self.training and torch.is_grad_enabled():
            try:
                print("training", flush=True)
                time.sleep(600)
            except KeyboardInterrupt:
                print("ending", flush=True)
                time.sleep(0.5)
                print("still ending", flush=True)
                time.sleep(600)
        return self.fc(images.flatten(1))
"""


def test_a_second_interruption_waits_and_a_third_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    network = "model: resnet, arguments: {blocks: [1], widths: [4]}"
    process = started(tmp_path, LONG.replace(network, "model: 'stubborn:Net'"), until="training\n")
    for words in ("ending", "still ending"):
        process.send_signal(signal.SIGINT)
        wait_for(process, words)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")


def test_a_terminal_that_is_closed_interrupts(tmp_path: Path) -> None:
    (tmp_path / "long.yaml").write_text(LONG)
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", WITHOUT_DRY_RUN])
    seen = b""
    while b"epoch 1/" not in seen:
        seen += os.read(terminal, 65536)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130


@pytest.mark.parametrize("megabytes", [300, 900])
def test_a_limit_of_memory_too_small_for_torch_is_one_sentence(megabytes: int, pipeline: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20,) * 2)

    done = subprocess.run(
        [sys.executable, "-m", "compressor_command", "validate", str(pipeline)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )
    assert done.returncode == 1
    assert "error: out of memory (" in done.stderr
    assert "Traceback" not in done.stderr
