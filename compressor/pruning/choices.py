"""What can be left of a network: how many channels of each group, and which of its blocks."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from compressor.models import Removed, Widths
from compressor.pruning.blocks import removable_blocks
from compressor.pruning.groups import Groups, Removal

SHARES = (0.75, 0.5, 0.375, 0.25, 0.125)  # of a group's channels that may be left, besides all


@dataclass(frozen=True)
class Choice:
    """What is left of a network.

    Attributes:
        kept: by group, how many of its channels; all where a group is not named.
        removed: the blocks that are gone.
    """

    kept: Mapping[str, int] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()


WHOLE = Choice()


@dataclass(frozen=True)
class Prunable:
    """A network, and what may be taken from it.

    Attributes:
        network: in eval mode.
        input_shape: `(N, C, H, W)` of an example, N at least 2.
        groups: of channels; None if they all stay.
        order: by group, its channels, the least important first, int64 `[channels]`.
        blocks: the names of modules that can be removed.
        round_to: a multiple of this is left in every layer.
    """

    network: nn.Module
    input_shape: tuple[int, int, int, int]
    groups: Groups | None
    order: Mapping[str, Tensor]
    blocks: Sequence[str]
    round_to: int

    @classmethod
    def of(
        cls,
        network: nn.Module,
        input_shape: tuple[int, int, int, int],
        groups: Groups,
        order: Mapping[str, Tensor],
        *,
        round_to: int,
        skip: Sequence[str] = (),
    ) -> Self:
        """All that may be taken, with the blocks that can go whatever the widths are.

        Where the channels that a block is given and those that it hands on are of different groups, both only happen to
        be as many.
        """
        example = torch.zeros(input_shape)
        blocks = removable_blocks(network, example, skip)
        whole = cls(network, input_shape, groups, order, blocks, round_to)
        for group, channels in order.items():
            if blocks:
                less = removable_blocks(whole.without(Choice({group: len(channels) - 1})), example, skip)
                blocks = [block for block in blocks if block in less]
        return replace(whole, blocks=blocks)

    def levels(self, group: str, shares: Sequence[float] = SHARES) -> tuple[int, ...]:
        """How many channels of a group may be left, all of them first."""
        parts = 1 if self.groups is None else self.groups.by_layer[group].parts
        channels = len(self.order[group])
        multiple = int(np.lcm(self.round_to, parts)) // parts
        rounded = {max(round(channels * share / multiple), 1) * multiple for share in shares}
        return (channels, *sorted((width for width in rounded if width < channels), reverse=True))

    def removal(self, choice: Choice) -> Removal:
        """The channels that go."""
        return {group: self.order[group][: len(self.order[group]) - kept] for group, kept in choice.kept.items()}

    def changes(self, choice: Choice) -> Sequence[Removed | Widths]:
        """What makes the network one that has only what is left, besides its weights."""
        removed = Removed(modules=tuple(block for block in self.blocks if block in choice.removed))
        rest = removed.apply(copy.deepcopy(self.network), self.input_shape)
        shapes = {name: tensor.shape for name, tensor in self.without(choice).state_dict().items()}
        widths = Widths.between(rest, shapes)
        return [*([removed] if removed.modules else []), *([widths] if widths.layers or widths.tensors else [])]

    def without(self, choice: Choice) -> nn.Module:
        """A copy of the network that has only what is left."""
        network = copy.deepcopy(self.network) if self.groups is None else self.groups.without(self.removal(choice))
        return Removed(modules=tuple(sorted(choice.removed))).apply(network, self.input_shape)
