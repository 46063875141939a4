"""Remove whole channels (structured pruning), by torch-pruning's dependency graph (Fang et al. 2023)."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field
from torch import nn

from compressor.config.spec import validated_copy
from compressor.errors import ArchitectureError, StageError
from compressor.models.artifact import TorchModel
from compressor.models.changes import Widths, widths_of
from compressor.models.size import Share, Size
from compressor.pipeline.stage import Context, Stage
from compressor.pruning.batch_norm import estimate_batch_norm, match_batch_norm
from compressor.pruning.channels import Scope, without_channels
from compressor.pruning.criteria import Criterion
from compressor.pruning.search import LARGEST_RATIO, largest_within


class Target(Share):
    """How far to prune; exactly one of these.

    Attributes:
        ratio: remove this share of the channels.
    """

    ratio: float | None = Field(None, gt=0, lt=1)


class Prune(Stage[TorchModel, TorchModel]):
    """Remove the least important channels of groups of layers that depend on one another.

    Attributes:
        target: what to keep.
        importance: L1 or L2 norm of a channel's weights, first-order Taylor expansion of the loss (Molchanov et al.
            2019), BatchNorm's scale (Liu et al. 2017), or random.
        scope: rank channels among all layers, or remove the same share of each.
        round_to: channels are left in the nearest multiple of this, and at least one; 8 or 12
            take int8 longer than 16.
        steps: prune in this many steps, ranking anew before each.
        skip: layers and parameters by name, or modules that hold them, whose channels are left alone.

    The classifier's outputs are left alone. BatchNorm statistics are estimated anew on the calibration images.
    """

    needs_recovery: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"stage": "prune", "target": {"macs": 0.8}, "round_to": 4}

    stage: Literal["prune"] = "prune"
    target: Target
    importance: Criterion = "l2"
    scope: Scope = "local"
    round_to: int = Field(16, ge=1, le=4096)
    steps: int = Field(1, ge=1, le=1000)
    skip: tuple[str, ...] = ()

    def rehearsal(self) -> Self:
        """A ratio of all layers' channels takes other channels from untrained layers, or none: take nearly all."""
        if self.scope == "global" and self.target.ratio is not None:
            return validated_copy(self, target=Target(ratio=LARGEST_RATIO))
        return self

    def run(self, model: TorchModel, context: Context) -> TorchModel:
        """The pruned network.

        Raises:
            StageError: the target is out of reach, or nothing was removed.
            ArchitectureError: the network does not work any more when channels are removed.
        """
        if model.quantized:
            raise ArchitectureError("a quantized network cannot be pruned; prune before you quantize")
        matched = model.copy_network()
        match_batch_norm(matched, context.data.calibration_batches())
        model = model.with_network(matched, details={})
        before = Size.of(model.network, context.data.preprocess)
        if self.target.ratio is not None:
            network = self._pruned(model, self.target.ratio, context)
        else:
            found, share = largest_within(
                self.target.limit,
                lambda ratio: self._pruned(model, ratio, context),
                lambda network: self.target.kept(Size.of(network, context.data.preprocess), before),
            )
            if found is None:
                raise StageError(
                    f"the target, at most {self.target.limit:.3f} of what comes in, is out of reach with round_to "
                    f"{self.round_to}; the smallest network keeps {share:.3f}"
                )
            network = found
        after = Size.of(network, context.data.preprocess)
        if after == before:
            raise StageError(f"no channel can be removed with round_to {self.round_to}; lower it, or prune further")
        kept = after.share_of(before)
        context.console.say(f"  {self.id} keeps {kept['macs']:.2f} of MACs, {kept['parameters']:.2f} of parameters")
        estimate_batch_norm(network, context.data.calibration_batches())
        old, new = widths_of(model.network), widths_of(network)
        changed = {name: width for name, width in new.items() if width != old[name]}
        return model.with_network(
            network,
            Widths(layers=changed),
            details={
                "kept": kept,
                "widths": {
                    name: [old[name].outputs, width.outputs]
                    for name, width in new.items()
                    if isinstance(network.get_submodule(name), nn.Conv1d | nn.Conv2d | nn.Linear)
                },
            },
        )

    def _pruned(self, model: TorchModel, ratio: float, context: Context) -> nn.Module:
        return without_channels(
            model,
            ratio,
            context.data,
            criterion=self.importance,
            scope=self.scope,
            round_to=self.round_to,
            steps=self.steps,
            skip=self.skip,
            seed=context.seed_for("pruning"),
        )
