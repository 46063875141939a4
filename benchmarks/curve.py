"""Accuracy against latency: our students at several budgets, and what other tools make of the same teacher.

    python benchmarks/curve.py benchmarks/results/curve-cifar10 runs/curve-cifar10/5 ... runs/curve-cifar10/nncf ...

The first folder is for the result; the others are runs of ours, which begin with the teacher and have its images, or
results of neighbours.py. Every file is scored here, on all test images, in the engine that it is for; then each is
timed in turn with the teacher's float file in ONNX Runtime, all of them once before any a second time. One thread,
batch 1.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np

from compressor import Dataset, Pipeline
from compressor.environment import environment
from compressor.evaluation import (
    Accuracy,
    Latency,
    Paired,
    Predictions,
    Recording,
    Session,
    Setting,
    Subject,
    compare,
    engine_of,
    in_sessions,
)
from compressor.evaluation.accuracy import probabilities
from compressor.report import Report, machine, markdown
from compressor.storage import files

matplotlib.use("agg")

SESSIONS = 15
COLUMNS = [
    "",
    "engine",
    "test accuracy",
    "against the teacher, points",
    "file kB",
    "smaller",
    "ms",
    "faster",
    "made in",
]
Kind = Literal["baseline", "student", "quantized", "other"]
COLORS: dict[Kind, str] = {"baseline": "black", "student": "tab:blue", "quantized": "tab:blue", "other": "tab:gray"}


class Line(NamedTuple):
    """A file, where it runs, and the seconds that making it of the teacher took."""

    name: str
    kind: Kind
    engine: str
    onnx: Path
    seconds: float

    def open(self) -> Session:
        """Load the file into its engine."""
        return engine_of(self.engine).open(Subject(self.onnx), self.setting)

    @property
    def setting(self) -> Setting:
        """One image at a time, on one thread."""
        return Setting(engine=self.engine, device="cpu", threads=1, batch=1)

    def predictions(self, data: Dataset) -> Predictions:
        """What it says of the test images, one by one: some tools write files for one image only."""
        session, test = self.open(), data.test
        inputs = data.preprocess.normalise(test.images).numpy()
        logits = np.concatenate([session.run(image[None]) for image in inputs])  # [N, classes]
        classes = logits.argmax(1)
        return Predictions(classes, probabilities(logits).max(1), test.labels.numpy())


def main() -> None:
    result, *folders = map(Path, sys.argv[1:])
    result.mkdir(parents=True, exist_ok=True)
    pipeline = Pipeline.load(folders[0] / "pipeline.yaml")
    data = pipeline.data.load(pipeline.seed)
    lines = list(lines_of(folders))
    teacher = lines[0]
    answers = [line.predictions(data) for line in lines]
    times = in_sessions([Against(line, teacher) for line in lines], SESSIONS)
    rows = [
        Row(line, answer.accuracy(split="test"), answer.against(answers[0]), latency)
        for line, answer, latency in zip(lines, answers, times, strict=True)
    ]
    here, busy = environment(), max(latency.other_load for latency in times)
    text = "\n".join(
        [
            *markdown.table(COLUMNS, [row.cells(teacher) for row in rows], left=2),
            "",
            f"All {len(data.test):,} test images, scored in the engine named. Speed: one thread, batch 1, each file in "
            f"turn with the teacher's float file in ONNX Runtime in {SESSIONS} sessions, all of them once before any a "
            f"second time; the interval spans those of every session. Timed on {machine(here)}; commit "
            f"{here.commit or 'unknown'}; other programs kept {busy:.1f} cores busy at most.",
            "",
        ]
    )
    files.write_text(result / "curve.md", text)
    files.write_json(
        result / "curve.json",
        {"environment": here.model_dump(mode="json"), "rows": [row.as_json() for row in rows]},
    )
    draw(rows, result / "curve.svg")
    print(text)


def lines_of(folders: list[Path]) -> Iterator[Line]:
    """The teacher of the first run of ours, and what every folder holds."""
    runs = [folder for folder in folders if (folder / "report.json").is_file()]
    teacher = Report.load(runs[0]).baseline_row
    yield Line("the teacher", "baseline", "onnxruntime", runs[0] / teacher.artifact / "model.onnx", 0.0)
    for folder in folders:
        onnx = folder / "model.onnx"
        if folder in runs:
            report = Report.load(folder)
            seconds = sum(row.seconds for row in report.rows if row.id != report.baseline)
            distilled = any(row.stage == "distill" for row in report.rows)
            kind: Kind = "student" if distilled else "quantized"
            yield Line(report.pipeline, kind, "onnxruntime", onnx, seconds)
        else:
            made = json.loads((folder / "made.json").read_text())
            yield Line(made["way"], "other", made["engine"], onnx, made["seconds"])


@dataclass
class Against:
    """A file in its engine against the teacher's in ONNX Runtime; they take turns at being opened first."""

    line: Line
    teacher: Line
    sessions: int = 0

    def __call__(self) -> Recording:
        teacher_first, self.sessions = self.sessions % 2 == 1, self.sessions + 1
        if teacher_first:
            teacher, candidate = self.teacher.open(), self.line.open()
        else:
            candidate, teacher = self.line.open(), self.teacher.open()
        return compare(candidate.seconds, teacher.seconds, self.line.setting)


class Row(NamedTuple):
    """One row of the table and one point of the plot."""

    line: Line
    accuracy: Accuracy
    versus: Paired
    latency: Latency

    def cells(self, teacher: Line) -> list[str]:
        """As text."""
        line, versus, latency = self.line, self.versus, self.latency
        size = line.onnx.stat().st_size
        return [
            line.name,
            line.engine,
            f"{100 * self.accuracy.value:.2f}%",
            f"{100 * versus.difference:+.2f} ({100 * versus.low:+.2f} to {100 * versus.high:+.2f})",
            f"{size / 1e3:.1f}",
            f"{teacher.onnx.stat().st_size / size:.1f}x",
            f"{latency.median_ms:.3f} ms",
            f"{latency.speedup:.2f}x ({latency.speedup_low:.2f} to {latency.speedup_high:.2f})",
            f"{line.seconds / 60:.0f} min",
        ]

    def as_json(self) -> dict[str, Any]:
        """As data."""
        return {
            "name": self.line.name,
            "engine": self.line.engine,
            "seconds": round(self.line.seconds, 1),
            "size_bytes": self.line.onnx.stat().st_size,
            "accuracy": self.accuracy.model_dump(mode="json"),
            "versus_teacher": self.versus.model_dump(mode="json"),
            "latency": self.latency.model_dump(mode="json"),
        }


def draw(rows: list[Row], path: Path) -> None:
    """Accuracy with its 95% interval over the share of the teacher's time; students are joined by a line."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    points = [(1 / row.latency.speedup, 100 * row.accuracy.value) for row in rows]
    students = sorted(point for row, point in zip(rows, points, strict=True) if row.line.kind == "student")
    axes.plot(*zip(*students, strict=True), color=COLORS["student"], zorder=1)
    for row, point in zip(rows, points, strict=True):
        score, color, other = row.accuracy, COLORS[row.line.kind], row.line.kind == "other"
        spread = [[100 * (score.value - score.low)], [100 * (score.high - score.value)]]
        axes.errorbar(*point, yerr=spread, fmt="s" if other else "o", color=color, capsize=3)
        below_or_above = (6, -12) if other else (6, 6)
        axes.annotate(row.line.name, point, below_or_above, textcoords="offset points", color=color, fontsize=9)
    axes.set_xscale("log")
    ticks = [0.05, 0.1, 0.2, 0.5, 1]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("time of one image, as a share of the teacher's in float (1 thread)")
    axes.set_ylabel("test accuracy of the file, %")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    options: dict[str, Any] = {"metadata": {"Date": None}, "facecolor": "white"}
    with matplotlib.rc_context({"svg.hashsalt": "curve"}):
        figure.savefig(path, **options)


if __name__ == "__main__":
    main()
