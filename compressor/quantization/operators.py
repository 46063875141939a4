"""Which operators ONNX Runtime executes on integers, and which of their inputs are rounded for it."""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, fx

aten = torch.ops.aten

CONVOLUTIONS = {aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding}
LINEAR = {aten.linear.default}
ADDITIONS = {aten.add.Tensor}
LAYERS = CONVOLUTIONS | LINEAR | ADDITIONS
ACTIVATIONS = {aten.relu.default, aten.hardtanh.default, aten.relu6.default, aten.clamp.default}  # saturation
SAME_GRID = {  # their outputs are values of their input
    aten.view.default,
    aten.reshape.default,
    aten.unflatten.int,
    aten.flatten.using_ints,
    aten.permute.default,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.slice.Tensor,
    aten.chunk.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.max_pool2d.default,
    aten.max_pool2d_with_indices.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.dropout.default,
}
BETWEEN_LAYERS = {  # the wide placement rounds these too, where nothing in float lies before them
    aten.mul.Tensor,
    aten.sigmoid.default,
    aten.hardsigmoid.default,
    aten.adaptive_avg_pool2d.default,
    aten.avg_pool2d.default,
    aten.cat.default,
}
BATCH_NORM = aten._native_batch_norm_legit_no_training.default


def is_layer(node: fx.Node) -> bool:
    """Whether `node` is a convolution or linear layer with parameters of its own, or adds two tensors."""
    if node.target in ADDITIONS:
        return all(is_float(given) for given in node.args[:2])
    return node.target in CONVOLUTIONS | LINEAR and all(
        given is None or given.op == "get_attr" for given in parameters(node)
    )


def is_between_layers(node: fx.Node) -> bool:
    """Whether `node` is an operator without parameters that has an integer kernel."""
    if node.target is aten.adaptive_avg_pool2d.default and not pools_globally(node):
        return False
    return node.target in BETWEEN_LAYERS and all(is_float(given) for given in activation_inputs(node))


def pools_globally(node: fx.Node) -> bool:
    """Whether `node` is the mean over height and width of `[N, C, H, W]`."""
    if node.target is not aten.adaptive_avg_pool2d.default:
        return False
    return list(node.args[1]) == [1, 1] and node.meta["val"].dim() == 4  # type: ignore[arg-type]


def shares_grid(node: fx.Node) -> bool:
    """Whether the values of `node` are values of its input."""
    if node.target is operator.getitem:
        return shares_grid(node.all_input_nodes[0])
    return node.target in SAME_GRID


def is_float(value: object) -> bool:
    """Whether `value` is a node that outputs a tensor of floats."""
    example = value.meta.get("val") if isinstance(value, fx.Node) else None
    return isinstance(example, Tensor) and example.is_floating_point() and example.dim() > 0


def activation_inputs(node: fx.Node) -> Sequence[fx.Node]:
    """What a layer, or an operator between layers, reads besides parameters."""
    if node.target is aten.cat.default:
        return node.args[0]  # type: ignore[return-value]
    return node.args[: 2 if node.target in {*ADDITIONS, aten.mul.Tensor} else 1]  # type: ignore[return-value]


def parameters(layer: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """The weight and the bias of a convolution or linear layer."""
    return layer.args[1], layer.args[2] if len(layer.args) > 2 else None  # type: ignore[return-value]
