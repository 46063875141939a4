"""What an engine is, and how it is found by name."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
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
    """What is timed: an ONNX file and, if this run made it, the network that it was exported from."""

    onnx: Path
    model: TorchModel | None = None


class Session(ABC):
    """A loaded network with a random batch to time it on."""

    on_cpu: tuple[str, ...] = ()  # operators that a GPU engine leaves to others, such as the CPU, as `Conv x 3`

    @abstractmethod
    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits `[B, classes]` for normalised images `[B, C, H, W]`."""

    @abstractmethod
    def seconds(self) -> float:
        """How long one run on the random batch takes."""


class Engine(ABC):
    """Opens files on a device; `why_not` is asked first."""

    name: ClassVar[str]  # as in `measure: {engines: [...]}`
    title: ClassVar[str]  # as in the report
    devices: ClassVar[tuple[str, ...]]
    package: ClassVar[str | None] = None  # whose version decides what it computes, where reports do not name it anyway

    @abstractmethod
    def why_not(self, subject: Subject | None, device: str) -> str | None:
        """Why this subject (or any, if None) cannot be timed on the device here; None if it can."""

    @abstractmethod
    def open(self, subject: Subject, setting: Setting) -> Session:
        """Load the subject for the setting's device, threads and batch.

        Raises:
            ArtifactError: the file cannot be opened or timed.
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


def state_of(name: str) -> dict[str, str | None]:
    """What is here of an engine: its version, and why it cannot compute on a device, each null where there is none."""
    engine = engine_of(name)
    installed = engine.package is not None and find_spec(engine.package) is not None
    return {
        "version": version(engine.package) if engine.package is not None and installed else None,
        **{device: engine.why_not(None, device) for device in engine.devices},
    }


def title_of(name: str) -> str:
    """The engine's title; its name if it is not installed."""
    return engine_of(name).title if name in plugins.offered(plugins.ENGINES, "engine") else name


def clocked(run: Callable[[], object]) -> float:
    """The seconds that `run` takes, by this machine's clock."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def random_batch(shape: tuple[int, ...]) -> torch.Tensor:
    """Normally distributed numbers, the same for the same shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
