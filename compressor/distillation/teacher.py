"""A teacher: its logits, computed or stored, and the outputs of its inner layers."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from compressor import processes
from compressor.errors import ArtifactError, pass_on_out_of_memory
from compressor.models.artifact import TorchModel
from compressor.storage import files, tensors
from compressor.storage.code import code_digest
from compressor.training import objectives
from compressor.training.loop import autocast, evaluate, lay_out, training_views
from compressor.training.objectives import Batch, Watched

if TYPE_CHECKING:
    from compressor.pipeline.context import Context


FLOAT_BYTES, HEADER_BYTES = 4, 2**16
ROUNDING = 1e-2  # of the largest logit; GPUs convolve in TF32


class Teacher:
    """A teacher's outputs for training batches.

    With `views`, its logits for that many augmented views of all training images are computed once; training then
    cycles through these views, and the teacher is not run again. They are kept in half precision. If the run keeps soft
    labels, they are mapped from files and take no memory, and every later stage and run with the same teacher, images,
    augmentation, seed and code reuses them. `layers` are its inner layers that `layer` can return.
    """

    def __init__(self, teacher: TorchModel, context: "Context", views: int | None, layers: Sequence[str] = ()) -> None:
        self.device = context.device
        self.network = teacher.copy_network().eval().requires_grad_(False).to(self.device)
        self.layout = lay_out(self.network, context.data)
        if not layers:
            images = context.data.train.batch(torch.arange(min(2, len(context.data.train)))).to(self.device)
            self.network = folded(self.network, context.data.preprocess.normalise(images))
        self.watched = Watched(self.network, self._run)
        self.watched.watch(layers)
        self.stored: list[Tensor] | None = None  # for each view, [N, classes] on the CPU
        if views is not None:
            self.stored = list(self._soft_labels(teacher, context, views))

    def logits(self, batch: Batch) -> Tensor:
        """Logits `[B, classes]` for this batch."""
        if self.stored is None:
            return self.watched.logits(batch)
        return self.stored[batch.view][batch.indices.cpu()].to(self.device).float()

    def layer(self, name: str, batch: Batch) -> Tensor:
        """The output of layer `name` for this batch."""
        return self.watched.layer(name, batch)

    def layer_outputs(self, layers: Sequence[str], example: Tensor) -> dict[str, Tensor]:
        """The outputs of these layers for an example `[N, C, H, W]`."""
        return objectives.layer_outputs(self.network, layers, example.to(self.device))

    def accuracy(self, context: "Context") -> float:
        """The teacher's accuracy on the validation images."""
        validation = context.data.validation
        return evaluate(self.network, validation, context, "fp32", self.layout) / len(validation)

    def _soft_labels(self, teacher: TorchModel, context: "Context", views: int) -> Iterator[Tensor]:
        paths = _paths(teacher, context, views)
        reused = 0
        self._compute_own(paths, context)
        for path, inputs in zip(paths, training_views(context, views, self.layout), strict=True):
            stored = _read(path, context)
            if stored is None:
                stored = self._computed(inputs)
                if path is not None:
                    tensors.write(path, {"logits": stored})
                    mapped = _read(path, context)  # takes no memory
                    stored = stored if mapped is None else mapped
            else:
                reused += 1
            yield stored
        if reused:
            context.services.console.say(f"  {reused} of {views} views of the teacher's outputs are reused")

    def _compute_own(self, paths: Sequence[Path | None], context: "Context") -> None:
        """Of several processes that keep soft labels in one place, each computes some of the views."""
        several = processes.count()
        if several == 1 or None in paths:
            return
        for number, (path, inputs) in enumerate(
            zip(paths, training_views(context, len(paths), self.layout), strict=True)
        ):
            if number % several == processes.rank() and path is not None and _read(path, context) is None:
                tensors.write(path, {"logits": self._computed(inputs)})
        processes.wait()

    def _computed(self, inputs: Iterable[Tensor]) -> Tensor:
        return _halved(torch.cat([self._run(each).cpu() for each in inputs]))

    @torch.no_grad()
    def _run(self, inputs: Tensor) -> Tensor:
        with autocast(self.device, "auto"):
            logits: Tensor = self.network(inputs.contiguous(memory_format=self.layout))
        return logits.float()


@torch.no_grad()
def folded(network: nn.Module, example: Tensor) -> nn.Module:
    """A network in eval mode, with each BatchNorm folded into the convolution before it: the same logits, sooner.

    One that torch.fx cannot follow, or reads wrong (a convolution that runs twice), is returned as it is.

    Args:
        network: `[N, C, H, W] -> [N, classes]`.
        example: `[N, C, H, W]`, for which both have to give the same.
    """
    try:
        fused: nn.Module = fuse(network)
    except Exception as error:  # it runs the network's own code on symbols
        pass_on_out_of_memory(error)
        return network
    logits = network(example)
    apart = (fused(example) - logits).abs().max()
    return fused if bool(apart <= ROUNDING * logits.abs().max()) else network


def _halved(logits: Tensor) -> Tensor:
    """In half precision, unless they are too large for it."""
    halves = logits.half()
    return halves if bool(halves.isfinite().all()) else logits


def _paths(teacher: TorchModel, context: "Context", views: int) -> list[Path | None]:
    """The file of each view's soft labels, named by the digest of everything that they depend on."""
    folder = context.services.soft_labels
    if folder is None:
        return [None] * views
    factory = teacher.architecture.factory
    depends_on = {
        "teacher": teacher.digest,
        "images": context.data.train.fingerprint,
        "preprocess": context.data.preprocess.model_dump(mode="json"),
        "augment": context.data.augment.model_dump(mode="json"),
        "seed": context.seed,
        "code": code_digest(__name__, *([] if factory is None else [factory.partition(":")[0]])),
    }
    return [folder / f"{files.digest_json({**depends_on, 'view': view})}.safetensors" for view in range(views)]


def _read(path: Path | None, context: "Context") -> Tensor | None:
    """Stored outputs `[N, classes]`, if they exist, are whole and have the expected shape."""
    if path is None or not path.exists():
        return None
    expected = (len(context.data.train), len(context.data.labels))
    try:
        logits = tensors.read(path, FLOAT_BYTES * math.prod(expected) + HEADER_BYTES)[0]["logits"]
    except (ArtifactError, KeyError) as error:
        context.services.console.say(f"  soft labels: {error}; they are computed again")
        return None
    if (
        logits.dtype not in (torch.float16, torch.float32)
        or tuple(logits.shape) != expected
        or not bool(logits.isfinite().all())
    ):
        context.services.console.say(f"  soft labels: {path} does not hold {list(expected)}; they are computed again")
        return None
    with suppress(OSError):  # of another user, or just removed by another run
        os.utime(path)  # what was not used for longest goes first
    return logits
