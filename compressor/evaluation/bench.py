"""How fast an ONNX file is on this machine, alone or against another: `compress bench`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from compressor.environment import Environment, environment
from compressor.errors import ArtifactError, UserError
from compressor.evaluation import latency
from compressor.evaluation.latency import Latency, Setting
from compressor.export import onnx_file
from compressor.storage import files


class Bench(BaseModel):
    """A file timed in turn with another. Against itself, the speed-up shows how far this machine's noise goes."""

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
    threads: Sequence[int] = (1,),
    batches: Sequence[int] = (1,),
    device: Literal["cpu", "cuda"] = "cpu",
) -> Bench:
    """Time `model` against another ONNX file, or itself, in every combination of threads and batch.

    Raises:
        ArtifactError: a file cannot be read, or not be timed.
        UserError: ONNX Runtime has no such device here.
    """
    if device == "cuda" and not onnx_file.has_cuda():
        raise UserError("this ONNX Runtime has no CUDA provider (onnxruntime-gpu has); use --device cpu")
    other = against or model
    settings = [
        Setting(engine="onnxruntime", device=device, threads=count, batch=batch)
        for count in (threads if device == "cpu" else threads[:1])
        for batch in batches
    ]
    digests = [_digest(path) for path in (model, other)]
    return Bench(
        model=str(model),
        sha256=digests[0],
        against=str(other),
        against_sha256=digests[1],
        environment=environment(),
        latency=tuple(latency.at_moments([partial(_timed, model, other, setting) for setting in settings])),
    )


def _timed(model: Path, other: Path, setting: Setting) -> Latency:
    candidate, baseline = (latency.onnx_runner(path, setting) for path in (model, other))
    on_cpu = latency.left_to_cpu(model, setting) if setting.device == "cuda" else ()
    return latency.compare(candidate, baseline, setting, on_cpu)


def _digest(model: Path) -> str:
    try:
        content = model.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{model} cannot be read: {error.strerror}") from error
    onnx_file.check_self_contained(content, source=model)
    return files.digest(content)
