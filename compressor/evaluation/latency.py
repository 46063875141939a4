"""How fast a network is: time for a batch, against a baseline that is timed in alternation with it.

Nothing here knows about stages: it times saved artifacts that are loaded back.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from pydantic import Field

from compressor.config.spec import validated_copy
from compressor.evaluation.accuracy import CONFIDENCE
from compressor.evaluation.figures import Count, Factor, Milliseconds
from compressor.evaluation.setting import Setting

WINDOW = 10  # rounds; warm-up ends when the medians of two consecutive windows agree
STEADY = 0.02  # to this share
MAX_WARMUP_SECONDS = 3.0
SESSIONS = 3
MIN_ROUNDS = 40
MIN_SECONDS = 0.4
BLOCKS = 20
TICK_SECONDS = 1e-9  # the time of a run that is too short for a coarse clock
RESAMPLES = 2000

Timed = Callable[[], float]  # runs a network once, and returns the seconds it took
Comparison = Callable[[], "Latency"]  # times a network in alternation with another, both newly loaded


class Latency(Setting):
    """Time for one batch and, with its interval, how many times faster that is than the baseline's.

    `warmup_runs` came first, until times were `steady` (or for 3 seconds); `other_load` is how many cores other
    programs kept busy meanwhile; `on_cpu` lists the operators that a GPU engine left to the CPU. `sessions` holds the
    speed-up of each session (in `report.json`, `moments`); runs are counted over all sessions, and `steady` and
    `other_load` are those of the worst.
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
    on_cpu: tuple[str, ...] = ()
    sessions: tuple[Factor, ...] = Field((), alias="moments")


class NotMeasured(Setting):
    """A setting that was not timed, and why."""

    reason: str


def compare(candidate: Timed, baseline: Timed, setting: Setting, on_cpu: tuple[str, ...] = ()) -> Latency:
    """Time both in alternation (A B B A …), for at least 40 rounds and 0.4 seconds; the interval is a block bootstrap.

    The speed-up is the ratio of medians. Rounds are cut into contiguous blocks, whose medians are resampled in pairs,
    so that a long disturbance counts once.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        warmup_runs, steady = warm_up(candidate, baseline)
        with OtherLoad() as load:
            times = _rounds(candidate, baseline)  # [rounds, 2] in seconds
    finally:
        torch.set_num_threads(threads)
    speedup, low, high = speedup_of(times)
    return Latency(
        **setting.model_dump(),
        median_ms=float(np.median(times[:, 0]) * 1e3),
        p95_ms=float(np.percentile(times[:, 0], 95) * 1e3),
        runs=len(times),
        speedup=speedup,
        speedup_low=low,
        speedup_high=high,
        warmup_runs=warmup_runs,
        steady=steady,
        other_load=load.cores,
        on_cpu=on_cpu,
    )


def in_sessions(comparisons: Sequence[Comparison], sessions: int = SESSIONS) -> list[Latency]:
    """Every comparison in several sessions; all run once before any runs again, so that sessions are far apart.

    A session cannot see what shifts all of its own ratios (a neighbour on the machine, the layout of memory).
    """
    rounds = [[compare_now() for compare_now in comparisons] for _ in range(sessions)]
    return [over_sessions([each[index] for each in rounds]) for index in range(len(comparisons))]


def over_sessions(entries: Sequence[Latency]) -> Latency:
    """Times and speed-up are the medians; the interval spans those of all sessions."""
    return validated_copy(
        entries[0],
        median_ms=float(np.median([entry.median_ms for entry in entries])),
        p95_ms=float(np.median([entry.p95_ms for entry in entries])),
        runs=sum(entry.runs for entry in entries),
        speedup=float(np.median([entry.speedup for entry in entries])),
        speedup_low=min(entry.speedup_low for entry in entries),
        speedup_high=max(entry.speedup_high for entry in entries),
        warmup_runs=sum(entry.warmup_runs for entry in entries),
        steady=all(entry.steady for entry in entries),
        other_load=max(entry.other_load for entry in entries),
        sessions=tuple(entry.speedup for entry in entries),
    )


def warm_up(candidate: Timed, baseline: Timed) -> tuple[int, bool]:
    """Run both until neither gets faster or slower; returns the number of rounds, and whether they became steady."""
    started = time.monotonic()
    rounds, before = 0, None
    while True:
        window = np.median([(candidate(), baseline()) for _ in range(WINDOW)], axis=0)  # [2]
        rounds += WINDOW
        if before is not None and bool((np.abs(window - before) <= STEADY * before).all()):
            return rounds, True
        if time.monotonic() - started > MAX_WARMUP_SECONDS and before is not None:
            return rounds, False
        before = window


def _rounds(candidate: Timed, baseline: Timed) -> NDArray[np.float64]:
    """The seconds that both take, `[rounds, 2]`."""
    times: list[tuple[float, float]] = []
    spent = np.zeros(2)
    while len(times) < MIN_ROUNDS or spent.min() < MIN_SECONDS:
        if len(times) % 2:  # the first one in a round pays for what ran in between
            second, first = baseline(), candidate()
            times.append((first, second))
        else:
            times.append((candidate(), baseline()))
        spent += times[-1]
    return np.maximum(times, TICK_SECONDS)


def speedup_of(times: NDArray[np.float64]) -> tuple[float, float, float]:
    """The ratio of medians (of medians of blocks of rounds) and its bootstrap interval, for times `[rounds, 2]`."""
    blocks = np.array([np.median(block, axis=0) for block in np.array_split(times, BLOCKS)])  # [BLOCKS, 2]
    candidate, baseline = np.median(blocks, axis=0)
    picks = np.random.default_rng(0).integers(len(blocks), size=(RESAMPLES, len(blocks)))
    medians = np.median(blocks[picks], axis=1)  # [RESAMPLES, 2]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(medians[:, 1] / medians[:, 0], [tail, 100 - tail])
    return float(baseline / candidate), float(low), float(high)


class OtherLoad:
    """How many cores other programs keep busy, on average, while this block runs."""

    cores = 0.0

    def __enter__(self) -> "OtherLoad":
        self.before = self._seconds()
        return self

    def __exit__(self, *_: object) -> None:
        machine, own, clock = np.subtract(self._seconds(), self.before)
        self.cores = round(max(float((machine - own) / clock), 0.0), 2)

    @staticmethod
    def _seconds() -> tuple[float, float, float]:
        """Seconds of the whole machine's work, of this process's work, and of the clock."""
        machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        guests = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)  # counted in user and nice too
        return sum(machine) - idle - guests, own.user + own.system, time.monotonic()
