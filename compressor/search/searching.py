"""The search: trials, here or on a cluster; then the best are timed together, and the winner is judged."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compressor import runs
from compressor.console import Console
from compressor.environment import environment
from compressor.errors import SpecError, StageError, UserError
from compressor.evaluation import Pair, Subject, in_sessions
from compressor.models import ONNX
from compressor.search.found import JSON, Best, Found, Judged, found_in
from compressor.search.lease import Lease
from compressor.search.outcome import SPEC, TRIALS, Outcome, folder_of, front, outcome_in, within
from compressor.search.page import HTML, page
from compressor.search.settings import Goal, Search
from compressor.search.space import Space
from compressor.search.study import FILE, Study
from compressor.search.trial import REFERENCE_FILE, Job, run_trial, setting_of
from compressor.search.wording import ending
from compressor.storage import files

HERE = "local"
WINNER = "winner"
FEW = 5  # trials within the contract that are timed again
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
    runs.choose_device(device)
    if on not in {HERE, "ray"} and not on.startswith("ray://"):
        raise UserError(f"trials cannot run on {on!r}; expected local, ray or ray://HOST")
    _prepare(out)
    with runs.locked(out):
        study = Study(out, settings, space)
        work = _Work(settings, space, study, out, store, device, tuple(imports), console)
        work.say_how_far()
        if on != HERE:
            from compressor.search.on_ray import run_on_ray

            run_on_ray(work.next_job, work.ended, on=on, cpus=settings.cpus, gpus=settings.gpus, console=console)
        else:
            while (job := work.next_job()) is not None:
                work.ended(run_trial(job, console if console.verbose else console.progress_only()))
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

    def say_how_far(self) -> None:
        """Where the search stands."""
        ranges = ", ".join(each.name for each in self.space.ranges)
        self.console.say(f"{len(self.space.ranges)} settings may vary: {ranges}", style="bold")
        if self.outcomes:
            self.console.say(f"  {len(self.outcomes)} of its trials done; the search goes on")

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
        now = time.monotonic()
        self.study.spend(now - self.since)
        self.since = now
        self.outcomes.append(outcome)
        self.console.say(f"  {ending(outcome, self.settings)}")
        if len(self.outcomes) >= HOPELESS and all(each.state == "failed" for each in self.outcomes):
            raise StageError(f"none of {len(self.outcomes)} trials could be completed; the last: {outcome.reason}")

    def _seconds(self) -> float:
        return self.study.seconds + time.monotonic() - self.since


def _conclude(work: _Work) -> Found:
    """Time the best together, judge the winner, and write what was found."""
    settings, out, outcomes = work.settings, work.out, work.outcomes
    goal, earlier = settings.goal, found_in(out)
    work.outcomes.sort(key=lambda each: each.number)
    kept = front(outcomes) if goal.max_drop is None else within(goal, outcomes)[:FEW]
    if not any(each.shipped for each in outcomes):
        reasons = "; ".join(dict.fromkeys(each.reason for each in outcomes)) or "the budget ended before"
        raise StageError(f"no trial was completed: {reasons}")
    best = _timed(work, kept, earlier)
    winner = _fastest(best, goal, outcomes) if goal.max_drop is not None else None
    judged = earlier.judged if earlier is not None else ()
    if winner is not None and winner not in [each.number for each in judged]:
        judged = (*judged, _judge(work, winner))
    reference = next(each.shipped.latency for each in outcomes if each.shipped is not None)
    found = Found(
        search=work.space.example().name,
        goal=goal,
        budget=settings.budget,
        sampler=settings.sampler,
        seed=settings.seed,
        setting=setting_of(work.space.example()),
        reference_ms=reference.median_ms * reference.speedup,
        environment=environment(),
        seconds=round(work.study.seconds, 1),
        outcomes=tuple(outcomes),
        best=tuple(best),
        winner=winner,
        judged=judged,
        importances=work.study.importances(outcomes),
    )
    found.save(out)
    files.write_text(out / HTML, page(found, out))
    return found


def _timed(work: _Work, kept: Sequence[Outcome], earlier: Found | None) -> list[Best]:
    """The best trials, timed in the same sessions, the fastest first; on a front, none that is slower and worse."""
    if earlier is not None and [each.number for each in earlier.outcomes] == [each.number for each in work.outcomes]:
        return list(earlier.best)
    work.console.say("Timing the best trials together", style="bold")
    setting, reference = setting_of(work.space.example()), Subject(work.out / REFERENCE_FILE)
    pairs: list[Callable[..., object]] = [
        Pair(Subject(folder_of(work.out, each.number) / ONNX), reference, setting) for each in kept
    ]
    with Lease().timing():
        latencies = in_sessions(pairs)  # type: ignore[arg-type]
    best = [
        (Best(number=each.number, latency=latency), each.accuracy or 0.0)
        for each, latency in zip(kept, latencies, strict=True)
    ]
    best.sort(key=lambda each: -each[0].latency.speedup)
    if work.settings.goal.max_drop is None:  # what is slower than it seemed may not be on the front
        best = [each for i, each in enumerate(best) if all(each[1] > faster for _, faster in best[:i])]
    return [each for each, _ in best]


def _fastest(best: Sequence[Best], goal: Goal, outcomes: Sequence[Outcome]) -> int | None:
    """The winner: of those whose speed cannot be told from the fastest one's, the trial that loses least."""
    drops = {each.number: each.shipped.drop(goal.confidence) for each in outcomes if each.shipped is not None}
    as_fast = [each.number for each in best if each.latency.speedup_high >= best[0].latency.speedup_low]
    return min(as_fast, key=drops.__getitem__, default=None)


def _judge(work: _Work, number: int) -> Judged:
    """Run the winner's pipeline, whose stages are in the store, and look at the test images."""
    work.console.say(f"Judging trial {number} on the test images", style="bold")
    pipeline = work.space.pipeline(work.study.begun[number])
    report = runs.run(pipeline, work.out / WINNER, device=work.device, store=work.store, console=work.console)
    row = report.shipped_row
    timed = row.timed.get(report.headline_setting) if report.headline_setting is not None else None
    return Judged(
        number=number,
        accuracy=row.accuracy,
        versus_baseline=row.versus_baseline,
        speedup=timed.speedup if timed is not None else None,
    )


def _prepare(out: Path) -> None:
    """Make the search's folder, or use one that an earlier search made; nobody else's files are overwritten.

    Raises:
        UserError: it holds files that no search made, or cannot be made.
    """
    try:
        for name in (JSON, HTML, TRIALS, WINNER, FILE):
            if (odd := files.odd_in(out / name)) is not None:
                raise UserError(f"{odd} is a link, a pipe or a device in the folder of a search; remove it")
        if out.exists() and any(out.iterdir()) and not (out / FILE).is_file():
            raise UserError(f"{out} holds something else than a search; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {out} cannot be used: {error}") from error
