"""Equalisation across layers: channels of one tensor share a grid, so they are brought to like ranges.

A layer's channel divided by s, and the weights that read it multiplied by s, compute the same (Nagel et al., "Data-Free
Quantization Through Weight Equalization and Bias Correction", 2019). Here weights have a scale for each output channel,
which takes in any s of the layer before; what s helps is the grid of the activations, and what it costs is that of the
weights which read them. So s balances these two, as in SmoothQuant (Xiao et al. 2023): s² = max |x| / max |w|. A
depthwise convolution reads a channel with a scale of its own, which costs nothing: s = max |x|.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from compressor.quantization.layers import IntegerLayer, integer_layers
from compressor.quantization.network import ActivationQuantizer, QuantizedNetwork, attribute, unrounded
from compressor.quantization.operators import BATCH_NORM, CONVOLUTIONS, LINEAR, aten

HOMOGENEOUS = {  # f(s x) = s f(x) for every channel
    aten.relu.default,
    aten.leaky_relu.default,
    aten.dropout.default,
    aten.clone.default,
    aten.contiguous.default,
}
POOLS = {aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default}  # of [N, C, H, W]
RESHAPING = {aten.flatten.using_ints, aten.view.default, aten.reshape.default}
LEAST = 1e-6  # of the largest s: a channel that is nearly always zero is not blown up without bounds


@dataclass(frozen=True)
class _Reader:
    layer: IntegerLayer
    given: fx.Node  # what it reads
    axis: int  # of the channels in it


@dataclass(frozen=True)
class _Seam:
    """What gives channels, and all that read them."""

    weight: fx.Node
    bias: fx.Node | None
    readers: tuple[_Reader, ...]


@torch.no_grad()
def equalise(network: QuantizedNetwork, batches: Iterable[Tensor]) -> int:
    """Bring the channels between layers to like ranges, in place; returns between how many layers.

    In float the network computes the same. Its ranges have to be calibrated again.

    Args:
        network: quantized; ranges do not matter.
        batches: normalised calibration images, `[N, C, H, W]`.
    """
    seams = _seams(network)
    largest = _Largest(network, {reader.given: reader.axis for seam in seams for reader in seam.readers})
    with unrounded(network):
        for batch in batches:
            largest.run(batch)
    for seam in seams:
        factors = _factors(seam, largest.found)
        for node in (seam.weight, seam.bias):
            if node is not None:
                values = attribute(network, node)
                values.data /= _along(0, factors, values)
        for reader in seam.readers:
            weight = reader.layer.weight
            if _is_depthwise(reader.layer):
                weight.data *= _along(0, factors.repeat_interleave(len(weight) // len(factors)), weight)
            else:
                weight.data *= _along(1, factors, weight)
    return len(seams)


class _Largest(fx.Interpreter):
    """Keeps max |x| of each channel of some tensors, over all batches."""

    def __init__(self, network: QuantizedNetwork, axes: Mapping[fx.Node, int]) -> None:
        super().__init__(network)
        self.axes = axes
        self.found: dict[fx.Node, Tensor] = {}  # [channels] each

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.axes:
            here = value.abs().movedim(self.axes[n], 0).flatten(1).amax(1)
            self.found[n] = torch.maximum(self.found.get(n, here), here)
        return value


def _factors(seam: _Seam, largest: Mapping[fx.Node, Tensor]) -> Tensor:
    """s of each channel; 1 for one that is never used."""
    x = torch.stack([largest[reader.given] for reader in seam.readers]).amax(0)
    others = [reader.layer.weight for reader in seam.readers if not _is_depthwise(reader.layer)]
    if others:
        w = torch.stack([weight.abs().transpose(0, 1).flatten(1).amax(1) for weight in others]).amax(0)
        factors = torch.where((x > 0) & (w > 0), (x / w).sqrt(), 0)
    else:
        factors = x
    used = factors > 0
    return torch.where(used, factors.clamp(min=LEAST * factors.max()), 1)


def _along(axis: int, factors: Tensor, values: Tensor) -> Tensor:
    """Factors in the shape that multiplies `values` along an axis."""
    return factors.view(*[1] * axis, -1, *[1] * (values.dim() - axis - 1))


def _seams(network: QuantizedNetwork) -> list[_Seam]:
    layers = {layer.node: layer for layer in integer_layers(network) if layer.owns_parameters}
    found = []
    for node in network.graph.nodes:
        given = _parameters(node, layers)
        if given is None:
            continue
        weight, bias = given
        axis = 1 if node.target in CONVOLUTIONS or node.target is BATCH_NORM else node.meta["val"].dim() - 1
        readers = _readers(network, node, axis, len(attribute(network, weight)), layers)
        if readers:
            found.append(_Seam(weight, bias, tuple(readers)))
    return found


def _parameters(node: fx.Node, layers: Mapping[fx.Node, IntegerLayer]) -> tuple[fx.Node, fx.Node | None] | None:
    """The weight and the bias that a layer or a norm multiplies its channels by and adds, if they are its own."""
    given: Sequence[Any]
    if node in layers:
        given = layers[node].rounding.args[:2]
    elif node.target in CONVOLUTIONS | LINEAR or node.target is BATCH_NORM:
        given = (*node.args, None)[1:3]
    elif node.target is aten.layer_norm.default:
        given = (*node.args, None, None)[2:4]
    else:
        return None
    owned = _owned(*given)
    if owned is None or (node.target is aten.layer_norm.default and len(node.args[1]) > 1):  # type: ignore[arg-type]
        return None  # a norm over several axes has no channels
    return owned


def _owned(weight: Any, bias: Any) -> tuple[fx.Node, fx.Node | None] | None:
    own = all(each is None or (each.op == "get_attr" and len(each.users) == 1) for each in (weight, bias))
    return (weight, bias) if own and weight is not None else None


def _readers(
    network: QuantizedNetwork, node: fx.Node, axis: int, channels: int, layers: Mapping[fx.Node, IntegerLayer]
) -> list[_Reader]:
    """The layers that read a tensor of channels; none if anything else does, for which s would not cancel."""
    found = []
    for user in node.users:
        layer = layers.get(user)
        if user.target is aten.sym_size.int:
            continue
        if layer is not None and user.args[0] is node and _reads_along(layer, axis, channels):
            found.append(_Reader(layer, node, axis))
            continue
        after = _axis_after(network, user, axis, channels)
        readers = [] if after is None else _readers(network, user, after, channels, layers)
        if not readers:
            return []
        found += readers
    return found


def _reads_along(layer: IntegerLayer, axis: int, channels: int) -> bool:
    """Whether a layer multiplies each of the channels by weights of its own."""
    if layer.node.target in LINEAR:
        return bool(axis == layer.node.meta["val"].dim() - 1) and layer.weight.shape[1] == channels
    return axis == 1 and (_is_depthwise(layer) or layer.weight.shape[1] == channels)


def _is_depthwise(layer: IntegerLayer) -> bool:
    """Whether a layer is a convolution of single channels."""
    groups: Any = (*layer.node.args, 1)[6] if len(layer.node.args) >= 6 else 1
    return bool(groups > 1) and layer.weight.shape[1] == 1


def _axis_after(network: QuantizedNetwork, node: fx.Node, axis: int, channels: int) -> int | None:
    """Where the channels lie in what a node gives; None if s does not simply pass through it."""
    if node.op == "call_module":
        return axis if isinstance(network.get_submodule(str(node.target)), ActivationQuantizer) else None
    if node.target in HOMOGENEOUS or (node.target is operator.getitem and node.args[0].target is BATCH_NORM):  # type: ignore[union-attr]
        return axis
    if node.target in POOLS:
        return axis if axis == 1 and node.meta["val"].dim() == 4 else None
    if node.target is aten.permute.default:
        order: Any = node.args[1]
        return [each % len(order) for each in order].index(axis)
    if node.target is aten.transpose.int:
        sides = [int(side) % node.meta["val"].dim() for side in node.args[1:]]  # type: ignore[arg-type]
        return sides[1 - sides.index(axis)] if axis in sides else axis
    if node.target in RESHAPING and axis == 1 and node.meta["val"].shape[1:] == (channels,):
        return 1
    return None
