"""What training minimises, and what a loss may look at.

A new loss is a subclass of `Objective`. It needs no registration.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compressor import processes
from compressor.config.spec import did_you_mean
from compressor.errors import ArchitectureError

INPUT_OF = "input of "


@dataclass(frozen=True)
class Batch:
    """One step's images, augmented and normalised `[B, C, H, W]`, and where they come from.

    Of several processes each has a part of the images, in `inputs`, and everything else of all (`in_parts`). What a
    loss computes of `inputs` or parameters, and not of the network's outputs, then counts once for each process.
    """

    inputs: Tensor
    labels: Tensor  # classes int64 [B]; of mixed images the share of each class, float32 [B, classes]
    indices: Tensor  # [B], into the training images
    view: int  # which augmented view of them
    progress: float = 0.0  # the share of the training that is done
    in_parts: bool = False


class Watched:
    """A network that runs once per batch, however often it is asked, and shows the outputs of its inner layers.

    The layer `input of fc` is what layer `fc` reads. `run` calls the network: it may cast, or be wrapped for several
    devices.
    """

    def __init__(self, network: nn.Module, run: Any = None) -> None:
        self.network = network
        self._run = run or network
        self._shown: dict[str, Tensor] = {}
        self._whole: set[str] = set()  # of those shown, what was gathered from all processes
        self._batch: Batch | None = None
        self._logits: Tensor | None = None

    def watch(self, layers: Iterable[str]) -> list[RemovableHandle]:
        """Keep the outputs of these layers until the handles are removed.

        Raises:
            ArchitectureError: the network has no such layer.
        """
        found = {name: layer_of(self.network, name.removeprefix(INPUT_OF)) for name in layers}
        return [
            layer.register_forward_pre_hook(
                lambda _, given, named, name=name: self._show(name, next(iter((*given, *named.values())), None)),
                with_kwargs=True,
            )
            if name.startswith(INPUT_OF)
            else layer.register_forward_hook(lambda _, __, output, name=name: self._show(name, output))
            for name, layer in found.items()
        ]

    @contextmanager
    def watching(self, layers: Iterable[str]) -> Iterator[None]:
        """`watch` for the duration of a block."""
        handles = self.watch(layers)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._batch, self._logits = None, None
            self._forget()

    def logits(self, batch: Batch) -> Tensor:
        """Float32 `[B, classes]`."""
        if batch is not self._batch or self._logits is None:
            self._forget()
            output = self._run(batch.inputs)
            if not isinstance(output, Tensor):
                raise ArchitectureError(
                    f"the network returns a {type(output).__name__} while training, but logits are needed; "
                    "switch auxiliary outputs off with arguments, as in {aux_logits: false}"
                )
            logits = output.float()
            self._batch, self._logits = batch, processes.whole(logits, len(batch.indices)) if batch.in_parts else logits
        return self._logits

    def layer(self, name: str, batch: Batch) -> Tensor:
        """The output of layer `name` for the batch, in float32; the last one if the layer runs several times.

        Raises:
            ArchitectureError: the layer did not run, or its output is not a tensor.
        """
        self.logits(batch)
        if name not in self._shown:
            raise ArchitectureError(f"layer {name!r} outputs no tensor when the network runs; name another")
        if batch.in_parts and name not in self._whole:
            own = self._shown[name]
            if len(own) != len(batch.inputs):
                raise ArchitectureError(
                    f"layer {name!r} outputs {list(own.shape)} for {len(batch.inputs)} images; several processes can "
                    "only compare layers whose first dimension is the batch"
                )
            self._shown[name] = processes.whole(own, len(batch.indices))
            self._whole.add(name)
        return self._shown[name]

    def _forget(self) -> None:
        self._shown.clear()
        self._whole.clear()

    def _show(self, name: str, output: Any) -> None:
        if isinstance(output, Tensor):
            self._shown[name] = output.to(torch.float32, copy=True)  # the next layer may work in place


def layer_of(network: nn.Module, name: str) -> nn.Module:
    """The layer of that name.

    Raises:
        ArchitectureError: there is none; the closest name is suggested.
    """
    layers: dict[str, nn.Module] = dict(network.named_modules())
    if not name or name not in layers:
        raise ArchitectureError(f"the network has no layer {name!r}{did_you_mean(name, layers)}")
    return layers[name]


@torch.no_grad()
def layer_outputs(network: nn.Module, layers: Sequence[str], example: Tensor) -> dict[str, Tensor]:
    """The outputs of these layers for an example `[N, C, H, W]`, with the network in eval mode.

    Raises:
        ArchitectureError: the network has no such layer, or its output is not a tensor.
    """
    watched = Watched(network.eval())
    batch = Batch(example, torch.zeros(len(example), dtype=torch.int64), torch.arange(len(example)), 0)
    with watched.watching(layers):
        return {name: watched.layer(name, batch) for name in layers}


class Objective(nn.Module):
    """A loss: `forward(network, batch)` returns a scalar, averaged over the batch.

    `layers` names the layers that it reads with `network.layer`. Its own parameters (such as adapters between two
    networks) are trained and checkpointed with the network's, and dropped when training ends.
    """

    layers: Sequence[str] = ()

    def forward(self, network: Watched, batch: Batch) -> Tensor:
        """The loss of this batch."""
        raise NotImplementedError


class CrossEntropy(Objective):
    """Cross-entropy on the labels, with label smoothing (Szegedy et al. 2016); `class_weights` are `[classes]`."""

    class_weights: Tensor | None

    def __init__(self, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, network: Watched, batch: Batch) -> Tensor:
        return cross_entropy(network.logits(batch), batch.labels, self.class_weights, self.label_smoothing)


def cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """−Σ_c w_c · y_c · log softmax(z)_c, averaged over the batch.

    Torch would divide by the weights in the batch, so that what an image weighs would depend on the others.

    Args:
        logits: z, `[N, classes]`.
        labels: y, the classes int64 `[N]`, or the share of each class, float32 `[N, classes]`.
        class_weights: w, `[classes]`; 1 by default.
        label_smoothing: the share of y that is spread over all classes.
    """
    if class_weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    total = F.cross_entropy(logits, labels, class_weights, label_smoothing=label_smoothing, reduction="sum")
    return total / len(labels)


class WeightedSum(Objective):
    """The weighted sum of other objectives."""

    def __init__(self, terms: Sequence[tuple[float, Objective]]) -> None:
        super().__init__()
        self.weights = [weight for weight, _ in terms]
        self.terms = nn.ModuleList(term for _, term in terms)
        self.layers = [name for _, term in terms for name in term.layers]

    def forward(self, network: Watched, batch: Batch) -> Tensor:
        losses = [weight * term(network, batch) for weight, term in zip(self.weights, self.terms, strict=True)]
        return torch.stack(losses).sum()
