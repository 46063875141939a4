"""Parallel convolutions of one tensor, added up in a single one, as in RepVGG (Ding et al. 2021) and MobileOne.

Convolutions are linear in their weights: a 3x3 convolution, a 1x1 convolution and the tensor itself, each with its
BatchNorm, sum to one 3x3 convolution. So they train as branches, and cost nothing in the file.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.functional import pad
from torch.nn.utils.fusion import fuse_conv_bn_weights

from compressor.quantization.network import attribute
from compressor.quantization.operators import ADDITIONS, BATCH_NORM, aten, is_float, is_layer, parameters
from compressor.quantization.rewriting import normalisation, set_parameters
from compressor.tracing import layer_of

PARTS = "parts"  # of a node: the names of the layers whose work it does, too

Pair = tuple[int, int]


def names_of(node: fx.Node) -> set[str]:
    """The name of a layer, and of those that were folded into it."""
    return {layer_of(node), *node.meta.get(PARTS, ())}


def fold_branches(graph_module: fx.GraphModule) -> bool:
    """Replace sums of convolutions of one tensor by one convolution; whether there were any.

    Its BatchNorms must be folded where they can be.
    """
    before = len(graph_module.graph.nodes)
    for addition in [node for node in graph_module.graph.nodes if node.target in ADDITIONS and not node.kwargs]:
        first, second = addition.args
        if is_float(first) and second in (0, 0.0):  # how MobileOne leaves a branch out
            _replace(addition, first)
        elif is_layer(addition):
            sum_of = _sum(graph_module, first, second) or _sum(graph_module, second, first)
            if sum_of is not None:
                kept, weight, bias = sum_of
                set_parameters(graph_module, kept, weight, bias)
                kept.meta[PARTS] = sorted(names_of(first) | names_of(second))
                _replace(addition, kept)
    graph_module.graph.eliminate_dead_code()
    return len(graph_module.graph.nodes) < before


@dataclass(frozen=True)
class _Branch:
    """A convolution of a tensor: `weight` is `[out, in / groups, kernel height, kernel width]`."""

    source: fx.Node
    weight: Tensor
    bias: Tensor | None
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    groups: int = 1

    def margins(self, smaller: "_Branch") -> Pair | None:
        """By how many zeros a kernel is framed to be like this one's, above and beside; None if no frame does it."""
        if (self.source, self.stride, self.groups) != (smaller.source, smaller.stride, smaller.groups):
            return None
        rows, columns = (own - other for own, other in zip(self.padding, smaller.padding, strict=True))
        framed = [size + 2 * margin for size, margin in zip(smaller.weight.shape[2:], (rows, columns), strict=True)]
        same = [*smaller.weight.shape[:2], *framed] == list(self.weight.shape)
        return (rows, columns) if same and min(rows, columns) >= 0 else None


def _sum(graph_module: fx.GraphModule, first: Any, second: Any) -> tuple[fx.Node, Tensor, Tensor | None] | None:
    """The first as a convolution that does the work of both, with its weight and bias; None if it cannot."""
    kept = _convolution(graph_module, first)
    if kept is None:
        return None
    added = _convolution(graph_module, second) or _channelwise(graph_module, second, kept.groups)
    if added is None or (margins := kept.margins(added)) is None:
        return None
    rows, columns = margins
    weight = kept.weight + pad(added.weight, (columns, columns, rows, rows))
    biases = [bias for bias in (kept.bias, added.bias) if bias is not None]
    return first, weight, sum(biases[1:], biases[0]) if biases else None


def _convolution(graph_module: fx.GraphModule, node: Any) -> _Branch | None:
    """A 2-D convolution that is used once, as are its parameters."""
    if node.target is not aten.conv2d.default or not is_layer(node) or len(node.users) > 1:
        return None
    if any(len(given.users) > 1 for given in parameters(node) if given is not None):
        return None
    defaults = (None, (1, 1), (0, 0), (1, 1), 1)
    given: Any = [*node.args, *defaults[len(node.args) - 2 :]]
    source, weight, bias, stride, padding, dilation, groups = given
    stride, padding, dilation = (tuple(each) * (1 + (len(each) == 1)) for each in (stride, padding, dilation))
    if dilation != (1, 1):
        return None
    own_bias = None if bias is None else attribute(graph_module, bias)
    return _Branch(source, attribute(graph_module, weight), own_bias, stride, padding, groups)


def _channelwise(graph_module: fx.GraphModule, node: Any, groups: int) -> _Branch | None:
    """A tensor, or what a BatchNorm makes of one, as a 1x1 convolution in so many groups."""
    shape = node.meta["val"].shape
    if len(shape) != 4 or shape[1] % groups:
        return None
    identity = torch.eye(shape[1] // groups).repeat(groups, 1)[:, :, None, None]  # [C, C / groups, 1, 1]
    norm: Any = node.args[0] if node.args and len(node.users) == 1 else None
    if getattr(norm, "target", None) is not BATCH_NORM:
        return _Branch(node, identity, None, groups=groups)
    weight, bias = fuse_conv_bn_weights(identity, None, *normalisation(graph_module, norm))
    return _Branch(norm.args[0], weight, bias, groups=groups)


def _replace(addition: fx.Node, by: fx.Node) -> None:
    """Let what reads a sum read one of its parts."""
    addition.replace_all_uses_with(by)
    addition.graph.erase_node(addition)
