"""Int8: rounding against numpy, where quantizers are placed, and what ONNX Runtime then executes."""

import inspect
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
from pydantic import ValidationError
from rich.console import Console as RichConsole
from torch import Tensor, nn

from compressor import Context, Dataset, Preprocess, Services, Split, TorchModel, environment, load
from compressor.console import Console
from compressor.data.split import InMemory
from compressor.errors import ArchitectureError, ArtifactError, StageError
from compressor.evaluation.costs import layers
from compressor.export import lowering
from compressor.models.architectures import Architecture
from compressor.models.changes import Int8
from compressor.quantization import calibration
from compressor.quantization.calibration import Observer, calibrate, signal_to_noise
from compressor.quantization.float_layers import float_batch_norms, in_float
from compressor.quantization.network import ActivationQuantizer, ParameterQuantizer, QuantizedNetwork
from compressor.quantization.placement import quantize_network
from compressor.tracing import functional_graph
from compressor_command import main
from stages import Prune, Quantize, Target
from tests import networks
from tests.conftest import accuracy, executed

FLOAT_COMPUTE = {"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Add"}


def test_activations_are_rounded_as_numpy_rounds() -> None:
    quantizer = ActivationQuantizer()
    quantizer.scale.fill_(0.0937)
    quantizer.zero_point.fill_(30)
    x = np.linspace(-5, 30, 101, dtype=np.float32)
    expected = (np.clip(np.round(x / 0.0937) + 30, 0, 255) - 30) * 0.0937
    rounded = quantizer(torch.from_numpy(x))
    assert np.allclose(rounded.numpy(), expected, atol=1e-5)
    with torch.no_grad():  # another, faster way
        assert torch.equal(quantizer(torch.from_numpy(x)), rounded)


@pytest.mark.parametrize("scale", [1e-6, 0.0937, 3.0])
def test_rounding_is_the_same_to_the_bit_with_gradients_and_without(scale: float) -> None:
    """Halfway between two values of the grid, outside of it, infinite."""
    quantizer = ActivationQuantizer()
    quantizer.scale.fill_(scale)
    quantizer.zero_point.fill_(77)
    x = torch.cat([(torch.arange(-400, 400) / 2) * scale, torch.tensor([float("inf"), -float("inf"), 1e30])])
    expected = torch.fake_quantize_per_tensor_affine(x, scale, 77, 0, 255)
    with torch.no_grad():
        assert torch.equal(quantizer(x), expected)
    assert torch.equal(quantizer(x.requires_grad_()), expected)
    quantizer.learn_scale()
    assert torch.equal(quantizer(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_pass_where_the_grid_reaches(dtype: torch.dtype) -> None:
    quantizer = ActivationQuantizer()
    quantizer.scale.fill_(0.5)
    quantizer.zero_point.fill_(10)  # from -5 to 122.5
    x = torch.tensor([-7.0, -5.5, -5.1, -0.3, 0.0, 100, 122.6, 123, 200], dtype=dtype, requires_grad=True)
    rounded = quantizer(x)
    assert rounded.tolist() == [-5, -5, -5, -0.5, 0, 100, 122.5, 122.5, 122.5]
    assert rounded.dtype == torch.float32  # bfloat16 would round again
    rounded.backward(torch.arange(1.0, 10))
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 6, 7, 0, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scale_learns_as_lsq_says(dtype: torch.dtype) -> None:
    """∂y/∂s = round(x / s) - x / s inside the grid, and its end outside; here by the logarithm, so times s."""
    random = np.random.default_rng(0)
    scale, zero = 0.25, 100
    x = torch.from_numpy(random.uniform(-40, 60, (4, 5))).to(dtype)
    gradient = torch.from_numpy(random.normal(size=(4, 5))).to(dtype)
    quantizer = ActivationQuantizer()
    quantizer.scale.fill_(scale)
    quantizer.zero_point.fill_(zero)
    quantizer.learn_scale()
    quantizer(x).backward(gradient.float())
    v = x.double().numpy() / scale
    inside = (v > -zero) & (v < 255 - zero)
    slope = np.where(inside, np.round(v) - v, np.clip(v, -zero, 255 - zero))
    expected = (gradient.double().numpy() * slope).sum() * scale / math.sqrt(5 * 255)
    assert float(quantizer.log_scale.grad) == pytest.approx(expected, rel=1e-4 if dtype == torch.float32 else 0.02)  # type: ignore[union-attr, arg-type]
    few = ActivationQuantizer()
    few.scale.fill_(0.05)
    few.learn_scale()
    x = torch.from_numpy(random.uniform(0.1, 12, (1, 4000))).to(dtype)  # all inside, where the terms are small
    few(x).backward(torch.ones(x.shape))
    errors = np.round(x.double().numpy() / 0.05) * 0.05 - x.double().numpy()
    assert float(few.log_scale.grad) == pytest.approx(
        errors.sum() / math.sqrt(4000 * 255), rel=1e-3 if dtype == torch.float32 else 5e-3
    )  # type: ignore[union-attr, arg-type]
    quantizer.log_scale.data.fill_(math.log(2))  # type: ignore[union-attr]
    assert quantizer(torch.tensor([0.6])).item() == pytest.approx(0.5)
    quantizer.settle_scale()
    assert float(quantizer.scale) == pytest.approx(0.5)
    assert not list(quantizer.parameters())
    assert list(dict(quantizer.named_buffers())) == ["scale", "zero_point"]


class WritesToItsInput(nn.Module):
    """Activations that write where they read: the first convolution's output is used again, the second's is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        read = self.first(x)
        view = read[:, :2]
        nn.functional.relu6(view, inplace=True)
        return nn.functional.relu_(self.second(read + 1)).mean((2, 3)) + read.mean((2, 3))


def test_what_is_written_in_place_is_seen_where_it_is_read_again() -> None:
    network, x = WritesToItsInput().eval(), torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = functional_graph(network, (2, 1, 8, 8))
    with torch.no_grad():
        assert torch.allclose(graph(x), network(x), atol=1e-6)
    assert not any(getattr(getattr(node.target, "_schema", None), "is_mutable", False) for node in graph.graph.nodes)


@pytest.mark.parametrize("bits", [7, 8])
def test_weights_and_biases_are_rounded_as_numpy_rounds(bits: int) -> None:
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(4, 3, 3, 3)).astype(np.float32)
    bias = generator.normal(size=4).astype(np.float32)
    limit = 2 ** (bits - 1) - 1
    scale = np.abs(weight).max((1, 2, 3)) / limit
    spread = scale.reshape(-1, 1, 1, 1)
    got_weight, got_bias = ParameterQuantizer(bits)(*map(torch.from_numpy, (weight, bias)), torch.tensor(0.02))
    assert np.allclose(got_weight.numpy(), np.round(weight / spread) * spread, atol=1e-6)
    assert np.allclose(got_bias.numpy(), np.round(bias / (scale * 0.02)) * scale * 0.02, atol=1e-6)
    assert np.abs(np.round(got_weight.numpy() / spread)).max((1, 2, 3)).tolist() == [limit] * 4


def test_gradients_pass_straight_through() -> None:
    weight = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    bias = torch.ones(2).requires_grad_()
    rounded_weight, rounded_bias = ParameterQuantizer(8)(weight, bias, torch.tensor(0.1))
    (rounded_weight.sum() + 2 * rounded_bias.sum()).backward()
    assert torch.equal(weight.grad, torch.ones(2, 3))  # type: ignore[arg-type]
    assert torch.equal(bias.grad, torch.full((2,), 2.0))  # type: ignore[arg-type]


def test_a_channel_without_weights_keeps_its_bias() -> None:
    """Its scale would be 0, and its bias too large for 32 bits on the grid of that scale."""
    weight, bias = torch.zeros(2, 3), torch.tensor([1.5, -0.25])
    _, rounded = ParameterQuantizer(8)(weight, bias, torch.tensor(0.1))
    assert torch.allclose(rounded, bias, atol=1e-6)


def switch_rounding_off(network: QuantizedNetwork) -> None:
    """Leave only what folding did."""
    for quantizer in network.activation_quantizers.values():
        quantizer.observer = lambda x: None
    for parameters in network.parameter_quantizers:
        parameters.enabled = False


def test_the_network_is_folded_and_left_as_it_was(tiny: TorchModel, context: Context) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.network.state_dict().items()}
    network = quantize_network(tiny.network, (2, 1, 8, 8))
    assert all(torch.equal(tiny.network.state_dict()[name], tensor) for name, tensor in before.items())
    switch_rounding_off(network)
    inputs = context.data.preprocess.normalise(context.data.validation.images)
    with torch.no_grad():
        assert torch.allclose(network(inputs), tiny.network(inputs), atol=1e-4)


def test_odd_networks_are_folded_correctly(context: Context, tmp_path: Path) -> None:
    name = "tests.networks:Odd"
    model = context.new_model(name, {})
    network = quantize_network(model.network, (2, 1, 8, 8))
    switch_rounding_off(network)
    inputs = context.data.preprocess.normalise(context.data.validation.images)
    with torch.no_grad():
        assert torch.allclose(network(inputs), model.network(inputs), atol=1e-4)
    quantized = Quantize(mode="ptq").run(model, context)
    operators = executed(quantized.to_onnx("test").content, tmp_path)
    assert (operators["QLinearConv"], operators["QGemm"]) == (4, 1)
    assert not FLOAT_COMPUTE & set(operators)
    quantized.save(tmp_path)
    loaded = load(tmp_path, factories=frozenset({name}))
    assert isinstance(loaded, TorchModel)
    assert torch.equal(loaded.predict(inputs), quantized.predict(inputs))


@pytest.mark.parametrize("layer", [nn.Linear(64, 16), nn.Linear(64, 16, bias=False), nn.Conv2d(1, 16, 3)])
@pytest.mark.parametrize("gamma", [False, True])
@pytest.mark.parametrize("beta", [False, True])
def test_a_batch_norm_is_folded_whatever_it_lacks(layer: nn.Module, gamma: bool, beta: bool) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.fc = layer, nn.Linear(16, 10)
            self.register_buffer("mean", torch.linspace(-1, 1, 16))
            self.register_buffer("var", torch.linspace(0.5, 2, 16))
            self.gamma = nn.Parameter(torch.linspace(1, 3, 16)) if gamma else None
            self.beta = nn.Parameter(torch.linspace(-2, 2, 16)) if beta else None

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x.flatten(1) if isinstance(self.layer, nn.Linear) else x)
            x = nn.functional.batch_norm(x, self.mean, self.var, self.gamma, self.beta).relu()
            return self.fc(x.mean((2, 3)) if x.dim() == 4 else x)

    model = Normed().eval()
    network = quantize_network(model, (2, 1, 8, 8))
    switch_rounding_off(network)
    images = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(network(images), model(images), atol=1e-5)


@pytest.mark.parametrize(
    ("network", "left"),
    [
        (networks.NormOverTokens(10, 1), 1),
        (networks.NormOverTokens(10, 1, features=24), 1),
        (networks.NormTwice(10, 1), 0),
    ],
)
def test_a_batch_norm_is_folded_only_over_what_the_layer_before_has_as_channels(network: nn.Module, left: int) -> None:
    quantized = quantize_network(network.eval(), (2, 1, 8, 8))
    switch_rounding_off(quantized)
    images = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(quantized(images), network(images), atol=1e-5)
    assert float_batch_norms(quantized) == left


@pytest.mark.parametrize(
    ("name", "integers"),
    [
        ("NormOnInput", {"QLinearConv": 1, "QGemm": 1}),
        ("NormOnFeatures", {"QLinearConv": 1, "QGemm": 1}),
    ],
)
def test_a_batch_norm_that_cannot_be_folded_stays_in_float_and_the_rest_is_integer(
    name: str, integers: dict[str, int], context: Context, tmp_path: Path
) -> None:
    model = context.new_model(f"tests.networks:{name}", {})
    quantized = Quantize(mode="ptq").run(model, context)
    exported = quantized.to_onnx("test")
    operators = executed(exported.content, tmp_path)
    assert {op: operators[op] for op in integers} == integers
    assert operators["BatchNormalization"] == 1
    assert not FLOAT_COMPUTE & set(operators)
    assert (quantized.details["float_layers"], quantized.details["float_batch_norms"]) == ({}, 1)
    inputs = context.data.preprocess.normalise(context.data.validation.images)
    logits = quantized.predict(inputs)
    assert np.abs(exported.predict(inputs.numpy()) - logits.numpy()).mean() < 1e-4
    assert (logits - model.predict(inputs)).abs().max() < 0.05
    quantized.save(tmp_path)
    loaded = load(tmp_path, factories=frozenset({model.architecture.model}))
    assert isinstance(loaded, TorchModel)
    assert torch.equal(loaded.predict(inputs), logits)


def test_convolutions_over_time_execute_on_integers(context: Context, tmp_path: Path) -> None:
    model = context.new_model("tests.networks:Signal", {})
    quantized = Quantize(mode="ptq").run(model, context)
    exported = quantized.to_onnx("test")
    operators = executed(exported.content, tmp_path)
    assert (operators["QLinearConv"], operators["QGemm"]) == (2, 1)
    assert not FLOAT_COMPUTE & set(operators)
    assert (quantized.details["float_layers"], quantized.details["float_batch_norms"]) == ({}, 0)
    inputs = context.data.preprocess.normalise(context.data.validation.images)
    logits = quantized.predict(inputs)
    assert np.abs(exported.predict(inputs.numpy()) - logits.numpy()).mean() < 1e-4
    assert (logits - model.predict(inputs)).abs().max() < 0.05


def test_what_stays_in_float_is_named_with_its_share_of_the_macs(context: Context, tmp_path: Path) -> None:
    shown = io.StringIO()
    telling = replace(context, services=Services(Console(RichConsole(file=shown))))
    model = context.new_model("tests.networks:PartlyFloat", {})
    quantized = Quantize(mode="ptq", skip=("fc",)).run(model, telling)
    up, embed, attention, tied, fc = 64 * 4 * 4, 16 * 64 * 32, 2 * 16 * 16 * 32, 16 * 32 * 64, 64 * 10
    total = up + embed + attention + tied + fc
    assert quantized.details["float_layers"] == pytest.approx(
        {
            "embed.weight (linear)": tied / total,
            "forward (scaled_dot_product_attention)": attention / total,
            "up (conv_transpose2d)": up / total,
            "fc (linear)": fc / total,
        }
    )
    assert shown.getvalue() == (
        "  quantize leaves in float: embed.weight (linear) 39.2%, forward (scaled_dot_product_attention) 19.6%, "
        "up (conv_transpose2d) 1.2%, fc (linear) 0.8% of the MACs\n"
    )
    inputs = context.data.preprocess.normalise(context.data.validation.images)
    exported = quantized.to_onnx("test")
    assert np.abs(exported.predict(inputs.numpy()) - quantized.predict(inputs).numpy()).mean() < 1e-4


def test_validate_names_what_stays_in_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(
        "name: partly\n"
        "data: {name: digits}\n"
        "stages:\n"
        "  - {stage: train, id: own, model: 'tests.networks:PartlyFloat', epochs: 0}\n"
        "  - {stage: quantize, id: int8, mode: ptq}\n"
    )
    assert main(["validate", "p.yaml"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "leaves in float" in line]
    assert said == [
        "  int8 leaves in float: embed.weight (linear) 39.2%, forward (scaled_dot_product_attention) 19.6%, "
        "up (conv_transpose2d) 1.2% of the MACs"
    ]


def test_words_of_what_stays_in_float() -> None:
    assert in_float({}, 0) == ""
    assert in_float({}, 1) == "1 BatchNorm that cannot be folded"
    layers = {f"layer{index} (conv2d)": 0.1 for index in range(7)}
    named = ", ".join(f"layer{index} (conv2d) 10.0%" for index in range(5))
    assert in_float(layers, 2) == f"{named}, 2 more 20.0% of the MACs; 2 BatchNorms that cannot be folded"


def test_nothing_is_reported_where_nothing_stays_in_float(int8: TorchModel) -> None:
    assert (int8.details["float_layers"], int8.details["float_batch_norms"]) == ({}, 0)


def test_points_are_the_inputs_of_layers_and_their_outputs_behind_relu(tiny: TorchModel) -> None:
    assert quantize_network(tiny.network, (2, 1, 8, 8)).points == (
        "input",
        "relu:relu",
        "layer1.0.relu:relu",
        "layer1.0.conv2:conv2d",
        "layer1.0.relu:relu#2",
        "layer2.0.relu:relu",
        "layer2.0.conv2:conv2d",
        "layer2.0.downsample.0:conv2d",
        "layer2.0.relu:relu#2",
        "avgpool:adaptive_avg_pool2d",
    )


def model_of(network: nn.Module, name: str, size: int, channels: int) -> TorchModel:
    preprocess = Preprocess(size=(size, size), channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)
    architecture = Architecture(model=name, num_classes=10, in_channels=channels)
    return TorchModel(network, architecture, preprocess, tuple("0123456789"))


@pytest.mark.parametrize(
    ("name", "size", "channels", "integers"),
    [
        ("resnet20", 32, 3, {"QLinearConv": 21, "QLinearAdd": 9, "QGemm": 1}),
        ("torchvision:resnet18", 64, 3, {"QLinearConv": 20, "QLinearAdd": 8, "QGemm": 1}),
        ("torchvision:mobilenet_v2", 64, 3, {"QLinearConv": 52, "QLinearAdd": 10, "QGemm": 1}),
        ("tests.networks:LeNet", 8, 1, {"QLinearConv": 2, "QGemm": 2}),
    ],
)
def test_every_layer_executes_on_integers(
    name: str, size: int, channels: int, integers: dict[str, int], tmp_path: Path
) -> None:
    factories = frozenset({name}) if name.startswith("tests") else frozenset()
    architecture = Architecture(model=name, num_classes=10, in_channels=channels)
    torch.manual_seed(0)
    model = model_of(architecture.build(factories=factories), name, size, channels)
    inputs = torch.randn(32, channels, size, size, generator=torch.Generator().manual_seed(0))
    network = quantize_network(model.network, (2, channels, size, size))
    images = Split.of(InMemory((inputs * 64 + 128).clamp(0, 255).byte(), torch.arange(32) % 10))
    data = Dataset(images, images, images, images, model.labels, model.preprocess)
    calibrate(network, data.calibration_batches(), "min_max", 1.0)
    quantized = model.with_network(network, Int8(activations=network.ranges()), details={})
    exported = quantized.to_onnx("test")
    operators = executed(exported.content, tmp_path)
    assert {op: operators[op] for op in integers} == integers
    assert not FLOAT_COMPUTE & set(operators)
    x = model.preprocess.normalise(images.images)
    agreement = exported.predict(x.numpy()).argmax(1) == quantized.predict(x).argmax(1).numpy()
    assert agreement.mean() >= 30 / 32


@pytest.mark.parametrize(("channels", "width", "given"), [(1, 16, 4), (3, 16, 4), (3, 24, 4), (3, 8, 3)])
def test_the_image_gets_channels_of_zeros(
    channels: int, width: int, given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(width * 64, 4))
    model = model_of(network, "tests.networks:LeNet", 8, channels)
    quantized = quantize_network(network, (2, channels, 8, 8))
    image, *inner = quantized.activation_quantizers.values()
    image.zero_point.fill_(120)
    for quantizer in (image, *inner):
        quantizer.scale.fill_(0.02)
    weight = network[0].weight.detach().numpy()
    scale = np.abs(weight).reshape(width, -1).max(1) / 127
    expected = np.zeros((width, given, 3, 3), np.int8)
    expected[:, :channels] = np.round(weight / scale[:, None, None, None])

    int8 = model.with_network(quantized, Int8(activations=quantized.ranges()), details={})
    padded = int8.to_onnx("test")
    (stored,) = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load_model_from_string(padded.content).graph.initializer
        if len(tensor.dims) == 4
    ]
    np.testing.assert_array_equal(stored, expected)
    assert quantized.get_parameter("0.weight").shape[1] == channels  # the network is left as it was

    monkeypatch.setattr(lowering, "IN_MULTIPLE", 1)
    inputs = np.random.default_rng(0).uniform(-2, 2, (64, channels, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(padded.predict(inputs), int8.to_onnx("test").predict(inputs))


def test_a_point_that_integers_represent_exactly_loses_nothing() -> None:
    """Inputs of 0 and 1 on a grid of 1/255 come back as they were."""
    network = quantize_network(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (2, 1, 2, 2))
    batch = torch.tensor([0.0, 1.0, 1.0, 0.0]).view(1, 1, 2, 2)
    calibrate(network, [batch], "min_max", 1.0)
    network.set_ranges(dict.fromkeys(network.points, (0.5, 0)))
    assert signal_to_noise(network, [batch]) == dict.fromkeys(network.points)


def ranges_of(
    tiny: TorchModel, context: Context, observer: str, percentile: float = 0.9999
) -> dict[str, tuple[float, int]]:
    network = quantize_network(tiny.network, (2, 1, 8, 8))
    calibrate(network, context.data.calibration_batches(64), observer, percentile)  # type: ignore[arg-type]
    return network.ranges()


def stem_activations(tiny: TorchModel, context: Context) -> np.ndarray:  # type: ignore[type-arg]
    inputs = context.data.preprocess.normalise(context.data.calibration.images)
    network = tiny.network
    with torch.no_grad():
        bn1 = network.get_submodule("bn1")(network.get_submodule("conv1")(inputs))
        return torch.relu(bn1).numpy()


def test_min_max_by_numpy(tiny: TorchModel, context: Context) -> None:
    x = stem_activations(tiny, context)
    scale, zero_point = ranges_of(tiny, context, "min_max")["relu:relu"]
    assert (scale, zero_point) == (pytest.approx(x.max() / 255, rel=1e-4), 0)


def test_the_input_is_affine_by_numpy(tiny: TorchModel, context: Context) -> None:
    x = context.data.preprocess.normalise(context.data.calibration.images).numpy()
    scale, zero_point = ranges_of(tiny, context, "min_max")["input"]
    assert scale == pytest.approx((x.max() - x.min()) / 255, rel=1e-5)
    assert zero_point == round(-x.min() / scale)


def test_moving_average_by_numpy(tiny: TorchModel, context: Context) -> None:
    x = stem_activations(tiny, context)
    largest = x[:64].max()
    largest += 0.01 * (x[64:].max() - largest)  # 128 images in batches of 64; averaging constant 0.01
    assert ranges_of(tiny, context, "moving_average")["relu:relu"][0] == pytest.approx(largest / 255, rel=1e-4)
    change = Quantize(mode="ptq", observer="moving_average").run(tiny, context).changes[-1]
    assert isinstance(change, Int8)
    assert change.activations["relu:relu"][0] == pytest.approx(largest / 255, rel=1e-4)


def test_percentile_by_numpy(tiny: TorchModel, context: Context) -> None:
    x = stem_activations(tiny, context)
    scale, _ = ranges_of(tiny, context, "percentile", 0.98)["relu:relu"]
    assert scale * 255 == pytest.approx(np.quantile(x, 0.99), abs=2 * float(x.max()) / 2048)


def test_the_histograms_range_has_the_least_error(tiny: TorchModel, context: Context) -> None:
    x = stem_activations(tiny, context)

    def error(scale: float) -> float:
        return float(((np.clip(np.round(x / scale), 0, 255) * scale - x) ** 2).sum())

    scale, _ = ranges_of(tiny, context, "histogram")["relu:relu"]
    least = min(error(float(x.max()) / 255 * factor) for factor in np.linspace(0.3, 1.0, 141))
    assert error(scale) == pytest.approx(least, rel=0.03)  # the histogram knows values to a bin's width


def test_a_histogram_of_a_sample_has_nearly_the_least_error(
    tiny: TorchModel, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none of all values, of which it always has the least and the greatest: a range never ends outside."""
    whole = ranges_of(tiny, context, "histogram")
    monkeypatch.setattr(calibration, "OBSERVED", 64)  # of 1,024 values of an image
    sampled = ranges_of(tiny, context, "histogram")
    assert sampled != whole
    assert sampled["relu:relu"][0] == pytest.approx(whole["relu:relu"][0], rel=0.05)
    wide = ranges_of(tiny, context, "percentile", 1.0)["relu:relu"][0]
    assert wide * 255 == pytest.approx(stem_activations(tiny, context).max(), rel=1e-3)


def test_ptq_costs_little(int8: TorchModel, tiny: TorchModel, context: Context) -> None:
    assert accuracy(int8, context.data) > accuracy(tiny, context.data) - 0.03
    assert int8.quantized
    assert not tiny.quantized


def test_qat_trains_and_is_never_worse_on_validation_than_ptq(
    int8: TorchModel, tiny: TorchModel, context: Context
) -> None:
    teaching = Context(data=context.data, teachers={"teacher": tiny})
    trained = Quantize(mode="qat", epochs=2, teacher="teacher").run(tiny, teaching)
    assert accuracy(trained, context.data) >= accuracy(int8, context.data)
    last = Quantize(mode="qat", epochs=2, teacher="teacher", keep="last").run(tiny, teaching)
    assert not torch.equal(last.network.get_parameter("fc.weight"), int8.network.get_parameter("fc.weight"))
    assert last.changes[-1].activations == int8.changes[-1].activations  # type: ignore[union-attr]


def test_scales_are_learned_from_calibration_on(
    int8: TorchModel, tiny: TorchModel, context: Context, tmp_path: Path
) -> None:
    settings = {"epochs": 1, "learn_scales": True, "keep": "last", "learning_rate": 1e-3, "ema": 0.5}
    trained = Quantize(mode="qat", **settings).run(tiny, context)  # type: ignore[arg-type]
    assert accuracy(trained, context.data) > 0.9
    before, after = (model.changes[-1].activations for model in (int8, trained))  # type: ignore[union-attr]
    ratios = np.array([after[point][0] / scale for point, (scale, _) in before.items()])
    assert all(after[point][1] == zero_point for point, (_, zero_point) in before.items())
    assert (ratios != 1).all()
    assert (np.abs(ratios - 1) < 0.05).all()
    trained.save(tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, TorchModel)
    inputs = context.data.preprocess.normalise(context.data.validation.images)
    assert torch.equal(loaded.predict(inputs), trained.predict(inputs))
    same = trained.to_onnx("test").predict(inputs.numpy()).argmax(1) == trained.predict(inputs).argmax(1).numpy()
    assert same.mean() > 0.99


def test_qat_learns_from_labels_without_a_teacher(tiny: TorchModel, context: Context) -> None:
    trained = Quantize(mode="qat", epochs=1, learning_rate=1e-4, ema=0.9).run(tiny, context)
    assert accuracy(trained, context.data) > 0.9


def test_skipped_layers_stay_in_float(tiny: TorchModel, context: Context, tmp_path: Path) -> None:
    skipping = Quantize(mode="ptq", skip=("conv1", "layer2.0")).run(tiny, context)
    operators = executed(skipping.to_onnx("test").content, tmp_path)
    assert operators["QLinearConv"] == 2  # layer1.0.conv1 and conv2
    weights = skipping.network.get_parameter("conv1.weight")
    assert len(torch.unique(weights)) > 64
    computed = quantize_network(networks.Computed(10), (2, 1, 8, 8), skip=("fc",))  # stays in float anyway
    assert computed.points == ("input", "stem:linear")
    with pytest.raises(ArchitectureError, match="skip names 'layer9'"):
        Quantize(mode="ptq", skip=("layer9",)).run(tiny, context)


def test_seven_bits_on_request(tiny: TorchModel, context: Context) -> None:
    content = Quantize(mode="ptq", weight_bits=7).run(tiny, context).to_onnx("test").content
    assert largest_weight(content) == 63


def largest_weight(content: bytes) -> int:
    integers = [onnx.numpy_helper.to_array(i) for i in onnx.load_from_string(content).graph.initializer]
    return max(int(np.abs(i.astype(int)).max()) for i in integers if i.dtype == np.int8)


@pytest.mark.parametrize(
    ("machine", "flags", "bits"),
    [
        ("x86_64", "avx2 avx512f", 7),
        ("AMD64", "", 7),  # not known to have it
        ("x86_64", "avx2 avx_vnni", 8),
        ("x86_64", "avx512f avx512_vnni", 8),
        ("aarch64", "asimd", 8),
    ],
)
def test_the_processor_chooses_the_bits_and_the_file_says_for_which(
    machine: str,
    flags: str,
    bits: int,
    tiny: TorchModel,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(environment, "isa", lambda: tuple(flags.split()))
    monkeypatch.setattr(environment.platform, "machine", lambda: machine)
    stage = Quantize(mode="ptq")
    assert stage.decided_by(context) == {"weight_bits": bits}
    for timed in (Quantize(mode="ptq", placement="measured"), Quantize(max_drop=1)):
        assert timed.decided_by(context)["machine"] == layers.machine()
    quantized = stage.run(tiny, context)
    content = quantized.to_onnx("test").content
    assert largest_weight(content) == 2 ** (bits - 1) - 1
    about = {each.key: each.value for each in onnx.load_from_string(content).metadata_props}
    assert about["compressor.weight_bits"] == str(bits)
    assert about["compressor.made_for"].startswith("any processor" if bits == 7 else "x86 with VNNI, Arm")
    assert not [key for key in onnx.load_from_string(tiny.to_onnx("").content).metadata_props if "bits" in key.key]
    shown = io.StringIO()
    telling = replace(context, services=Services(Console(RichConsole(file=shown, width=200))))
    for asked, words in (("auto", "so weights take 7"), (8, "but weight_bits is 8; `auto` takes 7")):
        Quantize(id="int8", mode="ptq", weight_bits=asked).run(tiny, telling)  # type: ignore[arg-type]
        said = f"int8: on this processor 8-bit products saturate, {words}"
        assert (said in shown.getvalue()) == (bits == 7)
    monkeypatch.undo()
    quantized.save(tmp_path)
    assert load(tmp_path).to_onnx("test").content == content  # type: ignore[union-attr]


@pytest.mark.parametrize("bits", [7, 8])
def test_with_and_without_graph_optimisations_the_outputs_agree(
    bits: Literal[7, 8], tiny: TorchModel, context: Context
) -> None:
    """Optimised, the file computes on integers; as it is, in float between the rounding."""
    content = Quantize(mode="ptq", weight_bits=bits).run(tiny, context).to_onnx("test").content
    inputs = context.data.preprocess.normalise(context.data.validation.images).numpy()
    logits = []
    for level in (GraphOptimizationLevel.ORT_DISABLE_ALL, GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = SessionOptions()
        options.graph_optimization_level = level
        (found,) = InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, {"input": inputs})
        logits.append(found)
    plain, optimised = logits
    assert (plain.argmax(1) == optimised.argmax(1)).mean() > 0.99
    assert np.abs(plain - optimised).mean() < (plain.max() - plain.min()) / 255 / 2


def test_a_pruned_network_is_quantized(tiny: TorchModel, context: Context, tmp_path: Path) -> None:
    pruned = Prune(target=Target(macs=0.6), round_to=2).run(tiny, context)
    quantized = Quantize(mode="ptq").run(pruned, context)
    operators = executed(quantized.to_onnx("test").content, tmp_path)
    assert (operators["QLinearConv"], operators["QLinearAdd"], operators["QGemm"]) == (6, 2, 1)
    assert quantized.counts.macs == pruned.counts.macs


def test_ranges_that_do_not_fit_are_refused(tiny: TorchModel) -> None:
    network = quantize_network(tiny.network, (2, 1, 8, 8))
    ranges = network.ranges()
    ranges["elsewhere"] = ranges.pop("input")
    with pytest.raises(ArtifactError, match="'elsewhere'"):
        network.set_ranges(ranges)


@pytest.mark.parametrize(
    "grid", [(0.0, 3), (1e-300, 3), (-1.0, 3), (1e39, 3), (np.nan, 3), (np.inf, 3), (0.1, -1), (0.1, 256)]
)
def test_a_grid_that_is_none_is_refused(grid: tuple[float, int]) -> None:
    with pytest.raises(ValidationError, match=r"activations\.input"):
        Int8(activations={"input": grid})


@pytest.mark.parametrize("bits", [0, 1, 6, 9, 64])
def test_other_widths_of_weights_are_refused(bits: int) -> None:
    with pytest.raises(ValidationError, match="weight_bits"):
        Int8.model_validate({"activations": {}, "weight_bits": bits})


def test_a_saved_scale_of_zero_is_refused(int8: TorchModel, tmp_path: Path) -> None:
    int8.save(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["changes"][0]["activations"]["input"][0] = 0.0
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="not a manifest of this version"):
        load(tmp_path)


@pytest.mark.parametrize("observer", ["min_max", "moving_average", "histogram", "percentile"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_without_a_range_are_reported(observer: Observer, value: float) -> None:
    network = quantize_network(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (2, 1, 2, 2))
    with pytest.raises(StageError, match="input is not finite on the calibration images"):
        calibrate(network, [torch.full((1, 1, 2, 2), value)], observer, 0.99)


def test_a_branch_on_values_is_reported_with_its_line() -> None:
    line = next(
        number
        for number, text in enumerate(inspect.getsource(networks).splitlines(), start=1)
        if "return x * 2 if" in text
    )
    where = re.escape(f"at networks.py:{line}: `return x * 2 if x.sum() > 0 else x`")
    with pytest.raises(ArchitectureError, match=rf"^layer 'gate' \(Gate\) cannot be traced by .*, {where}$"):
        quantize_network(networks.Branching(10), (2, 1, 8, 8))


def test_twice_is_refused(int8: TorchModel, context: Context) -> None:
    with pytest.raises(ArchitectureError, match="quantized already"):
        Quantize(mode="ptq").run(int8, context)


@pytest.mark.parametrize("settings", [{"mode": "qat"}, {"mode": "ptq", "epochs": 1}, {"mode": "ptq", "teacher": "a"}])
def test_epochs_belong_to_qat(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="mode"):
        Quantize.model_validate(settings)
