"""The plots of a report, each as an `<svg>` element."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compressor.errors import printable
from compressor.evaluation.regressions import Corrupted
from compressor.report.report import Report, Row
from compressor.report.svg import BASELINE, INK, QUIET, SHIPPED, plot, stage_colour

MAX_NAME = 60  # characters of a layer or a corruption: more would leave no room for the bars


def sizes(report: Report) -> str:
    """File size and parameters of every stage."""
    with plot("File size and parameters by stage", 0.9 + 0.28 * len(report.rows)) as (figure, done):
        both = figure.subplots(1, 2, sharey=True)
        for axes, title, counts in (
            (both[0], "file, kB", [row.size_bytes for row in report.rows]),
            (both[1], "parameters, thousands", [row.parameters for row in report.rows]),
        ):
            values = [count / 1e3 for count in counts]
            bars = axes.barh(
                [row.id for row in report.rows], values, color=[stage_colour(r.id, report) for r in report.rows]
            )
            axes.bar_label(
                bars, [f"{x:,.0f}" if x >= 100 else f"{x:.1f}" for x in values], padding=3, fontsize=8, color=INK
            )
            axes.set_title(title, fontsize=9, color=INK)
            axes.set_xlim(0, max(values) * 1.3 or 1)
            _bare(axes)
        both[0].invert_yaxis()
    return done()


def widths(row: Row) -> str:
    """Output channels of every layer before and after pruning; none where the layer's block was removed."""
    layers: Mapping[str, Sequence[int]] = row.details["widths"]
    before, after = zip(*layers.values(), strict=True)
    with plot(f"Layer widths before and after {row.id}", 0.7 + 0.2 * len(layers)) as (figure, done):
        axes = figure.subplots()
        names = [_name(layer) for layer in layers]
        axes.barh(names, before, color=QUIET, alpha=0.45)
        axes.barh(names, after, color=SHIPPED, height=0.5)
        for index, (old, new) in enumerate(layers.values()):
            words = str(old) if new == old else f"{old} → {new}" if new else f"{old} → removed"
            axes.annotate(words, (old, index), (3, 0), textcoords="offset points", va="center", fontsize=7, color=INK)
        axes.set_xlim(0, max(before) * 1.22 or 1)
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.tick_params(axis="y", labelsize=7)
        _bare(axes)
    return done()


def curves(row: Row) -> str:
    """Loss and validation accuracy of a training, by epoch; a line marks the epoch that was kept."""
    curve: Sequence[Mapping[str, Any]] = row.details["curve"]
    loss, accuracy = (_drawn(point.get(key) for point in curve) for key in ("loss", "validation_accuracy"))
    epochs = [point["epoch"] for point in curve]
    with plot(f"Training of {row.id}", 2.0) as (figure, done):
        left, right = figure.subplots(1, 2)
        left.plot(epochs, loss, color=INK, linewidth=1.2)
        left.set_title("training loss", fontsize=9, color=INK)
        right.plot(epochs, [100 * share for share in accuracy], color=SHIPPED, linewidth=1.2)
        right.set_title("validation accuracy, %", fontsize=9, color=INK)
        for axes in (left, right):
            if (kept := row.details.get("kept_epoch")) is not None:
                axes.axvline(kept, color=QUIET, linewidth=0.8, linestyle=":")
            axes.set_xlabel("epoch")
            axes.locator_params(axis="x", integer=True, nbins=5)
            if len(epochs) == 1:
                axes.lines[0].set_marker("o")
                axes.set_xlim(0, 2)
    return done()


def int8_error(row: Row) -> str:
    """Signal to rounding noise at every quantized point; lower is worse."""
    measured: Mapping[str, float | None] = row.details["signal_to_noise_db"]
    ratios = {point: ratio for point, ratio in measured.items() if ratio is not None}  # None: no rounding error there
    worst = min(ratios, key=lambda point: ratios[point], default=None)
    title = f"Int8 error of {row.id} by layer: signal to rounding noise"
    with plot(title, 0.8 + 0.19 * len(ratios)) as (figure, done):
        axes = figure.subplots()
        colours = [BASELINE if point == worst else SHIPPED for point in ratios]
        bars = axes.barh([_name(point) for point in ratios], list(ratios.values()), color=colours)
        axes.bar_label(bars, [f"{ratio:.0f}" for ratio in ratios.values()], padding=3, fontsize=7, color=INK)
        axes.set_xlabel("signal to noise, dB (20 dB: noise is a tenth of the signal)")
        axes.set_ylim(len(ratios) - 0.4, -0.6)
        axes.tick_params(axis="y", labelsize=7)
    return done()


def corruptions(corrupted: Sequence[Corrupted]) -> str:
    """Accuracy of the baseline and the shipped network on corrupted images, with 95% intervals."""
    with plot("Accuracy on corrupted images", 0.9 + 0.32 * len(corrupted)) as (figure, done):
        axes = figure.subplots()
        for shift, colour in ((-0.13, BASELINE), (0.13, SHIPPED)):
            scores = [each.baseline if colour == BASELINE else each.shipped for each in corrupted]
            axes.errorbar(
                [100 * score.value for score in scores],
                [index + shift for index in range(len(scores))],
                xerr=[
                    [100 * max(score.value - score.low, 0) for score in scores],
                    [100 * max(score.high - score.value, 0) for score in scores],
                ],
                fmt="o",
                markersize=4,
                capsize=2,
                linewidth=1,
                color=colour,
            )
        axes.set_yticks(range(len(corrupted)), [_name(f"{each.corruption}, {each.strength}") for each in corrupted])
        axes.set_ylim(len(corrupted) - 0.5, -0.5)
        axes.set_xlabel("accuracy, %")
    return done()


def _drawn(figures: Iterable[float | None]) -> list[float]:
    """Values for matplotlib, which leaves a gap for a missing figure."""
    return [math.nan if figure is None else figure for figure in figures]


def _name(text: str) -> str:
    """A name beside a bar."""
    shown = printable(text)
    return shown if len(shown) <= MAX_NAME else f"{shown[:MAX_NAME]}…"


def _bare(axes: Any) -> None:
    """Hide the axis of bars that are labelled with their figures."""
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="both", length=0)
    axes.set_xticks([])
