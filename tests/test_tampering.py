"""A run's folder from someone else, sealed anew so that its digests fit: refused or made again, in one sentence."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from PIL import Image

from compressor import Context, Data, Dataset, Measure, Pipeline, Services, run
from compressor.commands.main import main
from compressor.console import Console, TrainingProgress
from compressor.distillation.teacher import Teacher
from compressor.export import onnx_file, reading
from compressor.models.artifact import ONNX, WEIGHTS
from compressor.models.manifest import MANIFEST
from compressor.runs import making, runner
from compressor.runs.store import PREDICTIONS, ROW, Finished, reuse
from compressor.storage import checkpoints, files
from compressor.storage import tensors as stored
from stages import Export, Quantize, Train

MODEL = {"blocks": [1], "widths": [8]}
PIPELINE = Pipeline(
    name="tampered",
    data=Data(name="digits", validation=200, calibration=64),
    stages=(
        Train(id="teacher", model="resnet", arguments=MODEL, epochs=1, batch_size=64),
        Quantize(id="int8", mode="ptq"),
        Export(id="shipped"),
    ),
    measure=Measure(engines=()),
)
HUGE = 10**9
Place = tuple[str | int, ...]


class Heard(Console):
    """A console that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, message: object, style: str = "") -> None:
        self.said.append(str(message))


@dataclass
class Run:
    """A finished run, and what its stages were looked for with."""

    folder: Path
    report: dict[str, Any]
    asked: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def reuse(self, stage: str, folder: Path) -> tuple[Finished | None, list[str]]:
        """The stage in `folder`, as the run would take it, and what is said."""
        settings, _, parts, context, data, factories = self.asked[stage]
        console = Heard()
        own = replace(context, services=Services(console))
        return reuse(settings, folder, parts, own, data, factories), console.said


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("honest") / "run"
    asked = {}

    def remember(*given: Any) -> Finished | None:
        asked[given[0].id] = given
        return reuse(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "reuse", remember)
        patch.setattr(runner, "try_stages", lambda *_, **__: None)
        report = run(PIPELINE, out, device="cpu").to_json()
    return Run(out, report, asked)


@pytest.fixture
def copied(honest: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest.folder, tmp_path / "run"))


def sealed(folder: Path) -> None:
    """Let every digest in a stage's folder be that of what is there now."""
    manifest = json.loads((folder / MANIFEST).read_text())
    if isinstance(manifest, dict):
        held = folder / (WEIGHTS if (folder / WEIGHTS).exists() else ONNX)
        manifest["digest"] = files.digest(held.read_bytes())
        (folder / MANIFEST).write_text(json.dumps(manifest))
    files.seal(folder)


def put(path: Path, place: Place, value: Any) -> None:
    """Write `value` into a JSON file, where `place` points."""
    content = json.loads(path.read_text())
    if not place:
        content = value
    else:
        inner = content
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
    path.write_text(json.dumps(content))


ARGUMENTS = ("architecture", "arguments")
RANGES = ("changes", 0, "activations")
WIDE = {"kind": "widths", "layers": {"conv1": {"inputs": 1, "outputs": HUGE}}}
GROUPED = {"kind": "widths", "layers": {"conv1": {"inputs": 1, "outputs": 8, "groups": 8}}}
MANIFESTS: list[tuple[str, Place, Any, str]] = [
    ("teacher", (), [], "not a manifest of this version"),
    ("teacher", ("format",), 2, "format: Input should be 1"),
    ("teacher", ("kind",), "pickle", "not a manifest of this version"),
    ("teacher", ("more",), 1, "more: Extra inputs are not permitted"),
    ("teacher", ("labels",), [], "labels"),
    ("teacher", ("labels",), ["a"] * 10, "names other classes"),
    ("teacher", ("labels", 3), None, "labels.3"),
    ("teacher", ("preprocess", "size"), [HUGE, HUGE], "preprocess.size.0"),
    ("teacher", ("preprocess", "size"), [4096, 4096], "other preprocessing"),
    ("teacher", ("preprocess", "std"), [0.0], "preprocess.std.0"),
    ("teacher", ("preprocess", "mean"), [float("nan")], "preprocess.mean.0"),
    ("teacher", ("architecture", "num_classes"), HUGE, "classes"),
    ("teacher", ("architecture", "in_channels"), 3, "channels"),
    ("teacher", ("architecture", "model"), "resnet1000000000000", "unknown model"),
    ("teacher", ("architecture", "model"), "x" * 2000, "architecture.model: String should have at most"),
    ("teacher", ("architecture", "model"), "os:system", "imported only when the pipeline itself names it"),
    ("teacher", ("architecture", "model"), "torchvision:resnet50", "model 'torchvision:resnet50'"),
    ("teacher", ARGUMENTS, {"blocks": [1], "widths": [65_536]}, "far more memory than its weights"),
    ("teacher", ARGUMENTS, {"blocks": [1000] * 100, "widths": [1] * 100}, "far more memory than its weights"),
    ("teacher", ARGUMENTS, {"blocks": [HUGE], "widths": [8]}, "blocks must be 0 to"),
    ("teacher", ARGUMENTS, {"blocks": [1], "widths": [float("inf")]}, "architecture.arguments"),
    ("teacher", ARGUMENTS, {"blocks": "x" * 10**6, "widths": [8]}, "…: "),
    ("teacher", ARGUMENTS, {"blocks": [2], "widths": [8]}, "does not fit the network"),
    ("teacher", ("changes",), [{"kind": "pruned"}], "changes.0"),
    ("teacher", ("changes",), [WIDE], "wider than the architecture"),
    ("teacher", ("changes",), [GROUPED], "1 and 8 channels do not lie in 8 equal groups"),
    ("teacher", ("changes",), [{"kind": "widths", "layers": {"x": {"inputs": 1, "outputs": 1}}}], "a layer 'x'"),
    ("teacher", ("changes",), [{"kind": "masked", "parameters": ["none"]}], "mask a parameter 'none'"),
    ("teacher", ("changes",), [{"kind": "removed", "modules": ["layer9"]}], "remove a module 'layer9'"),
    ("teacher", ("changes",), [{"kind": "removed", "modules": ["relu"] * 10**5}], "stands here twice"),
    ("teacher", ("changes",), [{"kind": "widths", "layers": {}}] * 10**5, "changes: Tuple should have at most 100"),
    ("int8", (*RANGES, "input"), [0.0, 0], "changes.0.int8.activations.input.0"),
    ("int8", (*RANGES, "input"), [1e-300, 0], "changes.0.int8.activations.input.0"),
    ("int8", (*RANGES, "input"), [float("inf"), 0], "changes.0.int8.activations.input.0"),
    ("int8", (*RANGES, "input"), [1.0, 256], "changes.0.int8.activations.input.1"),
    ("int8", (*RANGES, "elsewhere"), [1.0, 0], "first differing point: 'elsewhere'"),
    ("int8", ("changes", 0, "skip"), ["nothing"], "skip names 'nothing'"),
    ("int8", ("changes", 0, "weight_bits"), 1, "changes.0.int8.weight_bits"),
    ("shipped", ("counts", "macs"), -1, "counts.macs"),
    ("shipped", ("counts", "parameters"), 1, "parameters cannot be other than zero"),
    ("shipped", ("quantized",), "perhaps", "quantized"),
    ("shipped", ("labels", 0), "zero", "names other classes"),
]


def refused(honest: Run, stage: str, folder: Path, because: str) -> None:
    """Require that a stage's folder, sealed anew, is made again, for this reason."""
    sealed(folder)
    taken, said = honest.reuse(stage, folder)
    assert taken is None
    assert len(said) == 1
    assert because in said[0]
    assert said[0].endswith("; it will be made again")
    assert "\n" not in said[0]
    assert len(said[0]) < 1000


def test_an_honest_folder_is_taken(honest: Run, copied: Path) -> None:
    for stage, row in zip(PIPELINE.stages, honest.report["rows"], strict=True):
        sealed(copied / "stages" / stage.id)
        taken, said = honest.reuse(stage.id, copied / "stages" / stage.id)
        assert said == []
        assert taken is not None
        assert taken.row.sha256 == row["sha256"]


@pytest.mark.parametrize(("stage", "place", "value", "because"), MANIFESTS, ids=[str(i) for i in range(len(MANIFESTS))])
def test_a_manifest(honest: Run, copied: Path, stage: str, place: Place, value: Any, because: str) -> None:
    folder = copied / "stages" / stage
    put(folder / MANIFEST, place, value)
    refused(honest, stage, folder, because)


def test_int8_twice(honest: Run, copied: Path) -> None:
    folder = copied / "stages" / "int8"
    changes = json.loads((folder / MANIFEST).read_text())["changes"]
    put(folder / MANIFEST, ("changes",), changes * 2)
    refused(honest, "int8", folder, "a network is quantized once")


def test_a_removed_module_without_which_the_network_does_not_run(honest: Run, copied: Path) -> None:
    folder = copied / "stages" / "teacher"
    put(folder / MANIFEST, ("changes",), [{"kind": "removed", "modules": ["fc"]}])
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("fc.")}
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(kept))
    refused(honest, "teacher", folder, "output of shape [2, 8]")


ROWS: list[tuple[Place, Any, str]] = [
    (("id",), "teacher", "is of another stage"),
    (("stage",), "train", "is of another stage"),
    (("artifact",), "stages/teacher", "is of another stage"),
    (("artifact",), "../../secret", "made by another version"),
    (("key",), "0", "is of another stage"),
    (("accuracy", "correct"), HUGE, "made by another version"),
    (("calibration_error",), float("nan"), "made by another version"),
    (("size_bytes",), 10**4000, "made by another version"),
    (("details", "signal_to_noise_db"), {"input": "much"}, "made by another version"),
]


@pytest.mark.parametrize(("place", "value", "because"), ROWS, ids=[".".join(map(str, row[0])) for row in ROWS])
def test_a_row(honest: Run, copied: Path, place: Place, value: Any, because: str) -> None:
    folder = copied / "stages" / "int8"
    put(folder / ROW, place, value)
    refused(honest, "int8", folder, because)


def named(**changes: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda held: {**held, **{name: change(held[name]) for name, change in changes.items()}}


PREDICTED = {
    "classes as floats": named(classes=lambda x: x.astype(np.float32)),
    "classes below zero": named(classes=lambda x: x - 100),
    "one number": named(classes=lambda x: np.int64(1).reshape(()), labels=lambda x: np.int64(1).reshape(())),
    "fewer": named(classes=lambda x: x[:10]),
    "not numbers": named(confidence=lambda x: x * np.float32("nan")),
    "above 1": named(confidence=lambda x: x + 1),
    "another name": lambda held: {"more": held["classes"], **held},
    "nothing": lambda held: {},
}


@pytest.mark.parametrize("how", PREDICTED)
def test_predictions(honest: Run, copied: Path, how: str) -> None:
    path = copied / "stages" / "int8" / PREDICTIONS
    held = PREDICTED[how](safetensors.numpy.load_file(path))
    path.write_bytes(safetensors.numpy.save({name: np.ascontiguousarray(each) for name, each in held.items()}))
    refused(honest, "int8", path.parent, "predictions")


def claiming(kind: str, shape: list[int], held: int) -> bytes:
    """A safetensors file of one tensor, with so many bytes of it."""
    header = json.dumps({"conv1.weight": {"dtype": kind, "shape": shape, "data_offsets": [0, held]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(min(held, 4096))


CLAIMS = {
    "huge": claiming("F32", [2**40], 2**42),
    "overflowing": claiming("F32", [2**40, 2**40], 4),
    "an unknown type": claiming("F6_E2M3", [4], 3),
    "a type of few bits": claiming("F8_E8M0", [4], 4),
    "a header longer than any file": (2**60).to_bytes(8, "little") + b"{}",
    "empty": b"",
}


@pytest.mark.parametrize("what", CLAIMS)
@pytest.mark.parametrize("name", [WEIGHTS, PREDICTIONS])
def test_a_header_that_claims_what_is_not_there(honest: Run, copied: Path, what: str, name: str) -> None:
    path = copied / "stages" / "teacher" / name
    path.write_bytes(CLAIMS[what])
    refused(honest, "teacher", path.parent, "is not a safetensors file" if name == WEIGHTS else "predictions")


WEIGHED = {
    "another shape": (named(**{"fc.weight": lambda x: x[:3].clone()}), "fc.weight is [3, 8]"),
    "another type": (named(**{"fc.weight": lambda x: x.double()}), "fc.weight is torch.float64"),
    "whole numbers": (named(**{"fc.weight": lambda x: x.to(torch.int8)}), "fc.weight is torch.int8"),
    "not finite": (named(**{"fc.weight": lambda x: x * float("nan")}), "one finite logit for each class"),
    "another name": (lambda held: {"more": held["fc.weight"].clone(), **held}, "more [10, 8] is not in the network"),
    "a missing one": (lambda held: {k: v for k, v in held.items() if k != "fc.bias"}, "fc.bias [10] is missing"),
}


@pytest.mark.parametrize("how", WEIGHED)
def test_weights(honest: Run, copied: Path, how: str) -> None:
    change, because = WEIGHED[how]
    path = copied / "stages" / "teacher" / WEIGHTS
    path.write_bytes(safetensors.torch.save(change(safetensors.torch.load_file(path))))
    refused(honest, "teacher", path.parent, because)


def external(tensor: onnx.TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")


def outside(model: onnx.ModelProto) -> None:
    external(next(tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 8))


def outside_in_a_node(model: onnx.ModelProto) -> None:
    node = onnx.helper.make_node("Constant", [], ["unused"], value=onnx.numpy_helper.from_array(np.zeros(4)))
    external(node.attribute[0].t)
    model.graph.node.insert(0, node)


def outside_in_a_branch(model: onnx.ModelProto) -> None:
    tensor = onnx.numpy_helper.from_array(np.zeros(4), "inner")
    branch = onnx.helper.make_graph([], "branch", [], [], [tensor])
    external(branch.initializer[0])
    node = onnx.helper.make_node("If", ["condition"], ["unused"], then_branch=branch, else_branch=branch)
    model.graph.node.insert(0, node)


def claims_more(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [2**20, 2**20]


def below_zero(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [-1, -1]


def functions(model: onnx.ModelProto) -> None:
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    model.functions.append(onnx.helper.make_function("mine", "f", ["x"], ["y"], [node], list(model.opset_import)))


def asking_for_much(model: onnx.ModelProto) -> None:
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    next(each for each in convolution.attribute if each.name == "pads").ints[:] = [2**20] * 4


def asking_for_much_in_a_branch(model: onnx.ModelProto) -> None:
    shape = onnx.numpy_helper.from_array(np.array([2**33], np.int64), "much")
    node = onnx.helper.make_node("ConstantOfShape", ["much"], ["made"])
    made = onnx.helper.make_tensor_value_info("made", onnx.TensorProto.FLOAT, None)
    branch = onnx.helper.make_graph([node], "branch", [], [made], [shape])
    condition = onnx.numpy_helper.from_array(np.array(True), "condition")
    model.graph.initializer.append(condition)
    model.graph.node.insert(
        0, onnx.helper.make_node("If", ["condition"], ["unused"], then_branch=branch, else_branch=branch)
    )


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().dims[:] = [2**40]


def of_other_images(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 10**6


def without_input(model: onnx.ModelProto) -> None:
    del model.graph.input[:]


def of_other_labels(model: onnx.ModelProto) -> None:
    next(entry for entry in model.metadata_props if entry.key == "compressor.labels").value = '["cat", "dog"]'


def without_preprocessing(model: onnx.ModelProto) -> None:
    next(entry for entry in model.metadata_props if entry.key == "compressor.preprocess").value = "{}"


def with_an_unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[-1].op_type = "Unheard"


def that_does_not_run(model: onnx.ModelProto) -> None:
    last = model.graph.node[-1]
    last.output[0] = "inner"
    shape = onnx.numpy_helper.from_array(np.array([7, 7], np.int64), "shape")
    model.graph.initializer.append(shape)
    model.graph.node.append(onnx.helper.make_node("Reshape", ["inner", "shape"], ["logits"]))


ONNX_FILES = {
    outside: "refers to data outside itself",
    outside_in_a_node: "refers to data outside itself",
    outside_in_a_branch: "refers to data outside itself",
    claims_more: "claims [1048576, 1048576] numbers",
    below_zero: "claims [-1, -1] numbers",
    functions: "holds functions of its own",
    asking_for_much: "numbers of one image; it is not run",
    asking_for_much_in_a_branch: "numbers of one image; it is not run",
    sparse: "holds sparse tensors",
    of_other_images: "takes 'input' [1, 1000000, 8]",
    without_input: "gives 'logits' [10]; by its",
    of_other_labels: "gives 'logits' [2]",
    without_preprocessing: "does not say how to feed and read it",
    with_an_unknown_operator: "ONNX Runtime cannot open",
    that_does_not_run: "ONNX Runtime cannot run",
}


def tampered(path: Path, how: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load_from_string(path.read_bytes())
    how(model)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("how", ONNX_FILES, ids=lambda how: how.__name__)
def test_an_onnx_file(
    honest: Run,
    copied: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    how: Callable[[onnx.ModelProto], None],
) -> None:
    for stage in ("teacher", "shipped"):
        folder = copied / "stages" / stage
        tampered(folder / ONNX, how)
        refused(honest, stage, folder, ONNX_FILES[how])
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    assert main(["predict", str(copied / "stages" / "shipped" / ONNX), str(tmp_path / "image.png")]) == 2
    assert ONNX_FILES[how] in capsys.readouterr().err
    if how not in (of_other_labels, without_preprocessing):  # which timing does not read
        assert main(["bench", str(copied / "stages" / "shipped" / ONNX)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1


def test_other_scores_are_scored_again_to_the_same_bits(honest: Run, copied: Path) -> None:
    path = copied / "stages" / "int8"
    before, row = (path / PREDICTIONS).read_bytes(), (path / ROW).read_text()
    put(path / ROW, ("accuracy", "correct"), 359)
    put(path / ROW, ("macs",), 1)
    held = safetensors.numpy.load(before)
    (path / PREDICTIONS).write_bytes(safetensors.numpy.save({**held, "classes": held["labels"] + 10**12}))
    sealed(path)
    taken, said = honest.reuse("int8", path)
    assert taken is not None
    assert said == []
    assert (path / PREDICTIONS).read_bytes() == before
    assert (path / ROW).read_text() == row


def test_another_file_is_exported_again_to_the_same_bytes(honest: Run, copied: Path) -> None:
    path = copied / "stages" / "int8"
    before = (path / ONNX).read_bytes()
    shutil.copy(copied / "stages" / "teacher" / ONNX, path / ONNX)
    sealed(path)
    assert honest.reuse("int8", path)[0] is not None
    assert (path / ONNX).read_bytes() == before


def test_a_run_makes_again_what_was_tampered_with_to_the_same_bits(
    honest: Run, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "try_stages", lambda *_, **__: None)
    put(copied / "stages" / "int8" / MANIFEST, (*RANGES, "input"), [0.0, 0])
    outside_model = copied / "stages" / "shipped" / ONNX
    tampered(outside_model, outside)
    for stage in ("int8", "shipped"):
        sealed(copied / "stages" / stage)
    put(copied / "report.json", ("rows", 0, "seconds"), float("inf"))
    console = Heard()
    run(PIPELINE, copied, device="cpu", console=console)
    assert len([said for said in console.said if said.endswith("it will be made again")]) == 2
    for name in (ONNX, *(f"stages/{stage}/{ONNX}" for stage in ("teacher", "int8", "shipped"))):
        assert (copied / name).read_bytes() == (honest.folder / name).read_bytes()


REPORTS: list[tuple[Place, Any]] = [
    ((), []),
    (("schema",), 2),
    (("rows",), []),
    (("rows", 0, "artifact"), "../../secret"),
    (("rows", 0, "accuracy", "correct"), -1),
    (
        ("rows", 0, "latency"),
        [{"engine": "onnxruntime", "device": "cpu", "threads": 1, "batch": 1, "median_ms": 1e300}],
    ),
    (("baseline",), "none"),
    (("harm", "confusion"), [[0, HUGE, 1]]),
    (("labels",), []),
]


@pytest.mark.parametrize(("place", "value"), REPORTS)
def test_a_report(copied: Path, capsys: pytest.CaptureFixture[str], place: Place, value: Any) -> None:
    put(copied / "report.json", place, value)
    for command in (["report", str(copied)], ["compare", str(copied), str(copied)], ["reproduce", str(copied)]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {copied / 'report.json'}")
        assert said.count("\n") == 1


def test_a_report_of_other_stages_is_not_reproduced(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(copied / "report.json", ("rows", 1, "id"), "another")
    assert main(["reproduce", str(copied)]) == 2
    assert "its rows are not of the stages of its pipeline" in capsys.readouterr().err
    put(copied / "report.json", ("spec",), "- [")
    assert main(["compare", str(copied), str(copied)]) == 2
    assert "fault of compressor" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: logits[:3],
        lambda logits: logits.double(),
        lambda logits: logits.to(torch.float8_e8m0fnu),
        lambda logits: logits * float("inf"),
    ],
)
def test_soft_labels(context: Context, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    teacher = context.new_model("resnet", MODEL)
    console = Heard()
    own = replace(context, services=Services(console, soft_labels=tmp_path))
    before = Teacher(teacher, own, views=1).stored
    (path,) = tmp_path.iterdir()
    stored.write(path, {"logits": change(stored.read(path)[0]["logits"]).contiguous()})
    again = Teacher(teacher, own, views=1).stored
    assert before is not None
    assert again is not None
    assert torch.equal(before[0], again[0])
    assert len(console.said) == 1
    assert console.said[0].endswith("they are computed again")


def without(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda held: {name: each for name, each in held.items() if not name.startswith(prefix)}


WEIGHT = "network/fc.weight"
CHECKPOINTS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], dict[str, Any]]] = {
    "a tensor too few": (without(WEIGHT), {}),
    "a tensor too many": (lambda held: {**held, "best/fc.weight": held[WEIGHT].clone()}, {}),
    "another shape": (named(**{WEIGHT: lambda x: x[:3].clone()}), {}),
    "another type": (named(**{WEIGHT: lambda x: x.double()}), {}),
    "not finite": (named(**{WEIGHT: lambda x: x * float("inf")}), {}),
    "another momentum": (named(**{"optimizer/0/momentum_buffer": lambda x: x[:1].clone()}), {}),
    "an optimizer of its own": (lambda held: {**held, "optimizer/0/step": torch.zeros(())}, {}),
    "more epochs than are asked for": (lambda held: held, {"curve": 1000}),
    "no curve": (lambda held: held, {"curve": None}),
    "an epoch after the last": (lambda held: held, {"best_epoch": HUGE}),
    "words": (lambda held: held, {"best_correct": "many"}),
    "no threads": (lambda held: held, {"threads": 0}),
}


@pytest.fixture(scope="module")
def interrupted(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint after the first of two epochs, and what the training gives if it is left alone."""
    folder = tmp_path_factory.mktemp("interrupted")
    alone = Context(data=digits.without_test())
    kept = replace(alone, services=Services(checkpoints=checkpoints.Checkpoints(folder, "key")))
    original, steps = TrainingProgress.step, iter(range(HUGE))

    def step(self: TrainingProgress) -> None:
        original(self)
        if next(steps) == 12:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingProgress, "step", step)
        patch.setattr("compressor.training.loop.CHECKPOINT_SECONDS", 0)
        with pytest.raises(KeyboardInterrupt):
            TWO_EPOCHS.run(None, kept)
    return folder, TWO_EPOCHS.run(None, alone).network.state_dict()


TWO_EPOCHS = Train(id="teacher", model="resnet", arguments=MODEL, epochs=2, batch_size=128)


@pytest.mark.parametrize("how", CHECKPOINTS)
def test_a_checkpoint(
    digits: Dataset, interrupted: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path, how: str
) -> None:
    change, noted = CHECKPOINTS[how]
    (path,) = Path(shutil.copytree(interrupted[0], tmp_path / "checkpoints")).iterdir()
    held, notes = stored.read(path)
    inner = json.loads(notes["notes"])
    inner |= {**noted, "curve": inner["curve"] * noted["curve"]} if noted.get("curve") else noted
    stored.write(path, change(held), {**notes, "notes": json.dumps(inner)})
    console = Heard()
    services = Services(console, checkpoints=checkpoints.Checkpoints(path.parent, "key"))
    again = TWO_EPOCHS.run(None, Context(data=digits.without_test(), services=services)).network
    (said,) = (line for line in console.said if " loss " not in line)
    assert said.endswith("; the training starts over")
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in interrupted[1].items())


def test_an_honest_checkpoint_is_gone_on_from(
    digits: Dataset, interrupted: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(interrupted[0], tmp_path / "checkpoints"))
    console = Heard()
    services = Services(console, checkpoints=checkpoints.Checkpoints(folder, "key"))
    state = TWO_EPOCHS.run(None, Context(data=digits.without_test(), services=services)).network.state_dict()
    assert console.said[0] == "  teacher: resumes after epoch 1 of 2"
    assert all(torch.equal(state[name], tensor) for name, tensor in interrupted[1].items())


def test_reading_metadata_runs_nothing(honest: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "session", None)
    assert reading.about(honest.folder / ONNX)[1] == tuple(str(digit) for digit in range(10))
    assert reading.pipeline_of(reading.read(honest.folder / ONNX)[1]) == PIPELINE.digest


def test_a_file_is_run_as_it_was_checked_whatever_its_name(honest: Run, tmp_path: Path) -> None:
    path = Path(shutil.copy(honest.folder / ONNX, tmp_path / "model.ort"))
    image = np.zeros((1, 1, 8, 8), np.float32)
    logits = [onnx_file.logits_of(onnx_file.session(each), image) for each in (path, honest.folder / ONNX)]
    assert np.array_equal(*logits)
