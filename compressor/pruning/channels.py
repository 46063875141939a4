"""Channels, removed with torch-pruning's dependency graph (Fang et al. 2023)."""

import copy

import torch
import torch_pruning
from torch import Tensor, nn

from compressor.errors import ArchitectureError
from compressor.models.changes import Widths, widths_of


class Pruner(torch_pruning.pruner.BasePruner):  # type: ignore[misc]
    """Rounds to the nearest multiple and leaves one; the library rounds down, and skips a layer left with none."""

    def _round_to(self, n_pruned: int, current_channels: int, round_to: int) -> int:
        multiples = max((current_channels - n_pruned + round_to // 2) // round_to, 1)
        return max(current_channels - multiples * round_to, 0)


def classifier_of(network: nn.Module, example: Tensor) -> nn.Module:
    """The layer that gives the logits: the last convolution or linear layer that runs."""
    ran: list[nn.Module] = []
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(lambda module, *_: ran.append(module)) for layer in layers]
    try:
        with torch.no_grad():
            network.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise ArchitectureError("the network has no nn.Conv2d or nn.Linear to prune")
    return ran[-1]


def check_widths_suffice(before: nn.Module, after: nn.Module) -> None:
    """A pruned network is saved as widths of layers; refuse one that has parameters of another shape besides."""
    rebuilt = Widths(layers=widths_of(after)).apply(copy.deepcopy(before), (1, 1, 1, 1))
    expected = {name: tensor.shape for name, tensor in rebuilt.state_dict().items()}
    for name, tensor in after.state_dict().items():
        if expected[name] != tensor.shape:
            raise ArchitectureError(
                f"pruning changed {name} to {list(tensor.shape)}; this kind of layer cannot be saved with another width"
            )
