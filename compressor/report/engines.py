"""Where what ships runs: a table of the engines that it is for, ONNX Runtime first."""

from collections.abc import Iterator

from compressor.evaluation.engines.base import title_of
from compressor.evaluation.setting import REFERENCE
from compressor.report.report import Report
from compressor.report.wording import percent, speedup

HEADER = ("engine", "file", "test accuracy", "as ONNX Runtime", "speed")


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
    """What ships in the first setting of an engine in which it was timed, with its speed-up."""
    timed = next((entry for entry in report.shipped_row.timed.values() if entry.engine == engine), None)
    return "not timed" if timed is None else f"{timed.median_ms:.3f} ms, {speedup(timed)}"


def absent(report: Report) -> Iterator[str]:
    """Which of the engines could not run, and why."""
    for each in report.engines:
        if each.reason is not None:
            yield f"{title_of(each.engine)} did not run here: {each.reason}."
