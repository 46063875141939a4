"""What a model is worth: accuracy with its interval, latency against a baseline, interleaved.

Nothing here knows of stages: it measures saved artifacts, loaded back.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import nn

from compressor import onnx_file
from compressor.data import Split
from compressor.preprocess import Preprocess

WARMUP_ROUNDS = 10
LEAST_ROUNDS = 100
LEAST_SECONDS = 1.0
BLOCKS = 50
RESAMPLES = 2000
CONFIDENCE = 0.95
SCORE_BATCH = 250

Run = Callable[[], object]


class Accuracy(BaseModel):
    """k of n images right, with the Wilson interval (Wilson 1927)."""

    model_config = ConfigDict(frozen=True)

    split: str
    engine: str
    correct: int
    total: int
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, correct: int, total: int, *, split: str, engine: str) -> "Accuracy":
        """The accuracy of `correct` among `total`."""
        from scipy.stats import binomtest  # takes a second, which `compress --help` need not wait for

        interval = binomtest(correct, total).proportion_ci(CONFIDENCE, method="wilson")
        low, high = float(interval.low), float(interval.high)
        return cls(
            split=split,
            engine=engine,
            correct=correct,
            total=total,
            value=correct / total,
            low=low,
            high=high,
        )


class Setting(BaseModel):
    """One way to run a network."""

    model_config = ConfigDict(frozen=True)

    engine: Literal["torch", "onnxruntime"]
    device: Literal["cpu", "cuda"]
    threads: int
    batch: int


class Latency(Setting):
    """Time for one batch and, with its interval, how many times faster that is than the baseline's."""

    median_ms: float
    p95_ms: float
    runs: int
    speedup: float
    speedup_low: float
    speedup_high: float


class NotMeasured(Setting):
    """A setting that was not timed, and why."""

    reason: str


def score(model: Path, split: Split, preprocess: Preprocess, *, name: str) -> Accuracy:
    """The accuracy of an ONNX file on a whole split, in ONNX Runtime, on the CPU."""
    session = onnx_file.session(model, threads=torch.get_num_threads())
    correct = 0
    for start in range(0, len(split), SCORE_BATCH):
        inputs = preprocess.normalise(split.images[start : start + SCORE_BATCH]).numpy()
        logits = session.run(["logits"], {"input": inputs})[0]
        correct += int((logits.argmax(1) == split.labels[start : start + SCORE_BATCH].numpy()).sum())
    return Accuracy.of(correct, len(split), split=name, engine="onnxruntime")


def onnx_runner(model: Path, preprocess: Preprocess, setting: Setting) -> Run:
    """One run of an ONNX file on a random batch."""
    session = onnx_file.session(model, threads=setting.threads)
    feed = {"input": _batch(preprocess, setting).numpy()}
    return lambda: session.run(["logits"], feed)


def torch_runner(network: nn.Module, preprocess: Preprocess, setting: Setting) -> Run:
    """One run of a float network in eager torch on a random batch, synchronised with the device."""
    device = torch.device(setting.device)
    network = network.to(device)
    inputs = _batch(preprocess, setting).to(device)

    def run() -> None:
        with torch.inference_mode():
            network(inputs)
        if setting.device == "cuda":
            torch.cuda.synchronize()

    return run


def compare(candidate: Run, baseline: Run, setting: Setting) -> Latency:
    """Time both in turn (A B A B …), at least 100 rounds and a second each; the interval is a block bootstrap.

    The speed-up is the ratio of medians. Rounds are cut into contiguous blocks, whose medians are resampled in pairs,
    so that a disturbance that lasts is counted as one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        times = np.array(list(_rounds(candidate, baseline)))  # [rounds, 2] in seconds
    finally:
        torch.set_num_threads(threads)
    speedup, low, high = _speedup(times)
    return Latency(
        **setting.model_dump(),
        median_ms=float(np.median(times[:, 0]) * 1e3),
        p95_ms=float(np.percentile(times[:, 0], 95) * 1e3),
        runs=len(times),
        speedup=speedup,
        speedup_low=low,
        speedup_high=high,
    )


def _rounds(candidate: Run, baseline: Run) -> Iterator[tuple[float, float]]:
    for _ in range(WARMUP_ROUNDS):
        candidate()
        baseline()
    rounds, spent = 0, [0.0, 0.0]
    while rounds < LEAST_ROUNDS or min(spent) < LEAST_SECONDS:
        start = time.perf_counter()
        candidate()
        middle = time.perf_counter()
        baseline()
        end = time.perf_counter()
        spent[0] += middle - start
        spent[1] += end - middle
        rounds += 1
        yield middle - start, end - middle


def _speedup(times: NDArray[np.float64]) -> tuple[float, float, float]:
    """The ratio of medians (of medians of blocks of rounds) and its bootstrap interval, for times `[rounds, 2]`."""
    blocks = np.array([np.median(block, axis=0) for block in np.array_split(times, BLOCKS)])  # [BLOCKS, 2]
    candidate, baseline = np.median(blocks, axis=0)
    picks = np.random.default_rng(0).integers(len(blocks), size=(RESAMPLES, len(blocks)))
    medians = np.median(blocks[picks], axis=1)  # [RESAMPLES, 2]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(medians[:, 1] / medians[:, 0], [tail, 100 - tail])
    return float(baseline / candidate), float(low), float(high)


def _batch(preprocess: Preprocess, setting: Setting) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(preprocess.input_shape(setting.batch), generator=generator)
