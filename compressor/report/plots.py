"""The pictures of a report, as SVG that takes its colours from the page around it, by day and by night."""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from compressor.evaluation.regressions import Corrupted
from compressor.evaluation.setting import Setting
from compressor.report.report import Report, Row
from compressor.report.wording import setting_name

WIDTH = 5.2  # inches; of the 374 points that a phone is wide
COLOURS = {  # matplotlib needs a colour; the page's style sheet says which
    "#010203": "currentColor",
    "#010204": "var(--baseline)",
    "#010205": "var(--shipped)",
    "#010206": "var(--quiet)",
}
INK, BASELINE, SHIPPED, QUIET = COLOURS
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's own letters
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
NEAR = 0.03  # of an axis: points closer than that share a label


def tradeoff(report: Report, setting: Setting) -> str:
    """Accuracy against latency of every stage, by its number, with 95% intervals."""
    rows = [row for row in report.rows if setting in row.timed]
    points = [(row.timed[setting].median_ms, 100 * row.accuracy.value) for row in rows]
    with _picture(f"Accuracy against latency ({setting_name(setting)})", 3.4) as (figure, done):
        axes = figure.subplots()
        axes.plot(*zip(*points, strict=True), color=QUIET, linewidth=1, zorder=1)
        for row, (x, y) in zip(rows, points, strict=True):
            entry, accuracy = row.timed[setting], row.accuracy
            slow, fast = (x * entry.speedup / bound for bound in (entry.speedup_low, entry.speedup_high))
            axes.errorbar(
                x,
                y,
                xerr=[[max(x - fast, 0)], [max(slow - x, 0)]],
                yerr=[[y - 100 * accuracy.low], [100 * accuracy.high - y]],
                color=_colour(row, report),
                marker="o",
                markersize=6,
                capsize=3,
                linewidth=1.2,
            )
        axes.margins(0.18, 0.12)
        for numbers, place in _labels([report.rows.index(row) + 1 for row in rows], points):
            axes.annotate(numbers, place, (6, 5), textcoords="offset points", fontsize=9, color=INK, zorder=5)
        axes.set_xlim(left=0)
        axes.set_xlabel("latency for one batch, ms")
        axes.set_ylabel("test accuracy, %")
    return done()


def sizes(report: Report) -> str:
    """File size and parameters of every stage."""
    with _picture("File size and parameters by stage", 0.9 + 0.28 * len(report.rows)) as (figure, done):
        both = figure.subplots(1, 2, sharey=True)
        for axes, title, counts in (
            (both[0], "file, kB", [row.size_bytes for row in report.rows]),
            (both[1], "parameters, thousands", [row.parameters for row in report.rows]),
        ):
            values = [count / 1e3 for count in counts]
            bars = axes.barh([row.id for row in report.rows], values, color=[_colour(r, report) for r in report.rows])
            axes.bar_label(
                bars, [f"{x:,.0f}" if x >= 100 else f"{x:.1f}" for x in values], padding=3, fontsize=8, color=INK
            )
            axes.set_title(title, fontsize=9, color=INK)
            axes.set_xlim(0, max(values) * 1.3)
            _bare(axes)
        both[0].invert_yaxis()
    return done()


def widths(row: Row) -> str:
    """Output channels of every layer before and after pruning."""
    layers: Mapping[str, Sequence[int]] = row.details["widths"]
    before, after = zip(*layers.values(), strict=True)
    with _picture(f"Layer widths before and after {row.id}", 0.7 + 0.2 * len(layers)) as (figure, done):
        axes = figure.subplots()
        axes.barh(list(layers), before, color=QUIET, alpha=0.45)
        axes.barh(list(layers), after, color=SHIPPED, height=0.5)
        for index, (old, new) in enumerate(layers.values()):
            words = f"{old} → {new}" if new != old else str(old)
            axes.annotate(words, (old, index), (3, 0), textcoords="offset points", va="center", fontsize=7, color=INK)
        axes.set_xlim(0, max(before) * 1.22)
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.tick_params(axis="y", labelsize=7)
        _bare(axes)
    return done()


def curves(row: Row) -> str:
    """Loss and validation accuracy of a training, by epoch; a line marks the epoch that was kept."""
    curve: Sequence[Mapping[str, float]] = row.details["curve"]
    epochs = [point["epoch"] for point in curve]
    with _picture(f"Training of {row.id}", 2.0) as (figure, done):
        left, right = figure.subplots(1, 2)
        left.plot(epochs, [point["loss"] for point in curve], color=INK, linewidth=1.2)
        left.set_title("training loss", fontsize=9, color=INK)
        right.plot(epochs, [100 * point["validation_accuracy"] for point in curve], color=SHIPPED, linewidth=1.2)
        right.set_title("validation accuracy, %", fontsize=9, color=INK)
        for axes in (left, right):
            axes.axvline(row.details["kept_epoch"], color=QUIET, linewidth=0.8, linestyle=":")
            axes.set_xlabel("epoch")
            axes.locator_params(axis="x", integer=True, nbins=5)
            if len(epochs) == 1:
                axes.lines[0].set_marker("o")
                axes.set_xlim(0, 2)
    return done()


def int8_error(row: Row) -> str:
    """How far above the error of rounding the signal stands at every point that is rounded: lower is worse."""
    measured: Mapping[str, float | None] = row.details["signal_to_noise_db"]
    ratios = {point: ratio for point, ratio in measured.items() if ratio is not None}  # None: nothing is lost there
    worst = min(ratios, key=lambda point: ratios[point], default=None)
    title = f"Int8 error of {row.id} by layer: signal to rounding noise"
    with _picture(title, 0.8 + 0.19 * len(ratios)) as (figure, done):
        axes = figure.subplots()
        colours = [BASELINE if point == worst else SHIPPED for point in ratios]
        bars = axes.barh(list(ratios), list(ratios.values()), color=colours)
        axes.bar_label(bars, [f"{ratio:.0f}" for ratio in ratios.values()], padding=3, fontsize=7, color=INK)
        axes.set_xlabel("signal to noise, dB (20 dB: noise is a tenth of the signal)")
        axes.set_ylim(len(ratios) - 0.4, -0.6)
        axes.tick_params(axis="y", labelsize=7)
    return done()


def corruptions(corrupted: Sequence[Corrupted]) -> str:
    """Accuracy of the baseline and the shipped network on corrupted images, with 95% intervals."""
    with _picture("Accuracy on corrupted images", 0.9 + 0.32 * len(corrupted)) as (figure, done):
        axes = figure.subplots()
        for shift, colour in ((-0.13, BASELINE), (0.13, SHIPPED)):
            scores = [each.baseline if colour == BASELINE else each.shipped for each in corrupted]
            axes.errorbar(
                [100 * score.value for score in scores],
                [index + shift for index in range(len(scores))],
                xerr=[
                    [100 * (score.value - score.low) for score in scores],
                    [100 * (score.high - score.value) for score in scores],
                ],
                fmt="o",
                markersize=4,
                capsize=2,
                linewidth=1,
                color=colour,
            )
        axes.set_yticks(range(len(corrupted)), [f"{each.corruption}, {each.strength}" for each in corrupted])
        axes.set_ylim(len(corrupted) - 0.5, -0.5)
        axes.set_xlabel("accuracy, %")
    return done()


@contextmanager
def _picture(title: str, height: float) -> Iterator[tuple[Any, Callable[[], str]]]:
    """A figure to draw on, and what makes it SVG once it is drawn."""
    import matplotlib  # takes a second, which only a report needs
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, lambda: _svg(figure, title)


def _svg(figure: Any, title: str) -> str:
    """The figure as an `<svg>` element."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # several pictures share a page, and ids must not
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for colour, meaning in COLOURS.items():
        text = text.replace(colour, meaning)
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return re.sub(r"<svg ([^>]*?)>", rf'<svg role="img" aria-label="{label}" \1>', text, count=1)


def _labels(numbers: Sequence[int], points: Sequence[tuple[float, float]]) -> Iterator[tuple[str, tuple[float, float]]]:
    """What stands beside each point: the numbers of all stages that lie on it."""
    spans = [max(values) - min(values) or 1.0 for values in zip(*points, strict=True)]
    left = list(zip(numbers, points, strict=True))
    while left:
        first = left[0][1]
        here = [
            each
            for each in left
            if all(abs(a - b) < NEAR * span for a, b, span in zip(each[1], first, spans, strict=True))
        ]
        yield ", ".join(str(number) for number, _ in here), first
        left = [each for each in left if each not in here]


def _colour(row: Row, report: Report) -> str:
    return {report.baseline: BASELINE, report.shipped: SHIPPED}.get(row.id, QUIET)


def _bare(axes: Any) -> None:
    """Bars that carry their figures need no axis."""
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="both", length=0)
    axes.set_xticks([])
