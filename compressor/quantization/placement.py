"""Where a network is rounded to integers: one placement for post-training quantization, training, saving and export.

A quantized network is the exported graph of the float one, with BatchNorm folded into the layer before it, and with
quantizers where ONNX Runtime needs them to execute every convolution, linear layer and residual addition on integers:
at the inputs of these layers and at their outputs, after the activation function if there is one. Max pooling and
reshaping share the grid of their input. A layer whose weight or bias is computed in the forward pass stays in float,
and so does a BatchNorm that cannot be folded; `float_layers` names them.
"""

import copy
import operator
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from compressor.errors import ArchitectureError
from compressor.quantization.network import (
    ACTIVATIONS_AT,
    PARAMETERS_AT,
    ActivationQuantizer,
    ParameterQuantizer,
    QuantizedNetwork,
    attribute,
    set_attribute,
)
from compressor.tracing import layer_of, trace

aten = torch.ops.aten

CONVOLUTIONS = {aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding}
LINEAR = {aten.linear.default}
ADDITIONS = {aten.add.Tensor}
ACTIVATIONS = {aten.relu.default, aten.hardtanh.default, aten.relu6.default, aten.clamp.default}
SAME_GRID = {  # their outputs are values of their input
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.permute.default,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.max_pool2d.default,
    aten.max_pool2d_with_indices.default,
    aten.clone.default,
    aten.dropout.default,
}
BATCH_NORM = aten._native_batch_norm_legit_no_training.default


def quantize_network(
    network: nn.Module,
    input_shape: tuple[int, int, int, int],
    *,
    skip: Sequence[str] = (),
    weight_bits: int = 8,
) -> QuantizedNetwork:
    """Fold BatchNorm and place quantizers; `network` is not changed.

    Args:
        network: a float network, `[N, C, H, W] -> [N, classes]`.
        input_shape: shape of an example batch of at least 2.
        skip: names of layers (or of modules that hold them) that stay in float.
        weight_bits: 8, or 7 for processors whose 8-bit products saturate (x86 without VNNI).

    Raises:
        ArchitectureError: the network cannot be traced, `skip` names no layer, or nothing is left to quantize.
    """
    graph_module = _graph(network, input_shape)
    graph = graph_module.graph
    _fold_batch_norm(graph_module)
    for name in skip:
        kinds = CONVOLUTIONS | LINEAR | ADDITIONS
        if not any(node.target in kinds and _inside(layer_of(node), name) for node in graph.nodes):
            raise ArchitectureError(f"skip names {name!r}, but there is no convolution, linear layer or addition there")
    layers = [
        node for node in graph.nodes if _is_layer(node) and not any(_inside(layer_of(node), name) for name in skip)
    ]
    if not layers:
        raise ArchitectureError("the network has no convolution, linear layer or addition left to quantize")
    grid_of = _place_activations(graph_module, _points(layers))
    _place_parameters(graph_module, layers, grid_of, weight_bits)
    graph.lint()
    names = _names(graph_module)
    graph_module.delete_all_unused_submodules()
    quantized = QuantizedNetwork(graph_module, graph)
    quantized.meta["points"] = names
    return quantized.eval()


def operation_of(node: fx.Node) -> str:
    """The operator that outputs a tensor, as `conv2d`; for one of several outputs, the one that outputs them all."""
    if node.target is operator.getitem:
        return operation_of(node.all_input_nodes[0])
    return "batch_norm" if node.target is BATCH_NORM else node.target.__name__.partition(".")[0]  # type: ignore[union-attr]


def _graph(network: nn.Module, input_shape: tuple[int, int, int, int]) -> fx.GraphModule:
    program = trace(copy.deepcopy(network).cpu().eval(), input_shape)
    functional = program.run_decompositions({}).module(check_guards=False)
    return fx.GraphModule(functional, functional.graph)


def _fold_batch_norm(graph_module: fx.GraphModule) -> None:
    """Fold every BatchNorm into the layer before it, if nothing else uses that layer and its parameters."""
    graph = graph_module.graph
    for norm in [node for node in graph.nodes if node.target is BATCH_NORM]:
        layer, *statistics = norm.args[:5]
        eps = norm.args[6]
        if layer.target in ADDITIONS or not _is_layer(layer) or len(layer.users) > 1:
            continue
        weight, bias = _parameters(layer)
        if len(weight.users) > 1 or (bias is not None and len(bias.users) > 1):
            continue
        old_bias = None if bias is None else attribute(graph_module, bias)
        gamma, beta, mean, var = (None if node is None else attribute(graph_module, node) for node in statistics)
        fuse: Callable[..., tuple[nn.Parameter, nn.Parameter]] = (
            fuse_conv_bn_weights if layer.target in CONVOLUTIONS else fuse_linear_bn_weights
        )
        folded_weight, folded_bias = fuse(attribute(graph_module, weight), old_bias, mean, var, eps, gamma, beta)
        bias_target = str(bias.target) if bias is not None else _new_bias(graph_module, str(weight.target))
        set_attribute(graph_module, str(weight.target), folded_weight)
        set_attribute(graph_module, bias_target, folded_bias)
        with graph.inserting_before(layer):
            bias = graph.get_attr(bias_target)
        layer.args = (layer.args[0], weight, bias, *layer.args[3:])
        for output in list(norm.users):
            output.replace_all_uses_with(layer)
    graph.eliminate_dead_code()


def _new_bias(graph_module: fx.GraphModule, weight: str) -> str:
    """A name for the bias that folding gives a layer without one: `conv1.bias` beside `conv1.weight`."""
    owner, _, name = weight.rpartition(".")
    taken = getattr(graph_module.get_submodule(owner), "bias", None) is not None
    bias = "bias" if name == "weight" and not taken else f"{name}_bias"
    return f"{owner}.{bias}" if owner else bias


def _points(layers: Sequence[fx.Node]) -> list[fx.Node]:
    """The tensors that are rounded to their own grid or to that of their input, in the order of the graph."""
    points: set[fx.Node] = set()

    def add(node: fx.Node) -> None:
        points.add(node)
        if _shares_grid(node):
            add(node.all_input_nodes[0])

    for layer in layers:
        for node in _activation_inputs(layer):
            add(node)
        (user, *others) = layer.users
        end = user if not others and user.target in ACTIVATIONS else layer
        if any(user.op != "output" for user in end.users):
            add(end)
    return [node for node in layers[0].graph.nodes if node in points]


def _place_activations(graph_module: fx.GraphModule, points: Sequence[fx.Node]) -> dict[fx.Node, str]:
    """Put a quantizer after every point; returns the module that rounds each tensor."""
    graph = graph_module.graph
    quantizers = nn.ModuleList()
    graph_module.add_module(ACTIVATIONS_AT, quantizers)
    grid_of: dict[fx.Node, str] = {}
    for point in points:
        if _shares_grid(point):
            if not isinstance(point.meta.get("val"), Tensor):
                grid_of[point] = grid_of[point.all_input_nodes[0]]
                continue  # several tensors (a split); each is rounded where it is taken
            grid = grid_of[point.all_input_nodes[0]]
        else:
            grid = f"{ACTIVATIONS_AT}.{len(quantizers)}"
            quantizers.append(ActivationQuantizer())
        with graph.inserting_after(point):
            rounded = graph.call_module(grid, (point,))
        for user in [user for user in point.users if user is not rounded]:
            user.replace_input_with(point, rounded)
        grid_of[point] = grid_of[rounded] = grid
    return grid_of


def _place_parameters(
    graph_module: fx.GraphModule, layers: Sequence[fx.Node], grid_of: Mapping[fx.Node, str], weight_bits: int
) -> None:
    graph = graph_module.graph
    quantizers = nn.ModuleList()
    graph_module.add_module(PARAMETERS_AT, quantizers)
    for layer in layers:
        if layer.target in ADDITIONS:
            continue
        weight, bias = _parameters(layer)
        quantizers.append(ParameterQuantizer(weight_bits))
        with graph.inserting_before(layer):
            (given,) = _activation_inputs(layer)
            input_scale = graph.get_attr(f"{grid_of[given]}.scale")
            pair = graph.call_module(f"{PARAMETERS_AT}.{len(quantizers) - 1}", (weight, bias, input_scale))
            rounded_weight = graph.call_function(operator.getitem, (pair, 0))
            rounded_bias = graph.call_function(operator.getitem, (pair, 1))
        layer.args = (layer.args[0], rounded_weight, rounded_bias, *layer.args[3:])


def _names(graph_module: fx.GraphModule) -> tuple[str, ...]:
    """A name for every activation quantizer: the layer and the operator that output its tensor."""
    names: dict[str, str] = {}
    for node in graph_module.graph.nodes:
        if node.op != "call_module" or not node.target.startswith(f"{ACTIVATIONS_AT}.") or node.target in names:
            continue
        source = node.args[0]
        if source.op == "placeholder":
            base = "input"
        elif source.op == "get_attr":
            base = str(source.target)
        else:
            base = f"{layer_of(source)}:{operation_of(source)}"
        repeat = sum(name.partition("#")[0] == base for name in names.values())
        names[node.target] = f"{base}#{repeat + 1}" if repeat else base
    return tuple(names[f"{ACTIVATIONS_AT}.{index}"] for index in range(len(names)))


def _shares_grid(node: fx.Node) -> bool:
    """Whether the values of `node` are values of its input."""
    if node.target is operator.getitem:
        return _shares_grid(node.all_input_nodes[0])
    return node.target in SAME_GRID


def _is_layer(node: fx.Node) -> bool:
    if node.target in ADDITIONS:
        return all(isinstance(a, fx.Node) and _is_float(a) for a in node.args[:2])
    return node.target in CONVOLUTIONS | LINEAR and all(
        given is None or given.op == "get_attr" for given in _parameters(node)
    )


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0


def _activation_inputs(layer: fx.Node) -> Sequence[fx.Node]:
    return layer.args[:2] if layer.target in ADDITIONS else layer.args[:1]  # type: ignore[return-value]


def _parameters(layer: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    return layer.args[1], layer.args[2] if len(layer.args) > 2 else None  # type: ignore[return-value]


def _inside(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.")
