"""One table and one plot of several finished runs: what each of them ships, beside the network it came from.

    python benchmarks/ablation.py RESULT_FOLDER "first run=RUN_FOLDER" "second run=RUN_FOLDER" ...

The first run is the main one. Accuracy, MACs and size are read from the runs' reports. The files are timed here, each
in turn with the teacher's, all of them once before any is a second time: the reports' speeds are of different sessions.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

from compressor.environment import environment
from compressor.evaluation import Latency, Pair, Setting, Subject, in_sessions
from compressor.report import Report, Row, machine, markdown
from compressor.storage import files

matplotlib.use("agg")

SESSIONS = 15  # over seven minutes: the host has quiet and busy minutes, and five sessions can all fall into one kind
SETTING = Setting(engine="onnxruntime", device="cpu", threads=1, batch=1)
COLUMNS = ["", "test accuracy", "against the teacher, points", "MMACs", "file kB", "smaller", "ONNX Runtime", "faster"]


class Line(NamedTuple):
    """One line of the table and one point of the plot: a row of a report, and its file."""

    name: str
    row: Row
    onnx: Path


def lines_of(runs: dict[str, Path]) -> Iterator[Line]:
    """The teacher of the first run, and what each run ships, its other seeds included."""
    first = next(iter(runs.values()))
    yield _line("teacher", first, Report.load(first).baseline_row)
    for name, folder in runs.items():
        yield _line(name, folder, Report.load(folder).shipped_row)
        for seed in sorted((folder / "seeds").glob("*")):
            yield _line(f"{name}, seed {seed.name}", seed, Report.load(seed).shipped_row)


def _line(name: str, folder: Path, row: Row) -> Line:
    onnx = folder / row.artifact / "model.onnx"
    if files.digest(onnx.read_bytes()) != row.sha256:
        sys.exit(f"{onnx} is not the file that {folder} reports on")
    return Line(name, row, onnx)


def check_teachers(folders: list[Path]) -> None:
    """All lines must be compared with the same baseline."""
    teachers = [Report.load(folder).baseline_row for folder in folders]
    figures = {(row.accuracy.correct, row.parameters, row.macs, row.size_bytes) for row in teachers}
    if len(figures) > 1:
        sys.exit(f"the runs start from different teachers: {figures}")


def times_of(lines: list[Line]) -> list[Latency]:
    """Every line's file timed in alternation with the teacher's, the first line's."""
    teacher = Subject(lines[0].onnx)
    return in_sessions([Pair(Subject(line.onnx), teacher, SETTING) for line in lines], SESSIONS)


def cells(line: Line, latency: Latency, teacher: Row) -> list[str]:
    """A line of the table."""
    accuracy, versus = line.row.accuracy, line.row.versus_baseline
    assert versus is not None
    difference = f"{100 * versus.difference:+.2f} ({100 * versus.low:+.2f} to {100 * versus.high:+.2f})"
    return [
        line.name,
        f"{100 * accuracy.value:.2f}%",
        "" if line.row is teacher else difference,
        f"{line.row.macs / 1e6:.2f}",
        f"{line.row.size_bytes / 1e3:.1f}",
        f"{teacher.size_bytes / line.row.size_bytes:.1f}x",
        f"{latency.median_ms:.3f} ms",
        f"{latency.speedup:.2f}x ({latency.speedup_low:.2f} to {latency.speedup_high:.2f})",
    ]


def main() -> None:
    target, *named = sys.argv[1:]
    runs = {name: Path(folder) for name, folder in (each.split("=", 1) for each in named)}
    check_teachers(list(runs.values()))
    lines = list(lines_of(runs))
    times = times_of(lines)
    folder = Path(target)
    here = environment()
    text = "\n".join(
        [
            *markdown.table(COLUMNS, [cells(*each, lines[0].row) for each in zip(lines, times, strict=True)]),
            "",
            "Accuracy, MACs and size are those of each run's report. Speed: ONNX Runtime, one thread, batch 1, each "
            f"file in turn with the teacher's in {SESSIONS} sessions, all of them once before any a second time; the "
            f"interval spans those of every session. Timed on {machine(here)}; commit {here.commit or 'unknown'}; "
            f"other programs kept {max(latency.other_load for latency in times):.1f} cores busy at most.",
            "",
        ]
    )
    files.write_text(folder / "ablation.md", text)
    files.write_json(
        folder / "ablation.json",
        {
            "environment": here.model_dump(mode="json"),
            "rows": [
                {
                    "name": line.name,
                    "latency": latency.model_dump(mode="json"),
                    **line.row.model_dump(
                        mode="json",
                        include={"accuracy", "versus_baseline", "parameters", "macs", "size_bytes", "sha256"},
                    ),
                }
                for line, latency in zip(lines, times, strict=True)
            ],
        },
    )
    draw(lines, times, folder / "ablation.svg")
    print(text)


def draw(lines: list[Line], times: list[Latency], path: Path) -> None:
    """One line each, as in the table: accuracy with its 95% interval, and speed-up with its own over all sessions."""
    from matplotlib import pyplot

    figure, (accuracy, speed) = pyplot.subplots(
        1, 2, sharey=True, figsize=(9, 1.1 + 0.34 * len(lines)), layout="constrained"
    )
    for number, (line, latency) in enumerate(zip(lines, times, strict=True)):
        score = line.row.accuracy
        shown = {"fmt": "o" if number else "s", "capsize": 3, "color": _colour(number, line)}
        _mark(accuracy, number, [100 * value for value in (score.value, score.low, score.high)], shown)
        _mark(speed, number, [latency.speedup, latency.speedup_low, latency.speedup_high], shown)
    accuracy.set_yticks(range(len(lines)), [line.name for line in lines])
    accuracy.set_ylim(len(lines) - 0.5, -0.5)
    accuracy.set_xlabel("test accuracy of the file, %")
    speed.set_xlabel("times as fast as the teacher\n(ONNX Runtime, 1 thread, batch 1)")
    speed.set_xlim(left=0)
    for axes in (accuracy, speed):
        axes.grid(axis="x", alpha=0.25)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    options: dict[str, Any] = {"metadata": {"Date": None}, "facecolor": "white"}
    with matplotlib.rc_context({"svg.hashsalt": "ablation"}):
        figure.savefig(path, **options)


def _mark(axes: Any, number: int, values: list[float], shown: dict[str, Any]) -> None:
    """A value with its interval, `[value, low, high]`, on its own line."""
    value, low, high = values
    axes.errorbar(value, number, xerr=[[value - low], [high - value]], **shown)


def _colour(number: int, line: Line) -> str:
    return "black" if number == 0 else "tab:blue" if number == 1 or ", seed" in line.name else "tab:gray"


if __name__ == "__main__":
    main()
