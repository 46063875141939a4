"""Which layers suffer most from rounding, and a network in which some of them are back in float."""

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from compressor.quantization.layers import integer_layers
from compressor.quantization.network import ActivationQuantizer, QuantizedNetwork, unrounded
from compressor.quantization.operators import ACTIVATIONS


@torch.no_grad()
def sensitivities(network: QuantizedNetwork, inputs: Tensor) -> dict[str, float]:
    """What rounding each layer alone does to the predictions: KL divergence from those in float, in nats.

    A layer rounds its parameters, its input and its output. The names are those of modules, largest first.

    Args:
        network: with calibrated ranges.
        inputs: normalised images, `[N, C, H, W]`.
    """
    found: dict[str, float] = {}
    with unrounded(network):
        exact = network(inputs).double().log_softmax(1)
        for layer in integer_layers(network):
            quantizers = _around(network, layer.node)
            observers = [quantizer.observer for quantizer in quantizers]
            layer.quantizer.enabled = True
            for quantizer in quantizers:
                quantizer.observer = None
            rounded = network(inputs).double().log_softmax(1)
            layer.quantizer.enabled = False
            for quantizer, observer in zip(quantizers, observers, strict=True):
                quantizer.observer = observer
            divergence = float(F.kl_div(rounded, exact, log_target=True, reduction="batchmean"))
            found[layer.name] = max(found.get(layer.name, 0.0), divergence)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _around(network: QuantizedNetwork, layer: fx.Node) -> list[ActivationQuantizer]:
    """What rounds the input and the output of a layer."""
    after = [node for user in layer.users for node in ([user, *user.users] if user.target in ACTIVATIONS else [user])]
    called = [network.get_submodule(str(node.target)) for node in (layer.args[0], *after) if node.op == "call_module"]  # type: ignore[union-attr]
    return [module for module in called if isinstance(module, ActivationQuantizer)]


def carry_over(source: QuantizedNetwork, target: QuantizedNetwork) -> None:
    """Give `target`, which rounds at fewer places of the same graph, the weights and ranges of `source`."""
    target.load_state_dict(source.state_dict())
    given = _quantizers_by_tensor(source)
    for tensor, quantizer in _quantizers_by_tensor(target).items():
        quantizer.scale.copy_(given[tensor].scale)
        quantizer.zero_point.copy_(given[tensor].zero_point)


def _quantizers_by_tensor(network: QuantizedNetwork) -> dict[str, ActivationQuantizer]:
    """The quantizer of each tensor that is rounded, by the name that tracing gave it."""
    found = {}
    for node in network.graph.nodes:
        if node.op == "call_module" and isinstance(module := network.get_submodule(node.target), ActivationQuantizer):
            (tensor,) = node.args
            assert isinstance(tensor, fx.Node)
            found[tensor.name] = module
    return found
