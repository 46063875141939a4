"""A report as a table on the terminal and as `report.md`."""

from rich.table import Table

from compressor.console import table
from compressor.report import engines, markdown
from compressor.report.markdown import escaped
from compressor.report.report import OverSeeds, Report, Row
from compressor.report.wording import (
    RUNGS,
    accuracy_spread,
    balanced,
    difference,
    headline,
    measured_on,
    percent,
    remarks,
    rungs,
    setting_name,
    slowness,
    speedup,
    verdict,
)

MAX_CLASSES = 20  # of more, only the largest losses are listed


def to_table(report: Report) -> Table:
    """The table for a terminal; intervals are in the written report."""
    header = ["id", "test accuracy", "parameters", "MMACs", "file kB"]
    header += [setting_name(setting) for setting in report.settings]
    rows = [
        [
            row.id,
            ", ".join(filter(None, (percent(row.accuracy), balanced(report, row)))),
            f"{row.parameters:,}",
            f"{row.macs / 1e6:.2f}",
            f"{row.size_bytes / 1e3:.1f}",
            *(f"{e.median_ms:.3f} ms {e.speedup:.2f}x" if (e := row.timed.get(s)) else "—" for s in report.settings),
        ]
        for row in report.rows
    ]
    return table(header, rows, figures=True)


def to_markdown(report: Report) -> str:
    """The content of `report.md`."""
    header = ["stage", "id", "test accuracy", "95% interval", "against the baseline", "parameters", "MMACs", "file kB"]
    header += [setting_name(setting) for setting in report.settings]
    lines = [
        f"# {escaped(report.pipeline)}",
        "",
        escaped(verdict(report)),
        "",
        escaped(headline(report)),
        "",
        *markdown.table(header, [_row_cells(row, report) for row in report.rows], left=2),
        "",
        "Accuracy is measured on each stage's ONNX file in ONNX Runtime over the whole test split, with its Wilson 95% "
        f"interval. Latency is the median for one batch; the factor is the speed-up over {escaped(report.baseline)} in "
        "the same setting, the two timed in alternation; its interval spans the 95% bootstrap intervals of all timing "
        "sessions. p is from McNemar's exact test. Parameters and MACs are counted before BatchNorm and branches are "
        "folded.",
        "",
        *(f"- {escaped(remark)}" for remark in remarks(report)),
        "",
        *_doctor(report),
        *_engines(report),
        *_ladders(report),
        *_over_seeds(report),
        *_regressions(report),
        f"Measured on {escaped(measured_on(report))}.",
        "",
    ]
    return "\n".join(lines)


def _doctor(report: Report) -> list[str]:
    """Where the page about the shipped file is, and what it says."""
    if report.doctor is None:
        return []
    return [f"[Where the shipped file's time goes](doctor.html): {escaped(slowness(report.doctor))}.", ""]


def _engines(report: Report) -> list[str]:
    """Where what ships runs, if it is for several engines."""
    rows = list(engines.places(report))
    lines = ["## Where it runs", "", *markdown.table(engines.HEADER, rows, left=2), ""] if rows else []
    return [*lines, *(f"{escaped(each)}\n" for each in engines.absent(report))]


def _ladders(report: Report) -> list[str]:
    """What stages tried to keep the accuracy on integers."""
    lines = []
    for row in report.rows:
        if ladder := row.details.get("ladder"):
            lines += [f"## What {escaped(row.id)} tried", "", *markdown.table(RUNGS, list(rungs(ladder))), ""]
    return lines


def spread(row: OverSeeds) -> list[str]:
    """One stage over the seeds: accuracy, size and speed-up, each as mean ± standard deviation."""
    figures = [
        accuracy_spread(row),
        f"{row.size_bytes.mean / 1e3:.1f} kB ± {row.size_bytes.deviation / 1e3:.1f}",
    ]
    return [*figures, f"{row.speedup.mean:.2f}x ± {row.speedup.deviation:.2f}" if row.speedup else "—"]


def _row_cells(row: Row, report: Report) -> list[str]:
    accuracy, paired = row.accuracy, row.versus_baseline
    correct = f"{percent(accuracy)} ({accuracy.correct}/{accuracy.total})"
    parameters = f"{row.parameters:,}"
    if row.nonzero_parameters < row.parameters:
        parameters += f" ({row.nonzero_parameters:,} non-zero)"
    return [
        row.stage,
        row.id,
        ", ".join(filter(None, (correct, balanced(report, row)))),
        f"{100 * accuracy.low:.2f} to {100 * accuracy.high:.2f}",
        "—"
        if paired is None or row.id == report.baseline
        else f"{difference(paired, report.baseline)}, p = {paired.p_value:.2g}",
        parameters,
        f"{row.macs / 1e6:.2f}",
        f"{row.size_bytes / 1e3:.1f}",
        *(f"{e.median_ms:.3f} ms, {speedup(e)}" if (e := row.timed.get(s)) else "—" for s in report.settings),
    ]


def _over_seeds(report: Report) -> list[str]:
    if not report.over_seeds:
        return []
    seeds = ", ".join(str(seed) for seed in report.seeds)
    return [
        f"## Over the seeds {seeds}",
        "",
        f"Mean ± sample standard deviation of {len(report.seeds)} runs that share nothing that depends on the seed; "
        f"everything else on this page is from the run with seed {report.seed}.",
        "",
        *markdown.table(
            ["id", "test accuracy", "file", "speed-up"], [[each.id, *spread(each)] for each in report.over_seeds]
        ),
        "",
    ]


def _regressions(report: Report) -> list[str]:
    if report.baseline == report.shipped:
        return []
    regressions = report.regressions
    base, shipped = report.baseline_row, report.shipped_row
    lines = [
        "## Regressions",
        "",
        f"Expected calibration error {100 * base.calibration_error:.2f}% -> {100 * shipped.calibration_error:.2f}%. "
        "Recall by class, the largest losses first:",
        "",
    ]
    lines += markdown.table(
        ["class", "images", f"recall, {base.id}", f"recall, {shipped.id}", "points"],
        [
            [
                report.labels[index],
                str(before.images),
                f"{100 * before.recall:.1f}%",
                f"{100 * after.recall:.1f}%",
                f"{100 * (after.recall - before.recall):+.1f}",
            ]
            for index, before, after in regressions.by_loss()[:MAX_CLASSES]
        ],
    )
    if not regressions.corrupted:
        return [*lines, ""]
    lines += ["", f"Accuracy on {regressions.corrupted[0].baseline.total:,} corrupted test images:", ""]
    lines += markdown.table(
        ["corruption", "strength", base.id, shipped.id],
        [
            [each.corruption, each.strength, percent(each.baseline), percent(each.shipped)]
            for each in regressions.corrupted
        ],
        left=2,
    )
    return [*lines, ""]
