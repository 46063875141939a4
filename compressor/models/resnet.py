"""ResNets for small images (He et al. 2016, section 4.2), with 1x1-convolution shortcuts.

Parameters are named as in torchvision's ResNet: `conv1, bn1, layer1.0.conv1, …, layer2.0.downsample.0, fc`.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

MAX_BLOCKS, MAX_WIDTH = 1000, 65_536


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: `[N, in, H, W] -> [N, out, H / stride, W / stride]`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        result: Tensor = self.relu(y + self.downsample(x))
        return result


class ResNet(nn.Module):
    """A stem, stages of basic blocks, average pooling and a linear classifier: `[N, C, H, W] -> [N, classes]`.

    Args:
        blocks: basic blocks in each stage; 0 leaves a stage out.
        widths: channels of each stage; the stem has as many as the first.
        num_classes: outputs of the classifier.
        in_channels: channels of the images.

    The first stage works at the resolution of the images, and each later one at half that of the one before.
    """

    block: ClassVar[type[nn.Module]] = BasicBlock

    def __init__(
        self, blocks: Sequence[int], widths: Sequence[int], num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        if len(blocks) != len(widths) or not blocks:
            raise ValueError(f"blocks and widths need one number per stage each; got {blocks} and {widths}")
        if not (0 <= min(blocks) <= max(blocks) <= MAX_BLOCKS and 1 <= min(widths) <= max(widths) <= MAX_WIDTH):
            raise ValueError(
                f"blocks must be 0 to {MAX_BLOCKS} and widths 1 to {MAX_WIDTH}; got {list(blocks)} and {list(widths)}"
            )
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        width = widths[0]
        self.stages = len(blocks)
        for stage, (count, out) in enumerate(zip(blocks, widths, strict=True)):
            layer = nn.Sequential()
            for block in range(count):
                layer.append(self.block(width, out, 2 if stage > 0 and block == 0 else 1))
                width = out
            self.add_module(f"layer{stage + 1}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def blocks_of_depth(depth: int) -> tuple[int, int, int]:
    """The blocks per stage of the CIFAR ResNet with `depth` weighted layers: `depth = 6 n + 2`."""
    n, rest = divmod(depth - 2, 6)
    if rest or not 1 <= n <= MAX_BLOCKS:
        raise ValueError(
            f"a CIFAR ResNet has 6 n + 2 layers (8, 14, 20, …, {6 * MAX_BLOCKS + 2}); {depth} is not of that form"
        )
    return n, n, n
