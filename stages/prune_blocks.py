"""Remove whole residual blocks (depth pruning), the least missed first."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.errors import ArchitectureError, StageError
from compressor.models.artifact import TorchModel
from compressor.models.changes import Removed
from compressor.models.size import Share, Size
from compressor.pipeline.context import Context
from compressor.pipeline.stage import Stage
from compressor.pruning.batch_norm import batch_statistics, estimate_batch_norm, match_batch_norm
from compressor.training.loop import autocast, layout_of

TEMPERATURE = 4.0  # that answers are compared at, as in distillation


class PruneBlocks(Stage):
    """Remove blocks whose output has the shape of their input, one after the other, until the target is met.

    Attributes:
        target: what to keep.

    The next block to go is the one without which the answers on the calibration images, compared by KL divergence,
    stay closest to those of the network that comes in. (Veit, Wilber and Belongie 2016: residual networks take the
    removal of single blocks well.) A block is any module of the network's own that holds layers, but a `Sequential`,
    and lies in no other. BatchNorm statistics are estimated anew on the calibration images.
    """

    needs_recovery: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"stage": "prune_blocks", "target": {"macs": 0.9}}

    stage: Literal["prune_blocks"] = "prune_blocks"
    target: Share

    def run(self, model: TorchModel, context: Context) -> TorchModel:
        """The network without the blocks.

        Raises:
            StageError: the target is out of reach.
            ArchitectureError: the network is quantized, or has no block that can be removed.
        """
        if model.quantized:
            raise ArchitectureError("a quantized network cannot be pruned; prune before you quantize")
        network = model.copy_network()
        match_batch_norm(network, context.data.calibration_batches())
        answers = _Answers(network, context)
        blocks = removable_blocks(network, next(context.data.calibration_batches())[:2])
        if not blocks:
            raise ArchitectureError("the network has no block whose output has the shape of its input")
        preprocess = context.data.preprocess
        before = after = Size.of(network, preprocess)
        removed: dict[str, float] = {}  # block -> divergence once it is gone too
        while self.target.kept(after, before) > self.target.limit:
            left = [block for block in blocks if block not in removed]
            if not left:
                raise StageError(
                    f"the target, at most {self.target.limit:.3f} of what comes in, is out of reach: without any of "
                    f"the {len(blocks)} blocks that can be removed, {self.target.kept(after, before):.3f} is left"
                )
            divergence = {block: answers.without(block) for block in left}
            least = min(left, key=divergence.__getitem__)
            removed[least] = divergence[least]
            network.set_submodule(least, nn.Identity())
            after = Size.of(network, preprocess)
        estimate_batch_norm(network, context.data.calibration_batches())
        context.services.console.say(f"  {self.id} keeps {len(blocks) - len(removed)} of {len(blocks)} blocks")
        details = {"kept": after.share_of(before), "blocks": len(blocks), "removed": removed}
        return model.with_network(network, Removed(modules=tuple(removed)), details=details)


def removable_blocks(network: nn.Module, example: Tensor) -> Sequence[str]:
    """The names of the outermost modules with layers, no `Sequential`, that give the shape they are given."""
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
    with torch.no_grad():
        network.eval()(example)
    for handle in handles:
        handle.remove()
    found: list[str] = []
    for name in candidates:  # an outer module comes before those inside it
        if keeps_shape.get(name) and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return found


class _Answers:
    """What a network says of the calibration images, and how far it is from that without some block."""

    def __init__(self, network: nn.Module, context: Context) -> None:
        layout = layout_of(network, context.data)
        self.network = network.to(memory_format=layout)
        self.batches = [inputs.contiguous(memory_format=layout) for inputs in context.data.calibration_batches()]
        self.original = self._log_probabilities()

    def without(self, block: str) -> float:
        """KL(original ‖ without `block`), averaged over the images, in nats."""
        module = self.network.get_submodule(block)
        self.network.set_submodule(block, nn.Identity())
        left = self._log_probabilities()
        self.network.set_submodule(block, module)
        return float(F.kl_div(left, self.original, reduction="batchmean", log_target=True))

    @torch.no_grad()
    def _log_probabilities(self) -> Tensor:
        with batch_statistics(self.network), autocast(torch.device("cpu"), "auto"):
            logits = torch.cat([self.network(inputs) for inputs in self.batches])
        return F.log_softmax(logits.float() / TEMPERATURE, dim=1)
