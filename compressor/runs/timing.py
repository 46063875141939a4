"""Latency: every row of a run is timed in alternation with the baseline, in several sessions, after all stages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from compressor.console import Console
from compressor.environment import environment
from compressor.evaluation import latency
from compressor.evaluation.engines.base import Subject, engine_of, state_of
from compressor.evaluation.latency import SESSIONS, Comparison, Latency, NotMeasured, in_sessions
from compressor.evaluation.pair import Pair
from compressor.evaluation.recording import Recording
from compressor.evaluation.setting import REFERENCE, Setting
from compressor.models.artifact import TorchModel
from compressor.pipeline.pipeline import Pipeline
from compressor.report.report import Row, Timings
from compressor.runs.store import Finished
from compressor.storage import files
from compressor.storage.code import code_digest


@dataclass(frozen=True)
class _Timing:
    """A row to be timed: `done` against the baseline and, if it quantized the stage `before`, against that too."""

    pipeline: Pipeline
    done: Finished
    baseline: Finished
    before: Finished | None

    def plan(self) -> list[Comparison | NotMeasured]:
        """Against the baseline in every setting, then in ONNX Runtime's against the same network's float file."""
        settings = self._settings()
        plan = [_plan(self.done, self.baseline, setting) for setting in settings]
        if self.before is not None and self.done.artifact.quantized and not self.before.artifact.quantized:
            plan += [_plan(self.done, self.before, setting) for setting in settings if setting.engine == REFERENCE]
        return plan

    @property
    def _engines(self) -> tuple[str, ...]:
        """What the pipeline asks for, and what the file is for."""
        own = (REFERENCE, *self.done.engines) if self.done.engines else ()
        return tuple(dict.fromkeys((*self.pipeline.measure.engines, *own)))

    def _settings(self) -> list[Setting]:
        """Every combination to time; on a GPU the number of threads does not matter."""
        measure = self.pipeline.measure
        return [
            Setting(engine=engine, device=device, threads=threads, batch=batch)
            for engine in self._engines
            for device in self._devices(engine)
            for threads in (measure.threads if device == "cpu" else measure.threads[:1])
            for batch in measure.batches
        ]

    def _devices(self, engine: str) -> tuple[str, ...]:
        """Those that the pipeline asks for; for an engine that it does not name, the one that the file is checked on.

        Where none of those that it asks for is one that the engine has, that one as well.
        """
        asked, own = self.pipeline.measure.devices, engine_of(engine).devices
        if engine not in self.pipeline.measure.engines:
            return own[:1]
        return asked if engine not in self.done.engines or set(asked) & set(own) else (*asked, own[0])

    def timings(self, outcome: Sequence[Latency | NotMeasured]) -> Timings:
        """The results of the plan."""
        count = len(self._settings())
        latency, versus_float = outcome[:count], [each for each in outcome[count:] if isinstance(each, Latency)]
        return Timings(latency=latency, versus_float=versus_float, measured_as=self.digest(latency, versus_float))

    def stands(self, known: Timings | None) -> bool:
        """Whether the figures of an earlier report are still those of this row."""
        return known is not None and known.measured_as == self.digest(known.latency, known.versus_float)

    def digest(self, *figures: Sequence[Latency | NotMeasured]) -> str:
        """SHA-256 over a row's figures and everything that they depend on: files, settings, code and machine."""
        others = [other for other in (self.baseline, self.before) if other is not None]
        engines = self._engines
        own = [self.done.onnx_for(name) for name in self.done.engines]
        onnx = dict.fromkeys([self.done.onnx, *(other.onnx for other in others), *own])
        identity = {
            "id": self.done.row.id,
            "files": [files.digest(each.read_bytes()) for each in onnx],
            "measure": {**self.pipeline.measure.model_dump(mode="json"), "engines": engines},
            "engines": [state_of(name) for name in engines],
            "code": code_digest(
                latency.__name__, Pair.__module__, *(type(engine_of(name)).__module__ for name in engines)
            ),
            "environment": environment().model_dump(mode="json", exclude={"commit", "threads"}),
        }
        entries = [entry.model_dump(mode="json") for part in figures for entry in part]
        return files.digest_json([identity, entries])


def timings_of(
    pipeline: Pipeline, finished: Sequence[Finished], known: Mapping[str, Row], console: Console
) -> list[Timings]:
    """How fast each stage's file is.

    Either all are timed or none, so that all rows of a report come from the same sessions.

    Args:
        pipeline: says what to measure on, and what to compare with.
        finished: every stage.
        known: rows of an earlier report by id, whose figures are reused if nothing that any of them depends on changed.
        console: where progress is shown.
    """
    baseline = next(done for done in finished if done.row.id == pipeline.baseline_id)
    timings = [
        _Timing(pipeline, done, baseline, before) for before, done in zip([None, *finished[:-1]], finished, strict=True)
    ]
    if all(timing.stands(known.get(timing.done.row.id)) for timing in timings):
        return [known[timing.done.row.id].timings for timing in timings]
    plans = [timing.plan() for timing in timings]
    comparisons = [each for plan in plans for each in plan if not isinstance(each, NotMeasured)]
    with console.timings(SESSIONS * len(comparisons)) as one_more:
        figures = iter(in_sessions([partial(_followed, each, one_more) for each in comparisons]))
    outcomes = [[each if isinstance(each, NotMeasured) else next(figures) for each in plan] for plan in plans]
    return [timing.timings(outcome) for timing, outcome in zip(timings, outcomes, strict=True)]


def _followed(compare_now: Comparison, one_more: Callable[[], None]) -> Recording:
    recording = compare_now()
    one_more()
    return recording


def _plan(done: Finished, reference: Finished, setting: Setting) -> Comparison | NotMeasured:
    engine = engine_of(setting.engine)
    candidate, baseline = (_subject(each, setting.engine) for each in (done, reference))
    for subject in (candidate, baseline):
        if (reason := engine.why_not(subject, setting.device)) is not None:
            return NotMeasured(**setting.model_dump(), reason=reason)
    return Pair(candidate, baseline, setting)


def _subject(done: Finished, engine: str) -> Subject:
    return Subject(done.onnx_for(engine), done.artifact if isinstance(done.artifact, TorchModel) else None)
