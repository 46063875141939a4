"""What makes a channel important. A new criterion goes here, and its name into `settings`."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.data.dataset import Dataset
from compressor.pruning.groups import Group
from compressor.pruning.settings import Criterion

Importance = Callable[[Group], Tensor | None]  # of each channel [C]; None if the criterion does not apply to the group
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear, *NORMS, nn.LayerNorm, nn.GroupNorm)


def importance(criterion: Criterion, network: nn.Module, data: Dataset) -> Importance:
    """How important each channel of a group of `network` is.

    Of what a criterion gives for single weights, the sum over a channel's part in each layer, and the mean over layers,
    as a multiple of the group's average.
    """
    match criterion:
        case "l1":
            return _summed(network, WEIGHTED, lambda weight: weight.abs())
        case "l2":
            return _summed(network, WEIGHTED, lambda weight: weight.square())
        case "taylor":  # Molchanov et al. 2019
            _accumulate_gradients(network, data)
            return _summed(network, WEIGHTED, lambda weight: (weight * _gradient(weight)).abs())
        case "bn_scale":  # Liu et al. 2017
            return _summed(network, NORMS, lambda weight: weight.abs())
        case "random":
            return lambda group: torch.rand(len(group))


def _summed(
    network: nn.Module, kinds: tuple[type[nn.Module], ...], of_weight: Callable[[nn.Parameter], Tensor]
) -> Importance:
    weights = {f"{name}.weight": layer.weight for name, layer in network.named_modules() if isinstance(layer, kinds)}

    @torch.no_grad()
    def of_layers(group: Group) -> Iterator[Tensor]:
        for (name, dim), indices in group.members.items():
            if isinstance(weight := weights.get(name), nn.Parameter):
                along = of_weight(weight).movedim(dim, 0).reshape(weight.shape[dim], -1).sum(1)
                yield along[indices].sum(1)

    def of_group(group: Group) -> Tensor | None:
        scores = list(of_layers(group))
        if not scores:
            return None
        mean = torch.stack(scores).mean(0)
        return mean / mean.mean()

    return of_group


def _gradient(weight: nn.Parameter) -> Tensor:
    """Zero where the loss does not depend on the weight."""
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def _accumulate_gradients(network: nn.Module, data: Dataset) -> None:
    """Accumulate the gradients of the loss on the calibration images."""
    network.requires_grad_(True).zero_grad()
    done = 0
    for inputs in data.calibration_batches():
        labels = data.calibration.labels[done : done + len(inputs)]
        F.cross_entropy(network(inputs), labels).backward()
        done += len(inputs)
