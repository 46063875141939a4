"""The straight line: for each stage run, save, load back, measure; then the report."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from pydantic import ValidationError

from compressor import artifact, files, measurement, report
from compressor.artifact import ONNX, Artifact, TorchModel
from compressor.checkpoint import Checkpoints
from compressor.console import Console
from compressor.data import Dataset
from compressor.environment import environment
from compressor.errors import UserError
from compressor.keys import source_digest, stage_key
from compressor.pipeline import AnyStage, Pipeline
from compressor.rehearsal import rehearse
from compressor.report import Report, Row
from compressor.stage import Context, named
from compressor.timing import Finished, with_latency

CHECKPOINTS = "checkpoints"
LOCK = ".lock"
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
    with _locked(folder):
        files.write_text(folder / SPEC, SPEC_HEADER + pipeline.to_yaml())
        data = pipeline.data.load(pipeline.seed)
        if fresh:
            _start_over(folder)
        _introduce(pipeline, data, chosen, console)
        context = Context(
            data=data.without_test(),
            seed=pipeline.seed,
            device=chosen,
            factories=pipeline.factories,
            pipeline=pipeline.digest,
            console=console,
        )
        finished = _run_stages(pipeline, data, context, folder)
        console.say("Measuring latency, in turn with the baseline", style="bold")
        result = Report(
            pipeline=pipeline.name,
            seed=pipeline.seed,
            digest=pipeline.digest,
            baseline=pipeline.baseline_id,
            shipped=pipeline.stages[-1].id,
            labels=data.labels,
            environment=environment(),
            rows=tuple(with_latency(pipeline, finished, _earlier_rows(folder))),
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


def _prepare(pipeline: Pipeline, folder: Path) -> None:
    """Make the folder of the run, or take one that an earlier run made."""
    written = folder / SPEC
    try:
        if written.exists() and not written.read_text(encoding="utf-8").startswith(SPEC_HEADER):
            raise UserError(f"{written} is not of an earlier run and would be overwritten; choose another --out")
        (folder / "stages").mkdir(parents=True, exist_ok=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the folder {folder} cannot be used: {error}") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second run out of the folder; the lock goes with the process, however it ends."""
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"another run is working in {folder}; wait until it ends, or choose another --out") from error


def _start_over(folder: Path) -> None:
    """Remove what an earlier run made here, and nothing else."""
    for name in (ONNX, report.JSON, report.MARKDOWN):
        (folder / name).unlink(missing_ok=True)
    for row in (folder / "stages").glob(f"*/{ROW}"):
        shutil.rmtree(row.parent)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _introduce(pipeline: Pipeline, data: Dataset, device: torch.device, console: Console) -> None:
    """Say what is about to run, and what should be known of it."""
    console.say(
        f"{pipeline.name}: {len(data.train)} training, {len(data.validation)} validation and {len(data.test)} test "
        f"images, {len(data.labels)} classes; training on {device}"
    )
    for note in data.notes:
        console.say(f"  note: {note}")
    for warning in pipeline.warnings:
        console.say(f"  warning: {warning}")


def _run_stages(pipeline: Pipeline, data: Dataset, context: Context, folder: Path) -> list[Finished]:
    finished: list[Finished] = []
    sources = source_digest(pipeline)
    rehearsed = False
    for number, stage in enumerate(pipeline.stages, 1):
        teachers = {d.row.id: d.artifact for d in finished if isinstance(d.artifact, TorchModel)}
        before = finished[-1].artifact if finished else None
        key = stage_key(stage, before, teachers, context, sources)
        target = folder / "stages" / stage.id
        title = f"[{number}/{len(pipeline.stages)}] {stage.id} ({stage.stage})"
        done = _reuse(target, key, context, data)
        if done is None:
            if not rehearsed:
                context.console.say("Trying every stage on a few synthetic images", style="bold")
                rehearse(pipeline, data.labels, data.preprocess, device=context.device)
                rehearsed = True
            context.console.say(title, style="bold")
            checkpoints = Checkpoints(folder / CHECKPOINTS / stage.id, key)
            with named(stage):
                own = replace(context, teachers=teachers, checkpoints=checkpoints)
                done = _run_stage(stage, before, own, data, key, target)
        else:
            context.console.say(f"{title}: done before, unchanged", style="bold")
        accuracy = done.row.accuracy
        context.console.say(
            f"  {accuracy.correct}/{accuracy.total} right ({100 * accuracy.value:.2f}%), {done.row.parameters:,} "
            f"parameters, {done.row.macs / 1e6:.2f} MMACs, {done.row.size_bytes / 1e3:.1f} kB, {done.row.seconds:.0f} s"
        )
        finished.append(done)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return finished


def _run_stage(
    stage: AnyStage, before: Artifact | None, context: Context, data: Dataset, key: str, target: Path
) -> Finished:
    """Run one stage, and save what it makes in a temporary folder that is renamed when it is whole."""
    started = time.monotonic()
    made = stage.run(before, context)
    seconds = time.monotonic() - started
    partial = _empty(target.with_name(f".{target.name}.partial"))
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
    _finish(partial, row, target)
    return Finished(loaded, target, row)


def _finish(partial: Path, row: Row, target: Path) -> None:
    """Write the row, seal the folder, and put it where it belongs."""
    files.write_text(partial / ROW, row.model_dump_json(indent=1) + "\n")
    files.seal(partial)
    files.replace_folder(partial, target)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _reuse(target: Path, key: str, context: Context, data: Dataset) -> Finished | None:
    """The stage in `target`, if it was made by this key and is whole; scored again if the test split is another."""
    if not target.exists():
        return None
    damage = files.damaged(target)
    if damage is not None:
        context.console.say(f"{damage}; it is made again")
        return None
    try:
        row = Row.model_validate_json((target / ROW).read_bytes())
    except (OSError, ValidationError):  # whole, but of another version
        return None
    if row.key != key:
        return None
    if row.scored_on != data.test.fingerprint:
        accuracy = measurement.score(target / ONNX, data.test, data.preprocess, name="test")
        row = row.model_copy(update={"accuracy": accuracy, "scored_on": data.test.fingerprint})
        partial = _empty(target.with_name(f".{target.name}.partial"))
        shutil.copytree(target, partial, dirs_exist_ok=True)
        _finish(partial, row, target)
    return Finished(artifact.load(target, factories=context.factories), target, row)


def _earlier_rows(folder: Path) -> dict[str, Row]:
    """The rows of the last report in this folder, by id."""
    try:
        return {row.id: row for row in Report.load(folder).rows}
    except UserError:
        return {}
