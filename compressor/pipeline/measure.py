"""What latency is measured on, and what tracks a run, by the names of installed engines and trackers."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from compressor import plugins
from compressor.config.spec import Spec, did_you_mean


def _installed(group: str, what: str) -> AfterValidator:
    def check(name: str) -> str:
        names = list(plugins.offered(group, what))
        if name not in names:
            expected = f"; expected one of {', '.join(f'`{each}`' for each in names)}"
            raise ValueError(f"there is no {what} {name!r}{did_you_mean(name, names) or expected}")
        return name

    return AfterValidator(check)


EngineName = Annotated[str, _installed(plugins.ENGINES, "engine")]
TrackerName = Annotated[str, _installed(plugins.TRACKERS, "tracker")]


class Measure(Spec):
    """What latency is measured on: every combination that the machine supports."""

    engines: tuple[EngineName, ...] = ("torch", "onnxruntime")
    """`torch` (eager), `onnxruntime`, `openvino` (an extra), or an engine of another package."""
    devices: tuple[Literal["cpu", "cuda"], ...] = ("cpu", "cuda")
    """Where networks are timed; ONNX Runtime needs onnxruntime-gpu for `cuda`."""
    threads: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field((1,), min_length=1)
    """How many threads an engine uses on the CPU."""
    batches: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = Field((1,), min_length=1)
    """How many images at once."""
