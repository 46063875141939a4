"""One table and one picture of several finished runs: what each of them ships, beside the network it came from.

    python benchmarks/ablation.py RESULT_FOLDER "first run=RUN_FOLDER" "second run=RUN_FOLDER" ...

The first run is the main one. Figures are read from the runs' reports; nothing is measured here.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

from compressor import files
from compressor.accuracy import Accuracy
from compressor.latency import Latency
from compressor.report import Report, Row
from compressor.tables import markdown_table
from compressor.words import measured_on

matplotlib.use("agg")

COLUMNS = ["", "test accuracy", "against the teacher, points", "MMACs", "file kB", "smaller", "ONNX Runtime", "faster"]


class Line(NamedTuple):
    """One point of the picture and line of the table."""

    name: str
    row: Row
    latency: Latency
    of_baseline: float  # size of the baseline's file

    @property
    def accuracy(self) -> Accuracy:
        return self.row.accuracy

    @property
    def cells(self) -> list[str]:
        versus, latency = self.row.versus_baseline, self.latency
        assert versus is not None
        difference = f"{100 * versus.difference:+.2f} ({100 * versus.low:+.2f} to {100 * versus.high:+.2f})"
        return [
            self.name,
            f"{100 * self.accuracy.value:.2f}%",
            "" if self.name == "teacher" else difference,
            f"{self.row.macs / 1e6:.2f}",
            f"{self.row.size_bytes / 1e3:.1f}",
            f"{self.of_baseline / self.row.size_bytes:.1f}x",
            f"{latency.median_ms:.3f} ms",
            f"{latency.speedup:.2f}x ({latency.speedup_low:.2f} to {latency.speedup_high:.2f})",
        ]


def lines_of(name: str, report: Report) -> Line:
    """What a run ships."""
    return _line(name, report, report.shipped_row)


def _line(name: str, report: Report, row: Row) -> Line:
    assert report.headline_setting is not None
    return Line(name, row, row.timed[report.headline_setting], report.baseline_row.size_bytes)


def main() -> None:
    target, *named = sys.argv[1:]
    runs = dict(each.split("=", 1) for each in named)
    lines: list[Line] = []
    reports = {name: Report.load(Path(folder)) for name, folder in runs.items()}
    first = next(iter(reports.values()))
    lines.append(_line("teacher", first, first.baseline_row))
    for name, report in reports.items():
        lines.append(lines_of(name, report))
        seeds = Path(runs[name]) / "seeds"
        for other in sorted(seeds.iterdir()) if seeds.exists() else ():
            lines.append(lines_of(f"{name}, seed {other.name}", Report.load(other)))
    folder = Path(target)
    text = "\n".join(
        [
            *markdown_table(COLUMNS, [line.cells for line in lines]),
            "",
            f"One thread, batch 1, each timed in turn with the teacher. Measured on {measured_on(first)}.",
            "",
        ]
    )
    files.write_text(folder / "ablation.md", text)
    files.write_json(
        folder / "ablation.json",
        {
            "environment": first.environment.model_dump(mode="json"),
            "rows": [
                {
                    "name": line.name,
                    "latency": line.latency.model_dump(mode="json"),
                    **line.row.model_dump(
                        mode="json",
                        include={"accuracy", "versus_baseline", "parameters", "macs", "size_bytes", "sha256"},
                    ),
                }
                for line in lines
            ],
        },
    )
    draw(lines, folder / "ablation.svg")
    print(text)


def draw(lines: list[Line], path: Path) -> None:
    """A line each, as in the table: accuracy, and speed-up, with 95% intervals."""
    from matplotlib import pyplot

    figure, (accuracy, speed) = pyplot.subplots(
        1, 2, sharey=True, figsize=(9, 1.1 + 0.34 * len(lines)), layout="constrained"
    )
    for number, line in enumerate(lines):
        shown = {"fmt": "o" if number else "s", "capsize": 3, "color": _colour(number, line)}
        values = [100 * value for value in (line.accuracy.value, line.accuracy.low, line.accuracy.high)]
        _mark(accuracy, number, values, shown)
        _mark(speed, number, [line.latency.speedup, line.latency.speedup_low, line.latency.speedup_high], shown)
    accuracy.set_yticks(range(len(lines)), [line.name for line in lines])
    accuracy.set_ylim(len(lines) - 0.5, -0.5)
    accuracy.set_xlabel("test accuracy of the file, %")
    speed.set_xlabel("times as fast as the teacher's float file\n(ONNX Runtime, 1 thread, batch 1)")
    speed.set_xlim(left=0)
    for axes in (accuracy, speed):
        axes.grid(axis="x", alpha=0.25)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    options: dict[str, Any] = {"metadata": {"Date": None}, "facecolor": "white"}
    with matplotlib.rc_context({"svg.hashsalt": "ablation"}):
        figure.savefig(path, **options)


def _mark(axes: Any, number: int, values: list[float], shown: dict[str, Any]) -> None:
    """A value with its interval, `[value, low, high]`, on a line of its own."""
    value, low, high = values
    axes.errorbar(value, number, xerr=[[value - low], [high - value]], **shown)


def _colour(number: int, line: Line) -> str:
    return "black" if number == 0 else "tab:blue" if number == 1 or ", seed" in line.name else "tab:gray"


if __name__ == "__main__":
    main()
