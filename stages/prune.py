"""Remove whole channels (structured pruning), by torch-pruning's dependency graph (Fang et al. 2023)."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from compressor import models, pruning
from compressor.config.spec import validated_copy
from compressor.errors import ArchitectureError, StageError
from compressor.pipeline.stage import Stage
from compressor.pruning.settings import MAX_RATIO, Criterion, Scope
from compressor.pruning.settings import Target as Target

if TYPE_CHECKING:
    from torch import nn

    from compressor import Context, TorchModel


class Prune(Stage):
    """Remove the least important channels of groups of layers that depend on one another.

    The classifier's outputs are left alone. BatchNorm statistics are estimated again on the calibration images.
    """

    needs_recovery: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"stage": "prune", "target": {"macs": 0.8}, "round_to": 4}

    stage: Literal["prune"] = "prune"
    target: Target
    """How much to keep, as in `{macs: 0.7}`."""
    importance: Criterion = "l2"
    """L1 or L2 norm of a channel's weights, first-order Taylor expansion of the loss, BatchNorm's scale, or random."""
    scope: Scope = "local"
    """Rank channels among all layers, or remove the same share of each."""
    round_to: int = Field(16, ge=1, le=4096)
    """Leave the nearest multiple of this in each layer, at least one; int8 is slower on 8 or 12 channels than on 16."""
    steps: int = Field(1, ge=1, le=1000)
    """Prune in this many steps, ranking again before each."""
    skip: tuple[str, ...] = ()
    """Layers and parameters whose channels are left alone, by name, or modules that hold them."""

    def for_dry_run(self) -> Self:
        """Take nearly all channels: in an untrained network, a ratio over all layers would take other ones, or none."""
        if self.scope == "global" and self.target.ratio is not None:
            return validated_copy(self, target=Target(ratio=MAX_RATIO))
        return self

    def run(self, model: "TorchModel", context: "Context") -> "TorchModel":
        """The pruned network.

        Raises:
            StageError: the target is out of reach, or nothing was removed.
            ArchitectureError: the network no longer works once channels are removed.
        """
        if model.quantized:
            raise ArchitectureError("a quantized network cannot be pruned; prune before you quantize")
        preprocess = context.data.preprocess
        models.check_trains(model.network, model.architecture, preprocess.input_shape(2))
        matched = model.copy_network()
        pruning.match_batch_norm(matched, context.data.calibration_batches())
        model = model.with_network(matched, details={})
        before = models.Size.of(model.network, preprocess)
        if self.target.ratio is not None:
            network = self._pruned(model, self.target.ratio, context)
        else:
            found, share = pruning.largest_within(
                self.target.limit,
                lambda ratio: self._pruned(model, ratio, context),
                lambda network: self.target.kept(models.Size.of(network, preprocess), before),
            )
            if found is None:
                raise StageError(
                    f"the target, at most {self.target.limit:.3f} of the incoming network, is out of reach with "
                    f"round_to {self.round_to}; the smallest network keeps {share:.3f}"
                )
            network = found
        after = models.Size.of(network, preprocess)
        if after == before:
            raise StageError(f"no channel can be removed with round_to {self.round_to}; lower it, or prune more")
        kept = after.share_of(before)
        say = context.services.console.say
        say(f"  {self.id} keeps {kept['macs']:.2f} of MACs, {kept['parameters']:.2f} of parameters")
        pruning.estimate_batch_norm(network, context.data.calibration_batches())
        details = {"kept": kept, "widths": pruning.outputs_of(model.network, network)}
        return model.with_network(network, pruning.changed_widths(model.network, network), details=details)

    def _pruned(self, model: "TorchModel", ratio: float, context: "Context") -> "nn.Module":
        return pruning.without_channels(
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
