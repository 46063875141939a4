"""Graphs written in operators that have integer kernels: BatchNorm folded, activation functions taken apart."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from compressor.quantization.network import attribute, set_attribute
from compressor.quantization.operators import ADDITIONS, BATCH_NORM, CONVOLUTIONS, LINEAR, aten, is_layer, parameters


def fold_batch_norm(graph_module: fx.GraphModule) -> None:
    """Fold every BatchNorm into the layer before it, if nothing else uses that layer and its parameters."""
    graph = graph_module.graph
    for norm in [node for node in graph.nodes if node.target is BATCH_NORM]:
        layer = norm.args[0]
        if layer.target in ADDITIONS or not is_layer(layer) or len(layer.users) > 1:
            continue
        if layer.target in LINEAR and layer.meta["val"].dim() > 2:  # [N, T, C], of which BatchNorm takes T as channels
            continue
        weight, bias = parameters(layer)
        if len(weight.users) > 1 or (bias is not None and len(bias.users) > 1):
            continue
        old_bias = None if bias is None else attribute(graph_module, bias)
        mean, var, eps, gamma, beta = normalisation(graph_module, norm)
        gamma = torch.ones_like(mean) if gamma is None else gamma  # `fuse_linear_bn_weights` takes no None
        beta = torch.zeros_like(mean) if beta is None else beta
        fuse: Callable[..., tuple[nn.Parameter, nn.Parameter]] = (
            fuse_conv_bn_weights if layer.target in CONVOLUTIONS else fuse_linear_bn_weights
        )
        folded = fuse(attribute(graph_module, weight), old_bias, mean, var, eps, gamma, beta)
        set_parameters(graph_module, layer, *folded)
        for output in list(norm.users):
            output.replace_all_uses_with(layer)
            graph.erase_node(output)
        graph.erase_node(norm)  # at once: another BatchNorm may follow, and is then the only user of the layer
    graph.eliminate_dead_code()


def normalisation(
    graph_module: fx.GraphModule, norm: Any
) -> tuple[Tensor, Tensor, float, Tensor | None, Tensor | None]:
    """Mean, variance, epsilon, scale and shift of a BatchNorm; it may lack the last two."""
    _, *affine, mean, var, _, eps = norm.args[:7]
    gamma, beta = (None if node is None else attribute(graph_module, node) for node in affine)
    return attribute(graph_module, mean), attribute(graph_module, var), eps, gamma, beta


def set_parameters(graph_module: fx.GraphModule, layer: fx.Node, weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer another weight and bias, which no other layer reads."""
    weight_node, bias_node = parameters(layer)
    set_attribute(graph_module, str(weight_node.target), nn.Parameter(weight.detach()))
    if bias is None:
        return
    bias_target = str(bias_node.target) if bias_node is not None else _new_bias(graph_module, str(weight_node.target))
    set_attribute(graph_module, bias_target, nn.Parameter(bias.detach()))
    with graph_module.graph.inserting_before(layer):
        bias_node = graph_module.graph.get_attr(bias_target)
    layer.args = (layer.args[0], weight_node, bias_node, *layer.args[3:])


def take_apart(graph_module: fx.GraphModule) -> None:
    """Write operators without an integer kernel as those that have one."""
    graph = graph_module.graph
    for node in [node for node in graph.nodes if node.target is BATCH_NORM and node.args[0].meta["val"].dim() == 4]:
        _as_depthwise(graph_module, node)
    for node in list(graph.nodes):
        x = node.args[0] if node.args else None
        with graph.inserting_before(node):
            match node.target:
                case aten.silu.default:
                    new = _call(node, aten.mul.Tensor, x, _call(node, aten.sigmoid.default, x))
                case aten.hardswish.default:
                    new = _call(node, aten.mul.Tensor, x, _call(node, aten.hardsigmoid.default, x))
                case aten.mean.dim if _is_spatial(node):
                    new = _call(node, aten.adaptive_avg_pool2d.default, x, [1, 1])
                    if not (len(node.args) > 2 and node.args[2]):  # keepdim
                        new = _call(node, aten.squeeze.dims, new, [2, 3])
                case _:
                    continue
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _as_depthwise(graph_module: fx.GraphModule, norm: Any) -> None:
    """Write a BatchNorm as a 1x1 convolution of each channel."""
    mean, var, eps, gamma, beta = normalisation(graph_module, norm)
    weight, bias = fuse_conv_bn_weights(torch.ones(len(mean), 1, 1, 1), None, mean, var, eps, gamma, beta)
    owner = f"{str(norm.args[3].target).rpartition('.')[0]}_depthwise"
    graph_module.add_submodule(owner, nn.Module())
    set_attribute(graph_module, f"{owner}.weight", weight)
    set_attribute(graph_module, f"{owner}.bias", bias)
    graph = graph_module.graph
    with graph.inserting_before(norm):
        parameters_of = (graph.get_attr(f"{owner}.{name}") for name in ("weight", "bias"))
        args = (norm.args[0], *parameters_of, [1, 1], [0, 0], [1, 1], len(mean))
        convolution = graph.call_function(aten.conv2d.default, args)
    for output in list(norm.users):
        convolution.meta = output.meta
        output.replace_all_uses_with(convolution)
    graph.eliminate_dead_code()


def _is_spatial(mean: Any) -> bool:
    """Whether a mean is over height and width."""
    x, dims = mean.args[:2]
    return x.meta["val"].dim() == 4 and sorted(dim % 4 for dim in dims or ()) == [2, 3]


def _call(origin: fx.Node, target: Callable[..., Tensor], *args: Any) -> fx.Node:
    """A new operator in the layer of `origin`."""
    node = origin.graph.call_function(target, args)
    node.meta["nn_module_stack"] = origin.meta.get("nn_module_stack")
    node.meta["val"] = target(*(arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args))
    return node


def _new_bias(graph_module: fx.GraphModule, weight: str) -> str:
    """A name for the bias that folding gives a layer without one: `conv1.bias` beside `conv1.weight`."""
    owner, _, name = weight.rpartition(".")
    bias = "bias" if name == "weight" else f"{name}_bias"
    while getattr(graph_module.get_submodule(owner), bias, None) is not None:
        bias = f"{name}_{bias}"
    return f"{owner}.{bias}" if owner else bias
