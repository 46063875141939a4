"""Which layers of a quantized network still compute in float, and their share of its work."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from compressor.quantization.layers import integer_layers
from compressor.quantization.network import QuantizedNetwork
from compressor.quantization.operators import BATCH_NORM
from compressor.quantization.placement import operation_of
from compressor.tracing import layer_of

NAMED = 5  # layers; the others are only counted
ATTENTION = {  # torch's counter lacks it
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
}


def float_layers(network: QuantizedNetwork, input_shape: tuple[int, int, int, int]) -> dict[str, float]:
    """The share of the multiply-adds of every layer that stays in float, as `up (conv_transpose2d)`, largest first.

    All matrix products count, including those of attention.
    """
    work = _multiply_adds(network, input_shape)
    total = sum(work.values())
    shares: dict[str, float] = {}
    for node in work.keys() - {layer.node for layer in integer_layers(network)}:
        name = f"{layer_of(node) or _parameter(node) or 'forward'} ({operation_of(node)})"
        shares[name] = shares.get(name, 0.0) + work[node] / total
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))


def float_batch_norms(network: QuantizedNetwork) -> int:
    """How many BatchNorms could not be folded."""
    return sum(node.target is BATCH_NORM for node in network.graph.nodes)


def in_float(layers: Mapping[str, float], batch_norms: int) -> str:
    """What stays in float, in words; empty if nothing does."""
    words = [f"{name} {share:.1%}" for name, share in list(layers.items())[:NAMED]]
    if others := list(layers.values())[NAMED:]:
        words.append(f"{len(others)} more {sum(others):.1%}")
    parts = [f"{', '.join(words)} of the MACs"] if words else []
    if batch_norms:
        parts.append(f"{batch_norms} BatchNorm{'s' * (batch_norms > 1)} that cannot be folded")
    return "; ".join(parts)


class _Counter(fx.Interpreter):
    """Runs a graph and counts the multiply-adds of each operator."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.work: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            result = super().run_node(n)
        if flops := counter.get_total_flops():
            self.work[n] = flops // 2
        return result


@torch.no_grad()
def _multiply_adds(network: QuantizedNetwork, input_shape: tuple[int, int, int, int]) -> dict[fx.Node, int]:
    counter = _Counter(network)
    counter.run(torch.zeros(input_shape))
    return counter.work


def _parameter(node: fx.Node) -> str:
    """The parameter that is the weight of a layer, perhaps transposed or reshaped; empty if there is none."""
    weight = node.args[1]
    while isinstance(weight, fx.Node) and len(weight.all_input_nodes) == 1:
        (weight,) = weight.all_input_nodes
    return str(weight.target) if isinstance(weight, fx.Node) and weight.op == "get_attr" else ""
