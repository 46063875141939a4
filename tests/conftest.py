"""Tiny networks on real digits; everything runs on the CPU in seconds."""

import collections
import functools
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # a core for each worker, and for what it starts; read when torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import onnx
import onnxruntime
import pytest
import torch
from filelock import FileLock
from torch import Tensor
from torch.onnx._internal.exporter._registration import ONNXRegistry

from compressor import Context, Data, Dataset, Measure, Pipeline, TorchModel, run
from compressor.distillation.lesson import Lesson
from compressor.evaluation import latency, recording
from compressor.evaluation.costs import layers
from compressor.training.objectives import Batch, Watched
from stages import Distill, Export, Prune, Quantize, Target, Train

# Nobody looks at how precise times are here, or how quiet it was.
recording.MIN_SECONDS, recording.MAX_WARMUP_SECONDS, latency.PAUSES_SECONDS = 0.02, 0.2, ()
layers.VISITS, layers.VISIT_SECONDS = 1, 0.01
# The exporter builds its table of operators anew for every export, a third of the time that it takes.
ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]
PLUGIN = Path(__file__).parent / "plugin"  # a third party's package, installed for all tests
sys.path.append(str(PLUGIN))

TINY = {"blocks": [1, 1], "widths": [8, 16]}
LAYERS = (  # of TINY
    "conv1",
    "layer1.0.conv1",
    "layer1.0.conv2",
    "layer2.0.conv1",
    "layer2.0.conv2",
    "layer2.0.downsample.0",
    "fc",
)
TEACHER = {"blocks": [1, 1], "widths": [16, 32]}
STUDENT = {"blocks": [1, 1], "widths": [8, 16]}
PIPELINE = Pipeline(
    name="tiny",
    data=Data(name="digits", validation=200, calibration=128),
    stages=(
        Train(id="teacher", model="resnet", arguments=TEACHER, epochs=8, batch_size=64),
        Distill(id="student", model="resnet", arguments=STUDENT, teacher="teacher", epochs=6, batch_size=64),
        Prune(id="pruned", target=Target(macs=0.8), round_to=4),
        Distill(id="recovered", teacher="teacher", epochs=2, learning_rate=0.05),
        Quantize(id="int8", mode="qat", teacher="teacher", epochs=1),
        Export(id="shipped"),
    ),
    measure=Measure(devices=("cpu", "cuda")),
)
IDS = ["teacher", "student", "pruned", "recovered", "int8", "shipped"]


@pytest.fixture(autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test takes what another one has made."""
    monkeypatch.setenv("COMPRESS_STORE", str(tmp_path_factory.mktemp("store")))


@pytest.fixture(autouse=True)
def dry_run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are vehicles for most tests: the dry run before them is left out, but where a test asks for it by its mark."""
    if "dry_run" not in request.keywords:
        monkeypatch.setattr("compressor.runs.runner.try_stages", lambda *_, **__: None)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of a tiny pipeline, which tests only read; the first worker that needs it makes it for all."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    out = shared / "finished" / "tiny"
    out.parent.mkdir(exist_ok=True)
    with FileLock(shared / "finished.lock"):
        if not (out / "model.onnx").exists():
            run(PIPELINE, out, device="cpu")
    return out


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return Data(name="digits", validation=200, calibration=128).load(seed=0)


@pytest.fixture(scope="session")
def context(digits: Dataset) -> Context:
    return Context(data=digits.without_test(), seed=0, pipeline="tests")


@pytest.fixture(scope="session")
def tiny(context: Context) -> TorchModel:
    """A trained tiny ResNet that knows most digits."""

    return Train(model="resnet", arguments=TINY, epochs=6, batch_size=64).run(None, context)


@pytest.fixture(scope="session")
def int8(tiny: TorchModel, context: Context) -> TorchModel:

    return Quantize(mode="ptq").run(tiny, context)


def accuracy(model: TorchModel, data: Dataset) -> float:
    inputs = data.preprocess.normalise(data.validation.images)
    return float((model.predict(inputs).argmax(1) == data.validation.labels).float().mean())


def taught(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    progress: float = 0.0,
    class_weights: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """What `distill` with these settings minimises for given logits `[N, classes]`."""
    known = SimpleNamespace(logits=lambda batch: teacher.float())
    lesson = Lesson(known, Distill(teacher="teacher", epochs=1, **settings), class_weights)  # type: ignore[arg-type]
    batch = Batch(student, labels, torch.arange(len(student)), 0, progress)
    loss: Tensor = lesson(Watched(torch.nn.Identity()), batch)
    return loss


def executed(content: bytes, folder: Path) -> collections.Counter[str]:
    """Counts of the operators that ONNX Runtime really executes."""
    target = folder / "optimized.onnx"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return collections.Counter(node.op_type for node in onnx.load(target).graph.node)


def equal_states(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
