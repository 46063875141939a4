"""Custom networks, as a user would bring them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LeNet(nn.Module):
    """Functional relu and pooling, a flattening view, a module list called activations, and no BatchNorm."""

    def __init__(self, num_classes: int, in_channels: int, hidden: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 16, 3, padding=1)
        self.activations = nn.ModuleList([nn.ReLU()])
        self.fc1 = nn.Linear(16 * 2 * 2, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(self.activations[0](self.fc1(x.view(x.size(0), -1))))


class PaddedShortcut(nn.Module):
    """A shortcut that pads channels by a width written into forward: pruning makes it fail."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 32, 3, padding=1)
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(self.conv(x) + F.pad(x, (0, 0, 0, 0, 8, 8)))
        return self.fc(y.mean((2, 3)))


class Dropping(nn.Module):
    """Dropout and BatchNorm: what training draws must come from the seed."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.bn(self.drop(self.conv(x)))).flatten(1))


class Odd(nn.Module):
    """A convolution called twice, one whose weight has another name, a norm without scale, and a learned addend."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.kernel = nn.Parameter(torch.randn(8, 8, 1, 1))
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.position = nn.Parameter(torch.randn(1, 8, 8, 8))
        self.fc = nn.Linear(8, num_classes)
        for norm in (*self.norms, self.plain):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(self.stem(x)) + self.position
        x = F.relu(self.norms[0](self.shared(x)))
        x = F.relu(self.norms[1](self.shared(x)))
        x = F.relu(self.norms[2](F.conv2d(x, self.kernel)))
        return self.fc(x.mean((2, 3)))


class Exploding(nn.Module):
    """Three linear layers and nothing between: a large learning rate multiplies itself."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))


class Gate(nn.Module):
    """A path that depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Branching(nn.Module):
    """Cannot be traced, because of one layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.gate = Gate()
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gate(x.flatten(1)))


class Special(nn.Module):
    """An operator that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class Bessel(nn.Module):
    """Cannot be exported, because of one layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(64, num_classes)
        self.special = Special()

    def forward(self, x: Tensor) -> Tensor:
        return self.special(self.fc(x.flatten(1)))


class Colour(nn.Module):
    """Takes RGB only."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)))


class TwoOutputs(nn.Module):
    """Gives a pair while training."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.fc(x.flatten(1))
        return (logits, logits) if self.training else logits


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
        self.b.weight = self.a.weight
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.a(x.flatten(1))))


class Asserting(nn.Module):
    """Fails without a word."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError


class WrongHead(nn.Module):
    """Takes no class count and gives three logits."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(x, 1))


def not_a_network() -> str:
    return "hello"


def _used(network: nn.Module) -> None:
    """Statistics, scales and shifts of BatchNorm as after training."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)


class NormOnInput(nn.Module):
    """BatchNorm in front of the first convolution."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.fc = nn.Linear(16, num_classes)
        _used(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(self.bn(x))).mean((2, 3)))


class NormOnFeatures(nn.Module):
    """BatchNorm of the flattened features, in front of a linear layer."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 16, 3, stride=4)
        self.bn = nn.BatchNorm1d(64)
        self.fc = nn.Linear(64, num_classes)
        _used(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn(F.relu(self.conv(x)).flatten(1)))


class RepVGG(nn.Module):
    """A 3x3 and a 1x1 convolution and an identity, each with its BatchNorm, added (Ding et al. 2021)."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.conv3, self.bn3 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv1, self.bn1 = nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.identity = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, num_classes)
        _used(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.bn3(self.conv3(x)) + self.bn1(self.conv1(x)) + self.identity(x))
        return self.fc(x.mean((2, 3)))


class NormAdded(nn.Module):
    """`conv(x) + bn(x)`."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.conv, self.bn = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, num_classes)
        _used(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.fc((self.conv(x) + self.bn(x)).mean((2, 3)))


class Signal(nn.Module):
    """The rows of the image as channels of a signal: convolutions over time, the second of one channel each."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(8, 16, 3, padding=1), nn.BatchNorm1d(16)
        self.depthwise = nn.Conv1d(16, 16, 3, padding="same", groups=16)
        self.fc = nn.Linear(16, num_classes)
        _used(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.depthwise(F.relu(self.bn(self.conv(x.flatten(1, 2)))))).mean(2))


class PartlyFloat(nn.Module):
    """Operators that stay in float: a transposed convolution, attention, and a layer with another's weight transposed."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(1, 4, 2, stride=2)
        self.embed = nn.Linear(64, 32)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(self.up(x).flatten(2).view(-1, 1, 16, 64)))  # [N, 1, 16, 32]
        x = F.scaled_dot_product_attention(x, x, x)
        x = F.linear(x, self.embed.weight.t())  # [N, 1, 16, 64]
        return self.fc(x.mean((1, 2)))


class WeightNormed(nn.Module):
    """A weight that is computed from its direction and its length, in torch's old form or its new one."""

    def __init__(self, num_classes: int, old: bool) -> None:
        super().__init__()
        norm = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
        self.fc = norm(nn.Linear(64, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


class Versioned(nn.Module):
    """Asks for the version of the state that it is to load, as torchvision's MNASNet does."""

    _version = 2

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
        assert metadata.get("version") == 2
        super()._load_from_state_dict(state, prefix, metadata, *rest)


class Standardized(nn.Linear):
    """Computes its weight in forward."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight - self.weight.mean(), self.bias)


class Computed(nn.Module):
    """A layer whose weight is computed in forward, behind one whose weight is a parameter."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 16)
        self.fc = Standardized(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stem(x.flatten(1)))


class ShuffleUnit(nn.Module):
    """Grouped 1x1, channel shuffle, depthwise 3x3, grouped 1x1, and what came in (Zhang et al. 2018, figure 2b)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.reduce = nn.Conv2d(channels, channels // 2, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(channels // 2)
        self.depthwise = nn.Conv2d(channels // 2, channels // 2, 3, padding=1, groups=channels // 2, bias=False)
        self.bn2 = nn.BatchNorm2d(channels // 2)
        self.expand = nn.Conv2d(channels // 2, channels, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.channel_shuffle(F.relu(self.bn1(self.reduce(x))), self.groups)
        return F.relu(x + self.bn3(self.expand(self.bn2(self.depthwise(y)))))


class Shuffled(nn.Module):
    """Two units of ShuffleNet in 4 groups."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 32, 3, padding=1)
        self.units = nn.Sequential(ShuffleUnit(32, 4), ShuffleUnit(32, 4))
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.units(F.relu(self.stem(x))).mean((2, 3)))


class ResNeXtBlock(nn.Module):
    """A bottleneck with a grouped 3x3 (Xie et al. 2017, figure 3c)."""

    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, width, 1, bias=False)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.expand = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.expand(F.relu(self.bn(self.grouped(F.relu(self.reduce(x)))))))


class ResNeXt(nn.Module):
    """Two blocks of different widths in 8 groups."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.blocks = nn.Sequential(ResNeXtBlock(16, 32, 8), ResNeXtBlock(16, 64, 8))
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class Upsampled(nn.Module):
    """A transposed convolution, whose width cannot be saved, between two that can."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(F.relu(self.up(F.relu(self.stem(x))))))
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


class Normed(nn.Module):
    """GroupNorm, a BatchNorm without scale, a Conv1d over pixels, and LayerNorm."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.group_norm = nn.GroupNorm(4, 16)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.plain = nn.BatchNorm2d(16, affine=False)
        self.row = nn.Conv1d(16, 16, 3, padding=1)
        self.hidden = nn.Linear(16, 16)
        self.layer_norm = nn.LayerNorm(16)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(self.conv(F.relu(self.group_norm(self.stem(x)))))
        x = F.relu(self.row(x.mean(2))).mean(2)
        return self.fc(F.relu(self.layer_norm(self.hidden(x))))


class Reshaped(nn.Module):
    """A width written into forward, which only the network itself stumbles over."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).mean((2, 3)) * torch.ones(16))


class FrozenStem(nn.Module):
    """A stem of convolution and BatchNorm that nothing is to train."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, num_classes)
        self.stem.requires_grad_(False)
        self.norm.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = torch.relu(self.norm(self.stem(images)))
        return self.fc(torch.relu(self.conv(images)).mean((2, 3)))


class WhollyFrozen(FrozenStem):
    """Nothing of it is to be trained."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(num_classes, in_channels)
        self.requires_grad_(False)


class Tokens(nn.Module):
    """A class token, a position embedding, layer scale and a norm, with every width read from its input."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, 16, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 5, 16))
        self.norm = nn.LayerNorm(16)
        self.wide, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)
        self.scale = nn.Parameter(torch.rand(16))
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)  # [N, 4, 16]
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        x = x + self.scale * self.narrow(F.gelu(self.wide(self.norm(x))))
        return self.fc(x[:, 0])


class Windows(nn.Module):
    """Attention with two heads in shifted windows, with a bias by relative position (Liu et al. 2021), and an MLP."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, 16, 2, stride=2)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.bias = nn.Parameter(torch.randn(9, 2))
        self.register_buffer("index", torch.arange(16) % 9)
        self.wide, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)  # [N, 4, 4, 16]
        n, height, width, channels = x.shape
        windows = torch.roll(x, (-1, -1), (1, 2)).view(n, 2, 2, 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
        windows = windows.reshape(n * 4, 4, channels)
        q, k, v = self.qkv(windows).reshape(n * 4, 4, 3, 2, 8).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) + self.bias[self.index].view(4, 4, 2).permute(2, 0, 1)).softmax(-1)
        windows = self.proj((attention @ v).transpose(1, 2).reshape(n * 4, 4, 16))
        y = windows.view(n, 2, 2, 2, 2, channels).permute(0, 1, 3, 2, 4, 5).reshape(n, height, width, channels)
        x = x + torch.roll(y, (1, 1), (1, 2))
        return self.fc((x + self.narrow(F.gelu(self.wide(x)))).mean((1, 2)))


class Halves(nn.Module):
    """Splits its channels in two, computes on one half and shuffles (Ma et al. 2018)."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.one, self.two = nn.Conv2d(8, 24, 1), nn.Conv2d(24, 8, 1)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.relu(self.stem(x)).chunk(2, 1)
        x = torch.cat([left, self.two(torch.sigmoid(self.one(right)))], 1)
        n, channels, height, width = x.shape
        x = x.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width)
        return self.fc(x.mean((2, 3)))


class Cut(nn.Module):
    """Takes channels by a number written into its code, which still runs with fewer, but on others."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.relu(self.stem(x)))
        n, channels, height, width = x.shape
        x = x.view(n, channels // 4, 4, height, width).transpose(1, 2).reshape(n, channels, height, width)
        return self.fc(x.mean((2, 3)))


class Gated(nn.Module):
    """Hard-swish, squeeze-excitation, SiLU, branches that are concatenated, and a BatchNorm behind them."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.project = nn.Conv2d(16, 16, 1)
        self.norm = nn.BatchNorm2d(32)
        self.last = nn.Conv2d(32, 16, 1)
        self.fc = nn.Linear(16, num_classes)
        _used(self)
        nn.init.normal_(self.stem.weight, std=2)  # hard-swish ends on both sides
        nn.init.normal_(self.excite.weight, std=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.bn(self.stem(x)))
        x = x * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x = torch.cat([x, F.silu(self.project(x))], 1)
        x = F.avg_pool2d(self.last(F.relu(self.norm(x))), 2)
        return self.fc(x.mean((2, 3)))


class GatedInFloat(nn.Module):
    """A gate on what stays in float."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.silu(self.up(F.relu(self.conv(x)))).mean((2, 3)))


class Scaled(nn.Module):
    """A convolution and a scale of its channels, as in ConvNeXt."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16, num_classes)
        self.scale = nn.Parameter(torch.rand(1, 16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.conv(x) * self.scale).mean((2, 3)))


class Drawn(nn.Module):
    """Random numbers on a branch whose weight begins at zero; some that nothing reads; some that are saved."""

    def __init__(self, num_classes: int, where: str = "attribute") -> None:
        super().__init__()
        self.fc, self.weight = nn.Linear(64, num_classes), nn.Parameter(torch.zeros(num_classes))
        self.example, self.nothing = torch.randn(2, 64), torch.full((2,), torch.nan)
        self.share = float(torch.rand(())) if where == "number" else 1.0
        self.drawn = [torch.randn(64, num_classes)] if where == "attribute" else []
        self.layers = [nn.Linear(64, num_classes)] if where == "list" else nn.ModuleList([nn.Linear(64, num_classes)])
        self.register_buffer("buffer", torch.randn(64, num_classes), persistent=where != "buffer")

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        branch = self.share * x @ self.buffer + sum(x @ each for each in self.drawn)
        return self.fc(x) + self.weight * (branch + self.layers[0](x))


class LearnedScalar(nn.Module):
    """A weight without dimensions on a branch, as in ReZero, and the largest of another's numbers."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.fc((x + self.scale * F.relu(self.conv(x)) / self.fc.bias.abs().max()).mean((2, 3)))


class Circular(nn.Module):
    """Circular padding, which returns contiguous tensors, and a view that needs them."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular")
        self.fc = nn.Linear(16 * 64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(F.relu(self.stem(x)))).view(len(x), -1))


class NormOverTokens(nn.Module):
    """A linear layer whose BatchNorm takes the tokens as channels."""

    def __init__(self, num_classes: int, in_channels: int, features: int = 16) -> None:
        super().__init__()
        self.patches, self.wide = nn.Conv2d(in_channels, 16, 2, 2), nn.Linear(16, features)
        self.norm, self.fc = nn.BatchNorm1d(16), nn.Linear(features, num_classes)
        _used(self)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)  # [N, T, C]
        return self.fc(F.relu(self.norm(self.wide(tokens))).mean(1))


class NormTwice(nn.Module):
    """Two BatchNorms behind a convolution."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(in_channels, 16, 3), nn.Linear(16, num_classes)
        self.norm, self.again = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        _used(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.again(self.norm(self.conv(x)))).mean((2, 3)))
