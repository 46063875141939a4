"""Accuracy against latency, on an axis that shows the differences that matter."""

from collections.abc import Iterator, Sequence

from compressor.evaluation.setting import Setting
from compressor.report.report import Report, Row
from compressor.report.svg import INK, QUIET, plot, stage_colour
from compressor.report.wording import setting_name

Point = tuple[float, float]  # ms, %

NEAR = 0.03  # of an axis: points closer than that share a label
MARGIN = 0.12  # of an axis, where nothing is drawn


def tradeoff(report: Report, setting: Setting) -> str:
    """Accuracy against latency of every stage, by its number, with 95% intervals.

    A stage far below the others is an arrow at the lower edge, labelled with its accuracy.
    """
    rows = [row for row in report.rows if setting in row.timed]
    far = far_below(rows, {report.baseline, report.shipped})
    near = [row for row in rows if row.id not in far]
    low, high = (100 * bound for bound in (min(r.accuracy.low for r in near), max(r.accuracy.high for r in near)))
    margin = MARGIN * (high - low or 1)
    edge = low - margin
    points = [(row.timed[setting].median_ms, edge if row.id in far else 100 * row.accuracy.value) for row in rows]
    with plot(f"Accuracy against latency ({setting_name(setting)})", 3.4) as (figure, done):
        axes = figure.subplots()
        axes.plot(*zip(*points, strict=True), color=QUIET, linewidth=1, zorder=1)
        for row, (x, y) in zip(rows, points, strict=True):
            entry, accuracy = row.timed[setting], row.accuracy
            slow, fast = (x * entry.speedup / bound for bound in (entry.speedup_low, entry.speedup_high))
            axes.errorbar(
                x,
                y,
                xerr=[[max(x - fast, 0)], [max(slow - x, 0)]],
                yerr=None if row.id in far else [[max(y - 100 * accuracy.low, 0)], [max(100 * accuracy.high - y, 0)]],
                color=stage_colour(row.id, report),
                marker="v" if row.id in far else "o",
                markersize=6,
                capsize=3,
                linewidth=1.2,
            )
        names = [_name(report.rows.index(row) + 1, row, far) for row in rows]
        middle = max(x for x, _ in points) / 2
        for text, place in _labels(names, points):
            left = "%" in text and place[0] > middle  # a long label would leave the plot on the right
            axes.annotate(
                text,
                place,
                (-6 if left else 6, 5),
                textcoords="offset points",
                ha="right" if left else "left",
                fontsize=9,
                color=INK,
                zorder=5,
            )
        axes.set_xlim(0, (1 + MARGIN) * axes.dataLim.x1)
        axes.set_ylim(edge - margin / 2 if far else edge, high + margin)
        axes.set_xlabel("latency for one batch, ms")
        axes.set_ylabel("test accuracy, %")
    return done()


def far_below(rows: Sequence[Row], compared: set[str]) -> set[str]:
    """The stages so far below `compared` that an axis with them would squeeze the rest into less than half."""
    low = min((row.accuracy.low for row in rows if row.id in compared), default=0.0)
    high = max(row.accuracy.high for row in rows)
    return {row.id for row in rows if row.id not in compared and row.accuracy.value < low - (high - low)}


def _name(number: int, row: Row, far: set[str]) -> str:
    return f"{number} ↓ {100 * row.accuracy.value:.1f}%" if row.id in far else str(number)


def _labels(names: Sequence[str], points: Sequence[Point]) -> Iterator[tuple[str, Point]]:
    """The label of each point: the names of all stages at it."""
    spans = [max(values) - min(values) or 1.0 for values in zip(*points, strict=True)]
    left = list(zip(names, points, strict=True))
    while left:
        first = left[0][1]
        here = [
            each
            for each in left
            if all(abs(a - b) < NEAR * span for a, b, span in zip(each[1], first, spans, strict=True))
        ]
        yield ", ".join(name for name, _ in here), first
        left = [each for each in left if each not in here]
