"""What integers cost, mended: equalisation, bias correction, AdaRound, layers back in float, and the ladder of these."""

import io
import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rich.console import Console as RichConsole
from torch import nn
from torchvision.models import VisionTransformer

from compressor import Context, Services, TorchModel, load
from compressor.console import Console
from compressor.models.changes import Int8
from compressor.quantization import QuantizedNetwork, calibrate, quantize_network
from compressor.quantization import ladder as ladder_module
from compressor.quantization.adaround import Moments, adaround
from compressor.quantization.equalisation import equalise
from compressor.quantization.layers import integer_layers
from compressor.quantization.network import unrounded
from compressor.quantization.reconstruction import reconstruct
from compressor.quantization.sensitivity import carry_over, sensitivities
from stages import Quantize, quantize
from tests import networks
from tests.conftest import accuracy, executed


def calibrated(network: nn.Module, images: torch.Tensor, **settings: Any) -> QuantizedNetwork:
    quantized = quantize_network(network, tuple(images[:2].shape), **settings)  # type: ignore[arg-type]
    calibrate(quantized, [images], "min_max", 1.0)
    return quantized


@pytest.fixture(scope="module")
def images(context: Context) -> torch.Tensor:
    return next(context.data.calibration_batches(64))


@pytest.fixture(scope="module")
def uneven(tiny: TorchModel) -> TorchModel:
    """The same function, but channels between two layers differ by up to 4,096 in range, so that they share no grid."""
    network = tiny.copy_network()
    factors = 2.0 ** torch.linspace(-6, 6, 8).round()
    block = network.get_submodule("layer1.0")
    block.bn1.weight.data *= factors  # type: ignore[union-attr, operator]
    block.bn1.bias.data *= factors  # type: ignore[union-attr, operator]
    block.conv2.weight.data /= factors.view(1, -1, 1, 1)  # type: ignore[union-attr, operator]
    return tiny.with_network(network, details={})


def with_layers(network: QuantizedNetwork) -> dict[str, Any]:
    return {layer.name: layer for layer in integer_layers(network)}


# AdaRound


def moments_of(x: np.ndarray, y: np.ndarray, *, centred: bool) -> Moments:  # type: ignore[type-arg]
    """Of samples in rows, in two parts."""
    moments = Moments(centred=centred)
    for rows in (slice(0, 10), slice(10, None)):
        moments.add(*(torch.tensor(each[rows].T[None], dtype=torch.float32) for each in (x, y)))
    return moments


@pytest.mark.parametrize("centred", [True, False])
def test_moments_by_numpy(centred: bool) -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(1, 2, (50, 4)), random.normal(3, 1, (50, 2))
    moments = moments_of(x, y, centred=centred)
    if centred:
        x, y = x - x.mean(0), y - y.mean(0)
    np.testing.assert_allclose(moments.inputs[0], x.T @ x / 50, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(moments.outputs[0], y.T @ x / 50, rtol=1e-4, atol=1e-4)


def test_adaround_finds_roundings_that_no_other_choice_for_one_weight_improves() -> None:
    """Of eight weights with correlated inputs; all 2^8 ways to round them are tried by numpy."""
    found_excess, nearest_excess = [], []
    for seed in range(20):
        random = np.random.default_rng(seed)
        x = random.normal(size=(400, 8)) @ random.normal(size=(8, 8))
        weight = random.uniform(-5, 5, 8)
        weight[0] = 5.0  # on the grid
        y = x @ weight

        def error(q: Any, x: Any = x, y: Any = y) -> float:
            return float(((x @ q - y) ** 2).mean())

        rounded = adaround(
            torch.tensor(weight[None, None], dtype=torch.float32),
            torch.ones(1, 1),
            127,
            moments_of(x, y[:, None], centred=False),
        )
        found = rounded.numpy()[0, 0]
        choices = [{math.floor(w), math.ceil(w)} for w in weight]
        assert all(q in choice for q, choice in zip(found, choices, strict=True))
        for index, choice in enumerate(choices):
            for q in choice:
                other = found.copy()
                other[index] = q
                assert error(other) > error(found) * 0.98  # it is also pulled a little towards the weights
        least = min(error(np.array(way)) for way in itertools.product(*choices))
        found_excess.append(math.log(error(found) / least))
        nearest_excess.append(math.log(error(weight.round()) / least))
    assert np.mean(found_excess) < np.mean(nearest_excess) / 2


def test_adaround_rounds_to_the_nearest_where_inputs_are_unrelated() -> None:
    weight = torch.tensor([[[0.4, 1.6, -2.3]], [[7.5001, 0.0, -0.6]]])  # two groups
    moments = Moments(centred=False)
    x = torch.eye(3).repeat(2, 1, 1)
    moments.add(x, weight @ x)
    assert adaround(weight, torch.ones(2, 1), 7, moments).flatten().tolist() == [0, 2, -2, 7, 0, -1]


@pytest.mark.parametrize("bits", [8, 7])
def test_rounded_weights_are_on_the_grid_that_they_had(bits: int, tiny: TorchModel, images: torch.Tensor) -> None:
    network = calibrated(tiny.network, images, weight_bits=bits)
    before = {name: (layer.weight.clone(), layer.weight_scale) for name, layer in with_layers(network).items()}
    reconstruct(network, images, round_weights=True)
    changed = 0
    for name, layer in with_layers(network).items():
        weight, scale = before[name]
        steps = layer.weight / scale.view(-1, *[1] * (weight.dim() - 1))
        assert torch.allclose(steps, steps.round(), atol=1e-3)
        assert torch.allclose(layer.weight_scale, scale, rtol=1e-5)
        assert ((layer.weight - weight).abs() < scale.view(-1, *[1] * (weight.dim() - 1)) * 1.001).all()
        changed += int((steps.round() != (weight / scale.view(-1, *[1] * (weight.dim() - 1))).round()).sum())
    assert changed > 100  # not to the nearest


# bias correction


def test_a_bias_takes_the_mean_error_by_numpy(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(108, 4))
    quantized = calibrated(network, images)
    point = next(iter(quantized.activation_quantizers.values()))  # of the image
    point.scale.mul_(0.3)  # cuts off bright pixels
    first = next(integer_layers(quantized))
    old = first.bias.detach().clone()  # type: ignore[union-attr]
    with torch.no_grad():
        given = point(images)
        weight, bias = first.quantizer(first.weight, first.bias, first.input_scale)
        exact, rounded = (
            torch.nn.functional.conv2d(x, w, b).numpy()
            for x, w, b in ((images, first.weight, old), (given, weight, bias))
        )
    reconstruct(quantized, images, round_weights=False)
    error = exact.astype(np.float64).mean((0, 2, 3)) - rounded.astype(np.float64).mean((0, 2, 3))
    assert np.abs(error).max() > 0.05
    np.testing.assert_allclose(first.bias.detach() - old, error, atol=1e-5)  # type: ignore[union-attr]


def test_each_layer_sees_what_was_mended_before_it(tiny: TorchModel, images: torch.Tensor) -> None:
    """So the means of the logits are nearly right (biases are rounded too), though every layer before them rounds."""
    network = calibrated(tiny.network, images)
    with torch.no_grad():
        exact = tiny.network(images).mean(0)
        before = (network(images).mean(0) - exact).abs().max()
        reconstruct(network, images, round_weights=False)
        after = (network(images).mean(0) - exact).abs().max()
    assert after < before / 10


@pytest.mark.parametrize("name", ["LeNet", "Odd", "Gated", "Tokens", "Shuffled", "ResNeXt", "Signal"])
@pytest.mark.parametrize("placement", ["layers", "wide"])
def test_any_network_is_mended(name: str, placement: str, context: Context, images: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = context.new_model(f"tests.networks:{name}", {})
    network = calibrated(model.network, images, placement=placement)
    with torch.no_grad(), unrounded(network):
        exact = network(images)

    def error() -> float:
        with torch.no_grad():
            return float(((network(images) - exact) ** 2).mean())

    before = error()
    equalise(network, [images])
    with torch.no_grad(), unrounded(network):
        assert torch.allclose(network(images), exact, atol=1e-3 * float(exact.abs().max()))
    calibrate(network, [images], "min_max", 1.0)
    reconstruct(network, images, round_weights=True)
    assert error() < before


def test_layers_that_share_a_weight_keep_it(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = networks.Tied(10).eval()
    quantized = calibrated(network, images)
    reconstruct(quantized, images, round_weights=True)
    shared = [layer.weight for layer in integer_layers(quantized) if not layer.owns_parameters]
    assert len(shared) == 2
    assert all(any(torch.equal(weight, own) for own in network.parameters()) for weight in shared)


def test_channels_that_are_never_used_stay_finite(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
    with torch.no_grad():
        first.weight[2], first.bias[2] = 0, -1  # type: ignore[index]
        second.weight[2], second.bias[2] = 0, 0  # type: ignore[index]
        second.weight[3] *= 1e-30
    network = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4))
    quantized = calibrated(network, images)
    equalise(quantized, [images])
    calibrate(quantized, [images], "min_max", 1.0)
    reconstruct(quantized, images, round_weights=True)
    assert all(parameter.isfinite().all() for parameter in quantized.parameters())
    with torch.no_grad():
        assert (quantized(images) - network(images)).abs().mean() < 0.02 * network(images).abs().max()


# equalisation


def test_equalising_undoes_uneven_channels(uneven: TorchModel, tiny: TorchModel, images: torch.Tensor) -> None:
    network = quantize_network(uneven.network, (2, 1, 8, 8))
    assert equalise(network, [images[:32], images[32:]]) == 2  # inside the two blocks
    layers = with_layers(network)
    with torch.no_grad():
        inner = tiny.network.get_submodule("layer1.0")
        x = torch.relu(inner.bn1(inner.conv1(torch.relu(tiny.network.bn1(tiny.network.conv1(images))))))  # type: ignore
        largest = x.amax((0, 2, 3))
        readers = inner.conv2.weight * (inner.bn2.weight / (inner.bn2.running_var + inner.bn2.eps).sqrt()).view(
            -1, 1, 1, 1
        )  # type: ignore
        weights = readers.abs().amax((0, 2, 3))
        expected = readers * (largest / weights).sqrt().view(1, -1, 1, 1)
        assert torch.allclose(layers["layer1.0.conv2"].weight, expected, rtol=1e-3, atol=1e-5)
        with unrounded(network):
            assert torch.allclose(network(images), tiny.network(images), atol=1e-3)


def test_channels_that_a_depthwise_convolution_reads_get_the_same_range(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(1, 6, 3)
    first.weight.data *= 4.0 ** torch.arange(6).view(-1, 1, 1, 1)
    first.bias.data[2], first.weight.data[2] = -1, 0  # never used
    network = nn.Sequential(
        first, nn.ReLU(), nn.Conv2d(6, 12, 3, groups=6), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 4)
    )
    quantized = quantize_network(network, (2, 1, 8, 8))
    assert equalise(quantized, [images]) == 1  # Flatten mixes pixels and channels
    with torch.no_grad():
        layer = next(integer_layers(quantized))
        largest = torch.relu(torch.nn.functional.conv2d(images, layer.weight, layer.bias)).amax((0, 2, 3))
    assert largest.tolist() == [pytest.approx(1, rel=1e-3)] * 2 + [0] + [pytest.approx(1, rel=1e-3)] * 3


def test_norms_of_a_transformer_are_equalised() -> None:
    torch.manual_seed(0)
    network = VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    ).eval()
    nn.init.normal_(network.heads.head.weight)  # type: ignore[union-attr, arg-type]
    inputs = torch.randn(8, 3, 16, 16)
    quantized = quantize_network(network, (2, 3, 16, 16))
    assert equalise(quantized, [inputs]) == 4  # two norms in each block
    with torch.no_grad(), unrounded(quantized):
        assert torch.allclose(quantized(inputs), network(inputs), atol=1e-4)


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.GELU(), nn.ReLU6(), nn.Sigmoid()])
def test_nothing_is_equalised_through_a_function_that_scaling_changes(activation: nn.Module) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), activation, nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    assert equalise(quantize_network(network, (2, 1, 8, 8)), [torch.rand(4, 1, 8, 8)]) == 1  # behind the pooling


class OverAxes(nn.Module):
    """A norm over height and width, and tokens that are pooled: no axis that a layer reads is one of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm([8, 8])
        self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(4, 3)
        self.norm.weight.data.uniform_(0.1, 3)
        self.pool = nn.AvgPool2d(3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.norm(x))  # [N, 1, 8, 8]
        x = self.second(self.pool(x[:, 0]))  # [N, 8, 8], pooled over tokens and channels
        return self.last(nn.functional.max_pool2d(x.unsqueeze(-1), (1, 1))[..., 0].mean(1)[:, :4])


def test_only_channels_are_equalised(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = OverAxes().eval()
    quantized = quantize_network(network, (2, 1, 8, 8))
    equalise(quantized, [images])
    with torch.no_grad(), unrounded(quantized):
        assert torch.allclose(quantized(images), network(images), atol=1e-5)


# back to float


def test_the_layer_whose_rounding_hurts_comes_first(uneven: TorchModel, images: torch.Tensor) -> None:
    found = sensitivities(calibrated(uneven.network, images), images)
    assert next(iter(found)) in {"layer1.0.conv1", "layer1.0.conv2"}  # what lies between them is rounded to one grid
    assert len(found) == 7
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_sensitivity_by_hand(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    quantized = calibrated(network, images)
    (name, found), *others = sensitivities(quantized, images).items()
    assert (name, others) == ("1", [])
    with torch.no_grad():
        exact, rounded = (each.double().softmax(1).numpy() for each in (network(images), quantized(images)))
    assert found == pytest.approx(float((exact * np.log(exact / rounded)).sum(1).mean()), rel=0.05)


@pytest.mark.parametrize("name", ["tiny", "Gated", "RepVGG"])
@pytest.mark.parametrize("placement", ["layers", "wide"])
def test_what_was_mended_is_kept_when_layers_go_back_to_float(
    name: str, placement: str, tiny: TorchModel, context: Context, images: torch.Tensor
) -> None:
    model = tiny if name == "tiny" else context.new_model(f"tests.networks:{name}", {})
    mended = calibrated(model.network, images, placement=placement)
    reconstruct(mended, images, round_weights=True)
    before = with_layers(mended)
    for skipped in before:
        partly = quantize_network(model.network, (2, 1, 8, 8), placement=placement, skip=(skipped,))
        carry_over(mended, partly)
        assert skipped not in with_layers(partly)
        assert set(partly.ranges().values()) <= set(mended.ranges().values())
        for name, layer in with_layers(partly).items():
            assert torch.equal(layer.weight, before[name].weight)
            assert layer.input_scale == before[name].input_scale


# the ladder


def points(model: TorchModel, other: TorchModel, context: Context) -> float:
    return 100 * (accuracy(other, context.data) - accuracy(model, context.data))


def test_calibration_is_enough_where_it_costs_nothing(tiny: TorchModel, context: Context) -> None:
    shown = io.StringIO()
    telling = replace(context, services=Services(Console(RichConsole(file=shown, width=200))))
    quantized = Quantize(max_drop=2, epochs=1).run(tiny, telling)
    ladder = quantized.details["ladder"]
    assert [rung["name"] for rung in ladder["rungs"]] == ["calibrated"]
    assert ladder["kept"] == "calibrated"
    assert ladder["images"] == 200
    assert ladder["correct_in_float"] == round(200 * accuracy(tiny, context.data))
    assert ladder["rungs"][0]["correct"] == round(200 * accuracy(quantized, context.data))
    assert ladder["rungs"][0]["speedup"] > 0
    assert f"calibrated: {ladder['rungs'][0]['correct']} of 200 validation images right" in shown.getvalue()
    same = Quantize(mode="ptq").run(tiny, context)
    assert quantized.digest == same.digest


def test_equalising_is_enough_where_channels_are_uneven(uneven: TorchModel, context: Context, tmp_path: Path) -> None:
    plain = Quantize(mode="ptq", observer="min_max").run(uneven, context)
    assert points(plain, uneven, context) > 2
    quantized = Quantize(max_drop=1, observer="min_max").run(uneven, context)
    ladder = quantized.details["ladder"]
    assert [rung["name"] for rung in ladder["rungs"]] == ["calibrated", "equalised, biases corrected"]
    assert points(quantized, uneven, context) <= 1
    assert "curve" not in quantized.details
    exported = quantized.to_onnx("test")
    assert executed(exported.content, tmp_path)["QLinearConv"] == 6
    inputs = context.data.preprocess.normalise(context.data.validation.images)
    agree = exported.predict(inputs.numpy()).argmax(1) == quantized.predict(inputs).argmax(1).numpy()
    assert agree.mean() > 0.99
    quantized.save(tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, TorchModel)
    assert torch.equal(loaded.predict(inputs), quantized.predict(inputs))


def judge_harshly(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    """Find integers wanting: so many images fewer are right."""
    honest = quantize._Work.correct_of
    monkeypatch.setattr(
        quantize._Work,
        "correct_of",
        lambda work, network, split: honest(work, network, split) - images * isinstance(network, QuantizedNetwork),
    )


def test_every_rung_is_climbed_where_none_holds(
    uneven: TorchModel, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_harshly(monkeypatch, 50)
    kept = Quantize(max_drop=0.5, epochs=1).run(uneven, context)
    assert not kept.quantized
    ladder = kept.details["ladder"]
    names = [rung["name"] for rung in ladder["rungs"]]
    assert names[:4] == ["calibrated", "equalised, biases corrected", "rounded by AdaRound", "trained"]
    assert names[4:] == [
        f"{count} in float{trained}" for count in ("1 layer", "2 layers", "4 layers") for trained in ("", ", trained")
    ]
    assert ladder["kept"] is None
    assert "curve" not in kept.details  # that network does not ship
    inputs = context.data.preprocess.normalise(context.data.validation.images)
    assert torch.equal(kept.predict(inputs), uneven.predict(inputs))


def test_training_goes_on_from_what_was_trained(
    uneven: TorchModel, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_harshly(monkeypatch, 50)
    weights: list[tuple[torch.Tensor, torch.Tensor]] = []  # of the classifier, before and after each training
    original = quantize._Work.train

    def train(work: quantize._Work, network: QuantizedNetwork, label: str = "") -> dict[str, Any]:
        before = network.get_parameter("fc.weight").clone()
        details = original(work, network, label)
        weights.append((before, network.get_parameter("fc.weight").clone()))
        return details

    monkeypatch.setattr(quantize._Work, "train", train)
    Quantize(max_drop=0.5, epochs=1, learning_rate=1e-3, keep="last").run(uneven, context)
    assert torch.equal(weights[0][0], uneven.network.get_parameter("fc.weight"))
    for (_, after), (before, changed) in itertools.pairwise(weights):
        assert torch.equal(after, before)
        assert not torch.equal(before, changed)
    assert len(weights) == 4


def test_layers_go_back_to_float_where_nothing_else_helps(
    uneven: TorchModel, context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ladder_module, "equalise", lambda *_: 0)
    monkeypatch.setattr(ladder_module, "reconstruct", lambda *_, **__: None)
    quantized = Quantize(max_drop=1, epochs=0, observer="min_max").run(uneven, context)
    change = quantized.changes[-1]
    assert isinstance(change, Int8)
    assert len(change.skip) in {1, 2, 4}
    assert {"layer1.0.conv1", "layer1.0.conv2"} & set(change.skip)
    ladder = quantized.details["ladder"]
    assert ladder["kept"] == f"{len(change.skip)} layer{'s' * (len(change.skip) > 1)} in float"
    assert all(rung["speedup"] > 0 for rung in ladder["rungs"])
    assert points(quantized, uneven, context) <= 1
    assert executed(quantized.to_onnx("test").content, tmp_path)["Conv"] >= 1


class Nested(nn.Module):
    """A module whose own forward pass has a linear layer holds all others, so leaving it in float leaves nothing."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.net = _Net(num_classes, in_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)  # type: ignore[no-any-return]


class _Net(nn.Module):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 3)
        self.weight = nn.Parameter(torch.randn(num_classes, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.conv(x).mean((2, 3)), self.weight)


def test_names_that_hold_all_layers_do_not_go_back_to_float(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    model = context.new_model("tests.test_mending:Nested", {})
    judge_harshly(monkeypatch, 200)
    monkeypatch.setattr(ladder_module, "sensitivities", lambda *_: {"net": 2.0, "net.conv": 1.0})
    kept = Quantize(max_drop=0, epochs=0).run(model, context)
    assert kept.details["ladder"]["kept"] is None
    assert len(kept.details["ladder"]["rungs"]) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "set either mode: ptq or qat, or max_drop"),
        ({"mode": "ptq", "max_drop": 1}, "set either mode"),
        ({"max_drop": 1, "epochs": 0, "teacher": "teacher"}, "without epochs nothing trains"),
        ({"max_drop": 1, "epochs": 0, "freeze": ["conv1"]}, "without epochs nothing trains"),
        ({"max_drop": -1}, "greater than or equal to 0"),
        ({"max_drop": 101}, "less than or equal to 100"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Quantize(**settings)


def test_a_ladder_trains_one_epoch_unless_told_otherwise() -> None:
    assert Quantize(max_drop=1).epochs == 1
    assert Quantize(max_drop=1, epochs=3).epochs == 3
    assert Quantize(mode="ptq").epochs == 0
    stages = [Quantize(max_drop=1).for_dry_run(), Quantize(max_drop=1, epochs=0, placement="measured").for_dry_run()]
    assert [(stage.mode, stage.epochs, stage.placement) for stage in stages] == [
        ("qat", 1, "layers"),
        ("ptq", 0, "wide"),
    ]
