"""Fake-quantized networks: rounded to integer grids in float, with straight-through gradients.

ONNX Runtime computes on these grids (`placement` says where they are):

- activations: uint8, affine, one (scale, zero point) per point;
- weights: int8, symmetric, one scale per channel: max |w| / 127, a function of the saved weights;
- biases: int32, with the scale of the input times that of the weights;
- the logits stay float.

Rounding with straight-through gradients: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (2018). `lowering` turns the quantizers into ONNX operators.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from compressor.errors import ArtifactError

UINT8_MAX, INT8_MAX = 255, 127
MIDDLE = 128  # the zero point of a uint8 grid that is symmetric: the integers of int8, moved by 128
ACTIVATIONS_AT, PARAMETERS_AT = "int8_activations", "int8_parameters"  # where a graph holds its quantizers


def to_grid(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """As `fake_quantize_per_tensor_affine`, to the bit, in a third of its time on a CPU; float32, whatever x is."""
    inverse, zero = float(scale.reciprocal()), int(zero_point)
    q = x * inverse if x.dtype == torch.float32 else x.float().mul_(inverse)
    return q.round_().clamp_(-zero, UINT8_MAX - zero).mul_(float(scale))


class _Rounding(torch.autograd.Function):
    """`to_grid`, whose gradient passes straight through where the grid reaches, and teaches its scale.

    With s = s0 exp(r), y the rounded x and m = 1 where the grid reaches, else 0, the derivative is
    ∂y/∂r = y - m x (LSQ: Esser et al., "Learned Step Size Quantization", 2020, who also scale it by 1 / √(n Q)). The
    logarithm is learned, as in TQT (Jain et al. 2020), because scales differ by orders of magnitude.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, log_scale: Tensor | None, scale: Tensor, zero_point: Tensor) -> Tensor:
        ctx.ends = [(end - int(zero_point)) * float(scale) for end in (-0.5, UINT8_MAX + 0.5)]
        if log_scale is None:
            ctx.save_for_backward(x)
            return to_grid(x, scale, zero_point)
        reached = x.to(torch.float32, copy=True)  # mixing types, and new memory, would take half as long again
        y = to_grid(reached, scale, zero_point)
        torch.ops.aten.hardtanh_backward.grad_input(reached, reached, *ctx.ends, grad_input=reached)  # m x
        ctx.save_for_backward(x, reached.sub_(y).to(x.dtype))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, *errors = ctx.saved_tensors
        gradient = gradients[0].to(x.dtype)
        passed: Tensor = torch.ops.aten.hardtanh_backward(gradient, x, *ctx.ends)
        if not errors:
            return passed, None, None, None
        slope = -(gradient * errors[0]).sum()  # in float32, then rounded: with dtype=torch.float32 six times as slow
        return passed, slope.float() / math.sqrt(x[0].numel() * UINT8_MAX), None, None


class ActivationQuantizer(nn.Module):
    """Rounds one point to its uint8 grid; with an `observer`, shows it the values and rounds nothing.

    A `log_scale` is trained: the factor by which the scale has changed since.
    """

    scale: Tensor
    zero_point: Tensor
    start: Tensor  # of the scale, while it is trained
    log_scale: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(1.0), persistent=False)
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32), persistent=False)
        self.register_parameter("log_scale", None)
        self.observer: Callable[[Tensor], object] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.observer is not None:
            self.observer(x.detach())
            return x
        if self.log_scale is not None:
            self.scale.copy_(self.start * self.log_scale.detach().exp())
        elif x.device.type != "cpu":  # reading a scale would wait for the device
            rounded: Tensor = torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, 0, UINT8_MAX)
            return rounded
        if not torch.is_grad_enabled():
            return to_grid(x, self.scale, self.zero_point)
        return _Rounding.apply(x, self.log_scale, self.scale, self.zero_point)  # type: ignore[no-any-return]

    def learn_scale(self) -> None:
        """Make the scale a parameter to train, until `settle_scale`."""
        self.register_buffer("start", self.scale.clone(), persistent=False)
        self.log_scale = nn.Parameter(torch.zeros_like(self.scale))

    def settle_scale(self) -> None:
        """Keep the scale as it was learned."""
        if self.log_scale is not None:
            self.scale.copy_(self.start * self.log_scale.detach().exp())
            self.log_scale = None
            del self.start


class ParameterQuantizer(nn.Module):
    """Rounds the weight and bias of one layer to their integer grids, given the scale of the layer's input."""

    def __init__(self, weight_bits: int) -> None:
        super().__init__()
        self.limit = 2 ** (weight_bits - 1) - 1
        self.enabled = True

    def scales(self, weight: Tensor, bias: Tensor | None, input_scale: Tensor) -> Tensor:
        """One scale per channel, `[out]`, large enough that the bias fits 30 bits even in a channel without weights."""
        scale: Tensor = weight.detach().flatten(1).abs().amax(1) / self.limit
        if bias is not None:
            scale = torch.maximum(scale, bias.detach().abs() / (input_scale * 2.0**30))
        return scale.clamp(min=torch.finfo(torch.float32).tiny)

    def forward(self, weight: Tensor, bias: Tensor | None, input_scale: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.enabled:
            return weight, bias
        scale = self.scales(weight, bias, input_scale)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -self.limit, self.limit)
        if bias is not None:
            grid = scale * input_scale
            bias = bias + (torch.round(bias.detach() / grid) * grid - bias.detach())  # straight through
        return rounded, bias


class QuantizedNetwork(fx.GraphModule):
    """A graph with its quantizers."""

    @property
    def points(self) -> tuple[str, ...]:
        """The names of the activation quantizers, in order."""
        names: tuple[str, ...] = self.meta["points"]  # kept when a GraphModule is copied
        return names

    @property
    def activation_quantizers(self) -> dict[str, ActivationQuantizer]:
        """The quantizers of activations, by point."""
        modules = (self.get_submodule(f"{ACTIVATIONS_AT}.{index}") for index in range(len(self.points)))
        return {p: m for p, m in zip(self.points, modules, strict=True) if isinstance(m, ActivationQuantizer)}

    @property
    def parameter_quantizers(self) -> list[ParameterQuantizer]:
        """The quantizers of weights and biases."""
        return [module for module in self.modules() if isinstance(module, ParameterQuantizer)]

    def ranges(self) -> dict[str, tuple[float, int]]:
        """`point -> (scale, zero point)`, as saved in a manifest."""
        quantizers = self.activation_quantizers.items()
        return {point: (float(q.scale), int(q.zero_point)) for point, q in quantizers}

    def set_ranges(self, ranges: Mapping[str, tuple[float, int]]) -> None:
        """The inverse of `ranges`.

        Raises:
            ArtifactError: the points are not those of this network.
        """
        if set(ranges) != set(self.points):
            odd = sorted(set(ranges) ^ set(self.points))
            raise ArtifactError(f"the saved ranges do not fit the network; first differing point: {odd[0]!r}")
        for point, quantizer in self.activation_quantizers.items():
            scale, zero_point = ranges[point]
            quantizer.scale.fill_(scale)
            quantizer.zero_point.fill_(zero_point)


def symmetric(ranges: Mapping[str, tuple[float, int]]) -> dict[str, tuple[float, int]]:
    """Grids with zero in the middle that reach as far as these, `point -> (scale, zero point)`."""
    return {
        point: (scale * max(zero_point, UINT8_MAX - zero_point) / INT8_MAX, MIDDLE)
        for point, (scale, zero_point) in ranges.items()
    }


@contextmanager
def unrounded(
    network: QuantizedNetwork, observers: Mapping[str, Callable[[Tensor], object]] = MappingProxyType({})
) -> Iterator[None]:
    """Switch rounding off; points show their observers, if they have one, the values that they would round."""
    quantizers = network.activation_quantizers
    for point, quantizer in quantizers.items():
        quantizer.observer = observers.get(point, _ignore)
    for parameters in network.parameter_quantizers:
        parameters.enabled = False
    try:
        yield
    finally:
        for quantizer in quantizers.values():
            quantizer.observer = None
        for parameters in network.parameter_quantizers:
            parameters.enabled = True


def _ignore(_: Tensor) -> None:
    """An observer that looks at nothing."""


def attribute(module: nn.Module, node: fx.Node) -> Tensor:
    """The tensor that a `get_attr` node reads."""
    owner, _, name = str(node.target).rpartition(".")
    value: Tensor = getattr(module.get_submodule(owner), name)
    return value


def set_attribute(module: nn.Module, target: str, value: nn.Parameter) -> None:
    """Make `get_attr` nodes with this target read `value`."""
    owner, _, name = target.rpartition(".")
    module.get_submodule(owner).register_parameter(name, value)
