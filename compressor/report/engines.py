"""Where what ships runs: a table of the engines that it is for, ONNX Runtime first."""

from collections.abc import Iterator

from compressor.evaluation.engines.base import title_of
from compressor.evaluation.latency import Latency
from compressor.evaluation.setting import REFERENCE
from compressor.report.report import Report
from compressor.report.wording import percent, speedup, where

HEADER = ("engine", "file", "test accuracy", "same class as in ONNX Runtime", "speed")


def places(report: Report) -> Iterator[list[str]]:
    """The rows of the table; none if what ships is for ONNX Runtime alone."""
    if not report.engines:
        return
    shipped = report.shipped_row
    yield [title_of(REFERENCE), "model.onnx", percent(shipped.accuracy), "", _time(report, REFERENCE)]
    for each in report.engines:
        by = "" if each.accuracy.engine == each.engine else f" (by {title_of(each.accuracy.engine)})"
        yield [
            title_of(each.engine),
            each.file,
            f"{percent(each.accuracy)}{by}" + (f", {each.not_finite:,} not finite" if each.not_finite else ""),
            f"{each.same:,} of {each.accuracy.total:,}",
            _time(report, each.engine),
        ]


def _time(report: Report, engine: str) -> str:
    """What ships in the first setting of an engine in which it was timed, with its speed-up; or why it was not."""
    entries = [entry for entry in report.shipped_row.latency if entry.engine == engine]
    timed = next((entry for entry in entries if isinstance(entry, Latency)), None)
    if timed is not None:
        return f"{timed.median_ms:.3f} ms, {speedup(timed)}, {where(timed)}"
    return next((f"not timed: {entry.reason}" for entry in entries if not isinstance(entry, Latency)), "not timed")
