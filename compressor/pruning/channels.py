"""Channels, ranked in groups of dependent layers: which to remove for a ratio, and what lies between two ratios."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from compressor.data.dataset import Dataset
from compressor.models.changes import widths_of
from compressor.pruning.criteria import importance
from compressor.pruning.groups import Groups, Removal
from compressor.pruning.settings import Criterion, Scope


@dataclass(frozen=True)
class Ranking:
    """The channels of a network in the order of their importance.

    Attributes:
        groups: those that can lose channels.
        data: criteria may use its calibration images.
        criterion: what makes a channel important.
        scope: rank channels among all layers, or remove the same share of each.
        round_to: leave a multiple of this in every layer that loses channels, and at least one.
        steps: remove channels in this many steps, ranking again before each.
        seed: of the random criterion.
    """

    groups: Groups
    data: Dataset
    criterion: Criterion
    scope: Scope
    round_to: int
    steps: int
    seed: int

    def least(self, ratio: float) -> Removal:
        """The least important `ratio` of the channels, as far as rounding allows."""
        left = {layer: torch.arange(len(group)) for layer, group in self.groups.by_layer.items()}
        at_first: dict[str, int] = {}  # channels of a scope before the first step
        for step in range(1, self.steps + 1):
            scores = self._first_scores if step == 1 else self._scores(self._removal(left), step)
            scopes = {"": list(scores)} if self.scope == "global" else {layer: [layer] for layer in scores}
            for name, layers in scopes.items() if scores else ():
                ranked = [scores[layer] for layer in layers]
                channels = sum(len(each) for each in ranked)
                target = int(at_first.setdefault(name, channels) * (1 - step / self.steps * ratio))
                for layer, own, count in zip(layers, ranked, _least(ranked, channels - target), strict=True):
                    removed = _rounded(len(own), count, self.groups.by_layer[layer].parts, self.round_to)
                    left[layer] = left[layer][own.argsort()[removed:].sort().values]
        return self._removal(left)

    def order(self) -> dict[str, Tensor]:
        """The channels of each group that is ranked, the least important first, int64."""
        return {layer: scores.argsort() for layer, scores in self._first_scores.items()}

    def between(self, less: Removal, more: Removal) -> Sequence[Removal]:
        """From one removal to a larger one, layer by layer: first where what `more` takes matters least."""

        def lost(layer: str) -> float:
            more_only = more[layer][~torch.isin(more[layer], less[layer])]
            return float(self._first_scores[layer][more_only].mean())

        differing = sorted((layer for layer in more if len(more[layer]) > len(less[layer])), key=lost)
        return [{**less, **{layer: more[layer] for layer in differing[:count]}} for count in range(len(differing) + 1)]

    @cached_property
    def _first_scores(self) -> dict[str, Tensor]:
        return self._scores({}, 1)

    def _scores(self, removal: Removal, step: int) -> dict[str, Tensor]:
        """The importance of the channels that are left in each group which has more than one of them and is ranked."""
        score = importance(self.criterion, self.groups.without(removal), self.data)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + step)
            scores = {group.layer: score(group) for group in self.groups.left(removal)}
        return {layer: each for layer, each in scores.items() if each is not None and len(each) > 1}

    def _removal(self, left: Removal) -> Removal:
        return {layer: group.without(left[layer]) for layer, group in self.groups.by_layer.items()}


def outputs_of(before: nn.Module, after: nn.Module) -> dict[str, list[int]]:
    """The output channels of every convolution and linear layer, before and after pruning; none if it is gone."""
    left = widths_of(after)
    return {
        name: [width.outputs, left[name].outputs if name in left else 0]
        for name, width in widths_of(before).items()
        if isinstance(before.get_submodule(name), nn.Conv1d | nn.Conv2d | nn.Linear)
    }


def _least(ranked: Sequence[Tensor], count: int) -> list[int]:
    """How many of the `count` least important channels lie in each of the groups."""
    owner = torch.arange(len(ranked)).repeat_interleave(torch.tensor([len(scores) for scores in ranked]))
    least = torch.cat(list(ranked)).argsort()[: max(count, 0)]
    counts: list[int] = owner[least].bincount(minlength=len(ranked)).tolist()
    return counts


def _rounded(channels: int, count: int, parts: int, round_to: int) -> int:
    """How many channels of each part to remove, near `count`, for a multiple of `round_to` in all parts together."""
    multiple = math.lcm(round_to, parts) // parts
    left = max((channels - count + multiple // 2) // multiple, 1) * multiple
    return max(channels - left, 0) if count else 0
