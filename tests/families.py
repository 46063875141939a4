"""A small member of each family of torchvision that is more than a chain of convolutions, for images of 32 pixels."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.swin_transformer import SwinTransformerBlockV2


def convnext(num_classes: int) -> nn.Module:
    return models.ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=num_classes)


def densenet(num_classes: int) -> nn.Module:
    return models.DenseNet(8, (2, 2), num_init_features=16, num_classes=num_classes)


def efficientnet(num_classes: int) -> nn.Module:
    stages = [FusedMBConvConfig(1, 3, 1, 16, 16, 1), MBConvConfig(4, 3, 2, 16, 24, 2)]
    return models.EfficientNet(stages, dropout=0.1, num_classes=num_classes, last_channel=64)


def maxvit(num_classes: int) -> nn.Module:
    return models.MaxVit((32, 32), 8, 4, [8], [1], head_dim=8, stochastic_depth_prob=0.1, num_classes=num_classes)


def mobilenet_v3(num_classes: int) -> nn.Module:
    settings = (
        InvertedResidualConfig(16, 3, 32, 24, True, "RE", 2, 1, 1.0),
        InvertedResidualConfig(24, 5, 48, 24, True, "HS", 1, 1, 1.0),
    )
    return models.MobileNetV3(list(settings), 64, num_classes=num_classes)


def regnet(num_classes: int) -> nn.Module:
    return models.RegNet(BlockParams.from_init_params(2, 16, 16.0, 2.0, 8, se_ratio=0.25), num_classes=num_classes)


def shufflenet(num_classes: int) -> nn.Module:
    return models.ShuffleNetV2([2, 1, 1], [16, 32, 32, 32, 64], num_classes=num_classes)


def swin(num_classes: int, **second: Any) -> nn.Module:
    return models.SwinTransformer([2, 2], 16, [2], [2], [4, 4], num_classes=num_classes, **second)


def vit(num_classes: int) -> nn.Module:
    return models.VisionTransformer(32, 8, 1, 4, 32, 64, num_classes=num_classes)


FAMILIES: dict[str, Callable[[int], nn.Module]] = {
    "convnext": convnext,
    "densenet": densenet,
    "efficientnet": efficientnet,
    "maxvit": maxvit,
    "mobilenet_v3": mobilenet_v3,
    "regnet": regnet,
    "shufflenet": shufflenet,
    "swin": swin,
    "swin_v2": partial(swin, block=SwinTransformerBlockV2),
    "vit": vit,
}


def member(num_classes: int, in_channels: int, *, family: str) -> nn.Module:
    """What a pipeline builds as `tests.families:member`."""
    assert in_channels == 3
    return FAMILIES[family](num_classes)
