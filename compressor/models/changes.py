"""Structural changes: what a stage did to an architecture, as plain data that is replayed on loading."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from torch import nn

from compressor.errors import ArtifactError
from compressor.quantization.network import UINT8_MAX, symmetric
from compressor.quantization.placement import quantize_network
from compressor.quantization.settings import Placement


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("a name stands here twice")
    return names


Name = Annotated[str, StringConstraints(max_length=1000)]  # of a module, a parameter or a point
Names = Annotated[tuple[Name, ...], AfterValidator(_distinct)]
Shape = tuple[Annotated[int, Field(ge=1)], ...]


class Width(BaseModel):
    """Channels that a layer takes and gives; `groups` of a convolution or a GroupNorm."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: int = Field(ge=1)
    outputs: int = Field(ge=1)
    groups: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _groups_are_equal(self) -> Self:
        if self.inputs % self.groups or self.outputs % self.groups:
            raise ValueError(f"{self.inputs} and {self.outputs} channels do not lie in {self.groups} equal groups")
        return self

    def within(self, other: "Width") -> bool:
        """Whether this is nowhere wider than `other`."""
        return (
            self.inputs <= other.inputs
            and self.outputs <= other.outputs
            and self.groups <= other.groups
            and self.inputs // self.groups <= other.inputs // other.groups
        )


class Widths(BaseModel):
    """Layers have other widths than the architecture gives them (structured pruning)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["widths"] = "widths"
    layers: dict[Name, Width]
    tensors: dict[Name, Shape] = {}
    """Parameters and buffers of other modules: class tokens, position embeddings, layer scale."""

    @classmethod
    def between(cls, before: nn.Module, shapes: Mapping[str, Sequence[int]]) -> Self:
        """What gives the parameters and buffers of `before` other shapes; each with as many dimensions as it has."""
        changed = {name: shapes[name] for name, old in before.state_dict().items() if tuple(shapes[name]) != old.shape}
        layers = {}
        for layer, width in widths_of(before).items():
            if own := {name for name in changed if name.rpartition(".")[0] == layer}:
                layers[layer] = _narrowed(width, shapes[min(own, key=lambda name: -len(shapes[name]))])
                changed = {name: shape for name, shape in changed.items() if name not in own}
        return cls(layers=layers, tensors={name: tuple(shape) for name, shape in changed.items()})

    def apply(self, network: nn.Module, input_shape: tuple[int, int, int, int]) -> nn.Module:
        """Give the named layers of `network`, in place, their widths and untrained parameters of that shape.

        Raises:
            ArtifactError: `network` lacks such a layer, or its own is narrower: pruning only removes.
        """
        before = widths_of(network)
        for name, width in self.layers.items():
            if name not in before:
                raise ArtifactError(f"the saved widths name a layer {name!r} that the network lacks")
            if not width.within(before[name]):
                raise ArtifactError(f"the saved widths make {name!r} wider than the architecture does")
            _resize(network.get_submodule(name), width)
        held = dict((*network.named_parameters(), *network.named_buffers()))
        for name, shape in self.tensors.items():
            if name not in held:
                raise ArtifactError(f"the saved widths name a tensor {name!r} that the network lacks")
            old = held[name]
            if len(shape) != old.dim() or any(new > size for new, size in zip(shape, old.shape, strict=True)):
                raise ArtifactError(f"the saved widths make {name!r} larger than the architecture does")
            owner, _, own = name.rpartition(".")
            empty = _empty(old, shape)
            setattr(network.get_submodule(owner), own, nn.Parameter(empty) if isinstance(old, nn.Parameter) else empty)
        return network


class Removed(BaseModel):
    """Modules hand on what they are given (depth pruning)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["removed"] = "removed"
    modules: Names

    def apply(self, network: nn.Module, input_shape: tuple[int, int, int, int]) -> nn.Module:
        """Put an identity in the place of each of the modules of `network`, in place.

        Raises:
            ArtifactError: `network` lacks such a module.
        """
        for name in self.modules:
            if not name or name not in dict(network.named_modules()):
                raise ArtifactError(f"the saved changes remove a module {name!r} that the network lacks")
            network.set_submodule(name, nn.Identity())
        return network


class Masked(BaseModel):
    """Weights of the named parameters that are zero stay zero (unstructured pruning)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["masked"] = "masked"
    parameters: Names

    def apply(self, network: nn.Module, input_shape: tuple[int, int, int, int]) -> nn.Module:
        """`network` as it is: the zeros come with the weights.

        Raises:
            ArtifactError: `network` lacks such a parameter.
        """
        known = dict(network.named_parameters())
        for name in self.parameters:
            if name not in known:
                raise ArtifactError(f"the saved changes mask a parameter {name!r} that the network lacks")
        return network


Scale = Annotated[float, Field(ge=torch.finfo(torch.float32).tiny, le=torch.finfo(torch.float32).max)]
ZeroPoint = Annotated[int, Field(ge=0, le=UINT8_MAX)]


class Int8(BaseModel):
    """The network is quantized: BatchNorm folded, every point of `activations` and all weights on an integer grid."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["int8"] = "int8"
    activations: dict[Name, tuple[Scale, ZeroPoint]]  # point -> (scale, zero point) of its uint8 grid
    skip: Names = ()
    weight_bits: Literal[7, 8] = 8
    placement: Placement = "layers"

    def symmetric(self) -> "Int8":
        """The same change with every grid symmetric about zero."""
        return self.model_copy(update={"activations": symmetric(self.activations)})

    def apply(self, network: nn.Module, input_shape: tuple[int, int, int, int]) -> nn.Module:
        """A quantized network that fakes integers in float, with the ranges of `activations`."""
        quantized = quantize_network(
            network, input_shape, skip=self.skip, weight_bits=self.weight_bits, placement=self.placement
        )
        quantized.set_ranges(self.activations)
        return quantized


Change = Annotated[Widths | Removed | Masked | Int8, Field(discriminator="kind")]


def widths_of(network: nn.Module) -> dict[str, Width]:
    """The width of every layer that `Widths` can describe, by name."""
    widths = {}
    for name, module in network.named_modules():
        match module:
            case nn.Conv1d() | nn.Conv2d():
                widths[name] = Width(inputs=module.in_channels, outputs=module.out_channels, groups=module.groups)
            case nn.Linear():
                widths[name] = Width(inputs=module.in_features, outputs=module.out_features)
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                widths[name] = Width(inputs=module.num_features, outputs=module.num_features)
            case nn.GroupNorm():
                channels, groups = module.num_channels, module.num_groups
                widths[name] = Width(inputs=channels, outputs=channels, groups=groups)
            case nn.LayerNorm(normalized_shape=(channels,)):
                widths[name] = Width(inputs=channels, outputs=channels)
    return widths


def _narrowed(width: Width, shape: Sequence[int]) -> Width:
    """The width of a layer once its weight has another shape."""
    outputs, inputs = shape[0], shape[1] if len(shape) > 1 else shape[0]
    if width.groups == 1:
        return Width(inputs=inputs, outputs=outputs)
    if len(shape) > 1 and width.inputs == width.groups:  # depthwise
        groups = outputs * width.groups // width.outputs
        return Width(inputs=groups, outputs=outputs, groups=groups)
    return Width(inputs=inputs * (width.groups if len(shape) > 1 else 1), outputs=outputs, groups=width.groups)


def _resize(layer: nn.Module, width: Width) -> None:
    shape: tuple[int, ...] = (width.outputs,)
    match layer:
        case nn.Conv1d() | nn.Conv2d():
            layer.in_channels, layer.out_channels, layer.groups = width.inputs, width.outputs, width.groups
            shape = (width.outputs, width.inputs // width.groups, *layer.kernel_size)
        case nn.Linear():
            layer.in_features, layer.out_features = width.inputs, width.outputs
            shape = (width.outputs, width.inputs)
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            layer.num_features = width.outputs
            if layer.running_mean is not None and layer.running_var is not None:
                layer.running_mean = _empty(layer.running_mean, shape)
                layer.running_var = _empty(layer.running_var, shape)
        case nn.GroupNorm():
            layer.num_channels, layer.num_groups = width.outputs, width.groups
        case nn.LayerNorm():
            layer.normalized_shape = shape
    for name, own in (("weight", shape), ("bias", shape[:1])):
        parameter = getattr(layer, name)
        if parameter is not None:
            setattr(layer, name, nn.Parameter(_empty(parameter, own)))


def _empty(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros(shape, dtype=like.dtype, device=like.device)
