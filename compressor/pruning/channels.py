"""Channels, ranked and removed in groups of layers that depend on one another."""

import copy
import math

import torch
from torch import nn

from compressor.data.dataset import Dataset
from compressor.errors import ArchitectureError
from compressor.models.architectures import check_fits
from compressor.models.artifact import TorchModel
from compressor.models.changes import Widths, widths_of
from compressor.pruning.criteria import importance
from compressor.pruning.groups import Group, Groups
from compressor.pruning.settings import Criterion, Scope

SHOWN = 3  # layers


def without_channels(
    model: TorchModel,
    ratio: float,
    data: Dataset,
    *,
    criterion: Criterion,
    scope: Scope,
    round_to: int,
    steps: int,
    skip: tuple[str, ...],
    seed: int,
) -> nn.Module:
    """A copy of the network of `model` without `ratio` of its channels, as far as rounding allows.

    Args:
        model: the network; its outputs are left alone.
        ratio: the share of the channels to remove.
        data: criteria may use its calibration images.
        criterion: what makes a channel important.
        scope: rank channels among all layers, or remove the same share of each.
        round_to: leave a multiple of this in every layer that loses channels, and at least one.
        steps: remove them in this many steps, ranking again before each.
        skip: names of layers and parameters, or of modules that hold them, to leave alone.
        seed: of the random criterion.

    Raises:
        ArchitectureError: the network does not work without them, or cannot be saved.
    """
    network = model.copy_network().requires_grad_(True)
    example = torch.zeros(data.preprocess.input_shape(2))
    groups = Groups(network, example, skip)
    at_first: dict[str, int] = {}  # channels of a scope before the first step
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(1, steps + 1):
            scored = groups.scored(importance(criterion, network, data))
            scopes = {"": scored} if scope == "global" else {group.layer: [group] for group in scored}
            for name, ranked in scopes.items() if scored else ():
                channels = sum(len(group.scores) for group in ranked)
                left = int(at_first.setdefault(name, channels) * (1 - step / steps * ratio))
                for group, count in zip(ranked, _least(ranked, channels - left), strict=True):
                    if removed := _rounded(group, count, round_to):
                        groups.remove(group, removed)
    network.zero_grad()
    _check_runs(model, network, tuple(example.shape))
    _check_widths_suffice(model.network, network)
    return network


def outputs_of(before: nn.Module, after: nn.Module) -> dict[str, list[int]]:
    """The output channels of every convolution and linear layer, before and after pruning."""
    old, new = widths_of(before), widths_of(after)
    return {
        name: [old[name].outputs, width.outputs]
        for name, width in new.items()
        if isinstance(after.get_submodule(name), nn.Conv1d | nn.Conv2d | nn.Linear)
    }


def changed_widths(before: nn.Module, after: nn.Module) -> Widths:
    """The layers whose widths pruning changed, as a structural change."""
    old, new = widths_of(before), widths_of(after)
    return Widths(layers={name: width for name, width in new.items() if width != old[name]})


def _least(ranked: list[Group], count: int) -> list[int]:
    """How many of the `count` least important channels lie in each of the groups."""
    lengths = torch.tensor([len(group.scores) for group in ranked])
    owner = torch.arange(len(ranked)).repeat_interleave(lengths)
    least = torch.cat([group.scores for group in ranked]).argsort()[: max(count, 0)]
    counts: list[int] = owner[least].bincount(minlength=len(ranked)).tolist()
    return counts


def _rounded(group: Group, count: int, round_to: int) -> int:
    """How many channels of each part to remove, near `count`, for a multiple of `round_to` in all parts together."""
    channels = len(group.scores)
    multiple = math.lcm(round_to, group.parts) // group.parts
    left = max((channels - count + multiple // 2) // multiple, 1) * multiple
    return max(channels - left, 0) if count else 0


def _check_widths_suffice(before: nn.Module, after: nn.Module) -> None:
    """A pruned network is saved as widths of layers; refuse one in which other parameters change shape, too."""
    rebuilt = Widths(layers=widths_of(after)).apply(copy.deepcopy(before), (1, 1, 1, 1)).state_dict()
    misfits: dict[str, str] = {}  # name for `skip` -> in words
    for name, tensor in after.state_dict().items():
        if rebuilt[name].shape != tensor.shape:
            owner = name.rpartition(".")[0]
            layer = after.get_submodule(owner)
            if owner and not any(True for _ in layer.children()):
                misfits[owner] = f"layer {owner!r} ({type(layer).__name__})"
            else:
                misfits[name] = f"parameter {name!r}"
    if misfits:
        said = ", ".join(list(misfits.values())[:SHOWN])
        more = f" and {len(misfits) - SHOWN} more" if len(misfits) > SHOWN else ""
        raise ArchitectureError(
            f"{said}{more} cannot be saved with another width; leave them alone with "
            f"`skip: [{', '.join(list(misfits)[:SHOWN])}{', ...' if more else ''}]`"
        )


def _check_runs(model: TorchModel, network: nn.Module, input_shape: tuple[int, ...]) -> None:
    try:
        check_fits(network, model.architecture, input_shape)
    except ArchitectureError as error:
        if error.__cause__ is None:
            raise
        raise ArchitectureError(
            f"with channels removed, {error}; are channel counts written into its forward?"
        ) from error
