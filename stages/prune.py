"""Remove whole channels (structured pruning), in groups of dependent layers (Fang et al. 2023)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compressor import models, pruning
from compressor.config.spec import validated_copy
from compressor.errors import ArchitectureError, StageError
from compressor.pipeline.stage import Stage
from compressor.pruning.settings import MAX_RATIO, Criterion, Scope
from compressor.pruning.settings import Target as Target

if TYPE_CHECKING:
    from collections.abc import Collection

    from compressor import Context, TorchModel
    from compressor.evaluation import Layer

SHOWN = 3  # layers


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

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.target.of_time and (self.scope, self.steps) != ("local", 1):
            raise ValueError("a target of latency chooses widths by itself; leave scope and steps out")
        return self

    def decided_by(self, context: "Context") -> Any:
        """What the latency is of."""
        return self.target.decided_by(context)

    def for_dry_run(self) -> Self:
        """Take half of all channels where latency decides, which takes minutes; nearly all where all layers compete.

        In an untrained network, a ratio over all layers would take other ones, or none.
        """
        if self.target.of_time:
            return validated_copy(self, target=Target(ratio=0.5), round_to=1)
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
        say = context.services.console.say
        groups = pruning.Groups(model.network, preprocess.input_shape(2), self.skip)
        if groups.rigid:
            say(f"  {self.id} leaves alone what the network's code fixes the width of: {_several(groups.rigid)}")
        if self.target.of_time:
            return pruning.prune_to_latency(
                model, self._prunable(model, groups, context), self.target, context, self.id
            )
        before = models.Size.of(model.network, preprocess)
        network = groups.without(self._removal(groups, before, context))
        models.check_fits(network, model.architecture, preprocess.input_shape(2))
        after = models.Size.of(network, preprocess)
        if after == before:
            if not groups.by_layer:
                raise StageError("no channel can be removed: the network's code, or skip, fixes every layer's width")
            raise StageError(f"no channel can be removed with round_to {self.round_to}; lower it, or prune more")
        kept = after.share_of(before)
        say(f"  {self.id} keeps {kept['macs']:.2f} of MACs, {kept['parameters']:.2f} of parameters")
        pruning.estimate_batch_norm(network, context.data.calibration_batches())
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        details = {"kept": kept, "widths": pruning.outputs_of(model.network, network), "rigid": groups.rigid}
        return model.with_network(network, models.Widths.between(model.network, shapes), details=details)

    def check_files(self) -> None:
        """Refuse a table that cannot be used."""
        self.target.check_table()

    def timed_layers(self, model: "TorchModel", context: "Context") -> "Collection[Layer]":
        """All that may be left of the network, for a target of latency."""
        if not self.target.of_time:
            return ()
        groups = pruning.Groups(model.network, context.data.preprocess.input_shape(2), self.skip)
        return pruning.timed_layers(self._prunable(model, groups, context), self.target, context)

    def _prunable(self, model: "TorchModel", groups: "pruning.Groups", context: "Context") -> "pruning.Prunable":
        """What a target of latency may take from the network: channels and blocks."""
        return pruning.Prunable.of(
            model.network,
            context.data.preprocess.input_shape(2),
            groups,
            self._ranking(groups, context).order(),
            round_to=self.round_to,
            skip=self.skip,
        )

    def _removal(self, groups: "pruning.Groups", before: "models.Size", context: "Context") -> "pruning.Removal":
        ranking = self._ranking(groups, context)
        if self.target.ratio is not None:
            return ranking.least(self.target.ratio)

        def kept(removal: "pruning.Removal") -> float:
            return self.target.kept(models.Size.of(groups.without(removal), context.data.preprocess), before)

        search = pruning.largest_within(self.target.limit, ranking.least, kept, ranking.between)
        found, share = search
        if found is None:
            raise StageError(
                f"the target, at most {self.target.limit:.3f} of the incoming network, is out of reach with "
                f"round_to {self.round_to}; the smallest network keeps {share:.3f}"
            )
        return found

    def _ranking(self, groups: "pruning.Groups", context: "Context") -> "pruning.Ranking":
        return pruning.Ranking(
            groups,
            context.data,
            criterion=self.importance,
            scope=self.scope,
            round_to=self.round_to,
            steps=self.steps,
            seed=context.seed_for("pruning"),
        )


def _several(layers: Sequence[str]) -> str:
    more = f" and {len(layers) - SHOWN} more" if len(layers) > SHOWN else ""
    return f"{', '.join(layers[:SHOWN])}{more}"
