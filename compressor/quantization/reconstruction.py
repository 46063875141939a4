"""Mending a quantized network layer by layer, so that each gives what it gave in float although its input is rounded.

- bias correction (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019): the
  mean error of each output channel, here measured on images, is taken from the bias;
- AdaRound (`adaround`): weights are rounded up or down, whichever is better, and not to the nearest.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from compressor.quantization.adaround import Moments, adaround
from compressor.quantization.layers import IntegerLayer, integer_layers
from compressor.quantization.network import ActivationQuantizer, ParameterQuantizer, QuantizedNetwork
from compressor.quantization.operators import LINEAR, aten

MEMORY_BYTES = 2**31  # for the activations of all images at once,
LIVE = 8  # as many as the largest: some are needed at the same time, each in float and rounded
SAMPLES = 2**14  # of what a layer reads and gives,
AT_ONCE = 2**10  # so many at a time: fewer make slow products
MOST_INPUTS = 2**13  # of an output channel: their second moments fill 256 MB


def images_at_once(network: QuantizedNetwork) -> int:
    """How many images `reconstruct` can be given, so that its memory stays within bounds."""
    computed = [node for node in network.graph.nodes if node.op == "call_function"]
    values = [node.meta["val"] for node in computed if isinstance(node.meta.get("val"), Tensor)]
    sides = [[side for side in value.shape if isinstance(side, int)] for value in values]  # the batch is symbolic
    return max(1, MEMORY_BYTES // (LIVE * 4 * max(map(math.prod, sides))))


@torch.no_grad()
def reconstruct(network: QuantizedNetwork, inputs: Tensor, *, round_weights: bool) -> None:
    """Correct the biases of `network`, in place, and choose how its weights are rounded.

    A layer without a bias keeps its mean error. Layers that share their parameters keep them; AdaRound also leaves
    alone convolutions of one dimension or padded by name, and outputs of more than 8,192 inputs.

    Args:
        network: with calibrated ranges.
        inputs: normalised calibration images, `[N, C, H, W]`.
        round_weights: AdaRound, too.
    """
    _Mending(network, round_weights=round_weights).run(inputs)


@dataclass(frozen=True)
class _Both:
    """A value as it is in float, and as it is with all rounding so far."""

    exact: Any
    rounded: Any


class _Mending(fx.Interpreter):
    """Runs a quantized graph in float and rounded at once, and mends every layer before its rounded output is used."""

    def __init__(self, network: QuantizedNetwork, *, round_weights: bool) -> None:
        super().__init__(network)
        self.round_weights = round_weights
        self.layers = {layer.node: layer for layer in integer_layers(network)}

    def run_node(self, n: fx.Node) -> Any:
        if n in self.layers:
            (given, *_), _ = self.fetch_args_kwargs_from_env(n)
            return self._layer(self.layers[n], given)
        return super().run_node(n)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, ParameterQuantizer):
            return None  # layers read their parameters themselves, once they are mended
        exact, rounded = _side(args, "exact"), _side(args, "rounded")
        return _Both(exact[0] if isinstance(module, ActivationQuantizer) else module(*exact), module(*rounded))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if args[0] is None:
            return None  # an item of what a parameter quantizer gives
        if not any(isinstance(value, _Both) for value in tree_leaves((args, kwargs))):
            return target(*args, **kwargs)
        return _Both(
            target(*_side(args, "exact"), **_side(kwargs, "exact")),
            target(*_side(args, "rounded"), **_side(kwargs, "rounded")),
        )

    def _layer(self, layer: IntegerLayer, given: Any) -> _Both:
        x = given if isinstance(given, _Both) else _Both(given, given)
        operation: Any = layer.node.target
        settings = layer.node.args[3:]
        exact = operation(x.exact, layer.weight, layer.bias, *settings)
        if self.round_weights and layer.owns_parameters:
            _round(layer, x.rounded, exact)
        weight, bias = layer.quantizer(layer.weight, layer.bias, layer.input_scale)
        rounded = operation(x.rounded, weight, bias, *settings)
        if layer.bias is not None and layer.owns_parameters:
            channels_last = (exact - rounded).movedim(layer.channel_axis, -1)
            error = channels_last.flatten(0, -2).mean(0)  # [out]
            layer.bias.data += error
            rounded = (rounded.movedim(layer.channel_axis, -1) + error).movedim(-1, layer.channel_axis)
        return _Both(exact, rounded)


def _side(values: Any, side: Literal["exact", "rounded"]) -> Any:
    return tree_map(lambda value: getattr(value, side) if isinstance(value, _Both) else value, values)


def _round(layer: IntegerLayer, inputs: Tensor, outputs: Tensor) -> None:
    """AdaRound for one layer, in place."""
    weight, target = layer.weight, layer.node.target
    size = math.prod(weight.shape[1:])  # inputs of an output channel
    if size > MOST_INPUTS or not (target in LINEAR or target is aten.conv2d.default):
        return
    moments = Moments(centred=layer.bias is not None)
    for read, given in _in_rows(inputs, outputs) if target in LINEAR else _in_windows(layer, inputs, outputs):
        moments.add(read, given)
    groups = len(moments.inputs)
    scale = layer.weight_scale.view(groups, -1)
    rounded = adaround(weight.detach().reshape(groups, -1, size), scale, layer.quantizer.limit, moments)
    weight.data.copy_(rounded.view_as(weight))


def _in_rows(inputs: Tensor, outputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A sample of what a linear layer reads and gives: `[1, in, samples]` and `[1, out, samples]`."""
    read, given = inputs.flatten(0, -2), outputs.flatten(0, -2)
    chosen = torch.randperm(len(read), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    yield read[chosen].T[None], given[chosen].T[None]


def _in_windows(layer: IntegerLayer, inputs: Tensor, outputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For some images at a time, a sample of what a convolution reads and gives.

    That is `[groups, in * k * k, samples]` and `[groups, out, samples]`, with the channels of one group.
    """
    given: list[Any] = list(layer.node.args[3:])
    stride, padding, dilation, groups = given + [[1, 1], [0, 0], [1, 1], 1][len(given) :]
    positions = outputs[0, 0].numel()
    wanted = min(positions, -(-SAMPLES // len(inputs)))  # of each image
    generator = torch.Generator().manual_seed(0)
    for some, made in zip(*(each.split(-(-AT_ONCE // wanted)) for each in (inputs, outputs)), strict=True):
        windows = F.unfold(some, layer.weight.shape[2:], dilation, padding, stride)  # [B, in * k * k, positions]
        chosen = torch.randperm(positions, generator=generator)[:wanted]
        read, written = (each[..., chosen].transpose(0, 1).flatten(1) for each in (windows, made.flatten(2)))
        yield read.view(groups, -1, read.shape[1]), written.view(groups, -1, read.shape[1])
