"""THE training loop. What is minimised is an argument; everything else is `Training`, the settings stages share."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.data.dataset import Dataset, Split, View
from compressor.environment import has_fast_bf16
from compressor.errors import ArchitectureError, ArtifactError, StageError, first_line, pass_on_out_of_memory
from compressor.storage import tensors
from compressor.training.settings import Precision, Training
from compressor.training.state import TrainingState, weights_of

if TYPE_CHECKING:
    from compressor.console import TrainingProgress
    from compressor.pipeline.stage import Context

NARROW = 16  # channels
CHECKPOINT_SECONDS = 10.0  # at least, from one checkpoint to the next
EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class Batch:
    """One step's images, augmented and normalised `[B, C, H, W]`, and where they come from."""

    inputs: Tensor
    labels: Tensor  # [B]
    indices: Tensor  # [B], into the training images
    view: int  # which augmented view of them


Loss = Callable[[Tensor, Batch], Tensor]  # (logits [B, classes], batch) -> scalar


def fit(
    network: nn.Module,
    loss: Loss,
    training: Training,
    context: "Context",
    *,
    label: str,
    views: int | None = None,
    masked: Set[str] = frozenset(),
) -> dict[str, Any]:
    """Train `network` in place on the training images; give its `curve`, one entry an epoch, and the `kept_epoch`.

    Every epoch sees another random view of every image; with `views`, it cycles through that many. Zeros of the
    `masked` parameters stay zero. With `keep: best` the network as it came counts too, as epoch 0; of equals the last
    is kept.
    Where the context keeps checkpoints, an interrupted training goes on after its last one, to the same bits.

    Raises:
        StageError: the loss is no longer a finite number.
    """
    if training.epochs == 0:
        return {"curve": [], "kept_epoch": 0}
    data, device = context.data, context.device
    start = tensors.digest(network.state_dict())
    layout = layout_of(network.to(device), data)
    network.train().requires_grad_(True).to(memory_format=layout)
    state = TrainingState(network, training, math.ceil(len(data.train) / training.batch_size), masked)
    train, validation = data.train.to(device), data.validation.to(device)
    judged: Precision = "fp32" if training.keep == "best" else training.precision  # choose on what will ship
    if training.keep == "best":
        state.judge(0, evaluate(state.kept, validation, data, judged, layout))
    _go_on(state, label, start, context)
    saved = time.monotonic()
    with context.console.training(label, training.epochs, state.steps, done=len(state.curve)) as progress:
        for epoch in range(len(state.curve), training.epochs):
            started = time.monotonic()
            rate, before = state.rate, weights_of(network)
            batches = _batches(train, context, state.steps, epoch, views, layout)
            mean = _train_epoch(state, loss, batches, context, epoch, progress) / len(train)
            if not math.isfinite(mean):
                raise StageError(_diverged(f"the loss is {mean}", epoch, rate, before, context))
            try:
                correct = evaluate(state.kept, validation, data, judged, layout)
            except StageError as error:
                raise StageError(_diverged(str(error), epoch, rate, before, context)) from error
            accuracy = correct / len(validation)
            state.curve.append(
                {
                    "epoch": epoch + 1,
                    "loss": mean,
                    "validation_accuracy": accuracy,
                    "learning_rate": rate,
                    "seconds": round(time.monotonic() - started, 3),
                }
            )
            if training.keep == "best":
                state.judge(epoch + 1, correct)
            progress.epoch(epoch + 1, mean, accuracy)
            if context.checkpoints is not None and time.monotonic() - saved >= CHECKPOINT_SECONDS:
                context.checkpoints.save(label, start, state.tensors(), state.notes())
                saved = time.monotonic()
    tensors.load_into(network, state.best or weights_of(state.kept))
    network.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return {"curve": state.curve, "kept_epoch": state.best_epoch if state.best else training.epochs}


def _go_on(state: TrainingState, label: str, start: str, context: "Context") -> None:
    """Bring the state to its last checkpoint, where there is one."""
    if context.checkpoints is None:
        return
    try:
        found = context.checkpoints.load(label, start)
    except ArtifactError as error:
        context.console.say(f"  {label}: {error}; the training starts anew")
        return
    if found is not None:
        state.restore(*found)
        context.console.say(f"  {label}: goes on after epoch {len(state.curve)} of {state.training.epochs}")


def _train_epoch(
    state: TrainingState,
    loss: Loss,
    batches: Iterator[Batch],
    context: "Context",
    epoch: int,
    progress: "TrainingProgress",
) -> float:
    """One pass; gives the sum of the loss over the images. What layers draw (dropout) comes from the seed."""
    device = context.device
    state.network.train()
    total = torch.zeros((), device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(context.seed_for(f"training in epoch {epoch}"))
        for batch in batches:
            logits = _forward(state, batch, device)
            if not isinstance(logits, Tensor):
                raise ArchitectureError(
                    f"the network gives a {type(logits).__name__} while training, and logits are needed; "
                    "switch auxiliary outputs off with arguments, as in {aux_logits: false}"
                )
            value = loss(logits.float(), batch)
            state.step(value)
            total += value.detach() * len(batch.labels)
            progress.step()
    return float(total)


def _forward(state: TrainingState, batch: Batch, device: torch.device) -> Any:
    try:
        with autocast(device, state.training.precision):
            return state.model(batch.inputs)
    except Exception as error:  # a forward raises what it likes
        pass_on_out_of_memory(error)
        raise ArchitectureError(
            f"the network cannot train on inputs {list(batch.inputs.shape)}: {first_line(error)}; if this is about a "
            "type of numbers, say precision: fp32"
        ) from error


def _diverged(what: str, epoch: int, rate: float, before: Mapping[str, Tensor], context: "Context") -> str:
    """What is said of a training whose figures are no numbers any more; the weights from before are kept."""
    advice = "lower learning_rate, or add warmup_epochs"
    if context.checkpoints is not None:
        kept = context.checkpoints.keep_last_good(before)
        advice += f" (the weights from before this epoch are in {kept})"
    return f"{what} in epoch {epoch + 1} at learning rate {rate:.3g}; {advice}"


@torch.no_grad()
def evaluate(network: nn.Module, split: Split, data: Dataset, precision: Precision, layout: torch.memory_format) -> int:
    """How many images of `split` the network gets right, in torch, where the split lies.

    Raises:
        StageError: a logit is not finite.
    """
    network.eval()
    device = split.labels.device
    correct = 0
    for start in range(0, len(split), EVALUATION_BATCH):
        images = split.images[start : start + EVALUATION_BATCH]
        inputs = data.preprocess.normalise(images).contiguous(memory_format=layout)
        with autocast(device, precision):
            logits = network(inputs)
        if not bool(logits.isfinite().all()):
            raise StageError("a logit is not finite")
        correct += int((logits.argmax(1) == split.labels[start : start + EVALUATION_BATCH]).sum())
    return correct


def layout_of(network: nn.Module, data: Dataset) -> torch.memory_format:
    """Channels last, where convolutions are fastest, unless the network needs plain strides.

    Its own code may (`x.view`); and on the CPU, in channels last, the gradient of a 1x1 convolution with a stride and
    fewer than 16 channels going in writes past its memory on several threads, and the process dies (oneDNN;
    docs/findings.md).
    """
    example = torch.zeros(data.preprocess.input_shape(2), device=next(network.parameters()).device)
    try:
        with torch.no_grad(), _NarrowStrides() as narrow:
            network.eval()(example.to(memory_format=torch.channels_last))
    except RuntimeError as error:
        pass_on_out_of_memory(error)
        return torch.contiguous_format
    dies = narrow.found and example.device.type == "cpu" and torch.get_num_threads() > 1
    return torch.contiguous_format if dies else torch.channels_last


class _NarrowStrides(TorchDispatchMode):
    """Looks for 1x1 convolutions with a stride and fewer than 16 channels going in."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            _, weight, _, stride, *_ = args
            self.found |= tuple(weight.shape[2:]) == (1, 1) and max(stride) > 1 and weight.shape[1] < NARROW
        return func(*args, **(kwargs or {}))


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 where it is asked for, or fast on this device."""
    enabled = precision == "bf16" or (precision == "auto" and has_fast_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def training_views(context: "Context", views: int, layout: torch.memory_format) -> Iterator[Iterator[Tensor]]:
    """For each view that `fit` cycles through, its inputs `[B, C, H, W]` in the order of the training images."""
    data = context.data
    for number in range(views):
        view = _view(context, number)
        yield (
            _inputs(data.train, data, view, chunk, layout)
            for chunk in torch.arange(len(data.train)).split(EVALUATION_BATCH)
        )


def _batches(
    train: Split, context: "Context", steps: int, epoch: int, views: int | None, layout: torch.memory_format
) -> Iterator[Batch]:
    number = epoch if views is None else epoch % views
    view = _view(context, number)
    generator = torch.Generator().manual_seed(context.seed_for(f"order of epoch {epoch}"))
    for indices in torch.randperm(len(train), generator=generator).tensor_split(steps):
        inputs = _inputs(train, context.data, view, indices, layout)
        yield Batch(inputs, train.labels[indices.to(train.labels.device)], indices, number)


def _view(context: "Context", number: int) -> View:
    return View.draw(context.data.augment, len(context.data.train), context.seed_for(f"view {number}"))


def _inputs(train: Split, data: Dataset, view: View, indices: Tensor, layout: torch.memory_format) -> Tensor:
    pixels = view.of(train.images[indices.to(train.images.device)], indices, data.augment.crop)
    return data.preprocess.normalise(pixels).contiguous(memory_format=layout)
