"""From a name to an untrained network: `resnet56`, `resnet`, `library:NAME`, `package.module:Factory`."""

import copy
import importlib
import inspect
import re
import sys
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from compressor.config.factories import factory_of
from compressor.config.spec import Arguments
from compressor.errors import ArchitectureError, first_line, pass_on_out_of_memory
from compressor.models.libraries.catalogue import library_of
from compressor.models.repvgg import RepVGG
from compressor.models.resnet import ResNet, blocks_of_depth
from compressor.storage.code import note_imported
from compressor.tracing import layer_in_words, running_layers

MAX_SHOWN = 200  # characters of arguments that are wrong
NOISE = 0.02  # the standard deviation of what weights are changed by
REMEDIES = {  # hooks that compute a weight before each forward pass
    WeightNorm: "torch.nn.utils.remove_weight_norm",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm",
}


class Architecture(BaseModel):
    """Everything needed to build a network again, except its weights.

    `model` is one of

    - `resnet8`, `resnet14`, `resnet20`, `resnet32`, `resnet44`, `resnet56`, `resnet110`: He's CIFAR ResNets;
    - `resnet` with `arguments: {blocks: [1, 1, 1], widths: [16, 64, 128]}`: their general form;
    - `repvgg` with the same arguments: plain 3x3 convolutions in an int8 file, with branches while it trains;
    - `torchvision:NAME` and `timm:NAME`: a classification network of these libraries, without its weights;
    - `package.module:Factory`: your own callable that returns an `nn.Module`. It is called with `arguments`, and
      with `num_classes` and `in_channels` if it has parameters with these names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(max_length=1000)
    arguments: Arguments = {}
    num_classes: int = Field(ge=1)
    in_channels: int = Field(ge=1)

    @property
    def factory(self) -> str | None:
        """The `package.module:Factory` that building imports; None for a built-in network or one of a library."""
        return factory_of(self.model)

    def build(self, *, factories: frozenset[str] = frozenset()) -> nn.Module:
        """An untrained network; its initial weights come from torch's global generator.

        Args:
            factories: the factories that may be imported: those the user's own pipeline names.

        Raises:
            ArchitectureError: the name is unknown, the arguments do not fit, or the factory is not allowed.
        """
        try:
            network = self._build(factories)
        except ArchitectureError:
            raise
        except (Exception, SystemExit) as error:  # a factory may raise anything
            pass_on_out_of_memory(error)
            reason = first_line(error)
            arguments = str(self.arguments)
            arguments = arguments if len(arguments) <= MAX_SHOWN else f"{arguments[:MAX_SHOWN]}…"
            raise ArchitectureError(f"model {self.model!r} with arguments {arguments}: {reason}") from error
        if not isinstance(network, nn.Module):
            raise ArchitectureError(f"model {self.model!r} returned a {type(network).__name__}, not an nn.Module")
        if len(list(network.parameters())) != len(list(network.named_parameters(remove_duplicate=False))):
            raise ArchitectureError(f"model {self.model!r} shares parameters between layers, which cannot be saved")
        check_weights_are_parameters(network)
        return network

    def classifier(self, *, factories: frozenset[str] = frozenset()) -> frozenset[str]:
        """The layers whose shape depends on the number of classes; empty if the factory fixes that number itself.

        Raises:
            ArchitectureError: as `build`.
        """
        wider = self.model_copy(update={"num_classes": self.num_classes + 1})
        with torch.random.fork_rng(devices=[]):
            own, other = (each.build(factories=factories).state_dict() for each in (self, wider))
        return frozenset(
            name.rpartition(".")[0] or name
            for name, tensor in own.items()
            if name not in other or other[name].shape != tensor.shape
        )

    def _build(self, factories: frozenset[str]) -> Any:
        data: dict[str, Any] = {"num_classes": self.num_classes, "in_channels": self.in_channels}
        if self.factory is not None:
            if self.factory not in factories:
                raise ArchitectureError(
                    f"{self.factory} is imported only when the pipeline itself names it as a model; it does not"
                )
            return _call(_import(self.factory), self.arguments, data)
        if (found := library_of(self.model)) is not None:
            library, name = found
            return library.build(name, self.arguments, **data)
        if self.model == "resnet":
            return ResNet(**{**data, **self.arguments})
        if self.model == "repvgg":
            return RepVGG(**{**data, **self.arguments})
        if match := re.fullmatch(r"resnet(\d{1,6})", self.model):
            blocks = blocks_of_depth(int(match[1]))
            return ResNet(**{**data, "blocks": blocks, "widths": (16, 32, 64), **self.arguments})
        raise ArchitectureError(
            f"unknown model {self.model!r}; expected resnet20 (or 8, 14, 32, 44, 56, 110), resnet or repvgg with "
            "blocks and widths, torchvision:NAME, timm:NAME, or package.module:Factory"
        )


def _import(factory: str) -> Any:
    module_name, _, attribute = factory.partition(":")
    is_new = module_name not in sys.modules
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except SystemExit as error:
        raise ArchitectureError(
            f"model {factory!r} cannot be imported: {module_name} ends the program when it is imported; "
            'put what it runs under `if __name__ == "__main__":`'
        ) from error
    except (ImportError, AttributeError) as error:
        raise ArchitectureError(
            f"model {factory!r} cannot be imported ({error}); expected package.module:Factory, in a file "
            "beside the pipeline file or in the current directory, or installed"
        ) from error
    if is_new:
        note_imported(module_name)
    return found


def _call(factory: Any, arguments: dict[str, Any], data: dict[str, Any]) -> Any:
    accepted = inspect.signature(factory).parameters
    return factory(**{name: value for name, value in data.items() if name in accepted} | arguments)


def check_weights_are_parameters(network: nn.Module) -> None:
    """Refuse weights that are computed from other parameters (weight norm): they cannot be pruned or quantized.

    Raises:
        ArchitectureError: there are some; the message names the layer and the call that removes them.
    """
    for name, module in network.named_modules():
        remedies = [REMEDIES[kind] for hook in module._forward_pre_hooks.values() if (kind := type(hook)) in REMEDIES]
        if is_parametrized(module):
            remedies.append("torch.nn.utils.parametrize.remove_parametrizations")
        if remedies:
            raise ArchitectureError(
                f"{layer_in_words(network, [name])} computes its weight from other parameters (weight norm or another "
                f"parametrization); where the network is made, call {remedies[0]} on it"
            )


def check_fits(network: nn.Module, architecture: Architecture, input_shape: tuple[int, ...]) -> None:
    """Run one blank batch through `network` and require logits `[N, num_classes]`.

    Raises:
        ArchitectureError: the forward pass fails, or returns something else.
    """
    output = _run_blank(network.eval(), architecture, input_shape)
    shape = tuple(output.shape)
    expected = (input_shape[0], architecture.num_classes)
    if shape != expected:
        raise ArchitectureError(
            f"model {architecture.model!r} returns an output of shape {list(shape)} for {expected[0]} images; "
            f"the data has {expected[1]} classes, so {list(expected)} is needed"
        )


@torch.no_grad()
def check_is_saved(
    network: nn.Module, architecture: Architecture, factories: frozenset[str], input_shape: tuple[int, ...]
) -> None:
    """Build the user's network once more and require that, with the same weights, it computes the same.

    Weights that begin at zero would hide what they multiply, so both get others.

    Raises:
        ArchitectureError: it computes something else.
    """
    if architecture.factory is None:
        return
    own = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        again = architecture.build(factories=factories)
        images = torch.randn(input_shape)
        for parameter in own.parameters():
            parameter.add_(NOISE * torch.randn_like(parameter))
        try:
            again.load_state_dict(own.state_dict())
        except RuntimeError as error:
            raise ArchitectureError(
                f"model {architecture.model!r} has other weights each time it is built: {first_line(error)}"
            ) from error
        torch.manual_seed(0)  # for what the forward pass draws
        expected = own.eval()(images)
        torch.manual_seed(0)
        logits = again.eval()(images)
    if not torch.allclose(logits, expected, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise ArchitectureError(
            f"model {architecture.model!r} computes something else when it is built again with the same weights, as "
            "loading does; look for random numbers that are neither parameters nor persistent buffers, and for modules "
            "in a plain list instead of an nn.ModuleList"
        )


def check_trains(network: nn.Module, architecture: Architecture, input_shape: tuple[int, ...]) -> None:
    """Run one blank batch through a copy of `network` in training mode and require one output: no auxiliary heads.

    Raises:
        ArchitectureError: the forward pass fails, or returns something else.
    """
    _run_blank(copy.deepcopy(network).train(), architecture, input_shape)


@torch.no_grad()
def _run_blank(network: nn.Module, architecture: Architecture, input_shape: tuple[int, ...]) -> torch.Tensor:
    training, advice = "", ""
    if network.training:
        training = " while training"
        advice = "switch auxiliary outputs off with arguments, as in {aux_logits: false}"
    with running_layers(network) as running, torch.random.fork_rng(devices=[]):
        try:
            output = network(torch.zeros(input_shape))
        except Exception as error:  # a forward pass may raise anything
            pass_on_out_of_memory(error)
            raise ArchitectureError(
                f"model {architecture.model!r} does not take images of shape {list(input_shape[1:])} (C, H, W)"
                f"{training}: {layer_in_words(network, running)}: {first_line(error)}"
                + (f"; if this is an auxiliary output, {advice}" if advice else "")
            ) from error
    if not isinstance(output, torch.Tensor):
        raise ArchitectureError(
            f"model {architecture.model!r} returns a {type(output).__name__}{training}, but logits are needed"
            + (f"; {advice}" if advice else "")
        )
    return output
