"""The straight line: for each stage run, save, load back, measure; then the report."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from pydantic import ValidationError

from compressor import artifact, files, measurement, report
from compressor.artifact import ONNX, Artifact, OnnxModel, TorchModel
from compressor.console import Console
from compressor.data import Dataset
from compressor.environment import environment
from compressor.errors import UserError
from compressor.measurement import Latency, NotMeasured, Setting
from compressor.pipeline import AnyStage, Pipeline
from compressor.report import Report, Row
from compressor.stage import Context, discover, makes

ROW = "row.json"
SPEC = "pipeline.yaml"
SPEC_HEADER = "# As it was run, overrides applied; written by compress run.\n"


def run(
    pipeline: Pipeline,
    out: str | Path | None = None,
    *,
    device: str = "auto",
    fresh: bool = False,
    console: Console | None = None,
) -> Report:
    """Run a whole pipeline; what is done and unchanged in `out` is not repeated.

    Args:
        pipeline: what to do.
        out: folder for the stages' artifacts, `model.onnx` and the report; `runs/<name>` by default.
        device: `cpu`, `cuda`, or `auto`: the GPU where there is one.
        fresh: start over.
        console: where progress is shown; nowhere by default.

    Raises:
        UserError: the data, weights, device or folder cannot be used.
        StageError: a stage failed.
    """
    console = console or Console()
    folder = Path(out) if out is not None else Path("runs") / pipeline.name
    chosen = choose_device(device)
    _prepare(pipeline, folder)
    data = pipeline.data.load(pipeline.seed)
    if fresh:
        _start_over(folder)
    console.say(
        f"{pipeline.name}: {len(data.train)} training, {len(data.validation)} validation and {len(data.test)} test "
        f"images, {len(data.labels)} classes; training on {chosen}"
    )
    context = Context(
        data=data.without_test(),
        seed=pipeline.seed,
        device=chosen,
        factories=pipeline.factories,
        pipeline=pipeline.digest,
        console=console,
    )
    finished = _run_stages(pipeline, data, context, folder)
    rows = _measure_latency(pipeline, finished, folder, console)
    result = Report(
        pipeline=pipeline.name,
        seed=pipeline.seed,
        digest=pipeline.digest,
        baseline=pipeline.baseline_id,
        shipped=pipeline.stages[-1].id,
        labels=data.labels,
        environment=environment(),
        rows=tuple(rows),
    )
    files.write_bytes(folder / ONNX, (finished[-1].folder / ONNX).read_bytes())
    result.write(folder)
    return result


def choose_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means here.

    Raises:
        UserError: it is another name, or there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in {"cpu", "cuda"}:
        raise UserError(f"there is no device {name!r}; expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda was asked for, but torch finds no CUDA device; use --device cpu")
    return torch.device(name)


@dataclass(frozen=True)
class _Finished:
    """A stage that is done: its artifact as loaded back, where it lies, and its row without latency."""

    artifact: Artifact
    folder: Path
    row: Row


def _prepare(pipeline: Pipeline, folder: Path) -> None:
    """Make the folder of the run, or take one that an earlier run made."""
    written = folder / SPEC
    try:
        if written.exists() and not written.read_text(encoding="utf-8").startswith(SPEC_HEADER):
            raise UserError(f"{written} is not of an earlier run and would be overwritten; choose another --out")
        (folder / "stages").mkdir(parents=True, exist_ok=True)
        files.write_text(written, SPEC_HEADER + pipeline.to_yaml())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the folder {folder} cannot be used: {error}") from error


def _start_over(folder: Path) -> None:
    """Remove what an earlier run made here, and nothing else."""
    for name in (ONNX, report.JSON, report.MARKDOWN):
        (folder / name).unlink(missing_ok=True)
    for row in (folder / "stages").glob(f"*/{ROW}"):
        shutil.rmtree(row.parent)


def _run_stages(pipeline: Pipeline, data: Dataset, context: Context, folder: Path) -> list[_Finished]:
    finished: list[_Finished] = []
    sources = _source_digest(pipeline)
    for number, stage in enumerate(pipeline.stages, 1):
        teachers = {d.row.id: d.artifact for d in finished if isinstance(d.artifact, TorchModel)}
        before = finished[-1].artifact if finished else None
        key = _key(stage, before, teachers, context, sources)
        target = folder / "stages" / stage.id
        title = f"[{number}/{len(pipeline.stages)}] {stage.id} ({stage.stage})"
        done = _reuse(target, key, context, data)
        if done is None:
            context.console.say(title, style="bold")
            done = _run_stage(stage, before, replace(context, teachers=teachers), data, key, target)
        else:
            context.console.say(f"{title}: done before, unchanged", style="bold")
        accuracy = done.row.accuracy
        context.console.say(
            f"  {accuracy.correct}/{accuracy.total} right ({100 * accuracy.value:.2f}%), {done.row.parameters:,} "
            f"parameters, {done.row.macs / 1e6:.2f} MMACs, {done.row.size_bytes / 1e3:.1f} kB, {done.row.seconds:.0f} s"
        )
        finished.append(done)
    return finished


def _run_stage(
    stage: AnyStage, before: Artifact | None, context: Context, data: Dataset, key: str, target: Path
) -> _Finished:
    """Run one stage in a temporary folder that is renamed when it is whole."""
    started = time.monotonic()
    made = stage.run(before, context)
    seconds = time.monotonic() - started
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    made.save(partial)
    loaded = artifact.load(partial, factories=context.factories)
    shipped = loaded.to_onnx(context.pipeline) if isinstance(loaded, TorchModel) else loaded
    files.write_bytes(partial / ONNX, shipped.content)
    row = Row(
        id=stage.id,
        stage=stage.stage,
        artifact=f"stages/{stage.id}",
        seconds=round(seconds, 3),
        accuracy=measurement.score(partial / ONNX, data.test, data.preprocess, name="test"),
        parameters=shipped.counts.parameters,
        nonzero_parameters=shipped.counts.nonzero_parameters,
        macs=shipped.counts.macs,
        size_bytes=(partial / ONNX).stat().st_size,
        details=dict(loaded.details),
        key=key,
        scored_on=data.test.fingerprint,
    )
    files.write_text(partial / ROW, row.model_dump_json(indent=1) + "\n")
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    return _Finished(loaded, target, row)


def _reuse(target: Path, key: str, context: Context, data: Dataset) -> _Finished | None:
    """The stage in `target`, if it was made by this key; scored again if the test split is another."""
    try:
        row = Row.model_validate_json((target / ROW).read_bytes())
    except (OSError, ValidationError):
        return None
    if row.key != key:
        return None
    if row.scored_on != data.test.fingerprint:
        accuracy = measurement.score(target / ONNX, data.test, data.preprocess, name="test")
        row = row.model_copy(update={"accuracy": accuracy, "scored_on": data.test.fingerprint})
        files.write_text(target / ROW, row.model_dump_json(indent=1) + "\n")
    return _Finished(artifact.load(target, factories=context.factories), target, row)


def _key(
    stage: AnyStage, before: Artifact | None, teachers: Mapping[str, TorchModel], context: Context, sources: str
) -> str:
    """SHA-256 over all that a stage's artifact depends on, but no folder name or time."""
    teacher = getattr(stage, "teacher", None)
    weights = getattr(stage, "weights", None)
    return files.digest_json(
        {
            "settings": stage.model_dump(mode="json", exclude={"id", "teacher", "weights"}),
            "weights": _digest_of(weights) if weights is not None else None,
            "before": before.digest if before is not None else None,
            "teacher": teachers[teacher].digest if teacher is not None else None,
            "data": context.data.fingerprint,
            "seed": context.seed,
            "device": context.device.type,
            "sources": sources,
            "metadata": context.pipeline if OnnxModel in makes(type(stage)) else None,
        }
    )


def _digest_of(path: Path) -> str | None:
    return files.digest(path.read_bytes()) if path.is_file() else None


def _source_digest(pipeline: Pipeline) -> str:
    """The digest of the code: this package, the packages of the pipeline's stages, and its factories' modules."""
    catalogue = discover()
    packages = {__name__.partition(".")[0]} | {
        catalogue[stage.stage].__module__.partition(".")[0] for stage in pipeline.stages
    }
    sources = {_source(factory.partition(":")[0]) for factory in pipeline.factories}
    for name in packages:
        sources |= set(_source(name).parent.rglob("*.py"))
    return files.digest_json(sorted([path.name, files.digest(path.read_bytes())] for path in sources))


def _source(module: str) -> Path:
    try:
        spec = find_spec(module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        raise UserError(f"{module} cannot be imported; expected a Python file or package, importable from here")
    return Path(spec.origin)


def _measure_latency(pipeline: Pipeline, finished: list[_Finished], folder: Path, console: Console) -> list[Row]:
    """The rows with latency; figures of an earlier report stand where nothing that they depend on has changed."""
    try:
        known = {row.measured_as: row for row in Report.load(folder).rows}
    except UserError:
        known = {}
    baseline = next(done for done in finished if done.row.id == pipeline.baseline_id)
    rows = []
    console.say("Measuring latency, in turn with the baseline", style="bold")
    for before, done in zip([None, *finished[:-1]], finished, strict=True):
        others = [other for other in (baseline, before) if other is not None]
        identity = _measurement_identity(pipeline, done, others)
        if identity in known:
            latency, versus_float = known[identity].latency, known[identity].versus_float
        else:
            latency = tuple(_latency(done, baseline, setting) for setting in _settings(pipeline))
            versus_float = _versus_float(pipeline, done, before)
        rows.append(
            done.row.model_copy(update={"latency": latency, "versus_float": versus_float, "measured_as": identity})
        )
    return rows


def _measurement_identity(pipeline: Pipeline, done: _Finished, others: list[_Finished]) -> str:
    """SHA-256 over all that a row's latency depends on: the files, the settings and the machine."""
    return files.digest_json(
        {
            "id": done.row.id,
            "files": [files.digest((each.folder / ONNX).read_bytes()) for each in (done, *others)],
            "measure": pipeline.measure.model_dump(mode="json"),
            "environment": environment().model_dump(mode="json", exclude={"commit"}),
        }
    )


def _versus_float(pipeline: Pipeline, done: _Finished, before: _Finished | None) -> tuple[Latency, ...]:
    """The speed-up of an int8 network over the same network's float ONNX file, which is that of the stage before."""
    if before is None or not done.artifact.quantized or before.artifact.quantized:
        return ()
    onnx = [setting for setting in _settings(pipeline) if setting.engine == "onnxruntime"]
    measured = (_latency(done, before, setting) for setting in onnx)
    return tuple(entry for entry in measured if isinstance(entry, Latency))


def _settings(pipeline: Pipeline) -> list[Setting]:
    """Every combination to time: ONNX Runtime on the CPU, torch on both; threads do not matter to a GPU."""
    measure = pipeline.measure
    return [
        Setting(engine=engine, device=device, threads=threads, batch=batch)
        for engine in measure.engines
        for device in measure.devices
        for threads in (measure.threads if device == "cpu" else measure.threads[:1])
        for batch in measure.batches
        if (engine, device) != ("onnxruntime", "cuda")
    ]


def _latency(done: _Finished, baseline: _Finished, setting: Setting) -> Latency | NotMeasured:
    runs: list[measurement.Run] = []
    for each in (done, baseline):
        reason = _reason_not_to_time(each.artifact, setting)
        if reason is not None:
            return NotMeasured(**setting.model_dump(), reason=reason)
        preprocess = each.artifact.preprocess
        if setting.engine == "onnxruntime":
            runs.append(measurement.onnx_runner(each.folder / ONNX, preprocess, setting))
        else:
            assert isinstance(each.artifact, TorchModel)
            runs.append(measurement.torch_runner(each.artifact.copy_network(), preprocess, setting))
    candidate, reference = runs
    return measurement.compare(candidate, reference, setting)


def _reason_not_to_time(model: Artifact, setting: Setting) -> str | None:
    if setting.device == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    if setting.engine == "torch" and isinstance(model, OnnxModel):
        return "an ONNX file does not run in torch"
    if setting.engine == "torch" and model.quantized:
        return "a fake-quantized network in eager torch is not what ships"
    return None
