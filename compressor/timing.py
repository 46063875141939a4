"""Latency: every row of a run timed in turn with the baseline, once all stages have run."""

from collections.abc import Mapping, Sequence

import torch

from compressor import files, latency, onnx_file
from compressor.artifact import Artifact, OnnxModel, TorchModel
from compressor.environment import environment
from compressor.finished import Finished
from compressor.latency import Latency, NotMeasured, Setting
from compressor.pipeline import Pipeline
from compressor.report import Row


def with_latency(pipeline: Pipeline, finished: Sequence[Finished], known: Mapping[str, Row]) -> list[Row]:
    """The rows of the stages that are done, with latency.

    Args:
        pipeline: says what to measure on, and what to compare with.
        finished: every stage.
        known: rows of an earlier report by id, whose figures stand where nothing that they depend on has changed.
    """
    baseline = next(done for done in finished if done.row.id == pipeline.baseline_id)
    rows = []
    for before, done in zip([None, *finished[:-1]], finished, strict=True):
        others = [other for other in (baseline, before) if other is not None]
        identity = _identity(pipeline, done, others)
        row = known.get(done.row.id)
        if row is None or row.measured_as != _measured_as(identity, row.latency, row.versus_float):
            entries = tuple(_latency(done, baseline, setting) for setting in _settings(pipeline))
            versus_float = _versus_float(pipeline, done, before)
        else:
            entries, versus_float = row.latency, row.versus_float
        measured_as = _measured_as(identity, entries, versus_float)
        rows.append(
            done.row.model_copy(update={"latency": entries, "versus_float": versus_float, "measured_as": measured_as})
        )
    return rows


def _identity(pipeline: Pipeline, done: Finished, others: Sequence[Finished]) -> str:
    """SHA-256 over all that a row's latency depends on: the files, the settings and the machine."""
    return files.digest_json(
        {
            "id": done.row.id,
            "files": [files.digest(each.onnx.read_bytes()) for each in (done, *others)],
            "measure": pipeline.measure.model_dump(mode="json"),
            "environment": environment().model_dump(mode="json", exclude={"commit"}),
        }
    )


def _measured_as(identity: str, entries: Sequence[Latency | NotMeasured], versus_float: Sequence[Latency]) -> str:
    """SHA-256 over what figures depend on and the figures, so that none is taken over that was damaged."""
    figures = [entry.model_dump(mode="json") for entry in (*entries, *versus_float)]
    return files.digest_json([identity, figures])


def _versus_float(pipeline: Pipeline, done: Finished, before: Finished | None) -> tuple[Latency, ...]:
    """The speed-up of an int8 network over the same network's float ONNX file, which is that of the stage before."""
    if before is None or not done.artifact.quantized or before.artifact.quantized:
        return ()
    onnx = [setting for setting in _settings(pipeline) if setting.engine == "onnxruntime"]
    measured = (_latency(done, before, setting) for setting in onnx)
    return tuple(entry for entry in measured if isinstance(entry, Latency))


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
