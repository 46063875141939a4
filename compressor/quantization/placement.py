"""Where a network is rounded to integers: one placement for post-training quantization, training, saving and export.

A quantized network is the exported graph of the float one, with BatchNorm folded into the layer before it, parallel
convolutions of one tensor folded into one, and quantizers where ONNX Runtime needs them to execute every convolution,
linear layer and residual addition on integers: at the inputs of these layers and at their outputs, after the activation
function if there is one. Max pooling and reshaping share the grid of their input. A layer whose weight or bias is
computed in the forward pass stays in float, and so does a BatchNorm that cannot be folded; `float_layers` names them.
"""

import copy
import operator
from collections.abc import Mapping, Sequence

from torch import Tensor, fx, nn

from compressor.errors import ArchitectureError
from compressor.quantization.branches import fold_branches, names_of
from compressor.quantization.network import (
    ACTIVATIONS_AT,
    PARAMETERS_AT,
    ActivationQuantizer,
    ParameterQuantizer,
    QuantizedNetwork,
)
from compressor.quantization.operators import (
    ACTIVATIONS,
    ADDITIONS,
    BATCH_NORM,
    CONVOLUTIONS,
    LAYERS,
    LINEAR,
    activation_inputs,
    is_between_layers,
    is_layer,
    parameters,
    shares_grid,
)
from compressor.quantization.rewriting import fold_batch_norm, take_apart
from compressor.quantization.settings import Placement
from compressor.tracing import functional_graph, inside, layer_of


def quantize_network(
    network: nn.Module,
    input_shape: tuple[int, int, int, int],
    *,
    skip: Sequence[str] = (),
    weight_bits: int = 8,
    placement: Placement = "layers",
) -> QuantizedNetwork:
    """Fold BatchNorm and branches, and place quantizers; `network` is not changed.

    Args:
        network: a float network, `[N, C, H, W] -> [N, classes]`.
        input_shape: shape of an example batch of at least 2.
        skip: names of layers (or of modules that hold them) that stay in float.
        weight_bits: 8, or 7 for processors whose 8-bit products saturate (x86 without VNNI).
        placement: `layers` rounds around layers and additions; `wide` also around what lies between them.

    Raises:
        ArchitectureError: the network cannot be traced, `skip` names no layer, or nothing is left to quantize.
    """
    graph_module = _graph(network, input_shape)
    graph = graph_module.graph
    fold_batch_norm(graph_module)
    while fold_branches(graph_module):
        fold_batch_norm(graph_module)  # of sums, which may be branches again
    if placement == "wide":
        take_apart(graph_module)
    for name in skip:
        if not any(node.target in LAYERS and _skipped(node, [name]) for node in graph.nodes):
            raise ArchitectureError(f"skip names {name!r}, but there is no convolution, linear layer or addition there")
    layers = [node for node in graph.nodes if is_layer(node) and not _skipped(node, skip)]
    if not layers:
        raise ArchitectureError("the network has no convolution, linear layer or addition left to quantize")
    between = _between(layers, skip) if placement == "wide" else []
    grid_of = _place_activations(graph_module, _points([*layers, *between]))
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


def layer_names(network: QuantizedNetwork) -> tuple[str, ...]:
    """The names of all convolutions and linear layers, in the order of the graph, whether on integers or in float."""
    return tuple(layer_of(node) for node in network.graph.nodes if node.target in CONVOLUTIONS | LINEAR)


def _graph(network: nn.Module, input_shape: tuple[int, int, int, int]) -> fx.GraphModule:
    functional = functional_graph(copy.deepcopy(network).cpu().eval(), input_shape)
    return fx.GraphModule(functional, functional.graph)


def _between(layers: Sequence[fx.Node], skip: Sequence[str]) -> list[fx.Node]:
    """The operators between layers all of whose inputs are on integers, in order.

    Where an input is in float, another kernel in float costs less than rounding for an integer one.
    """
    on_integers: set[fx.Node] = set(layers)
    constants: set[fx.Node] = set()
    found: list[fx.Node] = []
    for node in layers[0].graph.nodes:
        is_between = is_between_layers(node) and not _skipped(node, skip)
        inputs = set(activation_inputs(node) if is_between else node.all_input_nodes[:1])
        if node.op == "get_attr" or (shares_grid(node) and inputs <= constants):
            constants.add(node)
        elif inputs <= on_integers | constants and not on_integers.isdisjoint(inputs):
            if is_between:
                found.append(node)
            if is_between or shares_grid(node) or node.target in ACTIVATIONS:
                on_integers.add(node)
    return found


def _points(layers: Sequence[fx.Node]) -> list[fx.Node]:
    """The tensors that are rounded to their own grid or to that of their input, in the order of the graph."""
    points: set[fx.Node] = set()

    def add(node: fx.Node) -> None:
        points.add(node)
        if shares_grid(node):
            add(node.all_input_nodes[0])

    for layer in layers:
        for node in activation_inputs(layer):
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
        if shares_grid(point):
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
        weight, bias = parameters(layer)
        quantizers.append(ParameterQuantizer(weight_bits))
        with graph.inserting_before(layer):
            (given,) = activation_inputs(layer)
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


def _skipped(node: fx.Node, skip: Sequence[str]) -> bool:
    return any(inside(own, name) for own in names_of(node) for name in skip)
