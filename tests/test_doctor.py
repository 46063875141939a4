"""Why files are slow: what is executed, each reason with made-up times, and whole files, ours and others'."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from compressor import Context, TorchModel
from compressor.errors import ArtifactError
from compressor.evaluation import diagnose
from compressor.evaluation.costs.layers import Layer
from compressor.evaluation.doctor import diagnosis
from compressor.evaluation.doctor.nodes import layer_of, macs_of, with_whole_widths
from compressor.evaluation.doctor.reasons import BEST, Case, findings
from compressor.export import Executed, executed_in
from compressor_command import main

FLOAT = ("float", (1, 8, 6, 6))
INTEGER = ("uint8", (1, 6, 6, 8))
WINDOWS = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2], "group": 1}


def node(operator: str, microseconds: float, **changes: Any) -> Executed:
    whole = Executed(operator, "made", microseconds / 1e6, (FLOAT,), ("float", (1, 16, 3, 3)), (), {})
    return replace(whole, **changes)


CONV = node("Conv", 30, weight=(16, 8, 3, 3), windows=WINDOWS)
ON_INTEGERS = node(
    "QLinearConv",
    30,
    inputs=(INTEGER,),
    output=("uint8", (1, 3, 3, 16)),
    weight=(16, 8, 3, 3),
    windows={**WINDOWS, "channels_last": 1},
)
LAYER = Layer("conv", "float32", 8, 16, (6, 6), (3, 3), (2, 2), (1, 1))


def of(times: dict[Layer, float], *nodes: Executed, threads: tuple[float, float] = (100, 100)) -> dict[str, Any]:
    """What is found in such nodes, by name, where layers take the given times, and others 30 µs."""

    def time(layers: Iterable[Layer]) -> dict[Layer, float]:
        return {layer: times.get(layer, 30.0) for layer in layers}

    return {each.what: each for each in findings(Case(nodes, {2: threads[0], 4: threads[1]}, 2, time))}


def test_layers_are_read_from_what_is_executed() -> None:
    assert layer_of(CONV) == LAYER
    assert layer_of(ON_INTEGERS) == replace(LAYER, precision="int8")
    assert macs_of(CONV) == macs_of(ON_INTEGERS) == 16 * 3 * 3 * 8 * 3 * 3
    gemm = node("Gemm", 5, inputs=(("float", (1, 64)),), output=("float", (1, 10)), weight=(10, 64))
    assert layer_of(gemm) == Layer("linear", "float32", 64, 10)
    assert macs_of(gemm) == 640
    depthwise = replace(CONV, weight=(8, 1, 3, 3), windows={**WINDOWS, "group": 8})
    assert layer_of(depthwise) == replace(LAYER, outputs=8, groups=8)
    assert layer_of(replace(CONV, windows={**WINDOWS, "dilations": [2, 2]})) is None
    assert layer_of(replace(CONV, windows={**WINDOWS, "pads": [0, 0, 1, 1]})) is None
    assert layer_of(node("Relu", 1)) is None
    assert macs_of(node("MatMul", 1)) == 0  # of two activations


def test_whole_widths() -> None:
    assert with_whole_widths(LAYER, 16) == replace(LAYER, inputs=16)
    assert with_whole_widths(replace(LAYER, inputs=24, outputs=24, groups=24), 16) == replace(
        LAYER, inputs=32, outputs=32, groups=32
    )
    assert with_whole_widths(replace(LAYER, inputs=24, outputs=24, groups=4), 16).inputs == 24


def test_rounding_and_moving_cost_what_they_take() -> None:
    rounding = [node("QuantizeLinear", 7), node("DequantizeLinear", 20), node("QuantizeLinear", 10)]
    found = of({}, ON_INTEGERS, *rounding, node("Transpose", 40), node("ReorderInput", 5))
    assert found["rounding to integers and back between operators"].microseconds == pytest.approx(30)  # not the first
    assert found["tensors brought into another order"].microseconds == pytest.approx(45)
    assert found["tensors brought into another order"].share == pytest.approx(45 / 112)
    assert "2 ReorderInput, Transpose take 45 µs" in found["tensors brought into another order"].measured


def test_float_layers_are_named_where_integers_are_faster() -> None:
    int8 = replace(LAYER, precision="int8")
    found = of({int8: 10.0}, CONV, CONV)["layers that compute in float"]
    assert found.microseconds == pytest.approx(40)
    assert found.advice.startswith("quantize")
    signed = node("QuantizeLinear", 1, output=("int8", (1, 8, 6, 6)))
    assert "round activations to uint8" in of({int8: 10.0}, CONV, signed)[found.what].advice
    assert "the scale of the bias" in of({int8: 10.0}, CONV, node("QuantizeLinear", 1))[found.what].advice
    assert found.what not in of({int8: 29.0}, CONV)
    assert found.what not in of({}, ON_INTEGERS)


def test_widths_and_groups_are_named_where_others_are_faster() -> None:
    int8 = replace(LAYER, precision="int8")
    found = of({int8: 30.0, replace(int8, inputs=16): 12.0}, ON_INTEGERS)["channels that are no multiple of 16"]
    assert found.microseconds == pytest.approx(18)
    assert (
        "int8 conv 3x3 stride 2, 8 to 16 channels of 6x6 takes 30.0 µs, with 16 to 16 channels 12.0 µs"
        in found.measured
    )
    assert found.what not in of({int8: 30.0, replace(int8, inputs=16): 31.0}, ON_INTEGERS)
    grouped = replace(CONV, weight=(16, 4, 3, 3), windows={**WINDOWS, "group": 2})
    own = replace(LAYER, groups=2)
    assert of({own: 50.0, LAYER: 20.0}, grouped)["grouped convolutions"].microseconds == pytest.approx(30)
    assert "grouped convolutions" not in of({own: 20.0, LAYER: 20.0}, grouped)


def test_signed_activations_on_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    signed = replace(ON_INTEGERS, inputs=(("int8", (1, 6, 6, 8)),))
    int8 = replace(LAYER, precision="int8")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert of({int8: 20.0}, signed)["signed activations"].microseconds == pytest.approx(10)
    assert "signed activations" not in of({int8: 20.0}, ON_INTEGERS)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "signed activations" not in of({int8: 20.0}, signed)


def test_dynamic_ranges_and_threads() -> None:
    dynamic = replace(CONV, operator="ConvInteger", inputs=(("uint8", (1, 8, 6, 6)),))
    found = of({replace(LAYER, precision="int8"): 10.0}, node("DynamicQuantizeLinear", 15), dynamic)
    assert found["dynamic quantization"].microseconds == pytest.approx(35)
    assert of({}, CONV, threads=(100, 150))["threads beyond the cores"].share == pytest.approx(1 / 3)
    assert "threads beyond the cores" not in of({}, CONV, threads=(100, 105))


def test_integers_on_a_processor_that_is_slow_with_them() -> None:
    """A convolution that suits it takes 30 µs in float."""
    name = "integers without the instructions that make them fast"
    assert of({BEST: 20.0}, ON_INTEGERS, node("Relu", 10))[name].microseconds == pytest.approx(30)
    assert name not in of({BEST: 20.0}, CONV)
    assert name not in of({BEST: 10.0}, ON_INTEGERS)


def test_the_best_of_this_processor() -> None:
    """And what no layer can take less than: two thirds of the time at that rate."""
    case = Case([], {}, 2, lambda layers: {layer: 100.0 if layer.inputs == 64 else 0.001 for layer in layers})
    macs = 28 * 28 * 64 * 64 * 9
    gmacs = macs / 100e-6 / 1e9
    assert case.best == {"int8": pytest.approx(gmacs), "float32": pytest.approx(gmacs)}
    assert case.time([LAYER])[LAYER] == pytest.approx(100 / 1.5 * (3 * 3 * 16 * 8 * 9) / macs)
    assert LAYER.macs == 3 * 3 * 16 * 8 * 9
    assert replace(LAYER, groups=2).macs == 3 * 3 * 16 * 4 * 9
    assert Layer("linear", "int8", 64, 10, (5, 1)).macs == 5 * 64 * 10
    assert Layer("add", "int8", 8, 8, (4, 4)).macs == 0


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.left = iter([{"input": torch.rand(1, 1, 8, 8).numpy()} for _ in range(2)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.left, None)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers take no time, so that nothing is claimed but what the profile says."""
    monkeypatch.setattr(diagnosis, "RUNS", 5)
    monkeypatch.setattr("compressor.evaluation.doctor.diagnosis.measure", lambda layers: dict.fromkeys(layers, 1.0))


@pytest.mark.usefixtures("quick")
def test_files_of_ours_and_of_onnx_runtimes_own_quantizers(
    tiny: TorchModel, int8: TorchModel, tmp_path: Path, context: Context
) -> None:
    whole, ours, static, dynamic = (tmp_path / f"{name}.onnx" for name in ("float", "ours", "static", "dynamic"))
    whole.write_bytes(tiny.to_onnx("").content)
    ours.write_bytes(int8.to_onnx("").content)
    quantize_static(
        whole, static, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8
    )
    quantize_dynamic(whole, dynamic)
    found = {path.stem: diagnose(path) for path in (whole, ours, static, dynamic)}
    for each in found.values():
        assert sum(node.share for node in each.nodes) == pytest.approx(1)
        assert each.microseconds > 0
        assert each.fixed_batch is None
    assert not any(node.integers for node in found["float"].nodes)
    layers = [node for node in found["ours"].nodes if node.gmacs_per_second is not None]
    assert len(layers) == 7
    assert all(node.integers for node in layers)
    assert "dynamic quantization" in [finding.what for finding in found["dynamic"].findings]
    assert "layers that compute in float" in [finding.what for finding in found["float"].findings]


@pytest.mark.usefixtures("quick")
def test_from_the_command_line(tiny: TorchModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").write_bytes(tiny.to_onnx("").content)
    page = tmp_path / "why.html"
    assert main(["doctor", str(tmp_path), "--page", str(page)]) == 0
    assert "At best in int8" in page.read_text()
    assert "layers that compute in float" in page.read_text()
    assert main(["doctor", str(tmp_path), "--page", str(tmp_path / "none" / "why.html")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "GMAC/s that this processor reaches" in shown
    assert "layers that compute in float" in shown
    assert main(["doctor", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["nodes"][0]["operator"] == "Conv"
    assert main(["doctor", str(tmp_path / "none.onnx")]) == 2
    assert "none.onnx cannot be read: No such file or directory" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_a_fixed_batch_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4, 4, 4])],
        [weight],
    )
    path = tmp_path / "fixed.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    assert main(["doctor", str(path)]) == 0
    assert "its batch is fixed at 2" in capsys.readouterr().out


def test_operators_inside_operators_are_refused(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["b"])], "b", [], [helper.make_tensor_value_info("b", 1, [1, 4])]
    )
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
            helper.make_node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
            helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 4])],
        [helper.make_tensor_value_info("y", 1, [1, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(ArtifactError, match="operators that run others"):
        executed_in(model.SerializeToString(), {"x": np.ones((1, 4), np.float32)})
