"""How fast a network is: time for a batch, against a baseline that is timed in alternation with it.

On a shared machine speeds move by a third within minutes, and two networks are not slowed down alike. So only quiet
runs count, and where there were too few, sessions are repeated.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from compressor.evaluation.accuracy import CONFIDENCE
from compressor.evaluation.figures import Count, Factor, Milliseconds, Share
from compressor.evaluation.recording import Recording
from compressor.evaluation.setting import Setting

SESSIONS = 3
QUIET = 1.1  # a quiet run takes at most this factor of what the network takes at its best,
BEST_PERCENTILE = 10  # which is this percentile of a session's runs
AS_USUAL = 1.15  # a session in which the best is over this factor of the best of all sessions was not quiet
FEWEST_RUNS, FEWEST_BLOCKS = 10, 3  # nor was one with fewer quiet runs of a kind, or fewer blocks that hold all kinds
PAUSES_SECONDS = (5.0, 10.0, 20.0)  # before sessions that are missing are repeated
BLOCKS, FEWEST_TURNS = 20, 4  # of a block
RESAMPLES = 2000

Comparison = Callable[[], Recording]  # times a network in alternation with another


class Latency(Setting):
    """Time for one batch and, with its interval, how many times faster that is than the baseline's.

    The median and the speed-up are of quiet runs; `quiet` is their share, or 0 if so few were quiet that all runs
    count. The 95th percentile is of all runs. `warmup_runs` came first, until times were `steady` (or for 3 seconds);
    `other_load` is how many cores other programs kept busy meanwhile; `on_cpu` lists the operators that a GPU engine
    left to others, such as the CPU. `sessions` holds the speed-up of each session (in `report.json`, `moments`); runs
    are counted over all sessions, and `steady` and `other_load` are those of the worst.
    """

    median_ms: Milliseconds
    p95_ms: Milliseconds
    runs: Count
    speedup: Factor
    speedup_low: Factor
    speedup_high: Factor
    warmup_runs: Count
    steady: bool
    other_load: float
    quiet: Share | None = None  # unknown in reports of versions that counted every run
    on_cpu: tuple[str, ...] = ()
    sessions: tuple[Factor, ...] = Field((), alias="moments")


class NotMeasured(Setting):
    """A setting that was not timed, and why."""

    reason: str


def in_sessions(comparisons: Sequence[Comparison], sessions: int = SESSIONS) -> list[Latency]:
    """Every comparison in several sessions; all run once before any runs again, so that sessions are far apart.

    A session cannot see what shifts all of its own ratios (a neighbour on the machine, the layout of memory). Where
    fewer than `sessions` had enough quiet runs, another one follows after a pause, three times at most.
    """
    recordings = [[compare_now()] for compare_now in comparisons]
    for _ in range(sessions - 1):
        for kept, compare_now in zip(recordings, comparisons, strict=True):
            kept.append(compare_now())
    for pause in PAUSES_SECONDS:
        disturbed = [index for index, kept in enumerate(recordings) if len(_quiet_sessions(kept)) < sessions]
        if not disturbed:
            break
        time.sleep(pause)
        for index in disturbed:
            recordings[index].append(comparisons[index]())
    return [latency_of(kept) for kept in recordings]


def latency_of(recordings: Sequence[Recording]) -> Latency:
    """What the sessions of one comparison come to.

    The times and the speed-up are the medians of the sessions that count; the interval spans all of theirs.
    """
    counted = _quiet_sessions(recordings)
    quiet = sum(np.isfinite(runs).sum() for runs in counted) / sum(each.seconds.size for each in recordings)
    counted = counted or [_by_kind(each.seconds) for each in recordings]
    speedups = np.array([speedup_of(runs) for runs in counted])  # [sessions, 3]
    return Latency(
        **recordings[0].setting.model_dump(),
        median_ms=float(np.median([np.nanmedian(runs[:, :2], axis=0).mean() for runs in counted]) * 1e3),
        p95_ms=float(np.median([np.percentile(each.seconds[:, 0], 95) for each in recordings]) * 1e3),
        runs=sum(each.seconds[:, 0].size for each in recordings),
        speedup=float(np.median(speedups[:, 0])),
        speedup_low=float(speedups[:, 1].min()),
        speedup_high=float(speedups[:, 2].max()),
        warmup_runs=sum(each.warmup_runs for each in recordings),
        steady=all(each.steady for each in recordings),
        other_load=max(each.other_load for each in recordings),
        quiet=float(quiet),
        on_cpu=recordings[0].on_cpu,
        sessions=tuple(speedups[:, 0]),
    )


def _quiet_sessions(recordings: Sequence[Recording]) -> list[NDArray[np.float64]]:
    """The seconds of each session that was quiet, `[turns, kinds]`; NaN for runs that were not.

    A run is quiet if it was not interrupted and did not take much longer than the network takes at its best: after
    itself, or after the other, whichever it ran after.
    """
    calm = [_by_kind(np.where(each.interrupted, np.nan, each.seconds)) for each in recordings]
    calm = [runs for runs in calm if _counts(runs)]
    if not calm:
        return []
    best = np.array([np.nanpercentile(runs, BEST_PERCENTILE, axis=0) for runs in calm])  # [sessions, kinds]
    usual = (best <= AS_USUAL * best.min(axis=0)).all(axis=1)
    quiet = [np.where(runs <= QUIET * own, runs, np.nan) for runs, own in zip(calm, best, strict=True)]
    return [runs for runs, as_usual in zip(quiet, usual, strict=True) if as_usual and _counts(runs)]


def _by_kind(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[turns, 2, 2]` as `[turns, kinds]`: the candidate after itself and after the baseline, then the baseline."""
    return seconds.reshape(len(seconds), 4)


def _counts(runs: NDArray[np.float64]) -> bool:
    """Whether there are enough runs of each kind, and enough blocks with all kinds for an interval."""
    return int(np.isfinite(runs).sum(axis=0).min()) >= FEWEST_RUNS and len(_blocks(runs)) >= FEWEST_BLOCKS


def _blocks(runs: NDArray[np.float64]) -> NDArray[np.float64]:
    """The medians of contiguous blocks of turns, `[blocks, kinds]`, without blocks that lack a kind."""
    blocks = np.array_split(runs, max(min(BLOCKS, len(runs) // FEWEST_TURNS), 1))
    whole = [block for block in blocks if np.isfinite(block).any(axis=0).all()]
    return np.array([np.nanmedian(block, axis=0) for block in whole])


def speedup_of(runs: NDArray[np.float64]) -> tuple[float, float, float]:
    """How many times faster the candidate is, and the bootstrap interval of that.

    A network's time is the sum of its two kinds' medians. Blocks of turns are resampled, so that a long disturbance
    counts once, and both networks are compared at the same moments.

    Args:
        runs: seconds, `[turns, kinds]`: the candidate after itself and after the baseline, then the baseline likewise;
            NaN for those that do not count.
    """
    blocks = _blocks(runs)
    picks = np.random.default_rng(0).integers(len(blocks), size=(RESAMPLES, len(blocks)))
    candidate, baseline = np.median(blocks[picks], axis=1).reshape(-1, 2, 2).sum(axis=2).T  # each [RESAMPLES]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(baseline / candidate, [tail, 100 - tail])
    candidate, baseline = np.median(blocks, axis=0).reshape(2, 2).sum(axis=1)
    return float(baseline / candidate), float(low), float(high)
