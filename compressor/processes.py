"""The processes of one run: one, or several that a launcher started, on one host or on many.

All go through the same stages, and training gives each a part of every batch. The first decides, writes and speaks.
Losses see whole batches, and BatchNorm their statistics, so the result is that of one process up to rounding.
Without a launcher, and within `alone`, there is one process, and nothing here does anything.
"""

import atexit
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.overrides import TorchFunctionMode

from compressor.console import launched
from compressor.errors import ArchitectureError, LostError, UserError, first_line

T = TypeVar("T")

PATIENCE = timedelta(days=7)  # the first process times and calibrates while the others wait
GONE = ("onnection", "remote worker", "Socket")  # what gloo and NCCL say of a process that is no longer there
LOST = "another process of this run ended, or cannot be reached; the same command resumes"

_joined = False  # by `start`; a process group of somebody else is no concern of ours
_alone = False


def start(*, cpu: bool) -> None:
    """Find the other processes, if a launcher started any.

    Raises:
        UserError: they cannot be reached.
    """
    global _joined
    if launched()[1] == 1 or _joined:
        return
    try:
        PartialState(cpu=cpu, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of this run do not find each other: {first_line(error)}") from error
    if not dist.is_initialized():
        raise UserError("RANK and WORLD_SIZE are set, but LOCAL_RANK is not; start the processes with torchrun")
    atexit.register(_leave)
    _joined = True


def _leave() -> None:
    """Close the connections; their threads would abort a process that ends with them open."""
    if dist.is_initialized():
        dist.destroy_process_group()


def count() -> int:
    """How many processes work together."""
    return dist.get_world_size() if _joined and not _alone else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if count() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that decides, writes and speaks."""
    return rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Work that this process does without the others."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def agreed(value: T) -> T:
    """The first process's value, a JSON value; the others wait until it has one."""
    if count() == 1:
        return value
    held = [json.dumps(value)]
    _together(lambda: broadcast_object_list(held, from_process=0))
    agreed_on: T = json.loads(held[0])
    return agreed_on


def wait() -> None:
    """Until all processes are here."""
    same(0)


def same(number: int) -> bool:
    """Whether all processes have this number; they all get the same answer."""
    if count() == 1:
        return True
    every = torch.zeros(count(), dtype=torch.int64, device=PartialState().device)
    every[rank()] = number
    add_up([every])
    return bool((every == every[0]).all())


def own_part(indices: Tensor) -> Tensor:
    """What this process does of a batch or a split."""
    return indices.tensor_split(count())[dist.get_rank()] if count() > 1 else indices


def whole(part: Tensor, length: int) -> Tensor:
    """The outputs of all processes for a batch of `length` images, of which each has its `own_part`.

    Every process computes the whole loss from them, so its gradient stays in its own part.
    """
    if count() == 1:
        return part
    gathered: Tensor = _Whole.apply(part, length)
    return gathered


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes."""
    if count() == 1 or not tensors:
        return
    flat = _summed(torch.cat([tensor.flatten() for tensor in tensors]))
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def share(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by the first process's."""
    for tensor in tensors if count() > 1 else ():
        held = tensor.detach().contiguous()
        _together(partial(dist.broadcast, held, 0))
        tensor.detach().copy_(held)


def in_step() -> AbstractContextManager[Any]:
    """A block in which BatchNorm sees the statistics of whole batches (Ioffe and Szegedy 2015)."""
    return _BatchNormInStep() if count() > 1 else nullcontext()


class _BatchNormInStep(TorchFunctionMode):
    """Torch's own synchronised BatchNorm needs a GPU, and another class of module."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    inputs: Tensor,  # [B, C, ...]
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` over the parts of all processes."""
    if not training:
        return F.batch_norm(inputs, running_mean, running_var, weight, bias, False, momentum, eps)
    values = inputs.float()
    others = [dim for dim in range(values.dim()) if dim != 1]
    shape = [-1 if dim == 1 else 1 for dim in range(values.dim())]
    count_and_sum = torch.cat([values.new_full((1,), values[:, 0].numel()), values.sum(others)])
    totals: Tensor = _Sum.apply(count_and_sum)
    number, mean = totals[0].detach(), totals[1:] / totals[0].detach()
    if int(number) < 2:
        raise ArchitectureError("BatchNorm cannot train on one value per channel; take a larger batch_size")
    centred = values - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(others)) / number
    with torch.no_grad():
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * number / (number - 1)).to(running_var.dtype), momentum)
    normal: Tensor = centred * (variance + eps).rsqrt().view(shape)
    if weight is not None:
        normal = normal * weight.float().view(shape)
    if bias is not None:
        normal = normal + bias.float().view(shape)
    return normal.to(inputs.dtype)


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, length: int) -> Tensor:
        ctx.own = own_part(torch.arange(length, device=part.device))
        gathered = part.new_zeros((length, *part.shape[1:]))
        gathered[ctx.own] = part
        return _summed(gathered)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.own], None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _summed(value.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient.clone())


def _summed(total: Tensor) -> Tensor:
    """The tensor itself, which becomes the sum over all processes."""
    _together(lambda: dist.all_reduce(total))
    return total


def _together(communicate: Callable[[], object]) -> None:
    """Talk to the other processes.

    Raises:
        LostError: one of them is gone.
    """
    try:
        communicate()
    except RuntimeError as error:
        gone = any(sign in str(error) for sign in GONE)
        raise LostError(LOST if gone else f"{LOST} ({first_line(error)})") from error
