"""A bound on the memory that building a network takes, where its architecture comes from a file."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from compressor.errors import ArchitectureError

aten = torch.ops.aten
MAKING = {aten.empty.memory_format, aten.zeros.default, aten.ones.default, aten.full.default, aten.randn.default}
NUMBER_BYTES = 4
TENSOR_BYTES = 4096  # that every tensor counts for at least: modules take memory and time too


@contextmanager
def at_most(limit_bytes: int, because: str) -> Iterator[None]:
    """Let the layers made in this block take so many bytes together.

    Raises:
        ArchitectureError: they would take more; what would is not made.
    """
    with _Counting(limit_bytes, because):
        yield


class _Counting(TorchDispatchMode):
    def __init__(self, limit_bytes: int, because: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left, self.because = limit_bytes, because

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func in MAKING:
            self.left -= max(NUMBER_BYTES * math.prod(args[0]), TENSOR_BYTES)
            if self.left < 0:
                raise ArchitectureError(f"the architecture takes far more memory than its weights: {self.because}")
        return func(*args, **(kwargs or {}))
