"""RepVGG for small images (Ding et al. 2021): branches while it trains, plain 3x3 convolutions in an int8 file."""

from typing import ClassVar

from torch import Tensor, nn

from compressor.models.resnet import ResNet


class Branches(nn.Module):
    """ReLU of a sum: `[N, in, H, W] -> [N, out, H / stride, W / stride]`.

    A 3x3 convolution, a 1x1 convolution and, where it has the same shape, the input, each with its BatchNorm.
    Quantizing folds them into one convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        same = stride == 1 and in_channels == out_channels
        self.identity = nn.BatchNorm2d(in_channels) if same else None
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn3(self.conv3(x)) + self.bn1(self.conv1(x))
        if self.identity is not None:
            y = y + self.identity(x)
        result: Tensor = self.relu(y)
        return result


class RepVGG(ResNet):
    """A stem, stages of such branches, average pooling and a linear classifier: `[N, C, H, W] -> [N, classes]`.

    Arguments as of `ResNet`; a stage of no blocks halves the resolution for the next one all the same.
    """

    block: ClassVar[type[nn.Module]] = Branches
