"""Custom networks: a pipeline beside this file names one as `model: "networks:LeNet"`.

A factory is any callable that returns an `nn.Module`. It is called with the `arguments` of the stage, and with
`num_classes` and `in_channels` of the data if it has parameters with these names.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class Perceptron(nn.Module):
    """Fully connected layers on the pixels: `[N, C, H, W] -> [N, classes]`.

    Args:
        num_classes: outputs.
        pixels: C · H · W.
        widths: units of the hidden layers.
    """

    def __init__(self, num_classes: int, pixels: int, widths: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.layers = _connected((pixels, *widths, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(torch.flatten(x, 1))
        return logits


class LeNet(nn.Module):
    """Two convolutions and three fully connected layers (after LeCun et al. 1998): `[N, C, 32, 32] -> [N, classes]`."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2)
        self.layers = _connected((400, 120, 84, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.conv1(x)))  # [N, 6, 14, 14]
        x = self.pool(torch.relu(self.conv2(x)))  # [N, 16, 5, 5]
        logits: Tensor = self.layers(torch.flatten(x, 1))
        return logits


class CharacterNet(nn.Module):
    """Two padded convolutions, one pooling, and fully connected layers that hold most weights.

    `[N, C, 32, 32] -> [N, classes]`.
    """

    def __init__(self, num_classes: int, in_channels: int, widths: Sequence[int] = (512, 128)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.layers = _connected((64 * 16 * 16, *widths, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.conv2(torch.relu(self.conv1(x)))))  # [N, 64, 16, 16]
        logits: Tensor = self.layers(torch.flatten(x, 1))
        return logits


def _connected(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with a ReLU between each two."""
    layers = nn.Sequential()
    for before, after in pairwise(widths):
        if len(layers):
            layers.append(nn.ReLU())
        layers.append(nn.Linear(before, after))
    return layers
