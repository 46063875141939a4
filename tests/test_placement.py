"""The wide placement: what lies between layers on integers, too."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compressor import Context, TorchModel, load
from compressor.export.onnx_file import export_onnx, logits_of, session
from compressor.models.changes import Int8
from compressor.quantization import calibrate, quantize_network
from tests import networks
from tests.conftest import executed
from tests.test_quantize import model_of, switch_rounding_off


def wide(model: TorchModel, context: Context, observer: str = "min_max") -> TorchModel:
    quantized = quantize_network(model.copy_network(), model.preprocess.input_shape(2), placement="wide")
    calibrate(quantized, context.data.calibration_batches(64), observer, 1.0)  # type: ignore[arg-type]
    return model.with_network(quantized, Int8(activations=quantized.ranges(), placement="wide"), details={})


@pytest.fixture
def gated(context: Context) -> TorchModel:
    torch.manual_seed(0)
    return context.new_model("tests.networks:Gated", {})


def test_taking_apart_changes_no_output(gated: TorchModel, context: Context) -> None:
    network = quantize_network(gated.network, (2, 1, 8, 8), placement="wide")
    switch_rounding_off(network)
    inputs = context.data.preprocess.normalise(context.data.validation.images)
    with torch.no_grad():
        assert torch.allclose(network(inputs), gated.network(inputs), atol=1e-4)


def test_gates_pools_and_branches_execute_on_integers(gated: TorchModel, context: Context, tmp_path: Path) -> None:
    exported = wide(gated, context).to_onnx("test")
    operators = executed(exported.content, tmp_path)
    assert {name: count for name, count in operators.items() if name[0] == "Q"} == {
        "QuantizeLinear": 1,  # of the image
        "QLinearConv": 6,  # the BatchNorm is one
        "QLinearAdd": 2,  # of 3, in two hard sigmoids
        "QLinearMul": 3,
        "QLinearSigmoid": 1,
        "QLinearConcat": 1,
        "QLinearAveragePool": 1,
        "QLinearGlobalAveragePool": 2,
        "QGemm": 1,
    }
    assert set(operators) - {"Pad", "Transpose", "Reshape", "Squeeze"} == {n for n in operators if n[0] == "Q"}


@pytest.mark.parametrize("observer", ["min_max", "histogram"])
def test_torch_and_onnx_runtime_agree(observer: str, gated: TorchModel, context: Context, tmp_path: Path) -> None:
    quantized = wide(gated, context, observer)
    inputs = context.data.preprocess.normalise(context.data.validation.images)
    logits, exact = quantized.predict(inputs), gated.predict(inputs)
    step = float(exact.max() - exact.min()) / 255
    assert np.abs(quantized.to_onnx("test").predict(inputs.numpy()) - logits.numpy()).mean() < step / 2
    assert (logits - exact).abs().mean() < 3 * step
    quantized.save(tmp_path)
    loaded = load(tmp_path, factories=frozenset({gated.architecture.model}))
    assert isinstance(loaded, TorchModel)
    assert torch.equal(loaded.predict(inputs), logits)


@pytest.mark.parametrize("scale", [1 / 255, 0.8 / 255, 0.01])
def test_a_hard_sigmoid_is_rounded_as_numpy_rounds(scale: float) -> None:
    """Its grid may end before 1, at 1 or behind it."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Hardsigmoid(), nn.Flatten(), nn.Linear(64, 64))
    with torch.no_grad():
        network[0].weight.fill_(1)  # type: ignore[union-attr]
        network[0].bias.zero_()  # type: ignore[union-attr]
        network[3].weight.copy_(torch.eye(64))  # type: ignore[union-attr,operator]
        network[3].bias.zero_()  # type: ignore[union-attr]
    quantized = quantize_network(network, (2, 1, 8, 8), placement="wide")
    given, rounded = (0.0517, 128), (scale, 0)
    quantized.set_ranges(dict(zip(quantized.points, (given, given, rounded), strict=True)))
    opened = session(export_onnx(quantized, model_of(network, "none", 8, 1).preprocess, {}))
    x = (np.arange(64, dtype=np.float32).reshape(1, 1, 8, 8) * 4 - 128) * 0.0517
    hard_sigmoid = np.clip(x + 3, 0, 6).reshape(1, 64) / 6
    expected = np.clip(np.round(hard_sigmoid / scale), 0, 255) * scale
    got = logits_of(opened, x)
    assert np.abs(got - expected).max() < scale + 1e-5
    assert np.abs(got - expected).mean() < scale / 10


def test_what_is_float_before_it_stays_float(context: Context, tmp_path: Path) -> None:
    """Only the mean's output is rounded, for the linear layer."""
    quantized = wide(context.new_model("tests.networks:GatedInFloat", {}), context)
    operators = executed(quantized.to_onnx("test").content, tmp_path)
    assert (operators["QLinearSigmoid"], operators["QLinearMul"], operators["DequantizeLinear"]) == (0, 0, 1)
    assert (operators["QLinearConv"], operators["QGemm"]) == (1, 1)


def test_a_constant_factor_is_on_integers(tmp_path: Path, context: Context) -> None:
    scaled = context.new_model("tests.networks:Scaled", {})
    operators = executed(wide(scaled, context).to_onnx("test").content, tmp_path)
    assert (operators["QLinearMul"], operators["Mul"]) == (1, 0)


def test_what_follows_a_skipped_layer_stays_in_float(gated: TorchModel) -> None:
    points = quantize_network(gated.network, (2, 1, 8, 8), placement="wide", skip=("stem",)).points
    assert points[:3] == (":adaptive_avg_pool2d", ":relu", "excite:conv2d")  # no hard-swish, no gate


def test_manifests_from_before_have_the_layers_placement() -> None:
    old = Int8.model_validate({"kind": "int8", "activations": {"input": (0.1, 3)}})
    assert old.placement == "layers"
    points = quantize_network(networks.Gated(10, 1), (2, 1, 8, 8)).points
    assert not any("sigmoid" in point or "cat" in point for point in points)
