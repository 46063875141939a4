"""Residual blocks that can be removed whole, and how much each one matters."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.pruning.batch_norm import batch_statistics
from compressor.training.loop import autocast

TEMPERATURE = 4.0  # for comparing predictions, as in distillation


def removable_blocks(network: nn.Module, example: Tensor) -> Sequence[str]:
    """The outermost modules with layers, except `Sequential`, whose output has the shape of their input, by name."""
    keeps_shape: dict[str, bool] = {}

    def note(name: str, given: Any, gives: Any) -> None:
        same = isinstance(gives, Tensor) and len(given) == 1 and getattr(given[0], "shape", None) == gives.shape
        keeps_shape[name] = keeps_shape.get(name, True) and same  # wherever it runs

    candidates = {
        name: module
        for name, module in network.named_modules()
        if name and not isinstance(module, nn.Sequential) and any(True for _ in module.children())
    }
    handles = [
        module.register_forward_hook(lambda _, given, gives, name=name: note(name, given, gives))
        for name, module in candidates.items()
    ]
    try:
        with torch.no_grad():
            network.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
    found: list[str] = []
    for name in candidates:  # an outer module comes before those inside it
        if keeps_shape.get(name) and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return found


class Divergence:
    """How far the predictions of a network without some block are from its current ones.

    Args:
        network: the network to remove blocks from; its memory format becomes `layout`.
        batches: the inputs to predict.
    """

    def __init__(self, network: nn.Module, batches: Iterable[Tensor], layout: torch.memory_format) -> None:
        self.network = network.to(memory_format=layout)
        self.batches = [inputs.contiguous(memory_format=layout) for inputs in batches]
        self.original = self._log_probabilities()

    def without(self, block: str) -> float:
        """KL(original ‖ without `block`), averaged over the images, in nats."""
        module = self.network.get_submodule(block)
        self.network.set_submodule(block, nn.Identity())
        try:
            left = self._log_probabilities()
        finally:
            self.network.set_submodule(block, module)
        return float(F.kl_div(left, self.original, reduction="batchmean", log_target=True))

    @torch.no_grad()
    def _log_probabilities(self) -> Tensor:
        with batch_statistics(self.network), autocast(torch.device("cpu"), "auto"):
            logits = torch.cat([self.network(inputs) for inputs in self.batches])
        return F.log_softmax(logits.float() / TEMPERATURE, dim=1)
