"""What an engine is, and how one is found by its name."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from compressor import plugins
from compressor.errors import UserError
from compressor.evaluation.setting import Setting
from compressor.models.artifact import TorchModel


@dataclass(frozen=True)
class Subject:
    """What is timed: an ONNX file and, if it is one of this run's own, the network that it was exported from."""

    onnx: Path
    model: TorchModel | None = None


class Session(ABC):
    """A network that is loaded and ready, with a random batch to be timed on."""

    on_cpu: tuple[str, ...] = ()  # operators that a GPU's engine leaves to the CPU, as `Conv x 3`

    @abstractmethod
    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits `[B, classes]` for normalised images `[B, C, H, W]`."""

    @abstractmethod
    def seconds(self) -> float:
        """How long one run on the random batch takes."""


class Engine(ABC):
    """Opens files on a device; whether it can is asked first."""

    name: ClassVar[str]  # as in `measure: {engines: [...]}`
    title: ClassVar[str]  # as in the report
    devices: ClassVar[tuple[str, ...]]

    @abstractmethod
    def why_not(self, subject: Subject | None, device: str) -> str | None:
        """Why this subject, or any, cannot be timed on the device here; None if it can."""

    @abstractmethod
    def open(self, subject: Subject, setting: Setting) -> Session:
        """Load the subject for the setting's device, threads and batch.

        Raises:
            ArtifactError: the file cannot be opened, or not be timed.
        """


@cache
def engine_of(name: str) -> Engine:
    """The installed engine of that name.

    Raises:
        UserError: there is none, or it cannot be imported.
    """
    offered = plugins.offered(plugins.ENGINES, "engine")
    if name not in offered:
        raise UserError(f"there is no engine {name!r}; installed are {', '.join(offered)}")
    engine: Engine = plugins.load(offered[name], "engine", Engine)()
    return engine


def title_of(name: str) -> str:
    """What people call an engine; its name, where it is not installed."""
    return engine_of(name).title if name in plugins.offered(plugins.ENGINES, "engine") else name


def clocked(run: Callable[[], object]) -> float:
    """Seconds that `run` takes, by the clock of this machine."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def random_batch(shape: tuple[int, ...]) -> torch.Tensor:
    """The same normally distributed numbers for the same shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
