"""One trial: a pipeline is run like any other, but judged on the validation images, and stopped if it cannot win."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from compressor.console import Console
from compressor.data import Data, Dataset
from compressor.errors import CompressorError, StageError
from compressor.evaluation import (
    REFERENCE,
    ROUGH_IMAGES,
    Latency,
    Pair,
    Setting,
    Subject,
    engine_of,
    latency_of,
    rough_file,
)
from compressor.models import Artifact, TorchModel
from compressor.pipeline import Context, Pipeline, Services, Stage, Start, completed, named
from compressor.runs import CHECKPOINTS, STAGES, Finished, SharedStore, choose_device, run_stages, sweep
from compressor.search.early import CannotWinError, beaten_in_latency, beaten_in_training
from compressor.search.lease import Lease
from compressor.search.outcome import SPEC, TRIALS, Moment, Outcome, Shipped, folder_of, outcome_in
from compressor.search.settings import Search
from compressor.storage import files
from compressor.tracking import Tracker
from compressor.training import Training

REFERENCE_FILE, STARTS = "reference.onnx", ".starts"
MOST_STARTS = 4


@dataclass(frozen=True)
class Job:
    """What is to be tried, and where: plain values, which go to other machines.

    Attributes:
        number: of the trial.
        values: what the ranges are in it, by name.
        folder: of the search.
        store: of what runs share.
        device: `auto`, `cpu` or `cuda`.
        search: the settings of the search.
        imports: folders from which networks of one's own are imported.
    """

    number: int
    values: Mapping[str, Any]
    folder: Path
    store: Path
    device: str
    search: Search
    imports: tuple[str, ...] = ()

    @property
    def own_folder(self) -> Path:
        """The folder of the trial."""
        return folder_of(self.folder, self.number)


def run_trial(job: Job, console: Console | None = None) -> Outcome:
    """Run a trial to its end, or go on where it was interrupted; its outcome is written last.

    If another process still works on it, as it may where a network failed, its outcome is waited for.
    """
    console = console or Console()
    with FileLock(job.own_folder / ".lock"):
        if (known := outcome_in(job.own_folder)) is not None:
            return known
        sweep(job.own_folder)
        starts = _starts(job.own_folder)
        started = time.monotonic()
        attempt = _Attempt(job, Lease())
        ended: dict[str, Any]
        try:
            if starts > MOST_STARTS:
                raise StageError(f"its process died {MOST_STARTS} times, and no epoch was over between")
            shipped, curves = attempt.run(console)
            ended = {"state": "complete", "shipped": shipped, "curves": curves}
        except CannotWinError as error:
            ended = {"state": "stopped", "reason": str(error), "curves": attempt.curves}
        except KeyboardInterrupt:
            files.remove(job.own_folder / STARTS)
            raise
        except CompressorError as error:
            ended = {"state": "failed", "reason": str(error), "curves": attempt.curves}
        outcome = Outcome(
            number=job.number,
            values=dict(job.values),
            expected_share=attempt.expected_share,
            seconds=round(time.monotonic() - started, 3),
            **ended,
        )
        for left in (STAGES, CHECKPOINTS, STARTS):  # the store has the stages
            files.remove(job.own_folder / left)
        outcome.save(job.own_folder)
        return outcome


def _starts(folder: Path) -> int:
    """How often the trial was started, this time included, since its last epoch was over; and note that."""
    path = folder / STARTS
    starts = 1 + (int(path.read_text()) if path.is_file() else 0)
    files.write_text(path, str(starts))
    return starts


@dataclass
class _Attempt(Tracker):
    """A trial while it runs: follows its trainings, and ends it when it cannot win any more."""

    job: Job
    lease: Lease
    curves: dict[str, tuple[Moment, ...]] = field(default_factory=dict)
    expected_share: float | None = None
    _ended: dict[int, Outcome] = field(default_factory=dict)
    _images: int = 0  # of the validation split
    _shape_is_final: bool = False  # no later stage changes what decides the latency
    _judged_stage: str = ""  # which trains now, after the baseline is made

    def run(self, console: Console) -> tuple[Shipped, dict[str, tuple[Moment, ...]]]:
        """What the trial ships, and the curves of its trainings.

        Raises:
            CannotWinError: another trial is better, whatever this one becomes.
            CompressorError: the pipeline failed.
        """
        pipeline = Pipeline.load(self.job.own_folder / SPEC)
        find_networks(pipeline, self.job.imports)
        pipeline = completed(pipeline, console)
        data = _loaded(pipeline.data, pipeline.seed).judged_on_validation()
        store = SharedStore(self.job.store)
        store.prepare()
        context = Context(
            data=data.without_test(),
            seed=pipeline.seed,
            device=choose_device(self.job.device),
            pipeline=pipeline.digest,
            services=Services(console, (self,), soft_labels=store.soft_labels),
        )
        making = partial(self._making, pipeline)
        finished = run_stages(pipeline, data, context, self.job.own_folder, store, making)
        baseline, shipped = _baseline(pipeline, finished), finished[-1]
        judged = Shipped(
            accuracy=shipped.row.accuracy,
            baseline=baseline.row.accuracy,
            versus_baseline=shipped.predictions.against(baseline.predictions),
            latency=self._timed(shipped.onnx, baseline, pipeline),
            parameters=shipped.row.parameters,
            macs=shipped.row.macs,
            size_bytes=shipped.row.size_bytes,
        )
        files.write_bytes(self.job.own_folder / shipped.onnx.name, shipped.onnx.read_bytes())
        trained = {stage.id: stage.epochs if isinstance(stage, Training) else 0 for stage in pipeline.stages}
        curves = {
            done.row.id: tuple(
                Moment(share=point["epoch"] / trained[done.row.id], accuracy=point["validation_accuracy"])
                for point in done.row.details.get("curve", ())
            )
            for done in finished
            if trained.get(done.row.id) and done is not baseline
        }
        return judged, curves

    def on_epoch(self, stage: str, point: Mapping[str, float]) -> None:
        """An epoch is over: those who wait to time go first; then, may this trial still win?"""
        files.remove(self.job.own_folder / STARTS)  # it gets on
        self.lease.give_way()
        if stage != self._judged_stage:
            return
        now = Moment(share=point["epoch"] / point["epochs"], accuracy=point["validation_accuracy"])
        self.curves[stage] = (*self.curves.get(stage, ()), now)
        if self.expected_share is not None and self._shape_is_final:
            self._end(beaten_in_training(stage, now, self.expected_share, self._images, self._rivals()))

    @contextmanager
    def _making(
        self,
        pipeline: Pipeline,
        stage: Stage,
        model: Artifact | None,
        context: Context,
        finished: Sequence[Finished],
    ) -> Iterator[None]:
        """A stage runs; if it trains, its network is timed first, as it would ship now."""
        baseline = next((done for done in finished if done.row.id == pipeline.baseline_id), None)
        if isinstance(stage, Training) and stage.epochs and baseline is not None:
            self._judged_stage = stage.id
            if self.job.search.stop_early and not self._shape_is_final:
                self._expect(pipeline, stage, model, context, baseline)
        with self.lease.training():
            yield

    def _expect(
        self, pipeline: Pipeline, stage: Stage, model: Artifact | None, context: Context, baseline: Finished
    ) -> None:
        """Time what the stage's network would ship as, unless there is nothing to compare it with."""
        rivals = [rival for rival in self._rivals() if rival.shipped is not None]
        with named(stage):
            network = stage.start(_torch(model), context) if isinstance(stage, Start) else _torch(model)
        later = pipeline.stages[[each.id for each in pipeline.stages].index(stage.id) :]
        int8 = next((each for each in later if each.makes_integers), None)
        placement: Any = getattr(int8, "placement", "layers")
        if not rivals or network is None or network.quantized or placement == "measured":
            return
        self._shape_is_final = not any(each.needs_recovery or getattr(each, "model", None) for each in later[1:])
        self._images = len(context.data.validation)
        images = next(context.data.calibration_batches(images=ROUGH_IMAGES))
        with files.scratch_folder(self.job.own_folder / "rough") as folder:
            rough = folder / "model.onnx"
            skip = getattr(int8, "skip", ())
            rough.write_bytes(rough_file(network, images, int8=int8 is not None, placement=placement, skip=skip))
            self.expected_share = 1 / self._timed(rough, baseline, pipeline).speedup
        if self._shape_is_final:
            self._end(beaten_in_latency(self.expected_share, self.job.search.goal, rivals))

    def _timed(self, candidate: Path, baseline: Finished, pipeline: Pipeline) -> Latency:
        """The latency of a file against the reference, on a machine where no trial trains meanwhile."""
        reference = self._reference(baseline)
        with self.lease.timing():
            return latency_of([Pair(Subject(candidate), Subject(reference), setting_of(pipeline))()])

    def _reference(self, baseline: Finished) -> Path:
        """What all trials are timed against: the baseline's file of the first that got so far."""
        path = self.job.folder / REFERENCE_FILE
        with FileLock(self.job.folder / ".reference.lock"):
            if not path.exists():
                files.write_bytes(path, baseline.onnx.read_bytes())
        return path

    def _rivals(self) -> list[Outcome]:
        """The trials that are over."""
        for folder in (self.job.folder / TRIALS).iterdir():
            if folder.name.isdecimal() and (number := int(folder.name)) not in self._ended:
                outcome = outcome_in(folder)
                if outcome is not None:
                    self._ended[number] = outcome
        return [self._ended[number] for number in sorted(self._ended)]

    @staticmethod
    def _end(why: str | None) -> None:
        if why is not None:
            raise CannotWinError(why)


def find_networks(pipeline: Pipeline, folders: Sequence[str]) -> None:
    """Let the pipeline's own networks be imported from these folders; if it has none, nothing is."""
    if pipeline.factories:
        sys.path += [folder for folder in folders if folder not in sys.path]


def setting_of(pipeline: Pipeline) -> Setting:
    """What latency is measured on: the first engine of `measure` that runs files on a CPU, with its first settings."""
    measure = pipeline.measure
    on_cpu = (name for name in measure.engines if name != "torch" and "cpu" in engine_of(name).devices)
    engine = next(on_cpu, REFERENCE)
    return Setting(engine=engine, device="cpu", threads=measure.threads[0], batch=measure.batches[0])


@lru_cache(maxsize=1)
def _loaded(data: Data, seed: int) -> Dataset:
    """The images, which are the same in most trials."""
    return data.load(seed)


def _baseline(pipeline: Pipeline, finished: Sequence[Finished]) -> Finished:
    return next(done for done in finished if done.row.id == pipeline.baseline_id)


def _torch(model: Artifact | None) -> TorchModel | None:
    return model if isinstance(model, TorchModel) else None
