"""THE training loop. What is minimised is an argument; everything else is `Training`, the settings stages share."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
from accelerate import Accelerator
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from compressor.data import Dataset, Split, View
from compressor.environment import has_fast_bf16
from compressor.errors import ArchitectureError, StageError
from compressor.spec import Spec

if TYPE_CHECKING:
    from compressor.stage import Context

EVALUATION_BATCH = 1000
DEFAULT_RATE = {"sgd": 0.1, "adamw": 0.001}
Precision = Literal["auto", "fp32", "bf16"]


class Training(Spec):
    """Settings of a training, for stages that train.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step.
        optimizer: SGD with Nesterov momentum, or AdamW.
        learning_rate: the peak; the schedule starts from it or rises to it. By default 0.1 for SGD, 0.001 for AdamW.
        momentum: of SGD.
        weight_decay: of weights; norms and biases are left out unless `decay_all`.
        decay_all: also decay norms and biases.
        schedule: cosine to 0, one-cycle (Smith 2018), a factor of 10 down at each of `milestones`, or constant.
        milestones: epochs after which multi_step lowers the learning rate.
        warmup_epochs: linear rise to the peak before the schedule starts.
        ema: decay of an exponential moving average of the weights, which is then what training gives; off by default.
        keep: the network of the last epoch, or of the epoch best on validation.
        precision: bf16 autocast where the processor has it, or as named.
    """

    epochs: int = Field(ge=0, le=100_000)
    batch_size: int = Field(128, ge=1, le=65_536)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float | None = Field(None, gt=0, le=10)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0, le=1)
    decay_all: bool = False
    schedule: Literal["cosine", "one_cycle", "multi_step", "constant"] = "cosine"
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = ()
    warmup_epochs: int = Field(0, ge=0, le=100_000)
    ema: float | None = Field(None, gt=0, lt=1)
    keep: Literal["last", "best"] = "last"
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _schedule_is_whole(self) -> Self:
        if (self.schedule == "multi_step") != bool(self.milestones):
            raise ValueError(
                "schedule multi_step and milestones go together, as in {schedule: multi_step, milestones: [10]}"
            )
        if self.schedule == "one_cycle" and self.warmup_epochs:
            raise ValueError("schedule one_cycle has a warm-up of its own; leave warmup_epochs out")
        return self

    @property
    def peak_rate(self) -> float:
        """The peak learning rate."""
        return self.learning_rate or DEFAULT_RATE[self.optimizer]


@dataclass(frozen=True)
class Batch:
    """One step's images, augmented and normalised `[B, C, H, W]`, and where they come from."""

    inputs: Tensor
    labels: Tensor  # [B]
    indices: Tensor  # [B], into the training images
    view: int  # which augmented view of them


@dataclass(frozen=True)
class _Best:
    """The epoch that was best on validation so far."""

    epoch: int
    correct: int
    state: dict[str, Tensor]


Loss = Callable[[Tensor, Batch], Tensor]  # (logits [B, classes], batch) -> scalar


def fit(
    network: nn.Module,
    loss: Loss,
    training: Training,
    context: "Context",
    *,
    label: str,
    views: int | None = None,
) -> dict[str, Any]:
    """Train `network` in place on the training images; give its `curve`, one entry an epoch, and the `kept_epoch`.

    Every epoch sees another random view of every image; with `views`, it cycles through that many.
    With `keep: best` the network as it came counts too, as epoch 0; of equals the last is kept.

    Raises:
        StageError: the loss is no longer a finite number.
    """
    data, device = context.data, context.device
    if training.epochs == 0:
        return {"curve": [], "kept_epoch": 0}
    accelerator = Accelerator(device_placement=False)  # the network is where the context says, whatever ran before
    network.train().requires_grad_(True).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(network, training)
    model, optimizer = accelerator.prepare(network, optimizer)
    steps = math.ceil(len(data.train) / training.batch_size)
    scheduler = _scheduler(optimizer, training, steps)
    average = _average(network, training)
    kept = network if average is None else average.module
    train, validation = data.train.to(device), data.validation.to(device)
    judged: Precision = "fp32" if training.keep == "best" else training.precision  # choose on what will ship
    best = _Best(0, evaluate(kept, validation, data, judged), _state(kept)) if training.keep == "best" else None
    curve: list[dict[str, Any]] = []
    with _seeded(context), context.console.training(label, training.epochs, steps) as progress:
        for epoch in range(training.epochs):
            started = time.monotonic()
            network.train()
            total = torch.zeros((), device=device)
            rate = scheduler.get_last_lr()[0]
            for batch in _batches(train, context, steps, epoch, views):
                with autocast(device, training.precision):
                    logits = model(batch.inputs)
                if not isinstance(logits, Tensor):
                    raise ArchitectureError(
                        f"{label}: the network gives a {type(logits).__name__} while training, and logits are needed; "
                        "switch auxiliary outputs off with arguments, as in {aux_logits: false}"
                    )
                value = loss(logits.float(), batch)
                accelerator.backward(value)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                if average is not None:
                    average.update_parameters(network)
                total += value.detach() * len(batch.labels)
                progress.step()
            mean = float(total) / len(train)
            if not math.isfinite(mean):
                raise StageError(
                    f"{label}: the loss is {mean} in epoch {epoch + 1} at learning rate {rate:.3g}; "
                    "lower learning_rate, or add warmup_epochs"
                )
            correct = evaluate(kept, validation, data, judged)
            accuracy = correct / len(validation)
            curve.append(
                {
                    "epoch": epoch + 1,
                    "loss": mean,
                    "validation_accuracy": accuracy,
                    "learning_rate": rate,
                    "seconds": round(time.monotonic() - started, 3),
                }
            )
            if best is not None and correct >= best.correct:
                best = _Best(epoch + 1, correct, _state(kept))
            progress.epoch(epoch + 1, mean, accuracy)
    network.load_state_dict(best.state if best is not None else _state(kept))
    network.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return {"curve": curve, "kept_epoch": best.epoch if best is not None else training.epochs}


@torch.no_grad()
def evaluate(network: nn.Module, split: Split, data: Dataset, precision: Precision) -> int:
    """How many images of `split` the network gets right, in torch, where the split lies."""
    network.eval()
    device = split.labels.device
    correct = 0
    for start in range(0, len(split), EVALUATION_BATCH):
        images = split.images[start : start + EVALUATION_BATCH]
        inputs = data.preprocess.normalise(images).contiguous(memory_format=torch.channels_last)
        with autocast(device, precision):
            logits = network(inputs)
        correct += int((logits.argmax(1) == split.labels[start : start + EVALUATION_BATCH]).sum())
    return correct


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 where it is asked for, or fast on this device."""
    enabled = precision == "bf16" or (precision == "auto" and has_fast_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def training_views(context: "Context", views: int) -> Iterator[Iterator[Tensor]]:
    """For each view that `fit` cycles through, its inputs `[B, C, H, W]` in the order of the training images."""
    data = context.data
    for number in range(views):
        view = _view(context, number)
        yield (
            _inputs(data.train, data, view, chunk) for chunk in torch.arange(len(data.train)).split(EVALUATION_BATCH)
        )


def _batches(train: Split, context: "Context", steps: int, epoch: int, views: int | None) -> Iterator[Batch]:
    number = epoch if views is None else epoch % views
    view = _view(context, number)
    generator = torch.Generator().manual_seed(context.seed_for(f"order of epoch {epoch}"))
    for indices in torch.randperm(len(train), generator=generator).tensor_split(steps):
        inputs = _inputs(train, context.data, view, indices)
        yield Batch(inputs, train.labels[indices.to(train.labels.device)], indices, number)


def _view(context: "Context", number: int) -> View:
    return View.draw(context.data.augment, len(context.data.train), context.seed_for(f"view {number}"))


def _inputs(train: Split, data: Dataset, view: View, indices: Tensor) -> Tensor:
    pixels = view.of(train.images[indices.to(train.images.device)], indices, data.augment.crop)
    return data.preprocess.normalise(pixels).contiguous(memory_format=torch.channels_last)


@contextmanager
def _seeded(context: "Context") -> Iterator[None]:
    """Draw what layers draw while training (dropout) from the seed, and leave torch's own generators as they were."""
    with torch.random.fork_rng(devices=[context.device] if context.device.type == "cuda" else []):
        torch.manual_seed(context.seed_for("training"))
        yield


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def _optimizer(network: nn.Module, training: Training) -> Optimizer:
    parameters = list(network.parameters())
    decayed = [p for p in parameters if training.decay_all or p.dim() > 1]
    others = [p for p in parameters if not (training.decay_all or p.dim() > 1)]
    groups = [
        {"params": decayed, "weight_decay": training.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if training.optimizer == "adamw":
        return AdamW(groups, lr=training.peak_rate)
    nesterov = training.momentum > 0
    return SGD(groups, lr=training.peak_rate, momentum=training.momentum, nesterov=nesterov)


def _scheduler(optimizer: Any, training: Training, steps: int) -> lr_scheduler.LRScheduler:
    """The learning rate of every step."""
    warmup = min(training.warmup_epochs, training.epochs - 1) * steps
    total = training.epochs * steps - warmup
    main: lr_scheduler.LRScheduler
    match training.schedule:
        case "cosine":
            main = lr_scheduler.CosineAnnealingLR(optimizer, total)
        case "one_cycle":
            main = lr_scheduler.OneCycleLR(optimizer, training.peak_rate, total_steps=total + 1, cycle_momentum=False)
        case "multi_step":
            main = lr_scheduler.MultiStepLR(optimizer, [m * steps - warmup for m in training.milestones])
        case "constant":
            main = lr_scheduler.ConstantLR(optimizer, factor=1.0)
    if not warmup:
        return main
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [rise, main], milestones=[warmup])


def _average(network: nn.Module, training: Training) -> AveragedModel | None:
    if training.ema is None:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(training.ema))  # buffers are copied
