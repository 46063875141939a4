"""What an ONNX file's time goes into on this machine, and why; every claim is supported by a measurement of the run."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compressor.environment import Environment, environment
from compressor.evaluation.costs.layers import measure
from compressor.evaluation.doctor.nodes import ROUNDING, macs_of
from compressor.evaluation.doctor.reasons import TICK, Case, Finding, findings
from compressor.evaluation.engines.base import clocked
from compressor.evaluation.figures import Count, Figures, Microseconds, Rate, Share
from compressor.export import Executed, executed_in, onnx_file, reading
from compressor.storage import files

LEAST = 0.02  # of the time: a finding that costs less is left out
RUNS, WARM_UP, SECONDS = 100, 10, 2.0  # of a slow file fewer runs, but 5


class Node(Figures):
    """An operator as ONNX Runtime executes it."""

    operator: str
    name: str
    shape: tuple[int, ...]
    microseconds: Microseconds
    share: Share
    integers: bool
    gmacs_per_second: Rate | None


@dataclass(frozen=True)
class Kind:
    """Operators that are alike, with their rates' mean."""

    operator: str
    shape: tuple[int, ...]
    integers: bool
    count: int
    microseconds: float
    share: float
    gmacs_per_second: float | None


class Diagnosis(Figures):
    """A file on this machine, one thread, one image.

    `microseconds` is the median of the file as it is. Operators are timed by a profiler, which slows them down, so
    their shares are of their own sum. `best_gmacs_per_second` is what this processor reached in a convolution that
    suits it, by precision; `by_threads` is the file's median on other numbers of threads.
    """

    model: str
    sha256: str
    environment: Environment
    microseconds: Microseconds
    by_threads: dict[Count, Microseconds]
    fixed_batch: Count | None
    best_gmacs_per_second: dict[str, Rate]
    nodes: tuple[Node, ...]
    findings: tuple[Finding, ...]

    @property
    def timed_for(self) -> str:
        """What `microseconds` are for."""
        return "an image" if self.fixed_batch in (None, 1) else f"for {self.fixed_batch} images"

    def kinds(self) -> list[Kind]:
        """Operators of one type and output, those that take longest first."""
        alike: dict[tuple[str, tuple[int, ...], bool], list[Node]] = defaultdict(list)
        for node in self.nodes:
            alike[node.operator, node.shape, node.integers].append(node)
        kinds = [
            Kind(
                operator=operator,
                shape=shape,
                integers=integers,
                count=len(nodes),
                microseconds=sum(node.microseconds for node in nodes),
                share=sum(node.share for node in nodes),
                gmacs_per_second=_mean([each.gmacs_per_second for each in nodes if each.gmacs_per_second is not None]),
            )
            for (operator, shape, integers), nodes in alike.items()
        ]
        return sorted(kinds, key=lambda kind: -kind.microseconds)


def diagnose(model: Path) -> Diagnosis:
    """Profile a file, time what might be faster, and say what that comes to. Takes half a minute or more.

    Raises:
        ArtifactError: it cannot be read or run, or does not take one image.
    """
    content, _ = reading.read(model)
    opened = onnx_file.session(model)
    batch = opened.get_inputs()[0].shape[0]
    fixed = batch if isinstance(batch, int) else None
    name, sides = onnx_file.input_of(opened, fixed or 1, source=model)
    feed = {name: np.random.default_rng(0).standard_normal((fixed or 1, *sides), dtype=np.float32)}
    cores = environment().cores
    by_threads = {count: _median(content, feed, count) for count in sorted({1, cores, 2 * cores})}
    case = Case(executed_in(content, feed), by_threads, cores, measure)
    return Diagnosis(
        model=str(model),
        sha256=files.digest(content),
        environment=environment(),
        microseconds=by_threads[1],
        by_threads=by_threads,
        fixed_batch=fixed,
        best_gmacs_per_second=case.best,
        nodes=tuple(_described(node, case.total) for node in case.nodes),
        findings=tuple(finding for finding in findings(case) if finding.share >= LEAST),
    )


def _described(node: Executed, total: float) -> Node:
    microseconds, macs = 1e6 * node.seconds, macs_of(node)
    return Node(
        operator=node.operator,
        name=node.name,
        shape=node.output[1],
        microseconds=microseconds,
        share=microseconds / total,
        integers=node.on_integers and node.operator not in ROUNDING,
        gmacs_per_second=macs / max(microseconds, TICK) / 1e3 if macs else None,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _median(content: bytes, feed: dict[str, NDArray[np.float32]], threads: int) -> float:
    """The median microseconds of a file on so many threads."""
    session = onnx_file.session(content, threads)
    times: list[float] = []
    while len(times) < 5 or (len(times) < WARM_UP + RUNS and sum(times) < SECONDS):
        times.append(clocked(lambda: session.run(None, feed)))
    return 1e6 * float(np.median(times[min(WARM_UP, len(times) // 2) :]))
