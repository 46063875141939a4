"""Operators as ONNX Runtime executes them: what they are, how much they compute, which layer they are."""

import math
from dataclasses import replace

from compressor.evaluation.costs.layers import Layer, Precision
from compressor.export import Executed

CONVOLUTIONS = {"Conv", "FusedConv", "QLinearConv", "ConvInteger"}
MATRICES = {"Gemm", "MatMul", "FusedGemm", "FusedMatMul", "QGemm", "QLinearMatMul", "MatMulInteger"}
DYNAMIC = {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul"}
ROUNDING = {"QuantizeLinear", "DequantizeLinear"}
MOVING = {"Transpose", "ReorderInput", "ReorderOutput"}


def is_layer(node: Executed) -> bool:
    """Whether it is a convolution or a matrix product with a weight."""
    return node.operator in CONVOLUTIONS | MATRICES and bool(node.weight)


def precision_of(node: Executed) -> Precision:
    """What it computes in."""
    return "int8" if node.on_integers else "float32"


def macs_of(node: Executed) -> int:
    """Its multiply-adds; 0 if it is no layer."""
    if not is_layer(node):
        return 0
    if node.operator in CONVOLUTIONS:
        return math.prod(node.output[1]) * math.prod(node.weight[1:])
    return math.prod(node.inputs[0][1]) * node.output[1][-1]


def layer_of(node: Executed) -> Layer | None:
    """The layer as tables know it; None if it is no layer, or one that they do not know."""
    if not is_layer(node):
        return None
    shape, precision = node.inputs[0][1], precision_of(node)
    if node.operator in MATRICES:
        rows = math.prod(shape[:-1])
        return Layer("linear", precision, shape[-1], node.output[1][-1], (rows, 1))
    windows, groups = node.windows, int(node.windows.get("group", 1))
    pads = tuple(windows.get("pads", (0, 0, 0, 0)))
    known = len(shape) == 4 and pads[:2] == pads[2:] and set(windows.get("dilations", (1,))) == {1}
    if not known:
        return None
    size = shape[1:3] if windows.get("channels_last") else shape[2:]
    return Layer(
        "conv",
        precision,
        node.weight[1] * groups,
        node.weight[0],
        (size[0], size[1]),
        (node.weight[2], node.weight[3]),
        _pair(tuple(windows.get("strides", (1, 1)))),
        _pair(pads[:2]),
        groups,
    )


def with_whole_widths(layer: Layer, multiple: int) -> Layer:
    """The layer with channels up to the next multiple; those of an image, and classes, stay as they are."""
    outputs = layer.outputs + -layer.outputs % multiple
    if layer.groups == layer.inputs == layer.outputs:
        return replace(layer, inputs=outputs, outputs=outputs, groups=outputs)
    if layer.groups > 1:
        return layer
    return replace(layer, inputs=layer.inputs + -layer.inputs % multiple, outputs=outputs)


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]
