"""What layers take: which layers a network runs, files that differ in them, tables."""

import ast
import inspect
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from compressor.errors import UserError
from compressor.evaluation import GivenTable, Layer, MeasuredTable, operations_of, script_of
from compressor.evaluation.costs import layers as costs
from compressor.models.resnet import ResNet

ADD = Layer("add", "int8", 8, 8, (4, 4))
CONV = Layer("conv", "int8", 8, 8, (4, 4), (3, 3), (1, 1), (1, 1))
DOWN = Layer("conv", "float32", 8, 16, (4, 4), (1, 1), (2, 2))
DEPTHWISE = Layer("conv", "int8", 16, 16, (4, 4), (3, 3), (1, 1), (1, 1), 16)
LINEAR = Layer("linear", "int8", 16, 10)
POOL = Layer("max_pool", "int8", 8, 8, (4, 4), (2, 2), (2, 2))
SAME = Layer("max_pool", "int8", 8, 8, (4, 4), (3, 3), (1, 1), (1, 1))
MEAN = Layer("global_average_pool", "float32", 8, 8, (4, 4))
INPUT = Layer("input", "int8", 3, 10, (8, 8))
KINDS = (ADD, CONV, DOWN, DEPTHWISE, LINEAR, POOL, SAME, MEAN, INPUT)
OPERATORS = {
    "conv": "Conv",
    "linear": "Gemm",
    "add": "Add",
    "max_pool": "MaxPool",
    "global_average_pool": "GlobalAveragePool",
}


def test_the_layers_of_a_residual_network() -> None:
    """By hand: a stem, a block at 8x8, one that halves the size, the mean, the classifier."""
    network = ResNet([1, 1], [16, 24], num_classes=5).eval()
    found = [(each.module, each.exported()) for each in operations_of(network, (2, 3, 8, 8), "int8")]
    three = {"kernel": (3, 3), "padding": (1, 1)}
    assert found == [
        ("", Layer("input", "int8", 3, 5, (8, 8))),
        ("conv1", Layer("conv", "int8", 4, 16, (8, 8), **three)),  # as exported files pad the image
        ("layer1.0.conv1", Layer("conv", "int8", 16, 16, (8, 8), **three)),
        ("layer1.0.conv2", Layer("conv", "int8", 16, 16, (8, 8), **three)),
        ("layer1.0", Layer("add", "int8", 16, 16, (8, 8))),
        ("layer2.0.conv1", Layer("conv", "int8", 16, 24, (8, 8), stride=(2, 2), **three)),
        ("layer2.0.conv2", Layer("conv", "int8", 24, 24, (4, 4), **three)),
        ("layer2.0.downsample.0", Layer("conv", "int8", 16, 24, (8, 8), stride=(2, 2))),
        ("layer2.0", Layer("add", "int8", 24, 24, (4, 4))),
        ("avgpool", Layer("global_average_pool", "int8", 24, 24, (4, 4))),
        ("fc", Layer("linear", "int8", 24, 5)),
    ]


def test_groups_and_pools_are_found() -> None:
    network = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, 3, groups=8), nn.AvgPool2d(2)).eval()
    found = [operation.layer for operation in operations_of(network, (2, 8, 9, 9), "float32")]
    assert found[1:] == [
        Layer("max_pool", "float32", 8, 8, (9, 9), (3, 3), (2, 2), (1, 1)),
        Layer("conv", "float32", 8, 8, (5, 5), (3, 3), groups=8),
        Layer("average_pool", "float32", 8, 8, (3, 3), (2, 2), (2, 2)),
    ]
    assert [layer.output_size for layer in found[1:]] == [(5, 5), (3, 3), (1, 1)]


def test_attention_is_taken_apart_and_what_no_table_knows_is_left_out() -> None:
    network = VisionTransformer(8, 4, 1, 2, 16, 32, num_classes=5).eval()
    found = [layer for _, layer, _ in operations_of(network, (2, 3, 8, 8), "float32")]
    linear = [(layer.size[0], layer.inputs, layer.outputs) for layer in found if layer.operator == "linear"]
    assert linear == [(5, 16, 48), (5, 16, 16), (5, 16, 32), (5, 32, 16), (1, 16, 5)]  # q, k, v; out; MLP; head
    odd = nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 8, 3, dilation=2), nn.Conv2d(8, 4, 1)).eval()
    assert [layer.kernel for _, layer, _ in operations_of(odd, (2, 8, 8, 8), "int8")[1:]] == [(1, 1)]


def test_a_damaged_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(costs, "measure", lambda layers, **_: dict.fromkeys(layers, 1.0))
    table = MeasuredTable(2**20)
    table.of([CONV])
    table.path.write_text("{")
    assert not MeasuredTable(2**20).known
    assert MeasuredTable(2**20).of([ADD]) == {ADD: 1.0}


@pytest.mark.parametrize("layer", [kind for kind in KINDS if kind.operator != "input"], ids=Layer.in_words)
@pytest.mark.parametrize("count", [1, 3])
def test_two_files_differ_in_so_many_layers(layer: Layer, count: int) -> None:
    few, many = (onnx.load_from_string(content) for content in costs.networks(layer, count))
    for model in (few, many):
        onnx.checker.check_model(model, full_check=True)

    def of_the_kind(model: onnx.ModelProto) -> int:
        return sum(
            node.op_type == OPERATORS[layer.operator]
            and (
                layer.operator != "conv"
                or {a.name: list(a.ints) for a in node.attribute}["kernel_shape"] == [*layer.kernel]
            )
            for node in model.graph.node
        )

    if layer.operator == "add":  # the shorter file has the convolutions alone
        assert of_the_kind(few) == 0
    assert of_the_kind(many) - of_the_kind(few) == count


def test_measuring_gives_every_layer_a_time() -> None:
    visits: list[int] = []
    found = costs.measure([CONV, INPUT, CONV], footprint_bytes=2**18, advance=visits.append)
    assert found.keys() == {CONV, INPUT}
    assert all(microseconds >= 0 for microseconds in found.values())
    assert found[INPUT] > 0
    assert len(visits) == 2 * costs.VISITS


def test_a_layer_is_measured_once_on_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[list[Layer]] = []

    def measure(layers: list[Layer], **_: object) -> dict[Layer, float]:
        asked.append(layers)
        return {layer: float(layer.outputs) for layer in layers}

    monkeypatch.setattr(costs, "measure", measure)
    first = MeasuredTable(2**20)
    assert first.of([CONV, ADD])[CONV] == 8
    assert first.of([ADD, DEPTHWISE])[DEPTHWISE] == 16
    again = MeasuredTable(2**20 - 5)  # the same power of two
    assert again.of([CONV, ADD, DEPTHWISE]) == {CONV: 8, ADD: 8, DEPTHWISE: 16}
    assert asked == [sorted([CONV, ADD]), [DEPTHWISE]]
    MeasuredTable(2**22).of([ADD])  # weights drive one another out of the cache
    assert asked[2:] == [[ADD]]


def test_a_table_of_another_machine(tmp_path: Path) -> None:
    path = tmp_path / "pi.json"
    path.write_text(costs.as_json({CONV: 12.5, ADD: 3.0}, 2**20, 1))
    table = GivenTable(path)
    assert table.of([CONV, ADD]) == {CONV: 12.5, ADD: 3.0}
    assert table.machine["onnxruntime"] == costs.machine()["onnxruntime"]
    with pytest.raises(
        UserError, match=r"pi.json lacks 2 layers .* such as int8 depthwise conv 3x3, 16 to 16 channels of 4x4"
    ):
        table.of([LINEAR, CONV, DEPTHWISE])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "Expecting value"),
        ("[]", "no table"),
        ('{"schema": 2}', "schema"),
        (costs.as_json({}, 1, 4), "is of 4 threads; latency is that of one"),
        (costs.as_json({CONV: -1.0}, 1, 1), "layers.0.microseconds: Input should be greater than or equal to 0"),
        (costs.as_json({CONV: 1.0}, 1, 1).replace('"conv"', '"konv"'), "layers.0.layer.operator"),
        (costs.as_json({CONV: float("nan")}, 1, 1), "layers.0.microseconds"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        GivenTable(path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        GivenTable(tmp_path / "none.json")


def test_the_script_for_another_machine_needs_numpy_and_onnxruntime_alone(tmp_path: Path) -> None:
    script = script_of([CONV, DOWN], 2**18)
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(script))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}
    assert inspect.getsource(costs) in script
    assert script.index("ORT_DISABLE_TELEMETRY") < script.index("import onnxruntime")
    (tmp_path / "pi.py").write_text(script)
    subprocess.run([sys.executable, "pi.py", "pi.json"], cwd=tmp_path, check=True, capture_output=True)
    assert GivenTable(tmp_path / "pi.json").known.keys() == {CONV, DOWN}
    assert json.loads((tmp_path / "pi.json").read_text())["footprint_bytes"] == 2**18
    bare = subprocess.run([sys.executable, "pi.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (bare.returncode, bare.stderr) == (1, "usage: python pi.py TABLE.json\n")


def test_what_a_network_reads_and_writes() -> None:
    assert [layer.output_bytes for layer in KINDS if layer.precision == "int8"] == [128, 128, 256, 10, 32, 128, 0]
    assert DOWN.output_bytes == 4 * 16 * 2 * 2
    assert MEAN.output_bytes == 4 * 8
    assert costs.footprint_of([INPUT, CONV, CONV, LINEAR]) == 2 * (8 * 8 * 9 + 64) + 160 + 5


def test_the_weights_of_a_layer() -> None:
    assert CONV.weight_bytes == 8 * 8 * 9
    assert DOWN.weight_bytes == 4 * 8 * 16
    assert DEPTHWISE.weight_bytes == 16 * 9
    assert LINEAR.weight_bytes == 160
    assert ADD.weight_bytes == 0
    assert replace(CONV, precision="float32").weight_bytes == 4 * 8 * 8 * 9
    assert np.prod(DOWN.input_shape) == 8 * 16
    assert torch.Size(LINEAR.input_shape) == (1, 16)
