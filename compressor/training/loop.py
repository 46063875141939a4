"""The training loop. It minimises an objective, with the settings of `Training` that stages share."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compressor import processes
from compressor.data.dataset import Dataset
from compressor.data.split import Split
from compressor.data.views import View
from compressor.environment import device_name, has_fast_bf16
from compressor.errors import (
    ArchitectureError,
    ArtifactError,
    CompressorError,
    LostError,
    StageError,
    UserError,
    first_line,
    pass_on_out_of_memory,
)
from compressor.storage import tensors
from compressor.training.balance import epoch_order
from compressor.training.fine_tuning import frozen_by, rates_by, still_norms
from compressor.training.objectives import Batch, Objective, Watched
from compressor.training.replay import Replayed
from compressor.training.settings import Precision, Training
from compressor.training.state import TrainingState, weights_of

if TYPE_CHECKING:
    from compressor.console import TrainingProgress
    from compressor.models.artifact import TorchModel
    from compressor.pipeline.context import Context

NARROW = 16  # channels
CHECKPOINT_SECONDS = 10.0  # at least, between checkpoints
AUGMENTED_BYTES = 2**29  # of a GPU's memory that augmentation may take
AUGMENTED_COPIES = 8  # of an image in float32 that it makes at most


def fit(
    network: nn.Module,
    objective: Objective,
    training: Training,
    context: "Context",
    *,
    label: str,
    views: int | None = None,
    start: "TorchModel | None" = None,
) -> dict[str, Any]:
    """Train `network` in place on the training images; returns its `curve` by epoch, the `kept_epoch` and `trained_on`.

    Every epoch uses a new random view of the images; with `views`, epochs cycle through that many. What is masked or
    frozen in the artifact that training starts from, `start`, stays so. With `keep: best` the initial network counts as
    epoch 0, and ties go to the later epoch. If the run keeps checkpoints, an interrupted training resumes from its
    last one, with the same bits.

    Raises:
        ArchitectureError: the objective or a setting names a layer that the network lacks, or nothing is left to train.
        StageError: the loss is no longer finite.
        UserError: a batch has fewer images than there are processes.
    """
    if training.epochs == 0:
        return {"curve": [], "kept_epoch": 0}
    context = context.with_images_on_device()
    data, device, services = context.data, context.device, context.services
    initial = processes.agreed(tensors.digest(network.state_dict()))
    layout = lay_out(network.to(device), data)
    network.train().requires_grad_(True)
    frozen = (start.frozen if start is not None else frozenset()) | frozen_by(training, network, start)
    for name in frozen & dict(network.named_parameters()).keys():
        network.get_parameter(name).requires_grad_(False)
    steps = math.ceil(len(data.train) / training.batch_size)
    fewest = len(data.train) // steps // training.accumulate
    if fewest < processes.count() > 1:
        raise UserError(
            f"a step has parts of {fewest} images, fewer than the {processes.count()} processes; raise batch_size, or "
            "lower accumulate"
        )
    state = TrainingState(
        network,
        objective.to(device),
        training,
        steps,
        masked=start.masked if start is not None else frozenset(),
        rates=rates_by(training, network, start),
        still=still_norms(network, frozen),
    )
    judged: Precision = "fp32" if training.keep == "best" else training.precision  # score what will ship
    if training.keep == "best":
        state.judge(0, evaluate(state.kept, data.validation, context, judged, layout))
    _resume(state, label, initial, context)
    saved = time.monotonic()
    with (
        made_faster(network, objective, training, device) as made,
        services.console.training(label, training.epochs, steps, done=len(state.curve)) as progress,
    ):
        watched = Watched(network, lambda inputs: _forward(made, inputs, training))
        for epoch in range(len(state.curve), training.epochs):
            started = time.monotonic()
            rate, before = state.rate, weights_of(network)
            batches = _batches(context, training, steps, epoch, views, layout)
            with watched.watching(objective.layers), processes.in_step():
                mean = _train_epoch(state, watched, batches, context, epoch, progress) / len(data.train)
            if not math.isfinite(mean):
                raise StageError(_diverged(f"the loss is {mean}", epoch, rate, before, context))
            try:
                correct = evaluate(state.kept, data.validation, context, judged, layout)
            except LostError:  # that a process is gone says nothing of the weights
                raise
            except StageError as error:
                raise StageError(_diverged(str(error), epoch, rate, before, context)) from error
            point = {
                "epoch": epoch + 1,
                "loss": mean,
                "validation_accuracy": correct / len(data.validation),
                "learning_rate": rate,
                "seconds": round(time.monotonic() - started, 3),
            }
            state.curve.append(point)
            if training.keep == "best":
                state.judge(epoch + 1, correct)
            services.on_epoch(label, {**point, "epochs": training.epochs})
            late = time.monotonic() - saved >= CHECKPOINT_SECONDS
            if services.checkpoints is not None and late and processes.is_first():
                services.checkpoints.save(label, initial, state.tensors(), state.notes())
                saved = time.monotonic()
    tensors.load_into(network, state.best or weights_of(state.kept))
    network.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    kept_epoch = state.best_epoch if state.best else training.epochs
    return {"curve": state.curve, "kept_epoch": kept_epoch, "trained_on": device_name(device)}


def _resume(state: TrainingState, label: str, initial: str, context: "Context") -> None:
    """Restore the last checkpoint, if there is one."""
    checkpoints, say = context.services.checkpoints, context.services.console.say
    if checkpoints is None:
        return
    try:
        found = checkpoints.load(label, initial, state.most_bytes)
        threads = state.restore(*found) if found is not None else None
    except ArtifactError as error:
        say(f"  {label}: {error}; the training starts over")
        threads = None
    if not processes.same(len(state.curve)):
        raise StageError("the processes of this run do not see the same checkpoints; they need the same file system")
    if threads is not None:
        say(f"  {label}: resumes after epoch {len(state.curve)} of {state.training.epochs}")
        if threads != torch.get_num_threads() and context.device.type == "cpu":
            say(f"  {label}: began with {threads} threads, resumes with {torch.get_num_threads()}; bits may differ")


def _train_epoch(
    state: TrainingState,
    watched: Watched,
    batches: Iterator[Sequence[Batch]],
    context: "Context",
    epoch: int,
    progress: "TrainingProgress",
) -> float:
    """One pass; returns the sum of the loss over the images. Random draws in layers (dropout) derive from the seed."""
    device = context.device
    state.train()
    total = torch.zeros((), device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(context.seed_for(f"training in epoch {epoch}") + processes.rank())
        for parts in batches:
            images = sum(len(part.labels) for part in parts)
            for part in parts:
                value = state.objective(watched, part)
                if not value.requires_grad:
                    raise ArchitectureError(
                        "the loss depends on no parameter that can be trained; look for an operator "
                        "without a derivative, or for parameters that are all frozen"
                    )
                state.backward(value * (len(part.labels) / images) if len(parts) > 1 else value)
                total += value.detach() * len(part.labels)
            state.step()
            progress.step()
    return float(total)


@contextmanager
def made_faster(
    network: nn.Module, objective: Objective, training: Training, device: torch.device
) -> Iterator[Callable[[Tensor], Any]]:
    """What calls the network in training: itself, or compiled, or its kernels recorded, or both."""
    recorded = training.cuda_graphs and device.type == "cuda"
    for setting, is_on in (("cuda_graphs", recorded), ("compile", training.compile)):
        if is_on and (objective.layers or processes.count() > 1):
            why = "several processes" if processes.count() > 1 else "losses on inner layers"
            raise UserError(f"{setting} does not work with {why}; leave it out")
    run = torch.compile(network, dynamic=False) if training.compile else network
    replayed = None
    if recorded:
        replayed = Replayed(network, run, partial(autocast, precision=training.precision, cache_enabled=False))
    try:
        yield run if replayed is None else replayed
    finally:
        if replayed is not None:
            replayed.forget()
        if training.compile:
            torch.compiler.reset()  # it compiles no code for more than a few networks


def _forward(network: Callable[[Tensor], Any], inputs: Tensor, training: Training) -> Any:
    try:
        with autocast(inputs.device, training.precision):
            return network(inputs)
    except CompressorError:
        raise
    except Exception as error:  # a forward pass may raise anything
        pass_on_out_of_memory(error)
        advice = "leave compile out" if training.compile else "if this is about a data type, set precision: fp32"
        raise ArchitectureError(
            f"the network cannot train on inputs {list(inputs.shape)}: {first_line(error)}; {advice}"
        ) from error


def _diverged(what: str, epoch: int, rate: float, before: Mapping[str, Tensor], context: "Context") -> str:
    """The error for a training whose figures are no longer finite; the weights from before are kept."""
    advice = "lower learning_rate, or add warmup_epochs"
    if context.services.checkpoints is not None and processes.is_first():
        kept = context.services.checkpoints.keep_last_good(before)
        advice += f" (the weights from before this epoch are in {kept})"
    return f"{what} in epoch {epoch + 1} at learning rate {rate:.3g}; {advice}"


@torch.no_grad()
def evaluate(
    network: nn.Module, split: Split, context: "Context", precision: Precision, layout: torch.memory_format
) -> int:
    """How many images of `split` the network predicts correctly, in torch, on the context's device.

    Raises:
        StageError: a logit is not finite.
    """
    network.eval()
    preprocess, device = context.data.preprocess, context.device
    counts = torch.zeros(2, dtype=torch.int64, device=device)  # correct predictions, logits that are not finite
    own = processes.own_part(torch.arange(len(split)))
    for positions in own.split(preprocess.max_batch) if len(own) else ():  # fewer images than processes
        inputs = preprocess.normalise(split.batch(positions).to(device)).contiguous(memory_format=layout)
        with autocast(device, precision):
            logits = network(inputs)
        counts[0] += (logits.argmax(1) == split.labels[positions].to(device)).sum()
        counts[1] += (~logits.isfinite()).sum()
    processes.add_up([counts])
    correct, wrong = counts.tolist()
    if wrong:
        raise StageError("a logit is not finite")
    return int(correct)


def lay_out(network: nn.Module, data: Dataset) -> torch.memory_format:
    """Put a network in channels last, where convolutions are fastest, unless it needs contiguous tensors.

    Returns the format, in which its inputs must be. Its own code may need contiguous tensors (`x.view`). And on the
    CPU, in channels last, the gradient of a strided 1x1 convolution with fewer than 16 input channels writes past its
    memory, and the process dies (oneDNN; docs/findings.md).
    """
    example = torch.zeros(data.preprocess.input_shape(2), device=next(network.parameters()).device)
    try:
        network.eval().to(memory_format=torch.channels_last)
        with torch.no_grad(), _NarrowStrides() as narrow:
            network(example.to(memory_format=torch.channels_last))
        fits = not (narrow.found and example.device.type == "cpu")
    except Exception as error:  # the network's own code may raise anything
        pass_on_out_of_memory(error)
        fits = False
    if not fits:
        network.to(memory_format=torch.contiguous_format)
    return torch.channels_last if fits else torch.contiguous_format


class _NarrowStrides(TorchDispatchMode):
    """Finds out whether a strided 1x1 convolution with fewer than 16 input channels runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            _, weight, _, stride, *_ = args
            self.found |= tuple(weight.shape[2:]) == (1, 1) and max(stride) > 1 and weight.shape[1] < NARROW
        return func(*args, **(kwargs or {}))


def autocast(device: torch.device, precision: Precision, *, cache_enabled: bool = True) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 if it is asked for, or fast on this device."""
    enabled = precision == "bf16" or (precision == "auto" and has_fast_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=cache_enabled)


def training_views(context: "Context", views: int, layout: torch.memory_format) -> Iterator[Iterator[Tensor]]:
    """For each view that `fit` cycles through, its inputs `[B, C, H, W]` in the order of the training images."""
    placed = cache(context.with_images_on_device)  # not before a view is read
    for number in range(views):
        yield _inputs_of_view(placed, number, layout)


def _inputs_of_view(placed: Callable[[], "Context"], number: int, layout: torch.memory_format) -> Iterator[Tensor]:
    context = placed()
    view = _view(context, number)
    for chunk in torch.arange(len(context.data.train)).split(context.data.preprocess.max_batch):
        yield _inputs(context, view, chunk, layout)[0]


def shown(context: "Context", images: int, views: int) -> Tensor:
    """What training shows a network of some training images, not normalised: uint8 `[images, views, C, H, W]`."""
    indices = context.data.train.spread(images)
    pixels = [_view(context, number).batch(indices, torch.device("cpu"))[0] for number in range(views)]
    return torch.stack(pixels, 1).round().to(torch.uint8)


def _batches(
    context: "Context", training: Training, steps: int, epoch: int, views: int | None, layout: torch.memory_format
) -> Iterator[Sequence[Batch]]:
    """The batches of an epoch, each in the parts whose gradients add up."""
    number = epoch if views is None else epoch % views
    view = _view(context, number)
    generator = torch.Generator().manual_seed(context.seed_for(f"order of epoch {epoch}"))
    order = epoch_order(context.data.train.labels, training, generator)
    every = [indices.tensor_split(min(training.accumulate, len(indices))) for indices in order.tensor_split(steps)]
    loaded = _loaded(context, view, [part for parts in every for part in parts], layout)
    for step, parts in enumerate(every):
        progress = (epoch + step / steps) / training.epochs
        yield [Batch(*next(loaded), part, number, progress, in_parts=processes.count() > 1) for part in parts]


def _loaded(
    context: "Context", view: View, parts: Sequence[Tensor], layout: torch.memory_format
) -> Iterator[tuple[Tensor, Tensor]]:
    """The inputs and labels of each part; of several processes, each has its own images, and everyone all labels.

    As many parts as fit are augmented together: of small images it is mostly launching kernels.
    """
    own = [processes.own_part(part) for part in parts]
    most = _augmented_at_once(context)
    first = 0
    while first < len(parts):
        last = first + 1
        while last < len(parts) and sum(map(len, own[first : last + 1])) <= most:
            last += 1
        inputs, labels = _inputs(context, view, torch.cat(own[first:last]), layout)
        lengths = [len(each) for each in own[first:last]]
        for part, images, classes in zip(parts[first:last], inputs.split(lengths), labels.split(lengths), strict=True):
            yield images, processes.whole(classes, len(part))
        first = last


def _augmented_at_once(context: "Context") -> int:
    """How many images; on a GPU, whose memory is large, more than a forward pass takes."""
    preprocess = context.data.preprocess
    if context.device.type != "cuda":
        return preprocess.max_batch
    return max(preprocess.max_batch, preprocess.images_in(AUGMENTED_BYTES, AUGMENTED_COPIES))


def _view(context: "Context", number: int) -> View:
    return View.draw(context.data, context.seed_for(f"view {number}"), number)


def _inputs(context: "Context", view: View, indices: Tensor, layout: torch.memory_format) -> tuple[Tensor, Tensor]:
    """That view of the training images at `indices`, normalised, and its labels, on the context's device."""
    pixels, labels = view.batch(indices, context.device)
    return context.data.preprocess.normalise(pixels).contiguous(memory_format=layout), labels
