"""The convolutions and linear layers of a quantized graph, and their parameters."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, fx

from compressor.quantization.network import ParameterQuantizer, QuantizedNetwork, attribute
from compressor.quantization.operators import CONVOLUTIONS
from compressor.tracing import layer_of


@dataclass(frozen=True)
class IntegerLayer:
    """A convolution or linear layer that reads its weight and bias from a quantizer."""

    network: QuantizedNetwork
    node: fx.Node
    rounding: fx.Node  # the call of the quantizer: weight, bias, scale of the input

    @property
    def name(self) -> str:
        """The module that it is, as `layer1.0.conv1`."""
        return layer_of(self.node)

    @property
    def quantizer(self) -> ParameterQuantizer:
        """What rounds its weight and bias."""
        module = self.network.get_submodule(str(self.rounding.target))
        assert isinstance(module, ParameterQuantizer)
        return module

    @property
    def weight(self) -> Tensor:
        """In float: `[out, in / groups, ...]`."""
        return attribute(self.network, self.rounding.args[0])  # type: ignore[arg-type]

    @property
    def bias(self) -> Tensor | None:
        """In float, `[out]`."""
        node = self.rounding.args[1]
        return attribute(self.network, node) if isinstance(node, fx.Node) else None

    @property
    def input_scale(self) -> Tensor:
        """The scale of its input's grid."""
        return attribute(self.network, self.rounding.args[2])  # type: ignore[arg-type]

    @property
    def weight_scale(self) -> Tensor:
        """One scale per channel, `[out]`."""
        return self.quantizer.scales(self.weight, self.bias, self.input_scale)

    @property
    def owns_parameters(self) -> bool:
        """Whether no other layer reads its weight and bias."""
        return all(len(given.users) == 1 for given in self.rounding.args[:2] if isinstance(given, fx.Node))

    @property
    def channel_axis(self) -> int:
        """The axis of its output along which its channels lie."""
        return 1 if self.node.target in CONVOLUTIONS else -1


def integer_layers(network: QuantizedNetwork) -> Iterator[IntegerLayer]:
    """All layers on integers that have a weight, in the order of the graph."""
    for node in network.graph.nodes:
        if node.op == "call_module" and isinstance(network.get_submodule(node.target), ParameterQuantizer):
            for layer in {layer for rounded in node.users for layer in rounded.users}:
                yield IntegerLayer(network, layer, node)
