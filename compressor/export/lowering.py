"""Quantized networks in ONNX operators: QuantizeLinear / DequantizeLinear pairs and integer constants."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from compressor.quantization.network import (
    MIDDLE,
    ActivationQuantizer,
    ParameterQuantizer,
    QuantizedNetwork,
    attribute,
    set_attribute,
)
from compressor.quantization.operators import CONVOLUTIONS, aten, pools_globally

IN_MULTIPLE, MIN_OUT = 4, 16  # channels that ONNX Runtime's direct int8 convolution takes (MlasConvSym)


def lower_to_onnx(network: QuantizedNetwork, *, signed: bool = False) -> fx.GraphModule:
    """A copy whose quantizers are ONNX operators and integer constants; it can be exported but not run.

    As ONNX Runtime is fast with it; or `signed`, as TensorRT reads it: activations in int8 with zero point 0, biases in
    float. The grids of a signed network are symmetric.
    """
    lowered = copy.deepcopy(network)
    _pool_globally(lowered)
    if not signed:
        _pad_image(lowered)
    for node in [node for node in lowered.graph.nodes if node.op == "call_module"]:
        module = lowered.get_submodule(node.target)
        if isinstance(module, ParameterQuantizer):
            weight, bias, input_scale = node.args
            constants = _IntegerParameters(
                module,
                attribute(lowered, weight),
                None if bias is None else attribute(lowered, bias),
                attribute(lowered, input_scale),
                signed,
            )
            lowered.set_submodule(node.target, constants)
            node.args = ()
        elif isinstance(module, ActivationQuantizer):
            source = node.args[0]
            hard_sigmoid = source.target is aten.hardsigmoid.default
            if hard_sigmoid and not signed and _is(network, source.args[0], ActivationQuantizer):
                _hard_sigmoid_as_addition(lowered, node, module)
            lowered.set_submodule(node.target, _QuantizeDequantize(module, signed=signed))
    lowered.graph.eliminate_dead_code()
    lowered.delete_all_unused_submodules()
    lowered.recompile()
    return lowered


def _pad_image(network: QuantizedNetwork) -> None:
    """Pad the image with channels of zeros for quantized convolutions; no output depends on them.

    Without them ONNX Runtime copies the image patch by patch, and one or three channels take longer than four.
    """
    graph = network.graph
    image = next(node for node in graph.nodes if node.op == "placeholder")
    for pair in [node for node in graph.nodes if _is(network, node, ParameterQuantizer)]:
        (layer,) = {layer for rounded in pair.users for layer in rounded.users}
        quantizer, weight = layer.args[0], pair.args[0]
        reads_image = _is(network, quantizer, ActivationQuantizer) and quantizer.args == (image,)
        in_groups = len(layer.args) > 6
        if layer.target not in CONVOLUTIONS or not reads_image or in_groups or len(weight.users) > 1:
            continue
        values = attribute(network, weight).detach()  # [out, in, height, width]
        padding = (0, 0, 0, 0, 0, -values.shape[1] % IN_MULTIPLE)
        if len(values) >= MIN_OUT and any(padding):
            set_attribute(network, str(weight.target), nn.Parameter(F.pad(values, padding), requires_grad=False))
            with graph.inserting_before(layer):
                padded = graph.call_function(aten.constant_pad_nd.default, (image, list(padding)))
                layer.args = (graph.call_module(quantizer.target, (padded,)), *layer.args[1:])


def _hard_sigmoid_as_addition(network: fx.GraphModule, rounded: fx.Node, quantizer: ActivationQuantizer) -> None:
    """Write hardsigmoid(x) = clamp(x + 3, 0, 6) / 6 without the operator, for which there is no integer kernel.

    The sum is rounded on a grid six times as coarse as that on which it is read, and clamped where that grid ends.
    """
    graph = network.graph
    (x,) = rounded.args[0].args  # type: ignore[union-attr]
    three, grid = f"{rounded.target}_three", f"{rounded.target}_of_sum"  # reshaped values share the quantizer itself
    network.add_submodule(three, _Three())
    network.add_submodule(grid, _QuantizeDequantize(quantizer, divisor=6))
    with graph.inserting_before(rounded):
        total = graph.call_function(aten.add.Tensor, (x, graph.call_module(three)))
        clamped = graph.call_function(aten.clamp.default, (total, 0, 6))
        rounded.replace_all_uses_with(graph.call_module(grid, (clamped,)))


def _pool_globally(network: fx.GraphModule) -> None:
    """Write means over height and width as GlobalAveragePool; as ReduceMean, they have no integer kernel."""
    for node in list(network.graph.nodes):
        if pools_globally(node):
            pool = f"pool_of_{node.name}"
            network.add_submodule(pool, _GlobalAveragePool())
            with network.graph.inserting_before(node):
                node.replace_all_uses_with(network.graph.call_module(pool, node.args[:1]))


def _is(network: fx.GraphModule, node: fx.Node, kind: type[nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), kind)


class _QuantizeDequantize(nn.Module):
    """Rounds x / divisor to the grid of a quantizer."""

    scale: Tensor
    given_scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: ActivationQuantizer, divisor: int = 1, *, signed: bool = False) -> None:
        super().__init__()
        zero_point = (quantizer.zero_point - MIDDLE).to(torch.int8) if signed else quantizer.zero_point.to(torch.uint8)
        self.register_buffer("scale", quantizer.scale.clone())
        self.register_buffer("given_scale", quantizer.scale * divisor)
        self.register_buffer("zero_point", zero_point)

    def forward(self, x: Tensor) -> Tensor:
        grid = (self.given_scale, self.zero_point)
        q = torch.onnx.ops.symbolic("QuantizeLinear", (x, *grid), dtype=self.zero_point.dtype, shape=x.shape)
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", (q, self.scale, self.zero_point), dtype=torch.float32, shape=x.shape
        )


class _Three(nn.Module):
    """The constant 3, on integers."""

    integer: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("integer", torch.tensor(255, dtype=torch.uint8))
        self.register_buffer("scale", torch.tensor(3 / 255))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.uint8))

    def forward(self) -> Tensor:
        grid = (self.integer, self.scale, self.zero_point)
        return torch.onnx.ops.symbolic("DequantizeLinear", grid, dtype=torch.float32, shape=())


class _GlobalAveragePool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], 1, 1)
        return torch.onnx.ops.symbolic("GlobalAveragePool", (x,), dtype=torch.float32, shape=shape)


class _IntegerParameters(nn.Module):
    weight: Tensor
    scale: Tensor
    zero_point: Tensor
    bias: Tensor | None  # in float where it has no scale
    bias_scale: Tensor | None

    def __init__(
        self,
        quantizer: ParameterQuantizer,
        weight: Tensor,
        bias: Tensor | None,
        input_scale: Tensor,
        bias_in_float: bool,
    ) -> None:
        super().__init__()
        scale = quantizer.scales(weight, bias, input_scale)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(
            weight.detach(), scale, zeros, 0, -quantizer.limit, quantizer.limit
        )
        by_channel = scale.view(-1, *[1] * (weight.dim() - 1))
        self.register_buffer("weight", torch.round(rounded / by_channel).to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zeros.to(torch.int8))
        grid = None
        if bias is not None:
            bias = bias.detach().clone()
            if not bias_in_float:
                grid = scale * input_scale
                bias = torch.round(bias / grid).to(torch.int32)
        self.register_buffer("bias", bias)
        self.register_buffer("bias_scale", grid)

    def forward(self) -> tuple[Tensor, Tensor | None]:
        weight = self._dequantize(self.weight, self.scale, self.zero_point)
        if self.bias is None or self.bias_scale is None:
            return weight, self.bias
        return weight, self._dequantize(self.bias, self.bias_scale)

    @staticmethod
    def _dequantize(integers: Tensor, *grid: Any) -> Tensor:
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", (integers, *grid), {"axis": 0}, dtype=torch.float32, shape=integers.shape
        )
