"""Remove whole channels (structured pruning), by torch-pruning's dependency graph (Fang et al. 2023)."""

import copy
import math
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
import torch_pruning
from pydantic import Field
from torch import Tensor, nn

from compressor.config.spec import validated_copy
from compressor.errors import ArchitectureError, StageError, first_line, pass_on_out_of_memory
from compressor.models.architectures import check_fits
from compressor.models.artifact import TorchModel
from compressor.models.changes import Widths, widths_of
from compressor.models.size import Share, Size
from compressor.pipeline.context import Context
from compressor.pipeline.stage import Stage
from compressor.pruning.batch_norm import estimate_batch_norm, match_batch_norm

SEARCH_STEPS = 10  # of bisection: a thousandth of the channels
LARGEST_RATIO = 0.99

Criterion = Literal["l1", "l2", "taylor", "bn_scale", "random"]


class Target(Share):
    """How far to prune; exactly one of these.

    Attributes:
        ratio: remove this share of the channels.
    """

    ratio: float | None = Field(None, gt=0, lt=1)


class Prune(Stage):
    """Remove the least important channels of groups of layers that depend on one another.

    Attributes:
        target: what to keep.
        importance: L1 or L2 norm of a channel's weights, first-order Taylor expansion of the loss (Molchanov et al.
            2019), BatchNorm's scale (Liu et al. 2017), or random.
        scope: rank channels among all layers, or remove the same share of each.
        round_to: channels are left in the nearest multiple of this, and at least one; 8 or 12
            take int8 longer than 16.
        steps: prune in this many steps, ranking anew before each.

    The classifier's outputs are left alone. BatchNorm statistics are estimated anew on the calibration images.
    """

    needs_recovery: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"stage": "prune", "target": {"macs": 0.8}, "round_to": 4}

    stage: Literal["prune"] = "prune"
    target: Target
    importance: Criterion = "l2"
    scope: Literal["local", "global"] = "local"
    round_to: int = Field(16, ge=1, le=4096)
    steps: int = Field(1, ge=1, le=1000)

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
            network = self._search(model, before, context)
        after = Size.of(network, context.data.preprocess)
        if after == before:
            raise StageError(f"no channel can be removed with round_to {self.round_to}; lower it, or prune further")
        kept = after.share_of(before)
        context.services.console.say(
            f"  {self.id} keeps {kept['macs']:.2f} of MACs, {kept['parameters']:.2f} of parameters"
        )
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
                    if isinstance(network.get_submodule(name), nn.Conv2d | nn.Linear)
                },
            },
        )

    def _search(self, model: TorchModel, before: Size, context: Context) -> nn.Module:
        """Bisect the ratio for the largest network within the target."""
        best: nn.Module | None = None
        reached, smallest = -1.0, math.inf
        low, high = 0.0, LARGEST_RATIO
        for step in range(SEARCH_STEPS + 1):
            ratio = high if step == 0 else (low + high) / 2  # the far end first: is the target in reach at all?
            network = self._pruned(model, ratio, context)
            kept = self.target.kept(Size.of(network, context.data.preprocess), before)
            smallest = min(smallest, kept)
            if kept <= self.target.limit:
                high = ratio
                if kept > reached:
                    best, reached = network, kept
            elif step == 0:
                break
            else:
                low = ratio
        if best is None:
            raise StageError(
                f"the target, at most {self.target.limit:.3f} of what comes in, is out of reach with round_to "
                f"{self.round_to}; the smallest network keeps {smallest:.3f}"
            )
        return best

    def _pruned(self, model: TorchModel, ratio: float, context: Context) -> nn.Module:
        """A copy of the network with `ratio` of its channels removed, as far as rounding lets it."""
        network = model.copy_network().requires_grad_(True)
        example = torch.zeros(context.data.preprocess.input_shape(2))
        try:
            self._remove_channels(network, example, ratio, context)
            check_fits(network, model.architecture, tuple(example.shape))
        except Exception as error:  # a width written into forward ends anywhere, in torch-pruning or in forward
            pass_on_out_of_memory(error)
            raise ArchitectureError(
                f"{model.architecture.model} does not work with channels removed ({first_line(error)}); "
                "are channel counts written into its forward?"
            ) from error
        _check_widths_suffice(model.network, network)
        return network

    def _remove_channels(self, network: nn.Module, example: Tensor, ratio: float, context: Context) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed_for("pruning"))
            pruner = _Pruner(
                network,
                example,
                importance=_importance(self.importance),
                global_pruning=self.scope == "global",
                pruning_ratio=ratio,
                iterative_steps=self.steps,
                ignored_layers=[_classifier(network, example)],
                round_to=self.round_to,
            )
            for _ in range(self.steps):
                if self.importance == "taylor":
                    _accumulate_gradients(network, context)
                pruner.step()
        network.zero_grad()


class _Pruner(torch_pruning.pruner.BasePruner):  # type: ignore[misc]
    """Rounds to the nearest multiple and leaves one; the library rounds down, and skips a layer left with none."""

    def _round_to(self, n_pruned: int, current_channels: int, round_to: int) -> int:
        multiples = max((current_channels - n_pruned + round_to // 2) // round_to, 1)
        return max(current_channels - multiples * round_to, 0)


def _importance(criterion: Criterion) -> Any:
    match criterion:
        case "l1":
            return torch_pruning.importance.GroupMagnitudeImportance(p=1)
        case "l2":
            return torch_pruning.importance.GroupMagnitudeImportance(p=2)
        case "taylor":
            return torch_pruning.importance.GroupTaylorImportance()
        case "bn_scale":
            return torch_pruning.importance.BNScaleImportance()
        case "random":
            return torch_pruning.importance.RandomImportance()


def _accumulate_gradients(network: nn.Module, context: Context) -> None:
    """Gradients of the loss on the calibration images, which Taylor importance reads."""
    network.zero_grad()
    labels = context.data.calibration.labels
    done = 0
    for inputs in context.data.calibration_batches():
        F.cross_entropy(network(inputs), labels[done : done + len(inputs)]).backward()
        done += len(inputs)


def _classifier(network: nn.Module, example: Tensor) -> nn.Module:
    """The layer that gives the logits: the last convolution or linear layer that runs."""
    ran: list[nn.Module] = []
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(lambda module, *_: ran.append(module)) for layer in layers]
    with torch.no_grad():
        network.eval()(example)
    for handle in handles:
        handle.remove()
    if not ran:
        raise ArchitectureError("the network has no nn.Conv2d or nn.Linear to prune")
    return ran[-1]


def _check_widths_suffice(before: nn.Module, after: nn.Module) -> None:
    """A pruned network is saved as widths of layers; refuse one that has parameters of another shape besides."""
    rebuilt = Widths(layers=widths_of(after)).apply(copy.deepcopy(before), (1, 1, 1, 1))
    expected = {name: tensor.shape for name, tensor in rebuilt.state_dict().items()}
    for name, tensor in after.state_dict().items():
        if expected[name] != tensor.shape:
            raise ArchitectureError(
                f"pruning changed {name} to {list(tensor.shape)}; this kind of layer cannot be saved with another width"
            )
