"""The pictures of a search, each as an `<svg>` element."""

import json
from collections.abc import Sequence
from typing import Any

from compressor.report import BASELINE, INK, QUIET, SHIPPED, plot, setting_name
from compressor.search.found import Found, in_words

MAX_NAME = 40  # characters of a range
MARGIN = 0.08  # of an axis


def front(found: Found) -> str:
    """Accuracy against latency of every trial; the best with their 95% intervals, by their numbers."""
    best = {each.number: each for each in found.best}
    with plot(f"Validation accuracy against latency ({setting_name(found.setting)})", 3.6) as (figure, done):
        axes = figure.subplots()
        for outcome in found.outcomes:
            share, last = outcome.latency_share, outcome.accuracy
            if share is None or last is None or outcome.number in best or outcome.state == "failed":
                continue
            marker = "o" if outcome.shipped is not None else "x"
            axes.plot(share * found.reference_ms, 100 * last, marker, color=QUIET, markersize=4, zorder=1)
        for each in found.best:
            shipped = found.outcome(each.number).shipped
            assert shipped is not None
            latency, accuracy = each.latency, shipped.accuracy
            x, y = latency.median_ms, 100 * accuracy.value
            axes.errorbar(
                x,
                y,
                xerr=[
                    [max(x - x * latency.speedup / latency.speedup_high, 0)],
                    [max(x * latency.speedup / latency.speedup_low - x, 0)],
                ],
                yerr=[[max(y - 100 * accuracy.low, 0)], [max(100 * accuracy.high - y, 0)]],
                fmt="o",
                color=BASELINE if each.number == found.winner else SHIPPED,
                capsize=3,
                linewidth=1.2,
            )
            axes.annotate(str(each.number), (x, y), (5, 5), textcoords="offset points", fontsize=9, color=INK, zorder=5)
        axes.set_xlim(0, (1 + MARGIN) * axes.dataLim.x1)
        axes.set_xlabel("latency for one batch, ms")
        axes.set_ylabel("validation accuracy, %")
    return done()


def importances(found: Found) -> str:
    """How much of the variance of accuracy and latency each range explains."""
    names = [*found.outcomes[0].values]
    with plot("What mattered", 0.9 + 0.3 * len(names)) as (figure, done):
        both = figure.subplots(1, 2, sharey=True)
        for axes, (what, shares) in zip(both, found.importances.items(), strict=False):
            values = [100 * shares.get(name, 0) for name in names]
            bars = axes.barh([_name(name) for name in names], values, color=SHIPPED)
            axes.bar_label(bars, [f"{value:.0f}%" for value in values], padding=3, fontsize=8, color=INK)
            axes.set_title(f"variance of {what}", fontsize=9, color=INK)
            axes.set_xlim(0, 125)
            axes.spines["bottom"].set_visible(False)
            axes.set_xticks([])
        both[0].set_ylim(len(names) - 0.5, -0.5)
    return done()


def parallel(found: Found) -> str:
    """Every complete trial as a line through its values, its latency and its accuracy; the best are coloured."""
    complete, best = found.complete, {each.number for each in found.best}
    names = [*complete[0].values]
    columns = [_positions([each.values[name] for each in complete]) for name in names]
    columns.append(_positions([found.reference_ms * (each.latency_share or 0.0) for each in complete]))
    columns.append(_positions([each.accuracy or 0.0 for each in complete]))
    with plot("Parallel coordinates of all complete trials", 3.2) as (figure, done):
        axes = figure.subplots()
        for index, outcome in enumerate(complete):
            kept = outcome.number in best
            axes.plot(
                range(len(columns)),
                [positions[index] for positions, _ in columns],
                color=BASELINE if outcome.number == found.winner else SHIPPED if kept else QUIET,
                alpha=1 if kept else 0.5,
                linewidth=1.6 if kept else 0.8,
                zorder=3 if outcome.number == found.winner else 2 if kept else 1,
            )
        for x, (_, (low, high)) in enumerate(columns):
            axes.axvline(x, color=INK, linewidth=0.6, zorder=0)
            axes.annotate(low, (x, 0), (0, -11), textcoords="offset points", ha="center", fontsize=7, color=INK)
            axes.annotate(high, (x, 1), (0, 5), textcoords="offset points", ha="center", fontsize=7, color=INK)
        titles = [*(_name(name) for name in names), "latency, ms", "accuracy"]
        axes.set_xticks(range(len(columns)), titles, rotation=20, ha="right", fontsize=8)
        axes.tick_params(axis="x", pad=12, length=0)
        axes.set_yticks([])
        axes.set_ylim(-0.02, 1.08)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
    return done()


def _positions(values: Sequence[Any]) -> tuple[list[float], tuple[str, str]]:
    """Where values lie between the lowest, 0, and the highest, 1, and these two in words; text by its order."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        return [(value - low) / ((high - low) or 1) for value in values], (in_words(low), in_words(high))
    kinds = sorted({json.dumps(value) for value in values})
    last = max(len(kinds) - 1, 1)
    return [kinds.index(json.dumps(value)) / last for value in values], (kinds[0], kinds[-1])


def _name(name: str) -> str:
    name = name.removeprefix("stages.")
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"
