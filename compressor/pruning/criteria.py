"""What makes a channel important. A new criterion goes here, and its name into `settings`."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
import torch_pruning
from torch import Tensor, nn

from compressor.data.dataset import Dataset
from compressor.pruning.settings import Criterion

Importance = Callable[[Any], Tensor | None]  # of a torch-pruning group: [C], or None if the criterion does not apply


def importance(criterion: Criterion, network: nn.Module, data: Dataset) -> Importance:
    """How important each channel of `network` currently is."""
    match criterion:
        case "l1":
            estimator = torch_pruning.importance.GroupMagnitudeImportance(p=1)
        case "l2":
            estimator = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        case "taylor":
            _accumulate_gradients(network, data)
            estimator = torch_pruning.importance.GroupTaylorImportance()
        case "bn_scale":
            estimator = torch_pruning.importance.BNScaleImportance()
        case "random":
            estimator = torch_pruning.importance.RandomImportance()
    return estimator  # type: ignore[no-any-return]


def _accumulate_gradients(network: nn.Module, data: Dataset) -> None:
    """Accumulate the gradients of the loss on the calibration images."""
    network.zero_grad()
    done = 0
    for inputs in data.calibration_batches():
        labels = data.calibration.labels[done : done + len(inputs)]
        F.cross_entropy(network(inputs), labels).backward()
        done += len(inputs)
