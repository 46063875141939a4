"""The wide placement: what lies between layers on integers, too."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from rich.console import Console as RichConsole
from torch import nn

from compressor import Context, Services, TorchModel, load
from compressor.console import Console
from compressor.evaluation import Attempt, Candidate, Fastest, Latency, placement
from compressor.export import export_onnx, layer_times, session
from compressor.export.onnx_file import logits_of
from compressor.models.changes import Int8
from compressor.quantization import QuantizedNetwork, calibrate, quantize_network
from stages import Quantize, quantize
from tests import networks
from tests.conftest import accuracy, executed
from tests.test_quantize import model_of, switch_rounding_off


def wide(model: TorchModel, context: Context, observer: str = "min_max") -> TorchModel:
    quantized = quantize_network(model.copy_network(), model.preprocess.input_shape(2), placement="wide")
    calibrate(quantized, context.data.calibration_batches(64), observer, 1.0)  # type: ignore[arg-type]
    return model.with_network(quantized, Int8(activations=quantized.ranges(), placement="wide"), details={})


@pytest.fixture(scope="module")
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


IN_FLOAT = ("stem", "squeeze", "excite", "project", "last", "fc")  # the layers of Gated, in order
WIDE = ("stem", "squeeze", "excite", "project", "norm", "last", "fc")

EXPORTED: dict[tuple[str, ...], bytes] = {}  # files of Gated, by the points that are rounded; exporting takes seconds


def latency_of(speedup: float) -> Latency:
    setting = {"engine": "onnxruntime", "device": "cpu", "threads": 1, "batch": 1}
    counts = {"runs": 40, "warmup_runs": 20, "steady": True, "other_load": 0.0}
    speed = dict.fromkeys(("speedup", "speedup_low", "speedup_high"), speedup)
    return Latency.model_validate({**setting, **counts, **speed, "median_ms": 1.0, "p95_ms": 1.0})


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say how fast each pair of candidates is, and how many seconds layers take on integers; in float they take one."""

    def export_once(network: QuantizedNetwork, *rest: Any) -> bytes:
        if network.points not in EXPORTED:
            EXPORTED[network.points] = export_onnx(network, *rest)
        return EXPORTED[network.points]

    def pretend(speedups: list[tuple[float, float]], **seconds: float) -> None:
        pairs = iter(speedups)
        monkeypatch.setattr(placement, "in_sessions", lambda _: [latency_of(speedup) for speedup in next(pairs)])

        def layer_times(content: bytes, inputs: object) -> list[float | None]:
            graph = onnx.load_from_string(content).graph
            names = WIDE if sum(node.op_type in {"Conv", "Gemm"} for node in graph.node) == len(WIDE) else IN_FLOAT
            on_integers = any(node.op_type == "QuantizeLinear" for node in graph.node)
            return [seconds.get(name, 0.5) if on_integers else 1.0 for name in names]

        monkeypatch.setattr(placement, "layer_times", layer_times)
        monkeypatch.setattr(placement, "export_onnx", export_once)

    return pretend


@pytest.mark.parametrize(
    ("speedups", "seconds", "chosen"),
    [
        ([(0.8, 1.2)], {}, ("wide", ())),
        ([(1.2, 1.21)], {}, ("layers", ())),  # no more than chance
        ([(0.8, 1.2), (1.2, 1.3)], {"stem": 1.5}, ("wide", ("stem",))),
        ([(0.8, 1.2), (1.2, 1.1)], {"stem": 1.5}, ("wide", ())),
        ([(0.8, 1.2), (1.2, 1.3), (1.3, 1.4)], {"stem": 1.5, "fc": 1.01}, ("wide", ("fc", "stem"))),
        ([(0.8, 1.2), (1.2, 1.3), (1.3, 1.2)], {"stem": 1.5, "fc": 1.01}, ("wide", ("stem",))),
        ([(0.8, 0.9), (0.9, 0.85)], {"stem": 1.5, "norm": 9.0}, ("wide", ())),  # in float, the norm is no layer
    ],
)
def test_the_fastest_by_more_than_chance_is_chosen(
    speedups: list[tuple[float, float]],
    seconds: dict[str, float],
    chosen: tuple[str, tuple[str, ...]],
    gated: TorchModel,
    context: Context,
    pretend: Callable[..., None],
) -> None:
    pretend(speedups, **seconds)
    images = next(context.data.calibration_batches(8))
    fastest = placement.fastest_placement(gated, images)
    assert (fastest.chosen.candidate.placement, fastest.chosen.candidate.skip) == chosen
    assert len(fastest.tried) == len(speedups) + 1


def test_what_is_skipped_already_or_all_there_is_is_not_tried(
    gated: TorchModel, context: Context, pretend: Callable[..., None]
) -> None:
    images = next(context.data.calibration_batches(8))
    pretend([(0.8, 1.2)], stem=1.5)
    assert placement.fastest_placement(gated, images, skip=("stem",)).chosen.candidate.skip == ("stem",)
    pretend([(1.2, 0.8)], **dict.fromkeys(IN_FLOAT, 1.5))
    assert placement.fastest_placement(gated, images).chosen.candidate.skip == ()


def test_what_was_measured_is_saved_and_said(
    gated: TorchModel, context: Context, pretend: Callable[..., None], tmp_path: Path
) -> None:
    shown = io.StringIO()
    telling = replace(context, services=Services(Console(RichConsole(file=shown))))
    pretend([(0.8, 1.2), (1.2, 1.3)], stem=1.5)
    quantized = Quantize(mode="ptq", placement="measured").run(gated, telling)
    change = quantized.changes[-1]
    assert isinstance(change, Int8)
    assert (change.placement, change.skip) == ("wide", ("stem",))
    assert "fastest against the float file is wide with 1 layer in float 1.30x (layers 0.80x, wide 1.20x)" in (
        shown.getvalue()
    )
    details = quantized.details["placement"]
    assert (details["placement"], details["skip"], details["latency"]["speedup"]) == ("wide", ("stem",), 1.3)
    assert [each["latency"]["speedup"] for each in details["tried"]] == [0.8, 1.2, 1.3]
    right = round(accuracy(quantized, context.data) * len(context.data.validation))
    assert [each["correct"] for each in details["tried"]] == [None, None, right]
    quantized.save(tmp_path)
    loaded = load(tmp_path, factories=frozenset({gated.architecture.model}))
    assert isinstance(loaded, TorchModel)
    inputs = context.data.preprocess.normalise(context.data.validation.images)
    assert torch.equal(loaded.predict(inputs), quantized.predict(inputs))


def test_where_integers_pay_nowhere_it_is_said(
    gated: TorchModel, context: Context, pretend: Callable[..., None]
) -> None:
    pretend([(0.8, 0.9)])
    words = placement.fastest_placement(gated, next(context.data.calibration_batches(8))).in_words()
    assert words == "integers are nowhere faster than the float file; the fastest is wide 0.90x (layers 0.80x)"


def test_where_integers_pay_nowhere_the_network_stays_in_float(
    gated: TorchModel, context: Context, pretend: Callable[..., None]
) -> None:
    pretend([(0.8, 0.9)])
    kept = Quantize(mode="ptq", placement="measured").run(gated, context)
    assert not kept.quantized
    assert kept.details["placement"]["placement"] is None
    inputs = context.data.preprocess.normalise(context.data.validation.images)
    assert torch.equal(kept.predict(inputs), gated.predict(inputs))


@pytest.mark.parametrize(
    ("right", "mode", "chosen"),
    [
        # in float, wide, layers, of 100 judged; 1 may be lost; mode qat judges none
        ([90, 89], "ptq", "wide"),
        ([90, 88, 89], "ptq", "layers"),
        ([90, 80, 88], "ptq", None),  # none holds
        ([], "qat", "wide"),
    ],
)
def test_the_fastest_whose_accuracy_holds_is_kept(
    right: list[int],
    mode: str,
    chosen: str | None,
    gated: TorchModel,
    context: Context,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slower, faster = (Attempt(Candidate(name, ()), latency_of(by)) for name, by in (("layers", 1.2), ("wide", 1.5)))
    fastest = Fastest(faster, (slower, faster))
    monkeypatch.setattr("compressor.evaluation.fastest_placement", lambda *_, **__: fastest)
    answers = iter(right)
    monkeypatch.setattr(quantize, "JUDGED_IMAGES", 100)
    monkeypatch.setattr(quantize._Work, "correct_of", lambda *_: next(answers))
    settings = {"mode": mode, "placement": "measured", "epochs": int(mode == "qat")}
    quantized = Quantize.model_validate(settings).run(gated, context)
    assert quantized.details["placement"]["placement"] == chosen
    assert quantized.quantized == (chosen is not None)
    assert not list(answers)
    assert quantized.details["placement"].get("judged") == (100 if right else None)


def test_the_dry_run_does_not_measure() -> None:
    assert Quantize(mode="ptq", placement="measured").for_dry_run().placement == "wide"
    assert Quantize(mode="ptq").for_dry_run().placement == "layers"


@pytest.mark.parametrize("kind", ["float", "layers", "wide"])
def test_the_time_of_every_layer_is_found(kind: str, gated: TorchModel) -> None:
    """Also behind a residual addition, a fused activation, and in the layout that ONNX Runtime gives convolutions."""
    network = gated.network if kind == "float" else quantize_network(gated.network, (2, 1, 8, 8), placement=kind)  # type: ignore[arg-type]
    times = layer_times(export_onnx(network, gated.preprocess, {}), np.zeros((1, 1, 8, 8), dtype=np.float32))
    assert len(times) == len(WIDE if kind == "wide" else IN_FLOAT)
    assert None not in times
