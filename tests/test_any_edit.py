"""Any byte and any JSON value of a finished run may be another, sealed anew: no fault, no hang, no memory, no code."""

import copy
import json
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compressor import Context, Services
from compressor.distillation.teacher import Teacher
from compressor.errors import UserError
from compressor.export import onnx_file
from compressor.models.artifact import ONNX
from compressor.models.manifest import MANIFEST
from compressor.quantization.network import QuantizedNetwork
from compressor.report.report import Report
from compressor.report.tables import to_markdown, to_table
from compressor.report.wording import remarks
from compressor.report.writing import to_card
from compressor.runs import comparison_remarks, comparison_table
from compressor.runs.store import ROW
from compressor.storage import files
from compressor.storage import tensors as stored
from compressor.storage.checkpoints import Checkpoints
from compressor.training.objectives import CrossEntropy
from compressor.training.settings import Training
from compressor.training.state import TrainingState
from tests.test_tampering import MODEL, Heard, Run, honest, sealed

__all__ = ["honest"]  # the fixture

SECONDS, MEGABYTES = 10, 256  # for one edit, far above what an unchanged folder takes
STAGES = ("teacher", "int8", "shipped")
LEAVES: tuple[Any, ...] = (
    *(None, True, 0, 1, -1, 2, 255, 2**31, 2**63, 10**400, 0.0, 1e-300, 1e300, float("nan"), float("inf")),
    *("", "x", "x" * 100_000, "../../secret", "/dev/zero", "os:system", "torchvision:vit_h_14", "\x00\n\x1b", "\ud800"),
    *([], {}, [[]], [0] * 1000, {"kind": "int8"}, {"kind": "widths", "layers": {}}, {"x": 1}),
)
ANY = settings(derandomize=True, deadline=1000 * SECONDS, suppress_health_check=[HealthCheck.too_slow])


def places(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where every value stands, the whole included."""
    yield at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*at, key))


def changed(content: Any, data: st.DataObject) -> Any:
    """JSON with another value, without one, or with one more, anywhere."""
    content = copy.deepcopy(content)
    place = data.draw(st.sampled_from(list(places(content))), "place")
    new = data.draw(st.sampled_from(LEAVES), "value")
    if not place:
        return new
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    how = data.draw(st.sampled_from(["replace", "remove", "add"]), "how")
    if how == "replace":
        inner[place[-1]] = new
    elif how == "remove":
        del inner[place[-1]]
    elif isinstance(inner, dict):
        inner[data.draw(st.sampled_from(["more", "conv1", "input", ""]))] = new
    else:
        inner.append(new)
    return content


def flipped(content: bytes, data: st.DataObject) -> bytes:
    """A file with another byte, or an end too early."""
    at = data.draw(st.integers(0, len(content) - 1), "at")
    if data.draw(st.sampled_from([False] * 7 + [True]), "cut"):
        return content[:at]
    return content[:at] + bytes([data.draw(st.integers(0, 255), "byte")]) + content[at + 1 :]


@contextmanager
def bounded() -> Iterator[None]:
    """Require that the block takes little memory, where the system tells its peak."""
    if sys.platform != "linux":
        yield
        return
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before = _peak_mb()
    yield
    assert _peak_mb() - before < MEGABYTES


@contextmanager
def refused_in_one_sentence() -> Iterator[None]:
    """Let the block be refused."""
    try:
        yield
    except UserError as error:
        said = str(error)
    else:
        return
    assert "\n" not in said


def _peak_mb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) // 1024


@pytest.fixture(scope="module", autouse=True)
def no_more_than_there_is() -> Iterator[None]:
    """A fault that asks for terabytes ends here, not the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (64 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def prepared(honest: Run) -> Iterator[Run]:
    """The honest run, whose networks are exported to what they were exported to: it takes seconds."""
    contents = [(honest.folder / "stages" / stage / ONNX).read_bytes() for stage in ("teacher", "int8")]
    imported: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compressor.models.architectures._import", imported.append)
        patch.setattr(
            onnx_file, "export_onnx", lambda network, *_, **__: contents[isinstance(network, QuantizedNetwork)]
        )
        yield honest
    assert imported == []


@settings(ANY, max_examples=80)
@given(data=st.data())
def test_of_a_stage(prepared: Run, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    stage = data.draw(st.sampled_from(STAGES), "stage")
    source = prepared.folder / "stages" / stage
    folder = Path(shutil.copytree(source, tmp_path_factory.mktemp("edited") / "stages" / stage))
    names = sorted(path.name for path in folder.iterdir() if path.name != "SHA256SUMS")
    path = folder / data.draw(st.sampled_from(names), "file")
    if path.name in {MANIFEST, ROW} and data.draw(st.booleans(), "as JSON"):
        path.write_text(json.dumps(changed(json.loads(path.read_text()), data)))
    else:
        path.write_bytes(flipped(path.read_bytes(), data))
    if path.name in {MANIFEST, ROW}:
        files.seal(folder)
    else:
        sealed(folder)
    with bounded():
        taken, said = prepared.reuse(stage, folder)
    if taken is None:
        (line,) = said
        assert "\n" not in line
        assert len(line) < 1500
        assert line.endswith("; it will be made again") or "will be made again, since this has changed" in line
    else:
        assert said == []
    shutil.rmtree(folder.parent.parent)


@settings(ANY, max_examples=200)
@given(data=st.data())
def test_of_a_report(honest: Run, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("report")
    path = Path(shutil.copy(honest.folder / "report.json", folder))
    if data.draw(st.booleans(), "as JSON"):
        path.write_text(json.dumps(changed(honest.report, data)))
    else:
        path.write_bytes(flipped(path.read_bytes(), data))
    with bounded(), refused_in_one_sentence():
        report = Report.load(folder)
        to_table(report)
        assert to_markdown(report) + to_card(report) + "".join(remarks(report))
        sides = (folder, report), (honest.folder, Report.load(honest.folder))
        assert comparison_table(*sides).row_count + len(list(comparison_remarks(*sides)))


@settings(ANY, max_examples=40)
@given(data=st.data())
def test_of_soft_labels(context: Context, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("soft_labels")
    console = Heard()
    own = replace(context, services=Services(console, soft_labels=folder))
    teacher = context.new_model("resnet", MODEL)
    before = Teacher(teacher, own, views=1).stored
    (path,) = folder.iterdir()
    if data.draw(st.booleans(), "sealed"):
        held, notes = stored.read(path)
        stored.write(path, altered(held, data), notes)
    else:
        path.write_bytes(flipped(path.read_bytes(), data))
    with bounded():
        after = Teacher(teacher, own, views=1).stored
    assert before is not None
    assert after is not None
    assert after[0].shape == before[0].shape
    assert all("\n" not in line for line in console.said)


def altered(held: dict[str, torch.Tensor], data: st.DataObject) -> dict[str, torch.Tensor]:
    """Tensors of which one is another, or has another name or none."""
    name = data.draw(st.sampled_from(sorted(held)), "tensor")
    tensor = held[name]
    other = data.draw(
        st.sampled_from(
            [
                tensor.double(),
                tensor.to(torch.int8),
                tensor.reshape(-1)[:1].clone(),
                tensor[None].clone(),
                torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor + 1,
                torch.zeros(0),
                None,
            ]
        ),
        "other",
    )
    rest = {key: value for key, value in held.items() if key != name}
    key = data.draw(st.sampled_from([name, "more"]), "name")
    return rest if other is None else {**rest, key: other}


@settings(ANY, max_examples=150)
@given(data=st.data())
def test_of_a_checkpoint(context: Context, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    network = context.new_model("resnet", MODEL).copy_network().requires_grad_(True).train()
    state = TrainingState(network, CrossEntropy(), Training(epochs=3), steps=2)
    state.backward(network(torch.zeros(2, *context.data.preprocess.input_shape(1)[1:])).sum())
    state.step()
    state.curve.append({"epoch": 1, "loss": 1.0, "validation_accuracy": 0.5, "learning_rate": 0.1, "seconds": 1.0})
    kept = Checkpoints(tmp_path_factory.mktemp("checkpoints"), "key")
    how = data.draw(st.sampled_from(["notes", "tensors", "bytes"]), "how")
    notes = changed(state.notes(), data) if how == "notes" else state.notes()
    held = altered(state.tensors(), data) if how == "tensors" else state.tensors()
    kept.save("training", "start", held, notes)
    (path,) = kept.folder.iterdir()
    if how == "bytes":
        path.write_bytes(flipped(path.read_bytes(), data))
    with bounded(), refused_in_one_sentence():
        found = kept.load("training", "start")
        if found is not None:
            assert state.restore(*found) >= 1
