"""From a trained network to the same one with other classes."""

from typing import Any

import torch
from torch import nn

from compressor.models.architectures import Architecture
from compressor.models.libraries.base import Pretrained
from compressor.storage import tensors


def load_pretrained(network: nn.Module, pretrained: Pretrained, architecture: Architecture) -> dict[str, Any]:
    """Download trained weights and load them into `network`, in place; its head stays new where the classes differ.

    Returns:
        For the report: where exactly the weights came from, their license, and the layers of the new head.

    Raises:
        ArtifactError: they cannot be downloaded, or do not fit the architecture's arguments.
    """
    with torch.random.fork_rng(devices=[]):
        trained, source = pretrained.download(architecture.arguments, architecture.in_channels)
    head = _transplant(trained, network)
    return {"model": pretrained.model, "source": source, "license": pretrained.license, "new_layers": head}


def _transplant(trained: nn.Module, network: nn.Module) -> list[str]:
    """Copy what fits; the two differ in nothing but the number of classes, so what does not is the head."""
    own, given = network.state_dict(), trained.state_dict()
    fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    tensors.load_into(network, fitting)
    return sorted({name.rpartition(".")[0] or name for name in own.keys() - fitting.keys()})
