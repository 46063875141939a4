"""The search: trials, here or on a cluster; then the best are timed together, and the winner is judged."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compressor import runs
from compressor.console import Console
from compressor.environment import environment
from compressor.errors import SpecError, StageError, UserError
from compressor.evaluation import Pair, Subject, engine_of, in_sessions
from compressor.models import ONNX
from compressor.pipeline import completed
from compressor.search.found import JSON, Best, Found, Judged, found_in
from compressor.search.lease import Lease
from compressor.search.outcome import SPEC, TRIALS, Outcome, as_fast, folder_of, front, outcome_in
from compressor.search.page import HTML, page
from compressor.search.settings import Goal, Search
from compressor.search.space import Space
from compressor.search.study import Study
from compressor.search.trial import REFERENCE_FILE, Job, find_networks, run_trial, setting_of
from compressor.search.wording import ending, hard_to_keep
from compressor.storage import files

HERE = "local"
WINNER = "winner"
HOPELESS = 5  # first trials, of which not one was completed


def search(
    settings: Search,
    space: Space,
    out: Path,
    *,
    store: Path,
    device: str = "auto",
    on: str = HERE,
    imports: Sequence[str] = (),
    console: Console | None = None,
) -> Found:
    """Search, or go on where an earlier process stopped.

    Args:
        settings: what for, and how long.
        space: the pipelines to search among.
        out: folder of the search.
        store: folder of what runs share, which trials do.
        device: where networks are trained.
        on: `local`, `ray` or `ray://HOST`.
        imports: folders from which networks of one's own are imported.
        console: where progress is shown; nowhere by default.

    Raises:
        UserError: what is given cannot be used, or the folder holds something else.
        StageError: no trial could be completed.
    """
    console = console or Console()
    if on not in {HERE, "ray"} and not on.startswith("ray://"):
        raise UserError(f"trials cannot run on {on!r}; expected local, ray or ray://HOST")
    if on == HERE:
        runs.choose_device(device)
        if (reason := engine_of(setting_of(space.example).engine).why_not(None, "cpu")) is not None:
            raise UserError(f"latency cannot be measured: {reason}")
    if store.resolve() == out.resolve():
        raise UserError(f"{out} cannot be both the search's folder and the store; choose another --store")
    _prepare(out)
    find_networks(space.example, imports)
    with runs.locked(out):
        study = Study(out, settings, space)
        work = _Work(settings, space, study, out, store, device, tuple(imports), console)
        work.begin()
        try:
            if on != HERE:
                from compressor.search.on_ray import run_on_ray

                run_on_ray(work.next_job, work.ended, on=on, cpus=settings.cpus, gpus=settings.gpus, console=console)
            while on == HERE and (job := work.next_job()) is not None:
                work.ended(run_trial(job, console if console.verbose else console.progress_only()))
        finally:
            work.note_time()
        return _conclude(work)


@dataclass
class _Work:
    """A search while it runs."""

    settings: Search
    space: Space
    study: Study
    out: Path
    store: Path
    device: str
    imports: tuple[str, ...]
    console: Console

    def __post_init__(self) -> None:
        self.left_behind = self.study.unfinished
        self.outcomes = [
            outcome for number in self.study.begun if (outcome := outcome_in(folder_of(self.out, number))) is not None
        ]
        for outcome in self.outcomes:  # those that ended when nobody was there to note it
            self.study.end(outcome)
            self.left_behind = [number for number in self.left_behind if number != outcome.number]
        self.since = time.monotonic()
        self.warned = False

    def begin(self) -> None:
        """Say where the search stands; before its first trial, try a pipeline on a few images."""
        ranges = ", ".join(each.name for each in self.space.ranges)
        self.console.say(f"{len(self.space.ranges)} settings may vary: {ranges}", style="bold")
        seen = next((each.shipped.accuracy.total for each in self.outcomes if each.shipped is not None), None)
        self._warn_if_hard_to_keep(self.space.example.data.validation or seen)
        if self.outcomes:
            self.console.say(f"  {len(self.outcomes)} of its trials done; the search goes on")
            return
        self.console.say("Dry run: every stage of one of them on a few synthetic images", style="bold")
        pipeline = completed(self.space.example)
        runs.try_stages(pipeline, pipeline.data.labels(), pipeline.data.preprocess(), scratch=self.out)

    def next_job(self) -> Job | None:
        """What to try next: first what another process left unfinished."""
        while True:
            if self.left_behind:
                number = self.left_behind.pop(0)
            else:
                budget = self.settings.budget
                over = budget.trials is not None and len(self.study.begun) >= budget.trials
                late = budget.hours is not None and self._seconds() >= 3600 * budget.hours
                begun = None if over or late else self.study.begin()
                if begun is None:
                    return None
                number = begun
            values, folder = self.study.begun[number], folder_of(self.out, number)
            folder.mkdir(parents=True, exist_ok=True)
            try:
                pipeline = self.space.pipeline(values)
            except SpecError as error:
                outcome = Outcome(number=number, values=values, state="failed", reason=str(error), seconds=0.0)
                outcome.save(folder)
                self.ended(outcome)
                continue
            files.write_text(folder / SPEC, f"# Trial {number} of a search\n{pipeline.to_yaml()}")
            return Job(
                number, values, self.out.absolute(), self.store.absolute(), self.device, self.settings, self.imports
            )

    def ended(self, outcome: Outcome) -> None:
        """A trial is over.

        Raises:
            StageError: none of the first ones could be completed.
        """
        self.study.end(outcome)
        self.note_time()
        self.outcomes.append(outcome)
        self.console.say(f"  {ending(outcome, self.settings)}")
        if not self.warned and outcome.shipped is not None:
            self._warn_if_hard_to_keep(outcome.shipped.accuracy.total)
        ran = [each for each in self.outcomes if each.seconds]  # the others' values did not go together
        if len(ran) >= HOPELESS and all(each.state == "failed" for each in ran):
            raise StageError(f"none of {len(ran)} trials could be completed; the last: {outcome.reason}")

    def _warn_if_hard_to_keep(self, images: int | None) -> None:
        """Warn, once the number of validation images is known, of a contract that so few could not show to be kept."""
        if images is None:
            return
        self.warned = True
        if warning := hard_to_keep(self.settings.goal, images):
            self.console.say(f"  warning: {warning}")

    def note_time(self) -> None:
        """Add the time since to that of the search."""
        now = time.monotonic()
        self.study.spend(now - self.since)
        self.since = now

    def _seconds(self) -> float:
        return self.study.seconds + time.monotonic() - self.since


def _conclude(work: _Work) -> Found:
    """Time the best together, judge the winner, and write what was found."""
    work.outcomes.sort(key=lambda each: each.number)
    settings, outcomes, earlier = work.settings, work.outcomes, found_in(work.out)
    reference = next((each.shipped.latency for each in outcomes if each.shipped is not None), None)
    if reference is None:
        reasons = "; ".join(dict.fromkeys(each.reason for each in outcomes)) or "the budget ended before"
        raise StageError(f"no trial was completed: {reasons}")
    best = _timed(work, earlier)
    found = Found(
        search=work.space.example.name,
        store=str(work.store),
        goal=settings.goal,
        budget=settings.budget,
        sampler=settings.sampler,
        seed=settings.seed,
        setting=setting_of(work.space.example),
        reference_ms=reference.median_ms * reference.speedup,
        environment=environment(),
        seconds=round(work.study.seconds, 1),
        outcomes=tuple(outcomes),
        best=tuple(best),
        winner=_fastest(best, settings.goal, outcomes) if settings.goal.max_drop is not None else None,
        judged=earlier.judged if earlier is not None else (),
        importances=work.study.importances(outcomes),
    )
    found.save(work.out)
    if found.winner is not None:
        judged = _judge(work, found.winner)
        known = [each for each in found.judged if each.number != found.winner]
        found = found.model_copy(update={"judged": (*known, judged)})
        found.save(work.out)
    files.write_text(work.out / HTML, page(found, work.out, work.imports if work.space.example.factories else ()))
    return found


def _timed(work: _Work, earlier: Found | None) -> list[Best]:
    """The best trials, timed in the same sessions, the fastest first; on a front, none that is slower and worse."""
    goal = work.settings.goal
    if earlier is not None and earlier.outcomes == tuple(work.outcomes) and earlier.environment == environment():
        return list(earlier.best)
    kept = front(work.outcomes) if goal.max_drop is None else as_fast(goal, work.outcomes)
    work.console.say("Timing the best trials together", style="bold")
    setting, reference = setting_of(work.space.example), Subject(work.out / REFERENCE_FILE)
    pairs: list[Callable[..., object]] = [
        Pair(Subject(folder_of(work.out, each.number) / ONNX), reference, setting) for each in kept
    ]
    with Lease().timing():
        latencies = in_sessions(pairs)  # type: ignore[arg-type]
    timed = {each.number: latency for each, latency in zip(kept, latencies, strict=True)}
    if goal.max_drop is None:  # what is slower than it seemed may not be on the front
        kept = front(kept, lambda each: 1 / timed[each.number].speedup)
    best = [Best(number=each.number, latency=timed[each.number]) for each in kept]
    return sorted(best, key=lambda each: -each.latency.speedup)


def _fastest(best: Sequence[Best], goal: Goal, outcomes: Sequence[Outcome]) -> int | None:
    """The winner: of those whose speed cannot be told from the fastest one's, the trial that loses least."""
    drops = {each.number: each.drop(goal) for each in outcomes}
    as_fast = [each.number for each in best if each.latency.speedup_high >= best[0].latency.speedup_low]
    return min(as_fast, key=drops.__getitem__, default=None)


def _judge(work: _Work, number: int) -> Judged:
    """Run the winner's pipeline, whose stages are in the store, and look at the test images."""
    work.console.say(f"Judging trial {number} on the test images", style="bold")
    pipeline = work.space.pipeline(work.study.begun[number])
    with Lease().timing():
        report = runs.run(pipeline, work.out / WINNER, device=work.device, store=work.store, console=work.console)
    row = report.shipped_row
    tried = files.digest((folder_of(work.out, number) / ONNX).read_bytes())
    timed = row.timed.get(setting_of(pipeline))
    return Judged(
        number=number,
        accuracy=row.accuracy,
        versus_baseline=row.versus_baseline,
        speedup=timed.speedup if timed is not None else None,
        as_tried=row.sha256 == tried,
    )


def _prepare(out: Path) -> None:
    """Make the search's folder, or use one that an earlier search made; nobody else's files are overwritten.

    Raises:
        UserError: it holds files that no search made, or cannot be made.
    """
    try:
        for name in (JSON, HTML, TRIALS, WINNER, runs.SEARCH):
            if (odd := files.odd_in(out / name)) is not None:
                raise UserError(f"{odd} is a link, a pipe or a device in the folder of a search; remove it")
        if out.exists() and {each.name for each in out.iterdir()} - {runs.LOCK} and not (out / runs.SEARCH).is_file():
            raise UserError(f"{out} holds something else than a search; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {out} cannot be used: {error}") from error
