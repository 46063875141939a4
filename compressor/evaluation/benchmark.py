"""How fast an ONNX file is on this machine, alone or against another: `compress bench`."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from compressor.environment import Environment, environment
from compressor.errors import UserError
from compressor.evaluation.engines.base import Subject, engine_of
from compressor.evaluation.latency import Latency, in_sessions
from compressor.evaluation.pair import Pair
from compressor.evaluation.setting import Setting
from compressor.export import reading
from compressor.storage import files


class Bench(BaseModel):
    """A file timed in alternation with another. Against itself, the speed-up shows how noisy this machine is."""

    model_config = ConfigDict(frozen=True)

    model: str
    sha256: str
    against: str
    against_sha256: str
    environment: Environment
    latency: tuple[Latency, ...]


def bench(
    model: Path,
    against: Path | None = None,
    *,
    engine: str = "onnxruntime",
    threads: Sequence[int] = (1,),
    batches: Sequence[int] = (1,),
    device: str = "cpu",
) -> Bench:
    """Time `model` against another ONNX file, or itself, in every combination of threads and batch.

    Raises:
        ArtifactError: a file cannot be read or timed.
        UserError: there is no such engine, or it cannot use the device here.
    """
    chosen, other = engine_of(engine), against or model
    digests = [files.digest(reading.read(path)[0]) for path in (model, other)]
    if (reason := chosen.why_not(Subject(model), device)) is not None:
        raise UserError(f"{chosen.title} cannot time {model} on {device}: {reason}")
    settings = [
        Setting(engine=engine, device=device, threads=count, batch=batch)
        for count in (threads if device == "cpu" else threads[:1])
        for batch in batches
    ]
    pairs = [Pair(Subject(model), Subject(other), setting) for setting in settings]
    return Bench(
        model=str(model),
        sha256=digests[0],
        against=str(other),
        against_sha256=digests[1],
        environment=environment(),
        latency=tuple(in_sessions(pairs)),
    )
