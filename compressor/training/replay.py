"""A network whose kernels are recorded once and replayed (CUDA graphs), forward and backward.

A small network has hundreds of short kernels in a step, and launching them one by one takes longer than they do.
"""

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import set_warn_on_accumulate_grad_stream_mismatch as _warn_of_streams

from compressor.errors import ArchitectureError, first_line, pass_on_out_of_memory


class Replayed:
    """Calls a network that trains; batches of each size are recorded when one comes first.

    Every output lives until the next call, and gradients until the next backward pass.

    Args:
        network: on a GPU, in training mode.
        run: what calls the network: itself, or compiled.
        autocast: the context that it runs in on a device; it must keep no cast weights.
    """

    def __init__(
        self,
        network: nn.Module,
        run: Callable[[Tensor], Any],
        autocast: Callable[[torch.device], AbstractContextManager[Any]],
    ) -> None:
        self.network = network
        self.run = run
        self.autocast = autocast
        self.recorded: dict[torch.Size, Callable[[Tensor], Any]] = {}

    def __call__(self, inputs: Tensor) -> Any:
        """The output of the network for `inputs`, `[B, C, H, W]`.

        Raises:
            ArchitectureError: the network does something that cannot be recorded.
        """
        if inputs.shape not in self.recorded:
            self.recorded[inputs.shape] = self._record(inputs)
        return self.recorded[inputs.shape](inputs)

    def forget(self) -> None:
        """Give back the memory of what was recorded; torch's objects refer to one another."""
        self.recorded.clear()
        gc.collect()
        _warn_of_streams(True)

    def _record(self, inputs: Tensor) -> Callable[[Tensor], Any]:
        """Recording runs the network several times, which must not count for its statistics."""
        _warn_of_streams(False)  # each size is recorded on a stream of its own, and gradients come from all of them
        before = [buffer.clone() for buffer in self.network.buffers()]
        try:
            with self.autocast(inputs.device):
                recorded: Callable[[Tensor], Any] = torch.cuda.make_graphed_callables(
                    _Whole(self.network, self.run), (inputs.clone(),), allow_unused_input=True
                )
        except RuntimeError as error:
            pass_on_out_of_memory(error)
            raise ArchitectureError(
                f"the network cannot be replayed: {first_line(error)}; leave cuda_graphs out"
            ) from error
        with torch.no_grad():
            for buffer, value in zip(self.network.buffers(), before, strict=True):
                buffer.copy_(value)
        return recorded


class _Whole(nn.Module):
    """Torch replaces the `forward` of what it records, and this is not what is saved."""

    def __init__(self, network: nn.Module, run: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.network = network  # its parameters are recorded
        self.run = run

    def forward(self, inputs: Tensor) -> Any:
        return self.run(inputs)
