"""The state of training: network, optimizer, schedule, moving average, and their part in a checkpoint."""

import warnings
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from compressor import processes
from compressor.config.spec import first_problem
from compressor.errors import ArchitectureError, ArtifactError
from compressor.storage.tensors import load_into
from compressor.training.settings import Training

MAX_COPIES, MAX_HEADER = 6, 2**26  # of the network in a checkpoint; bytes of names and of the curve
MOMENTS = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}  # of an optimizer for each parameter


class Noted(BaseModel):
    """An epoch of the curve."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epoch: int
    loss: float
    validation_accuracy: float = Field(ge=0, le=1)
    learning_rate: float
    seconds: float


class Notes(BaseModel):
    """What a checkpoint holds besides tensors."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    curve: tuple[Noted, ...]
    best_epoch: int = Field(ge=0)
    best_correct: int = Field(ge=-1)
    threads: int = Field(ge=1)


@dataclass
class TrainingState:
    """Everything that the next epoch depends on."""

    network: nn.Module
    objective: nn.Module  # its own parameters are trained too
    training: Training
    steps: int  # an epoch
    masked: Set[str] = frozenset()  # parameters whose zeros stay zero
    rates: Mapping[str, float] = field(default_factory=dict)  # peak learning rates of parameters that have their own
    still: Sequence[nn.Module] = ()  # BatchNorms that keep their statistics
    curve: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)  # with keep: best
    best_epoch: int = 0
    best_correct: int = -1

    def __post_init__(self) -> None:
        self.accelerator = Accelerator(device_placement=False)  # the context decides where the network is
        parameters = [p for p in (*self.network.parameters(), *self.objective.parameters()) if p.requires_grad]
        if not any(p.requires_grad for p in self.network.parameters()):
            raise ArchitectureError("every parameter of the network is frozen, so there is nothing to train")
        own = {p: self.rates[name] for name, p in self.network.named_parameters() if name in self.rates}
        self.raw_optimizer = optimizer_of(parameters, self.training, own)
        self.optimizer = self.accelerator.prepare(self.raw_optimizer)
        for module in (self.network, self.objective):
            processes.share([*module.parameters(), *module.buffers()])
        self.schedule = schedule_of(self.optimizer, self.training, self.steps)
        self.average = _average(self.network, self.training)
        self.masks = {p: p.detach() != 0 for name, p in self.network.named_parameters() if name in self.masked}

    @property
    def kept(self) -> nn.Module:
        """The network that training returns: the moving average, if there is one."""
        return self.network if self.average is None else self.average.module

    @property
    def rate(self) -> float:
        """The learning rate of the next step, of parameters without one of their own if there are any."""
        return float(self.schedule.get_last_lr()[0])

    @property
    def most_bytes(self) -> int:
        """What a checkpoint can take: the network, its average, its best and the moments are each of one size."""
        held = (*self.network.state_dict().values(), *self.objective.state_dict().values())
        own: int = sum(tensor.nbytes for tensor in held)
        return MAX_COPIES * own + MAX_HEADER

    def train(self) -> None:
        """Put the network in training mode, but for what keeps its statistics."""
        self.network.train()
        for module in self.still:
            module.eval()

    def judge(self, epoch: int, correct: int) -> None:
        """Remember the weights after `epoch`, unless earlier ones were better on validation."""
        if correct >= self.best_correct:
            self.best, self.best_epoch, self.best_correct = weights_of(self.kept), epoch, correct

    def backward(self, value: Tensor) -> None:
        """Add the gradient of a loss to those of this step."""
        self.accelerator.backward(value)

    def step(self) -> None:
        """Follow the gradients."""
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        processes.add_up(gradients)
        own = [p.grad for p in self.objective.parameters() if p.grad is not None]  # of whole batches, in every process
        processes.add_up(own)
        for gradient in own if processes.count() > 1 else ():
            gradient /= processes.count()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for parameter, mask in self.masks.items():
                parameter.mul_(mask)
        if self.average is not None:
            self.average.update_parameters(self.network)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, by name."""
        groups: dict[str, Mapping[str, Any]] = {
            "network": self.network.state_dict(),
            "objective": self.objective.state_dict(),
            "best": self.best,
        }
        if self.average is not None:
            groups["average"] = self.average.state_dict()
        for index, values in self.raw_optimizer.state_dict()["state"].items():
            groups[f"optimizer/{index}"] = {name: value for name, value in values.items() if value is not None}
        return {f"{group}/{name}": tensor for group, values in groups.items() for name, tensor in values.items()}

    def notes(self) -> dict[str, Any]:
        """The rest of a checkpoint, as JSON."""
        return {
            "curve": self.curve,
            "best_epoch": self.best_epoch,
            "best_correct": self.best_correct,
            "threads": torch.get_num_threads(),
        }

    def restore(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> int:
        """Restore a checkpoint and replay the schedule; returns the number of threads that it was made with.

        Raises:
            ArtifactError: it is not one of this training; nothing was changed.
        """
        noted = self._checked(tensors, notes)

        def group(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(f"{prefix}/"): t for n, t in tensors.items() if n.startswith(f"{prefix}/")}

        load_into(self.network, group("network"))
        self.objective.load_state_dict(group("objective"))
        self.best, self.best_epoch, self.best_correct = group("best"), noted.best_epoch, noted.best_correct
        if self.average is not None:
            load_into(self.average, group("average"))
        self.curve.extend(entry.model_dump() for entry in noted.curve)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no step was taken here; the steps are in the state
            for _ in range(len(self.curve) * self.steps):
                self.schedule.step()
        parameters = [p for options in self.raw_optimizer.param_groups for p in options["params"]]
        state = {index: _like(group(f"optimizer/{index}"), p) for index, p in enumerate(parameters)}
        self.raw_optimizer.load_state_dict({**self.raw_optimizer.state_dict(), "state": state})
        return noted.threads

    def _checked(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> "Notes":
        """The notes of a checkpoint, if they and all its tensors are such as this training writes."""
        try:
            noted = Notes.model_validate(notes)
        except ValidationError as error:
            raise ArtifactError(f"the checkpoint is not of this training: {first_problem(error)}") from error
        if len(noted.curve) > self.training.epochs or noted.best_epoch > len(noted.curve):
            raise ArtifactError("the checkpoint is not of this training: its epochs are not among those asked for")
        expected = {name: tensor for name, tensor in self.tensors().items() if not name.startswith("optimizer/")}
        for index, parameter in enumerate(p for group in self.raw_optimizer.param_groups for p in group["params"]):
            state = {f"optimizer/{index}/{name}": parameter for name in MOMENTS[self.training.optimizer]}
            if self.training.optimizer == "adamw":
                state[f"optimizer/{index}/step"] = torch.zeros(())
            if state.keys() & tensors.keys():  # a parameter that has had no gradient has none
                expected |= state
        odd = [name for name in expected.keys() | tensors.keys() if not _alike(tensors.get(name), expected.get(name))]
        if odd:
            raise ArtifactError(f"the checkpoint is not of this training: {min(odd):.200} does not fit")
        return noted


def _alike(found: Tensor | None, own: Tensor | None) -> bool:
    """Whether a tensor of a checkpoint can take the place of one of the training."""
    if found is None or own is None or (found.shape, found.dtype) != (own.shape, own.dtype):
        return False
    return bool(found.isfinite().all()) or not bool(own.isfinite().all())


def _like(state: Mapping[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
    """An optimizer's state in the memory format of its parameter, so that the same kernels give the same bits."""
    return {
        name: torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
        for name, value in state.items()
    }


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the network's state."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def optimizer_of(
    parameters: Sequence[nn.Parameter], training: Training, own: Mapping[nn.Parameter, float] | None = None
) -> Optimizer:
    """The optimizer; only matrices and kernels decay, unless `decay_all`.

    Args:
        parameters: what is trained.
        training: the settings.
        own: the peak learning rates of parameters that have one of their own; they come after the others.
    """
    by_rate: dict[float, list[nn.Parameter]] = {training.peak_rate: []}
    for parameter in parameters:
        by_rate.setdefault((own or {}).get(parameter, training.peak_rate), []).append(parameter)
    groups = []
    for rate, members in by_rate.items():
        decayed = [p for p in members if training.decay_all or p.dim() > 1]
        others = [p for p in members if not (training.decay_all or p.dim() > 1)]
        groups.append({"params": decayed, "lr": rate, "weight_decay": training.weight_decay})
        groups.append({"params": others, "lr": rate, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    fused = True if parameters[0].device.type == "cuda" else None  # one kernel for many parameters
    if training.optimizer == "adamw":
        return AdamW(groups, lr=training.peak_rate, fused=fused)
    nesterov = training.momentum > 0
    return SGD(groups, lr=training.peak_rate, momentum=training.momentum, nesterov=nesterov, fused=fused)


def schedule_of(optimizer: Any, training: Training, steps: int) -> lr_scheduler.LRScheduler:
    """The learning rate of every step; all groups rise and fall alike."""
    warmup = min(training.warmup_epochs, training.epochs - 1) * steps
    total = training.epochs * steps - warmup
    main: lr_scheduler.LRScheduler
    match training.schedule:
        case "cosine":
            main = lr_scheduler.CosineAnnealingLR(optimizer, total)
        case "one_cycle":
            peaks = [group["lr"] for group in optimizer.param_groups]
            main = lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=total + 1, cycle_momentum=False)
        case "multi_step":
            main = lr_scheduler.MultiStepLR(optimizer, [m * steps - warmup for m in training.milestones])
        case "constant":
            main = lr_scheduler.ConstantLR(optimizer, factor=1.0)
    if not warmup:
        return main
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [rise, main], milestones=[warmup])


def _average(network: nn.Module, training: Training) -> AveragedModel | None:
    """The moving average of the weights, if there is one."""
    if training.ema is None:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(training.ema))  # buffers are copied
