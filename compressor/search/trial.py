"""One trial: a pipeline is run like any other, but judged on the validation images, and stopped if it cannot win."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from compressor.console import Console
from compressor.data import Data, Dataset
from compressor.errors import CompressorError
from compressor.evaluation import REFERENCE, ROUGH_IMAGES, Latency, Pair, Setting, Subject, latency_of, rough_file
from compressor.models import Artifact, TorchModel
from compressor.pipeline import Context, Pipeline, Services, Stage, Start, completed, named
from compressor.runs import Finished, SharedStore, choose_device, run_stages, sweep
from compressor.search.early import CannotWinError, beaten_in_latency, beaten_in_training
from compressor.search.lease import Lease
from compressor.search.outcome import SPEC, TRIALS, Moment, Outcome, Shipped, folder_of, outcome_in
from compressor.search.settings import Search
from compressor.storage import files
from compressor.tracking import Tracker
from compressor.training import Training

REFERENCE_FILE = "reference.onnx"


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
        started = time.monotonic()
        attempt = _Attempt(job, Lease())
        ended: dict[str, Any]
        try:
            shipped, curves = attempt.run(console)
            ended = {"state": "complete", "shipped": shipped, "curves": curves}
        except CannotWinError as error:
            ended = {"state": "stopped", "reason": str(error), "curves": attempt.curves}
        except CompressorError as error:
            ended = {"state": "failed", "reason": str(error), "curves": attempt.curves}
        outcome = Outcome(
            number=job.number,
            values=dict(job.values),
            expected_share=attempt.expected_share,
            seconds=round(time.monotonic() - started, 3),
            **ended,
        )
        outcome.save(job.own_folder)
        for left in ("stages", "checkpoints"):  # the store has the stages
            files.remove(job.own_folder / left)
        return outcome


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

    def run(self, console: Console) -> tuple[Shipped, dict[str, tuple[Moment, ...]]]:
        """What the trial ships, and the curves of its trainings.

        Raises:
            CannotWinError: another trial is better, whatever this one becomes.
            CompressorError: the pipeline failed.
        """
        pipeline = completed(Pipeline.load(self.job.own_folder / SPEC), console)
        if pipeline.factories:
            sys.path += [folder for folder in self.job.imports if folder not in sys.path]
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
        with self.lease.training():
            finished = run_stages(pipeline, data, context, self.job.own_folder, store, partial(self._before, pipeline))
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
            if trained.get(done.row.id)
        }
        return judged, curves

    def on_epoch(self, stage: str, point: Mapping[str, float]) -> None:
        """An epoch is over: those who wait to time go first; then, may this trial still win?"""
        now = Moment(share=point["epoch"] / point["epochs"], accuracy=point["validation_accuracy"])
        self.curves[stage] = (*self.curves.get(stage, ()), now)
        self.lease.give_way()
        if self.expected_share is not None and self._shape_is_final:
            self._end(beaten_in_training(stage, now, self.expected_share, self._images, self._rivals()))

    def _before(
        self,
        pipeline: Pipeline,
        stage: Stage,
        model: Artifact | None,
        context: Context,
        finished: Sequence[Finished],
    ) -> None:
        """A stage is about to run; if it trains, its network is timed first, as it would ship now."""
        baseline = next((done for done in finished if done.row.id == pipeline.baseline_id), None)
        if not isinstance(stage, Training) or not stage.epochs or baseline is None:
            return
        if self._shape_is_final or not self.job.search.stop_early:
            return
        makes_integers = stage.makes_integers
        rivals = [rival for rival in self._rivals() if rival.shipped is not None]
        with named(stage):
            network = stage.start(_torch(model), context) if isinstance(stage, Start) else _torch(model)
        if not rivals or network is None or network.quantized:
            return
        later = pipeline.stages[[each.id for each in pipeline.stages].index(stage.id) + 1 :]
        self._shape_is_final = not any(each.needs_recovery or getattr(each, "model", None) for each in later)
        self._images = len(context.data.validation)
        images = next(context.data.calibration_batches(images=ROUGH_IMAGES))
        with files.scratch_folder(self.job.own_folder / "rough") as folder:
            rough = folder / "model.onnx"
            rough.write_bytes(rough_file(network, images, int8=context.ships_int8 or makes_integers))
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


def setting_of(pipeline: Pipeline) -> Setting:
    """What latency is measured on: the first engine of `measure` that runs files, with the first threads and batch."""
    measure = pipeline.measure
    engine = next((name for name in measure.engines if name != "torch"), REFERENCE)
    return Setting(engine=engine, device="cpu", threads=measure.threads[0], batch=measure.batches[0])


@lru_cache(maxsize=1)
def _loaded(data: Data, seed: int) -> Dataset:
    """The images, which are the same in most trials."""
    return data.load(seed)


def _baseline(pipeline: Pipeline, finished: Sequence[Finished]) -> Finished:
    return next(done for done in finished if done.row.id == pipeline.baseline_id)


def _torch(model: Artifact | None) -> TorchModel | None:
    return model if isinstance(model, TorchModel) else None
