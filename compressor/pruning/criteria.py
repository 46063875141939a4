"""What makes a channel important: a new criterion goes here."""

from collections.abc import Iterable
from typing import Any, Literal

import torch.nn.functional as F
import torch_pruning
from torch import Tensor, nn

Criterion = Literal["l1", "l2", "taylor", "bn_scale", "random"]


def importance(criterion: Criterion) -> Any:
    """The importance of every channel of a group, by torch-pruning."""
    match criterion:
        case "l1":
            return torch_pruning.importance.GroupMagnitudeImportance(p=1)
        case "l2":
            return torch_pruning.importance.GroupMagnitudeImportance(p=2)
        case "taylor":
            return torch_pruning.importance.GroupTaylorImportance()
        case "bn_scale":
            return torch_pruning.importance.BNScaleImportance()
        case "random":
            return torch_pruning.importance.RandomImportance()


def accumulate_gradients(network: nn.Module, batches: Iterable[Tensor], labels: Tensor) -> None:
    """Gradients of the loss on `batches` of inputs with `labels`, which Taylor importance reads."""
    network.zero_grad()
    done = 0
    for inputs in batches:
        F.cross_entropy(network(inputs), labels[done : done + len(inputs)]).backward()
        done += len(inputs)
