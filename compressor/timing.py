"""Latency: every row of a run timed in turn with the baseline, at several moments, once all stages have run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from compressor import files, latency, onnx_file
from compressor.artifact import Artifact, OnnxModel, TorchModel
from compressor.environment import environment
from compressor.finished import Finished
from compressor.latency import MOMENTS, Latency, NotMeasured, Setting
from compressor.pipeline import Pipeline
from compressor.report import Row


class _Figures(NamedTuple):
    """Of a row: one entry for every setting, and for an int8 network those against its float file."""

    latency: tuple[Latency | NotMeasured, ...]
    versus_float: tuple[Latency, ...]


@dataclass(frozen=True)
class _Timing:
    """A row to be timed: `done` against the baseline and, where it made int8 of the stage `before`, against that."""

    pipeline: Pipeline
    done: Finished
    baseline: Finished
    before: Finished | None

    def now(self) -> _Figures:
        """The figures of this moment."""
        settings = _settings(self.pipeline)
        versus_baseline = tuple(_latency(self.done, self.baseline, setting) for setting in settings)
        if self.before is None or not self.done.artifact.quantized or self.before.artifact.quantized:
            return _Figures(versus_baseline, ())
        versus_float = [_latency(self.done, self.before, each) for each in settings if each.engine == "onnxruntime"]
        return _Figures(versus_baseline, tuple(entry for entry in versus_float if isinstance(entry, Latency)))

    def earlier(self, known: Row | None) -> _Figures | None:
        """The figures of an earlier report, where they stand."""
        if known is None:
            return None
        figures = _Figures(known.latency, known.versus_float)
        return figures if known.measured_as == self.digest(figures) else None

    def digest(self, figures: _Figures) -> str:
        """SHA-256 over the figures and all that they depend on: the files, the settings and the machine."""
        others = [other for other in (self.baseline, self.before) if other is not None]
        identity = files.digest_json(
            {
                "id": self.done.row.id,
                "files": [files.digest(each.onnx.read_bytes()) for each in (self.done, *others)],
                "measure": self.pipeline.measure.model_dump(mode="json"),
                "environment": environment().model_dump(mode="json", exclude={"commit"}),
            }
        )
        entries = [entry.model_dump(mode="json") for entry in (*figures.latency, *figures.versus_float)]
        return files.digest_json([identity, entries])

    def row(self, figures: _Figures) -> Row:
        """The stage's row with its figures."""
        return self.done.row.model_copy(update={**figures._asdict(), "measured_as": self.digest(figures)})


def with_latency(pipeline: Pipeline, finished: Sequence[Finished], known: Mapping[str, Row]) -> list[Row]:
    """The rows of the stages that are done, with latency.

    All of them are timed once before any is a second time, so that the moments of a row lie as far apart as they can.

    Args:
        pipeline: says what to measure on, and what to compare with.
        finished: every stage.
        known: rows of an earlier report by id, whose figures stand where nothing that they depend on has changed.
    """
    baseline = next(done for done in finished if done.row.id == pipeline.baseline_id)
    timings = [
        _Timing(pipeline, done, baseline, before) for before, done in zip([None, *finished[:-1]], finished, strict=True)
    ]
    earlier = [timing.earlier(known.get(timing.done.row.id)) for timing in timings]
    to_time = [timing for timing, figures in zip(timings, earlier, strict=True) if figures is None]
    moments = [[timing.now() for timing in to_time] for _ in range(MOMENTS)]
    new = (_over_moments(of_row) for of_row in zip(*moments, strict=True))
    return [timing.row(figures or next(new)) for timing, figures in zip(timings, earlier, strict=True)]


def _over_moments(moments: Sequence[_Figures]) -> _Figures:
    """A row's figures at all moments in one."""
    versus_baseline = zip(*(moment.latency for moment in moments), strict=True)
    versus_float = zip(*(moment.versus_float for moment in moments), strict=True)
    return _Figures(
        tuple(_entry(entries) for entries in versus_baseline), tuple(map(latency.over_moments, versus_float))
    )


def _entry(moments: Sequence[Latency | NotMeasured]) -> Latency | NotMeasured:
    """A setting at all moments in one; what is not measured at one is not at any."""
    measured = [entry for entry in moments if isinstance(entry, Latency)]
    return latency.over_moments(measured) if measured else moments[0]


def _settings(pipeline: Pipeline) -> list[Setting]:
    """Every combination to time; threads do not matter to a GPU."""
    measure = pipeline.measure
    return [
        Setting(engine=engine, device=device, threads=threads, batch=batch)
        for engine in measure.engines
        for device in measure.devices
        for threads in (measure.threads if device == "cpu" else measure.threads[:1])
        for batch in measure.batches
    ]


def _latency(done: Finished, baseline: Finished, setting: Setting) -> Latency | NotMeasured:
    runs: list[latency.Timed] = []
    for each in (done, baseline):
        reason = _reason_not_to_time(each.artifact, setting)
        if reason is not None:
            return NotMeasured(**setting.model_dump(), reason=reason)
        if setting.engine == "onnxruntime":
            runs.append(latency.onnx_runner(each.onnx, setting))
        else:
            assert isinstance(each.artifact, TorchModel)
            runs.append(latency.torch_runner(each.artifact.copy_network(), each.artifact.preprocess, setting))
    candidate, reference = runs
    on_cpu: tuple[str, ...] = ()
    if (setting.engine, setting.device) == ("onnxruntime", "cuda"):
        on_cpu = latency.left_to_cpu(done.onnx, setting)
    return latency.compare(candidate, reference, setting, on_cpu)


def _reason_not_to_time(model: Artifact, setting: Setting) -> str | None:
    if setting.device == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    if (setting.engine, setting.device) == ("onnxruntime", "cuda") and not onnx_file.has_cuda():
        return "this ONNX Runtime has no CUDA provider (onnxruntime-gpu has)"
    if setting.engine == "torch" and isinstance(model, OnnxModel):
        return "an ONNX file does not run in torch"
    if setting.engine == "torch" and model.quantized:
        return "a fake-quantized network in eager torch is not what ships"
    return None
