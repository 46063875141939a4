"""Two processes that train together, as launchers start them, on gloo: the result is that of one."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from compressor import Context, Pipeline, load, run
from compressor.report.report import Report
from compressor.runs.layout import STAGES
from stages import Train

ROOT = Path(__file__).parent.parent

RUN = """\
import sys
import tests.conftest
from compressor.runs import runner
from compressor_command import main
runner.try_stages = lambda *_, **__: None
sys.exit(main(sys.argv[1:]))
"""
GENTLE = "batch_size: 64, learning_rate: 0.002, precision: fp32"  # noise grows with the learning rate
PIPELINE = f"""\
name: small
data: {{name: digits, validation: 200, augment: {{crop: 1, mixup: 0.2}}}}
stages:
  - {{stage: train, id: teacher, model: resnet, arguments: {{blocks: [1, 1], widths: [8, 16]}}, epochs: 2, {GENTLE}}}
  - stage: distill
    id: student
    model: resnet
    arguments: {{blocks: [1, 1], widths: [8, 8]}}
    teacher: teacher
    epochs: 2
    {GENTLE.replace(", ", chr(10) + "    ")}
    cache: {{views: 2}}
    losses: [{{loss: kl}}, {{loss: dist}}]
    ema: 0.9
  - {{stage: prune, id: pruned, target: {{macs: 0.9}}, round_to: 4}}
  - {{stage: distill, id: recovered, teacher: teacher, epochs: 1, {GENTLE}, features: [{{loss: hints, student: layer1, teacher: layer1}}]}}
  - {{stage: quantize, id: int8, mode: qat, teacher: teacher, epochs: 1, {GENTLE}}}
  - {{stage: export, id: shipped}}
measure: {{engines: []}}
"""


def command(folder: Path, script: str, *arguments: str) -> dict[str, Any]:
    """How a launcher starts two processes of a script."""
    (folder / "script.py").write_text(script)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return {
        "args": [*launcher, "script.py", *arguments],
        "cwd": folder,
        "env": {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        "text": True,
    }


def together(folder: Path, script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(**command(folder, script, *arguments), capture_output=True, timeout=300)


def curves(report: Report) -> dict[str, list[tuple[float, float]]]:
    return {
        row.id: [(point["loss"], point["validation_accuracy"]) for point in row.details["curve"]]
        for row in report.rows
        if row.details.get("curve")
    }


def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(PIPELINE)
    words = ("run", "small.yaml", "--out", "two", "--store", "store", "--device", "cpu")
    ended = together(tmp_path, RUN, *words)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("[1/6] teacher (train)") == 1
    one, two = (
        run(Pipeline.load(tmp_path / "small.yaml"), tmp_path / "one", device="cpu"),
        Report.load(tmp_path / "two"),
    )
    assert curves(one).keys() == curves(two).keys() == {"teacher", "student", "recovered", "int8"}
    for name, curve in curves(one).items():
        np.testing.assert_allclose([p[0] for p in curves(two)[name]], [p[0] for p in curve], rtol=2e-3)
        np.testing.assert_allclose([p[1] for p in curves(two)[name]], [p[1] for p in curve], atol=0.03)
    first = [load(tmp_path / name / STAGES / "teacher").network.state_dict() for name in ("one", "two")]  # type: ignore[union-attr]
    for name, tensor in first[0].items():
        torch.testing.assert_close(first[1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    assert [*(tmp_path / "two").rglob("*.partial")] == []
    again = together(tmp_path, RUN, *words)
    assert (again.returncode, again.stdout.count("reused, unchanged")) == (0, 6)


CHECK = """\
import torch
import torch.nn.functional as F
from compressor import processes

processes.start(cpu=True)
torch.manual_seed(0)
inputs, weight, bias = torch.randn(7, 3, 5, 5), torch.rand(3), torch.rand(3)
target = torch.randn(7, 3)


def outcome(part):
    given = [each.clone().requires_grad_() for each in (inputs, weight, bias)]
    mean, var = torch.zeros(3), torch.ones(3)
    normal = F.batch_norm(part(given[0]), mean, var, given[1], given[2], True, 0.3)
    pooled = processes.whole(normal.tanh().mean((2, 3)), 7)
    (pooled.softmax(0) * target).sum().backward()  # every image's loss depends on all others
    gradients = [each.grad for each in given]
    processes.add_up(gradients)
    return pooled.detach(), mean, var, *gradients


with processes.alone():
    expected = outcome(lambda all: all)
with processes.in_step():
    got = outcome(lambda all: all[processes.own_part(torch.arange(7))])
for one, other in zip(got, expected, strict=True):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
agreed = processes.agreed({"rank": processes.rank()})
shared = torch.full((2, 2), float(processes.rank()))
processes.share([shared])
assert agreed == {"rank": 0} and shared.eq(0).all()
print(f"{processes.rank()} of {processes.count()} has {len(processes.own_part(torch.arange(7)))} images", flush=True)
"""


def test_losses_and_batch_norm_see_whole_batches(tmp_path: Path) -> None:
    """Against torch's own on the whole batch: outputs, statistics, and the gradients of images and parameters."""
    ended = together(tmp_path, CHECK)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert all(said in ended.stdout for said in ("0 of 2 has 4 images", "1 of 2 has 3 images"))


def test_a_lost_process_ends_all_and_the_same_command_resumes(tmp_path: Path) -> None:
    text = PIPELINE.partition("  - stage: distill")[0].replace("epochs: 2", "epochs: 10000")
    (tmp_path / "small.yaml").write_text(f"{text}measure: {{engines: []}}\n")
    options = command(tmp_path, RUN, "run", "small.yaml", "--out", "out", "--device", "cpu", "--verbose")
    process = subprocess.Popen(**options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert any("epoch 2/" in line for line in process.stdout)
    second = next(
        child for child in psutil.Process(process.pid).children(recursive=True) if child.environ().get("RANK") == "1"
    )
    second.send_signal(signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    sentences = re.findall(r"^(?:error: .*|interrupted; .*)$", said, re.MULTILINE)
    assert len(sentences) == 1
    assert sentences[0].endswith("the same command resumes") or sentences[0].endswith("resumes from there")


def test_what_is_wrong_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(PIPELINE.replace("epochs: 2", "epochs: -2", 1))
    ended = together(tmp_path, RUN, "run", "small.yaml", "--out", "out")
    assert ended.returncode != 0
    assert ended.stderr.count("stages.0.epochs: got -2") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_in_another_process_is_said(tmp_path: Path) -> None:
    wrong = "from compressor.data.settings import Data\nfrom compressor.errors import DataError\nimport os\n"
    wrong += "def load(self, *_):\n    raise DataError('no images on this host')\n"
    wrong += "if os.environ['RANK'] == '1':\n    Data.load = load\n"
    (tmp_path / "small.yaml").write_text(PIPELINE)
    ended = together(tmp_path, RUN.replace("runner.try_stages", f"{wrong}runner.try_stages"), "run", "small.yaml")
    assert ended.returncode != 0
    assert ended.stderr.count("error in process 1: no images on this host") == 1


def test_every_process_needs_an_image(tmp_path: Path) -> None:
    text = PIPELINE.partition("  - stage: distill")[0].replace("batch_size: 64", "batch_size: 4, accumulate: 4")
    (tmp_path / "small.yaml").write_text(text)
    ended = together(tmp_path, RUN, "run", "small.yaml", "--out", "out", "--device", "cpu")
    assert ended.returncode != 0
    expected = "error: stage 'teacher': a step has parts of 0 images, fewer than the 2 processes; raise batch_size"
    assert ended.stderr.count(expected) == 1


# In one process


def test_gradients_of_parts_add_up_to_that_of_the_batch(context: Context) -> None:
    """Without BatchNorm, whose statistics are those of a part, nothing changes but rounding."""
    made = [
        Train(
            model="tests.networks:LeNet",
            epochs=1,
            batch_size=96,
            learning_rate=0.01,
            precision="fp32",
            accumulate=parts,
        )
        .run(None, context)
        .network.state_dict()
        for parts in (1, 5)
    ]
    for name, tensor in made[0].items():
        torch.testing.assert_close(made[1][name], tensor, rtol=1e-3, atol=1e-5)


def test_a_batch_has_at_least_as_many_images_as_parts() -> None:
    with pytest.raises(ValueError, match="a batch of 4 cannot be run in 8 parts"):
        Train(model="resnet8", epochs=1, batch_size=4, accumulate=8)
