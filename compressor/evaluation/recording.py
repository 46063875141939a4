"""Times two networks in alternation, and notes what disturbed them.

Nothing here knows about stages: it times saved artifacts that are loaded back.
"""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from compressor.evaluation.setting import Setting

WINDOW = 10  # rounds; warm-up ends when the medians of two consecutive windows agree
STEADY = 0.02  # to this share
MAX_WARMUP_SECONDS = 3.0
MIN_TURNS = 20
MIN_SECONDS = 0.4
INTERRUPTED = 0.02  # of the time of a run
TICK_SECONDS = 1e-9  # the time of a run that is too short for a coarse clock

Timed = Callable[[], float]  # runs a network once, and returns the seconds it took


@dataclass(frozen=True)
class Recording:
    """One session of timing a candidate in alternation with a baseline.

    A turn is A B B A: each network runs once after itself, and once after the other, which has filled the caches.
    """

    setting: Setting
    seconds: NDArray[np.float64]  # [turns, candidate and baseline, after itself and after the other]
    interrupted: NDArray[np.bool_]  # of the same shape: other programs had the processor meanwhile
    warmup_runs: int
    steady: bool
    other_load: float  # cores
    on_cpu: tuple[str, ...] = ()


def compare(candidate: Timed, baseline: Timed, setting: Setting, on_cpu: tuple[str, ...] = ()) -> Recording:
    """Time both in alternation (A B B A …), for at least 40 runs and 0.4 seconds each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        warmup_runs, steady = warm_up(candidate, baseline)
        with OtherLoad() as load:
            seconds, interrupted = _turns(candidate, baseline)
    finally:
        torch.set_num_threads(threads)
    if setting.threads > 1 or setting.device != "cpu":
        interrupted = np.zeros_like(interrupted)  # the counters do not tell which of several threads was put aside
    return Recording(setting, seconds, interrupted, warmup_runs, steady, load.cores, on_cpu)


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


def _turns(candidate: Timed, baseline: Timed) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The seconds of each run, and whether it was interrupted; both `[turns, 2, 2]`."""
    networks, spent = (candidate, baseline), [0.0, 0.0]
    runs: list[tuple[float, bool]] = []
    while len(runs) < 4 * MIN_TURNS or min(spent) < MIN_SECONDS:
        for index in (0, 1, 1, 0):  # nothing more happens between runs, since it would slow down the next one
            runs.append(_run(networks[index]))
            spent[index] += runs[-1][0]
    seconds, interrupted = np.array(runs).reshape(-1, 4, 2)[:, [[0, 3], [2, 1]]].transpose(3, 0, 1, 2)
    return np.maximum(seconds, TICK_SECONDS), interrupted.astype(bool)


def _run(network: Timed) -> tuple[float, bool]:
    """The seconds of a run, and whether the scheduler gave the processor to other programs for over 2% of it.

    A thread that waits of its own accord, for a GPU or for other threads, is not interrupted.
    """
    switches, computed, started = _counters()
    seconds = network()
    switches_after, computed_after, ended = _counters()
    lost = (ended - started) - (computed_after - computed)
    return seconds, switches_after > switches and lost > INTERRUPTED * (ended - started)


def _counters() -> tuple[int, float, float]:
    """How often this process was put aside, the seconds that this thread computed, and those of the clock."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw, time.thread_time(), time.perf_counter()


class OtherLoad:
    """How many cores other programs, and other guests of the host, keep busy while this block runs."""

    cores = 0.0

    def __enter__(self) -> "OtherLoad":
        self.before = self._seconds()
        return self

    def __exit__(self, *_: object) -> None:
        machine, own, clock = np.subtract(self._seconds(), self.before)
        self.cores = round(max(float((machine - own) / clock), 0.0), 2)

    @staticmethod
    def _seconds() -> tuple[float, float, float]:
        """Seconds of the whole machine's work (with those stolen by the host), of this process's, and of the clock."""
        machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        guests = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)  # counted in user and nice too
        return sum(machine) - idle - guests, own.user + own.system, time.monotonic()
