"""The straight line: for each stage run, save, load back, measure; then the report."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from compressor.config.spec import validated_copy
from compressor.console import Console
from compressor.data.dataset import Dataset
from compressor.environment import environment
from compressor.errors import UserError
from compressor.evaluation.regressions import harm_of
from compressor.models.artifact import ONNX, Artifact, TorchModel
from compressor.pipeline.pipeline import AnyStage, Pipeline
from compressor.pipeline.stage import Context, named
from compressor.report.report import DataFacts, Report, Row
from compressor.report.writing import WRITTEN, write
from compressor.runs.dry_run import rehearse
from compressor.runs.keys import source_digest, stage_key
from compressor.runs.seeds import over_seeds
from compressor.runs.store import ROW, Finished, finish, sweep, take_over
from compressor.runs.timing import timings_of
from compressor.storage import files
from compressor.storage.checkpoints import Checkpoints

CHECKPOINTS = "checkpoints"
SOFT_LABELS = "soft_labels"
LOCK = ".lock"
SEEDS = "seeds"
STAGES = "stages"
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
    first, *others = pipeline.repeats
    data = first.data.load(first.seed)
    _prepare(folder)
    with _locked(folder):
        sweep(folder / STAGES)
        if fresh:
            _start_over(folder)
        results = [_run_once(first, data, folder, chosen, console)]
        for other in others:
            console.say(f"The same with seed {other.seed}", style="bold")
            results.append(run(other, folder / SEEDS / str(other.seed), device=device, fresh=fresh, console=console))
        files.write_text(folder / SPEC, SPEC_HEADER + pipeline.to_yaml())
        result = results[0]
        if others:
            result = validated_copy(
                result, spec=pipeline.to_yaml(), seeds=pipeline.seeds, over_seeds=over_seeds(results)
            )
            write(result, folder)
        return result


def _run_once(pipeline: Pipeline, data: Dataset, folder: Path, device: torch.device, console: Console) -> Report:
    """All stages with one seed, and the report of them."""
    _introduce(pipeline, data, device, console)
    context = Context(
        data=data.without_test(),
        seed=pipeline.seed,
        device=device,
        factories=pipeline.factories,
        pipeline=pipeline.digest,
        console=console,
        soft_labels=folder / SOFT_LABELS,
    )
    finished = _run_stages(pipeline, data, context, folder)
    result = _measured(pipeline, finished, data, _earlier(folder), console)
    files.write_bytes(folder / ONNX, finished[-1].onnx.read_bytes())
    write(result, folder)
    return result


def _measured(
    pipeline: Pipeline, finished: list[Finished], data: Dataset, known: Report | None, console: Console
) -> Report:
    """What takes all stages to measure: latency in turn with the baseline, and the harm done to it."""
    baseline = next(done for done in finished if done.row.id == pipeline.baseline_id)
    shipped = finished[-1]
    console.say("Measuring latency, in turn with the baseline", style="bold")
    earlier = {row.id: row for row in known.rows} if known is not None else {}
    timings = timings_of(pipeline, finished, earlier, console)
    before = baseline.answers
    paired = [done.answers.against(before) for done in finished]
    console.say("Looking at what was lost: classes, images, corrupted images", style="bold")
    harm = harm_of(
        (baseline.onnx, before), (shipped.onnx, shipped.answers), data, known.harm if known is not None else None
    )
    return Report(
        pipeline=pipeline.name,
        license=pipeline.license,
        spec=pipeline.to_yaml(),
        seed=pipeline.seed,
        seeds=(pipeline.seed,),
        digest=pipeline.digest,
        baseline=pipeline.baseline_id,
        shipped=shipped.row.id,
        labels=data.labels,
        preprocess=data.preprocess,
        data=DataFacts(
            name=pipeline.data.name,
            train=len(data.train),
            validation=len(data.validation),
            test=len(data.test),
            fingerprint=data.fingerprint,
        ),
        environment=environment(),
        rows=tuple(Row.of(done.row, timed, pair) for done, timed, pair in zip(finished, timings, paired, strict=True)),
        harm=harm,
    )


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


def _prepare(folder: Path) -> None:
    """Make the folder of the run, or take one that an earlier run made; nothing of anyone else is written over."""
    spec = folder / SPEC
    try:
        if not (folder / LOCK).exists() and not (spec.exists() and spec.read_bytes().startswith(SPEC_HEADER.encode())):
            for name in (SPEC, ONNX, STAGES, CHECKPOINTS, SOFT_LABELS, SEEDS, *WRITTEN):
                if (folder / name).exists():
                    raise UserError(
                        f"{folder / name} is not of an earlier run and would be overwritten; choose another --out"
                    )
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
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
    """Remove what earlier runs made here, and nothing else."""
    for name in (SPEC, ONNX, *WRITTEN):
        (folder / name).unlink(missing_ok=True)
    for row in (folder / STAGES).glob(f"*/{ROW}"):
        shutil.rmtree(row.parent)
    for name in (CHECKPOINTS, SOFT_LABELS):
        shutil.rmtree(folder / name, ignore_errors=True)


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
        target = folder / STAGES / stage.id
        title = f"[{number}/{len(pipeline.stages)}] {stage.id} ({stage.stage})"
        done = take_over(target, key, context, data)
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
    """Run one stage, and keep what it makes."""
    started = time.monotonic()
    made = stage.run(before, context)
    return finish(stage, made, context, data, key=key, target=target, seconds=time.monotonic() - started)


def _earlier(folder: Path) -> Report | None:
    """The last report in this folder."""
    try:
        return Report.load(folder)
    except UserError:
        return None
