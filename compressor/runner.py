"""The straight line: for each stage run, save, load back, measure; then the report."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import ValidationError

from compressor import artifact, files, measurement
from compressor.artifact import ONNX, Artifact, OnnxModel, TorchModel
from compressor.console import Console
from compressor.data import Dataset
from compressor.environment import environment
from compressor.errors import UserError
from compressor.measurement import Latency, NotMeasured, Setting
from compressor.pipeline import AnyStage, Pipeline
from compressor.report import Report, Row
from compressor.stage import Context, discover

ROW = "row.json"


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
    _prepare(folder, fresh)
    files.write_text(folder / "pipeline.yaml", pipeline.to_yaml())
    data = pipeline.data.load(pipeline.seed)
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


def _prepare(folder: Path, fresh: bool) -> None:
    try:
        if fresh and folder.exists():
            if not (folder / "pipeline.yaml").is_file() and any(folder.iterdir()):
                raise UserError(f"--fresh would delete {folder}, which is not the folder of a run; remove it yourself")
            shutil.rmtree(folder)
        (folder / "stages").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be used: {error.strerror}: {error.filename}") from error


def _run_stages(pipeline: Pipeline, data: Dataset, context: Context, folder: Path) -> list[_Finished]:
    finished: list[_Finished] = []
    sources = _source_digest(pipeline)
    for number, stage in enumerate(pipeline.stages, 1):
        by_id = {done.row.id: done for done in finished}
        key = _key(stage, by_id, finished[-1] if finished else None, context, sources)
        target = folder / "stages" / stage.id
        title = f"[{number}/{len(pipeline.stages)}] {stage.id} ({stage.stage})"
        done = _reuse(target, key, context)
        if done is None:
            context.console.say(title, style="bold")
            teachers = {i: d.artifact for i, d in by_id.items() if isinstance(d.artifact, TorchModel)}
            before = finished[-1].artifact if finished else None
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
    if isinstance(loaded, TorchModel):
        files.write_bytes(partial / ONNX, loaded.to_onnx(context.pipeline).content)
    counts = loaded.counts
    row = Row(
        id=stage.id,
        stage=stage.stage,
        artifact=f"stages/{stage.id}",
        seconds=round(seconds, 3),
        accuracy=measurement.score(partial / ONNX, data.test, data.preprocess, name="test"),
        parameters=counts.parameters,
        nonzero_parameters=counts.nonzero_parameters,
        macs=counts.macs,
        size_bytes=(partial / ONNX).stat().st_size,
        details=dict(loaded.details),
        key=key,
    )
    files.write_text(partial / ROW, row.model_dump_json(indent=1) + "\n")
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    return _Finished(loaded, target, row)


def _reuse(target: Path, key: str, context: Context) -> _Finished | None:
    """The stage in `target`, if it was made by this key."""
    try:
        row = Row.model_validate_json((target / ROW).read_bytes())
    except (OSError, ValidationError):
        return None
    if row.key != key:
        return None
    return _Finished(artifact.load(target, factories=context.factories), target, row)


def _key(
    stage: AnyStage,
    earlier: Mapping[str, _Finished],
    before: _Finished | None,
    context: Context,
    sources: str,
) -> str:
    """SHA-256 over all that a stage's artifact depends on, but no folder name or time."""
    teacher = getattr(stage, "teacher", None)
    weights = getattr(stage, "weights", None)
    return files.digest_json(
        {
            "settings": stage.model_dump(mode="json", exclude={"id"}),
            "weights": _digest_of(weights) if weights is not None else None,
            "before": before.row.key if before is not None else None,
            "teacher": earlier[teacher].row.key if teacher is not None else None,
            "data": context.data.fingerprint,
            "seed": context.seed,
            "device": context.device.type,
            "sources": sources,
        }
    )


def _digest_of(path: Path) -> str | None:
    return files.digest(path.read_bytes()) if path.is_file() else None


def _source_digest(pipeline: Pipeline) -> str:
    """The digest of the code: this package, and the packages of the pipeline's stages."""
    catalogue = discover()
    modules = {catalogue[stage.stage].__module__.partition(".")[0] for stage in pipeline.stages}
    folders = {Path(__file__).parent}
    for name in modules:
        file = __import__(name).__file__
        if file is not None:
            folders.add(Path(file).parent)
    return files.digest_sources(*sorted(folders))


def _measure_latency(pipeline: Pipeline, finished: list[_Finished], folder: Path, console: Console) -> list[Row]:
    """The rows with latency; figures of an earlier report stand where nothing they depend on has changed."""
    known = _known_rows(pipeline, folder)
    baseline = next(done for done in finished if done.row.id == pipeline.baseline_id)
    rows = []
    console.say("Measuring latency, in turn with the baseline", style="bold")
    for before, done in zip([None, *finished[:-1]], finished, strict=True):
        identity = (done.row.key, baseline.row.key)
        if identity in known:
            rows.append(known[identity])
            continue
        latency = tuple(_latency(done, baseline, setting) for setting in _settings(pipeline))
        versus_float: tuple[Latency, ...] = ()
        if before is not None and done.artifact.quantized and not before.artifact.quantized:
            onnx = [s for s in _settings(pipeline) if s.engine == "onnxruntime"]
            measured = (_latency(done, before, setting) for setting in onnx)
            versus_float = tuple(entry for entry in measured if isinstance(entry, Latency))
        rows.append(done.row.model_copy(update={"latency": latency, "versus_float": versus_float}))
    return rows


def _known_rows(pipeline: Pipeline, folder: Path) -> dict[tuple[str, str], Row]:
    """Rows of an earlier report of the same measurements on the same machine, by their key and the baseline's."""
    measured = folder / "measure.json"
    question = {
        "measure": pipeline.measure.model_dump(mode="json"),
        "environment": environment().model_dump(mode="json"),
    }
    digest = files.digest_json(question) + "\n"
    try:
        earlier = Report.load(folder) if measured.read_text() == digest else None
    except (OSError, UserError):
        earlier = None
    files.write_text(measured, digest)
    if earlier is None:
        return {}
    return {(row.key, earlier.row(earlier.baseline).key): row for row in earlier.rows}


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
