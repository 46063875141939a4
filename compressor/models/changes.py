"""Structural changes: what a stage did to an architecture, as plain data that is replayed on loading."""

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from compressor.errors import ArtifactError
from compressor.quantization.network import UINT8_MAX
from compressor.quantization.placement import quantize_network


class Width(BaseModel):
    """Channels that a layer takes and gives; `groups` of a convolution."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: int
    outputs: int
    groups: int = 1


class Widths(BaseModel):
    """Layers have other widths than the architecture gives them (structured pruning)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["widths"] = "widths"
    layers: dict[str, Width]

    def apply(self, network: nn.Module, input_shape: tuple[int, int, int, int]) -> nn.Module:
        """Give the named layers of `network`, in place, their widths and untrained parameters of that shape."""
        for name, width in self.layers.items():
            try:
                _resize(network.get_submodule(name), width)
            except AttributeError as error:
                raise ArtifactError(f"the saved widths name a layer {name!r} that the network lacks") from error
        return network


class Removed(BaseModel):
    """Modules hand on what they are given (depth pruning)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["removed"] = "removed"
    modules: tuple[str, ...]

    def apply(self, network: nn.Module, input_shape: tuple[int, int, int, int]) -> nn.Module:
        """Put an identity in the place of each of the modules of `network`, in place."""
        for name in self.modules:
            try:
                network.get_submodule(name)
            except AttributeError as error:
                raise ArtifactError(f"the saved changes remove a module {name!r} that the network lacks") from error
            network.set_submodule(name, nn.Identity())
        return network


class Masked(BaseModel):
    """Weights of the named parameters that are zero stay zero (unstructured pruning)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["masked"] = "masked"
    parameters: tuple[str, ...]

    def apply(self, network: nn.Module, input_shape: tuple[int, int, int, int]) -> nn.Module:
        """The zeros come with the weights."""
        return network


Scale = Annotated[float, Field(ge=torch.finfo(torch.float32).tiny, le=torch.finfo(torch.float32).max)]
ZeroPoint = Annotated[int, Field(ge=0, le=UINT8_MAX)]


class Int8(BaseModel):
    """The network is quantized: BatchNorm folded, every point of `activations` and all weights on an integer grid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["int8"] = "int8"
    activations: dict[str, tuple[Scale, ZeroPoint]]  # point -> (scale, zero point) of its uint8 grid
    skip: tuple[str, ...] = ()
    weight_bits: Literal[7, 8] = 8

    def apply(self, network: nn.Module, input_shape: tuple[int, int, int, int]) -> nn.Module:
        """A quantized network that fakes integers in float, with the ranges of `activations`."""
        quantized = quantize_network(network, input_shape, skip=self.skip, weight_bits=self.weight_bits)
        quantized.set_ranges(self.activations)
        return quantized


Change = Annotated[Widths | Removed | Masked | Int8, Field(discriminator="kind")]


def widths_of(network: nn.Module) -> dict[str, Width]:
    """The width of every layer that `Widths` can describe, by name."""
    widths = {}
    for name, module in network.named_modules():
        match module:
            case nn.Conv2d():
                widths[name] = Width(inputs=module.in_channels, outputs=module.out_channels, groups=module.groups)
            case nn.Linear():
                widths[name] = Width(inputs=module.in_features, outputs=module.out_features)
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                widths[name] = Width(inputs=module.num_features, outputs=module.num_features)
    return widths


def _resize(layer: nn.Module, width: Width) -> None:
    match layer:
        case nn.Conv2d():
            layer.in_channels, layer.out_channels, layer.groups = width.inputs, width.outputs, width.groups
            shape = (width.outputs, width.inputs // width.groups, *layer.kernel_size)
        case nn.Linear():
            layer.in_features, layer.out_features = width.inputs, width.outputs
            shape = (width.outputs, width.inputs)
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            layer.num_features = width.outputs
            shape = (width.outputs,)
            if layer.track_running_stats:
                layer.running_mean = _empty(layer.weight, shape)
                layer.running_var = _empty(layer.weight, shape)
        case _:
            raise ArtifactError(f"a {type(layer).__name__} layer has no width to set")
    layer.weight = nn.Parameter(_empty(layer.weight, shape))
    if layer.bias is not None:
        layer.bias = nn.Parameter(_empty(layer.weight, shape[:1]))


def _empty(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros(shape, dtype=like.dtype, device=like.device)
