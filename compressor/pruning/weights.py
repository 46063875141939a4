"""Masking single weights, by magnitude (Han et al. 2015)."""

import torch
from torch import Tensor, nn

from compressor.errors import ArchitectureError, StageError
from compressor.pruning.settings import Scope


@torch.no_grad()
def mask_least(network: nn.Module, sparsity: float, scope: Scope) -> dict[str, float]:
    """Set the weights of least magnitude of convolutions and linear layers to zero, in place.

    Args:
        network: changed in place.
        sparsity: the share of the weights that become zero.
        scope: rank weights among all layers, or mask the same share of each.

    Returns:
        The share of zeros in each weight tensor, by name.

    Raises:
        StageError: a layer would be left without any weight.
        ArchitectureError: the network has no such layer.
    """
    weights = {
        f"{name}.weight": module.weight
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    if not weights:
        raise ArchitectureError("the network has no nn.Conv2d or nn.Linear to mask")
    if scope == "global":
        together = _smallest(torch.cat([weight.flatten() for weight in weights.values()]), sparsity)
        parts = together.split([weight.numel() for weight in weights.values()])
    else:
        parts = tuple(_smallest(weight.flatten(), sparsity) for weight in weights.values())
    for (name, weight), zero in zip(weights.items(), parts, strict=True):
        weight[zero.view_as(weight)] = 0
        if not weight.any():
            advice = "lower sparsity" + (", or use scope: local" if scope == "global" else "")
            raise StageError(f"{name} would be left without any weight; {advice}")
    return {name: float((weight == 0).float().mean()) for name, weight in weights.items()}


def _smallest(values: Tensor, share: float) -> Tensor:
    """Which of `values` `[N]` are the `share` of least magnitude, rounded to a whole number of them: bool `[N]`."""
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[values.abs().argsort(stable=True)[: round(share * len(values))]] = True
    return chosen
