"""Residual blocks that can be removed whole, and how much each one matters."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.pruning.batch_norm import batch_statistics
from compressor.tracing import inside
from compressor.training.loop import autocast

TEMPERATURE = 4.0  # for comparing predictions, as in distillation


def removable_blocks(network: nn.Module, example: Tensor, skip: Sequence[str] = ()) -> Sequence[str]:
    """The outermost modules with layers, except `Sequential`, whose output has the shape of their input, by name.

    What holds several of one kind (an encoder of equal blocks) counts as those; what holds something that `skip` names
    is left out.
    """
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
    kinds = {name: type(module) for name, module in candidates.items() if keeps_shape.get(name)}
    found: list[str] = []
    for name in kinds:  # an outer module comes before those inside it
        within = Counter(kind for other, kind in kinds.items() if other.startswith(f"{name}."))
        if max(within.values(), default=1) == 1 and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return [block for block in found if not any(inside(block, name) or inside(name, block) for name in skip)]


class Divergence:
    """How far the predictions of what is left of a network are from its own.

    Args:
        network: the whole network.
        batches: the inputs to predict.
        layout: the memory format in which networks run.
    """

    def __init__(self, network: nn.Module, batches: Iterable[Tensor], layout: torch.memory_format) -> None:
        self.layout = layout
        self.batches = [inputs.contiguous(memory_format=layout) for inputs in batches]
        self.original = self._log_probabilities(network)

    def of(self, network: nn.Module) -> float:
        """KL(original ‖ `network`), averaged over the images, in nats; its memory format becomes `layout`."""
        left = self._log_probabilities(network)
        return float(F.kl_div(left, self.original, reduction="batchmean", log_target=True))

    def without(self, network: nn.Module, block: str) -> float:
        """`of` a network without one of its blocks, which is back afterwards."""
        module = network.get_submodule(block)
        network.set_submodule(block, nn.Identity())
        try:
            return self.of(network)
        finally:
            network.set_submodule(block, module)

    @torch.no_grad()
    def _log_probabilities(self, network: nn.Module) -> Tensor:
        network.to(memory_format=self.layout)
        with batch_statistics(network), autocast(torch.device("cpu"), "auto"):
            logits = torch.cat([network(inputs) for inputs in self.batches])
        return F.log_softmax(logits.float() / TEMPERATURE, dim=1)
