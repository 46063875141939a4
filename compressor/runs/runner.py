"""The straight line: for each stage run, save, load back, measure; then the report."""

from collections.abc import Sequence
from pathlib import Path

import torch

from compressor import processes
from compressor.config.spec import validated_copy
from compressor.console import Console
from compressor.data.dataset import Dataset
from compressor.data.settings import Augment
from compressor.environment import environment
from compressor.errors import ArtifactError, UserError
from compressor.evaluation.doctor.diagnosis import Diagnosis, diagnose
from compressor.evaluation.in_engines import InEngine, in_engine
from compressor.evaluation.regressions import regressions_of
from compressor.models.artifact import ONNX
from compressor.pipeline.completion import completed
from compressor.pipeline.context import Context, Services
from compressor.pipeline.pipeline import Pipeline
from compressor.report.contact_sheet import SHEET_IMAGES, SHEET_VIEWS, contact_sheet
from compressor.report.report import DataFacts, Report, Row, Timings
from compressor.report.writing import WRITTEN, write
from compressor.runs.dry_run import try_stages
from compressor.runs.keys import code_of
from compressor.runs.layout import (
    OWN_FILES,
    SEEDS,
    SOFT_LABELS,
    SPEC,
    SPEC_HEADER,
    TRIED,
    locked,
    prepare,
    start_over,
    sweep,
)
from compressor.runs.making import follow_stages, run_stages
from compressor.runs.seeds import over_seeds
from compressor.runs.shared import SharedStore
from compressor.runs.store import Finished
from compressor.runs.timing import timings_of
from compressor.runs.trackers import following
from compressor.storage import files
from compressor.tracking import Tracker
from compressor.training.loop import shown
from compressor.training.settings import Training


def run(
    pipeline: Pipeline,
    out: str | Path | None = None,
    *,
    device: str = "auto",
    fresh: bool = False,
    store: str | Path | None = None,
    console: Console | None = None,
    trackers: Sequence[Tracker] = (),
) -> Report:
    """Run a whole pipeline; stages in `out` that are done and unchanged are not repeated.

    Args:
        pipeline: what to do.
        out: folder for the stages' artifacts, `model.onnx` and the report; `runs/<name>` by default.
        device: `cpu`, `cuda`, or `auto`: the GPU where there is one.
        fresh: start over; nothing is taken from the store, either.
        store: a folder of finished stages and teachers' outputs that runs share, such as `runs/.store`; none by
            default.
        console: where progress is shown; nowhere by default.
        trackers: trackers that follow the run, besides those that the pipeline names; of several seeds, the first.

    Raises:
        UserError: the data, weights, device or folder cannot be used.
        StageError: a stage failed.
    """
    console = console or Console()
    folder = Path(out) if out is not None else Path("runs") / pipeline.name
    chosen = choose_device(device)
    processes.start(cpu=chosen.type == "cpu")
    if not processes.is_first():
        return _follow(pipeline, folder, chosen, store if not fresh else None)
    pipeline = completed(pipeline, console)
    first, *others = pipeline.repeats
    labels = first.data.labels()
    prepare(folder)
    shared = SharedStore(Path(store), takes=not fresh) if store is not None else None
    if shared is not None:
        if shared.folder.resolve() == folder.resolve():
            raise UserError(f"{folder} cannot be both the run's folder and the store; choose another --store")
        shared.prepare()
    with locked(folder), following(first, folder, trackers) as followers:
        sweep(folder)
        if fresh:
            start_over(folder)
        with processes.alone():
            _try(first, labels, folder, chosen, console)
        soft_labels = shared.soft_labels if shared is not None and shared.takes else folder / SOFT_LABELS
        services = Services(console, followers, soft_labels=soft_labels)
        results = [_run_once(first, folder, chosen, services, shared)]
        for other in others:
            console.say(f"The same pipeline with seed {other.seed}", style="bold")
            results.append(
                run(
                    other,
                    folder / SEEDS / str(other.seed),
                    device=device,
                    fresh=fresh,
                    store=store,
                    console=console,
                )
            )
        result = results[0]
        if others:
            result = validated_copy(
                result, spec=pipeline.to_yaml(), seeds=pipeline.seeds, over_seeds=over_seeds(results)
            )
            write(result, folder)
        files.write_text(folder / SPEC, SPEC_HEADER + pipeline.to_yaml())
        processes.wait()
        for tracker in followers:
            for row in result.rows:
                tracker.on_row(row.model_dump(mode="json"))
            for name in (ONNX, *OWN_FILES, *WRITTEN):
                if (folder / name).is_file():
                    tracker.on_artifact(folder / name)
        return result


def _follow(pipeline: Pipeline, folder: Path, device: torch.device, store: str | Path | None) -> Report:
    """What the other processes of a run do: they train with the first one, and have its report in the end."""
    first, *others = completed(pipeline).repeats
    processes.wait()  # for images that are decoded once
    soft_labels = (Path(store) if store is not None else folder) / SOFT_LABELS  # as the first process has them
    context = Context(
        data=first.data.load(first.seed).without_test(),
        seed=first.seed,
        device=device,
        pipeline=first.digest,
        services=Services(soft_labels=soft_labels),
    )
    follow_stages(first, context, folder)
    for other in others:
        _follow(other, folder / SEEDS / str(other.seed), device, store)
    processes.wait()
    return Report.load(folder)


def _try(pipeline: Pipeline, labels: tuple[str, ...], folder: Path, device: torch.device, console: Console) -> None:
    """The dry run, before any image is decoded, unless this very pipeline has passed it in this folder."""
    preprocess = pipeline.data.preprocess()
    tried = files.digest_json(
        [
            pipeline.model_dump(mode="json", include={"data", "seed", "stages"}),
            [code_of(stage, pipeline) for stage in pipeline.stages],
            labels,
            environment().versions,
        ]
    )
    record = folder / TRIED
    if record.is_file() and record.stat().st_size == len(tried) and record.read_text(errors="replace") == tried:
        return
    console.say("Dry run: every stage on a few synthetic images", style="bold")
    try_stages(pipeline, labels, preprocess, device=device, scratch=folder)
    files.write_text(record, tried)


def _run_once(
    pipeline: Pipeline, folder: Path, device: torch.device, services: Services, shared: SharedStore | None
) -> Report:
    """All stages with one seed, and their report."""
    data = pipeline.data.load(pipeline.seed, services.console)
    processes.wait()
    _introduce(pipeline, data, device, services.console)
    context = Context(
        data=data.without_test(), seed=pipeline.seed, device=device, pipeline=pipeline.digest, services=services
    )
    sheet = _contact_sheet(pipeline, context)
    finished = run_stages(pipeline, data, context, folder, shared)
    known = _earlier(folder)
    result = _measured(pipeline, finished, data, sheet, known, services.console)
    _ship(finished[-1], folder)
    write(result, folder)  # timings took minutes; whatever happens now, they are kept
    doctor = _diagnosed(finished[-1], result.shipped_row.timings, known, services.console)
    result = validated_copy(result, doctor=doctor)
    write(result, folder)
    return result


def _ship(shipped: Finished, folder: Path) -> None:
    """Lay the files that ship into the folder of the run, and none that an earlier run shipped."""
    files.write_bytes(folder / ONNX, shipped.onnx.read_bytes())
    own = {shipped.onnx_for(engine) for engine in shipped.engines} - {shipped.onnx}
    for path in own:
        files.write_bytes(folder / path.name, path.read_bytes())
    for name in {*OWN_FILES} - {path.name for path in own}:
        files.remove(folder / name)


def _contact_sheet(pipeline: Pipeline, context: Context) -> str:
    """The picture of what networks are shown in training; "" if none is trained."""
    if not any(isinstance(stage, Training) and stage.epochs for stage in pipeline.stages):
        return ""
    views = 1 if context.data.augment == Augment() else SHEET_VIEWS
    return contact_sheet(shown(context, SHEET_IMAGES, views).numpy())


def _measured(
    pipeline: Pipeline, finished: list[Finished], data: Dataset, sheet: str, known: Report | None, console: Console
) -> Report:
    """Measurements that need all stages: latency and predictions, both against the baseline's."""
    baseline = next(done for done in finished if done.row.id == pipeline.baseline_id)
    shipped = finished[-1]
    before = baseline.predictions
    paired = [done.predictions.against(before) for done in finished]
    console.say("Comparing predictions: classes, images, corrupted images", style="bold")
    regressions = regressions_of(
        (baseline.onnx, before),
        (shipped.onnx, shipped.predictions),
        data,
        known.regressions if known is not None else None,
        console,
    )
    engines = _in_engines(shipped, data, known, console)
    console.say("Measuring latency, in alternation with the baseline", style="bold")
    earlier = {row.id: row for row in known.rows} if known is not None else {}
    timings = timings_of(pipeline, finished, earlier, console)
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
        regressions=regressions,
        engines=engines,
        shown=sheet,
    )


def _in_engines(shipped: Finished, data: Dataset, known: Report | None, console: Console) -> tuple[InEngine, ...]:
    """How what ships scores in the other engines that it is for."""
    before = {each.engine: each for each in known.engines} if known is not None else {}
    predictions = shipped.predictions
    return tuple(
        in_engine(name, shipped.onnx_for(name), predictions, data, before.get(name), console)
        for name in shipped.engines
    )


def _diagnosed(shipped: Finished, timings: Timings, known: Report | None, console: Console) -> Diagnosis | None:
    """Where the shipped file's time goes, of an earlier report if its timings stand."""
    if known is not None and known.doctor is not None and known.shipped_row.timings == timings:
        return known.doctor
    console.say("Looking where the shipped file's time goes", style="bold")
    try:
        return diagnose(shipped.onnx).model_copy(update={"model": ONNX})
    except ArtifactError as error:
        console.say(f"  it cannot be said: {error}")
        return None


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


def _beside() -> str:
    return f", in {processes.count()} processes" if processes.count() > 1 else ""


def _introduce(pipeline: Pipeline, data: Dataset, device: torch.device, console: Console) -> None:
    """Say what is about to run, with notes and warnings."""
    console.say(
        f"{pipeline.name}: {len(data.train)} training, {len(data.validation)} validation and {len(data.test)} test "
        f"images, {len(data.labels)} classes; training on {device}{_beside()}"
    )
    for note in data.notes:
        console.say(f"  note: {note}")
    for warning in pipeline.warnings:
        console.say(f"  warning: {warning}")


def _earlier(folder: Path) -> Report | None:
    """The last report in this folder."""
    try:
        return Report.load(folder)
    except UserError:
        return None
