"""Remove whole residual blocks (depth pruning), the least missed first."""

from typing import Any, ClassVar, Literal

from torch import nn

from compressor.errors import ArchitectureError, StageError
from compressor.models.artifact import TorchModel
from compressor.models.changes import Removed
from compressor.models.size import Share, Size
from compressor.pipeline.stage import Context, Stage
from compressor.pruning.batch_norm import estimate_batch_norm, match_batch_norm
from compressor.pruning.blocks import Divergence, removable_blocks
from compressor.training.loop import layout_of


class PruneBlocks(Stage[TorchModel, TorchModel]):
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
        layout = layout_of(network, context.data)
        predictions = Divergence(network, context.data.calibration_batches(), layout)
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
            divergence = {block: predictions.without(block) for block in left}
            least = min(left, key=divergence.__getitem__)
            removed[least] = divergence[least]
            network.set_submodule(least, nn.Identity())
            after = Size.of(network, preprocess)
        estimate_batch_norm(network, context.data.calibration_batches())
        context.console.say(f"  {self.id} keeps {len(blocks) - len(removed)} of {len(blocks)} blocks")
        details = {"kept": after.share_of(before), "blocks": len(blocks), "removed": removed}
        return model.with_network(network, Removed(modules=tuple(removed)), details=details)
