"""Remove whole residual blocks (depth pruning), the least important first."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from compressor import models, pruning, training
from compressor.config.spec import validated_copy
from compressor.errors import ArchitectureError, StageError
from compressor.pipeline.stage import Stage
from compressor.pruning.settings import Share as Share

if TYPE_CHECKING:
    from collections.abc import Collection

    from compressor import Context, TorchModel
    from compressor.evaluation import Layer

NEARLY_ALL = 0.999


class PruneBlocks(Stage):
    """Remove blocks whose output has the shape of their input, one at a time, until the target is met.

    The next block to go is the one without which the predictions on the calibration images, compared by KL divergence,
    stay closest to those of the incoming network. (Veit, Wilber and Belongie 2016: residual networks tolerate
    the removal of single blocks.) A block is any module of the network's own that holds layers, is not a `Sequential`
    and is in no other block. BatchNorm statistics are estimated again on the calibration images.
    """

    needs_recovery: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"stage": "prune_blocks", "target": {"macs": 0.9}}

    stage: Literal["prune_blocks"] = "prune_blocks"
    target: Share
    """How much to keep, as in `{macs: 0.5}`."""

    def decided_by(self, context: "Context") -> Any:
        """What the latency is of."""
        return self.target.decided_by(context)

    def check_files(self) -> None:
        """Refuse a table that cannot be used."""
        self.target.check_table()

    def timed_layers(self, model: "TorchModel", context: "Context") -> "Collection[Layer]":
        """All that may be left of the network, for a target of latency."""
        return pruning.timed_layers(_prunable(model, context), self.target, context) if self.target.of_time else ()

    def for_dry_run(self) -> Self:
        """Remove a block, whichever target it is for: timing takes minutes."""
        return validated_copy(self, target=Share(macs=NEARLY_ALL)) if self.target.of_time else self

    def run(self, model: "TorchModel", context: "Context") -> "TorchModel":
        """The network without the blocks.

        Raises:
            StageError: the target is out of reach.
            ArchitectureError: the network is quantized, or has no block that can be removed.
        """
        if model.quantized:
            raise ArchitectureError("a quantized network cannot be pruned; prune before you quantize")
        data, preprocess = context.data, context.data.preprocess
        network = model.copy_network()
        pruning.match_batch_norm(network, data.calibration_batches())
        prunable = _prunable(model.with_network(network, details={}), context)
        blocks = prunable.blocks
        if not blocks:
            raise ArchitectureError("the network has no block whose output has the shape of its input")
        if self.target.of_time:
            return pruning.prune_to_latency(model, prunable, self.target, context, self.id)
        predictions = pruning.Divergence(network, data.calibration_batches(), training.lay_out(network, data))
        before = after = models.Size.of(network, preprocess)
        removed: dict[str, float] = {}  # block -> divergence once it is removed as well
        while self.target.kept(after, before) > self.target.limit:
            left = [block for block in blocks if block not in removed]
            if not left:
                raise StageError(
                    f"the target, at most {self.target.limit:.3f} of the incoming network, is out of reach: without "
                    f"all {len(blocks)} blocks that can be removed, {self.target.kept(after, before):.3f} is left"
                )
            divergence = {block: predictions.without(network, block) for block in left}
            least = min(left, key=divergence.__getitem__)
            removed[least] = divergence[least]
            models.Removed(modules=(least,)).apply(network, preprocess.input_shape(2))
            after = models.Size.of(network, preprocess)
        pruning.estimate_batch_norm(network, data.calibration_batches())
        context.services.console.say(f"  {self.id} keeps {len(blocks) - len(removed)} of {len(blocks)} blocks")
        details = {"kept": after.share_of(before), "blocks": len(blocks), "removed": removed}
        return model.with_network(network, models.Removed(modules=tuple(removed)), details=details)


def _prunable(model: "TorchModel", context: "Context") -> "pruning.Prunable":
    """The network's blocks, and none of its channels."""
    blocks = pruning.removable_blocks(model.network, next(context.data.calibration_batches())[:2])
    return pruning.Prunable(model.network, context.data.preprocess.input_shape(2), None, {}, blocks, round_to=1)
