"""The rows of a run, as `report.json`, as Markdown, and as a table on the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.table import Table

from compressor import files
from compressor.environment import Environment
from compressor.errors import ArtifactError
from compressor.measurement import Accuracy, Latency, NotMeasured, Setting

JSON, MARKDOWN = "report.json", "report.md"


class Row(BaseModel):
    """One stage's artifact, measured.

    `key` is the digest of all that made the artifact, `scored_on` that of the test split, `measured_as` that of all
    that latency depends on; `versus_float` the speed-up of an int8 network over the same
    network's float ONNX file; `details` what the stage has to say (training curve, widths, agreement).
    """

    model_config = ConfigDict(frozen=True)

    id: str
    stage: str
    artifact: str
    seconds: float
    accuracy: Accuracy
    parameters: int
    nonzero_parameters: int
    macs: int
    size_bytes: int
    latency: tuple[Latency | NotMeasured, ...] = ()
    versus_float: tuple[Latency, ...] = ()
    details: dict[str, Any] = {}
    key: str
    scored_on: str
    measured_as: str = ""


class Report(BaseModel):
    """A run: its rows, and what they were measured with."""

    model_config = ConfigDict(frozen=True)

    schema_: Literal[1] = Field(1, alias="schema")
    pipeline: str
    seed: int
    digest: str
    baseline: str
    shipped: str
    labels: tuple[str, ...]
    environment: Environment
    rows: tuple[Row, ...]

    def row(self, stage_id: str) -> Row:
        """The row of a stage."""
        return next(row for row in self.rows if row.id == stage_id)

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def load(cls, folder: Path) -> "Report":
        """The report of a finished run.

        Raises:
            ArtifactError: there is none, or it is not of this version.
        """
        path = folder / JSON
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ArtifactError(f"{path}: there is no report to read: {error.strerror}") from error
        except ValidationError as error:
            raise ArtifactError(f"{path}: not a report of this version: {error.errors()[0]['msg']}") from error

    def write(self, folder: Path) -> None:
        """Write `report.json` and `report.md`."""
        files.write_json(folder / JSON, self.to_json())
        files.write_text(folder / MARKDOWN, to_markdown(self))


def settings_of(report: Report) -> list[Setting]:
    """The settings in which at least one row was timed."""
    return list(dict.fromkeys(setting for row in report.rows for setting in _by_setting(row)))


def headline(report: Report) -> str:
    """What was gained and lost, in one sentence."""
    base, shipped = report.row(report.baseline), report.row(report.shipped)
    points = 100 * (shipped.accuracy.value - base.accuracy.value)
    words = [
        f"{shipped.id} against {base.id}: accuracy {_percent(base.accuracy)} -> {_percent(shipped.accuracy)} "
        f"({points:+.2f} points on {shipped.accuracy.total} test images)",
        f"{base.size_bytes / 1e3:.1f} kB -> {shipped.size_bytes / 1e3:.1f} kB "
        f"({base.size_bytes / shipped.size_bytes:.1f}x smaller)",
    ]
    timed = next((e for e in shipped.latency if isinstance(e, Latency) and e.engine == "onnxruntime"), None)
    if timed is not None:
        words.append(f"speed {_speedup(timed)} in ONNX Runtime ({_threads(timed)}, batch {timed.batch})")
    return ", ".join(words) + "."


def remarks(report: Report) -> list[str]:
    """What a reader should know of the rows: int8 that does not pay, agreement of the shipped file."""
    said = []
    for row in report.rows:
        for entry in row.versus_float:
            where = f"{_threads(entry)}, batch {entry.batch}"
            interval = f"{entry.speedup:.2f}x, {entry.speedup_low:.2f} to {entry.speedup_high:.2f}"
            verdict = "is faster" if entry.speedup_low > 1 else "is not faster"
            said.append(
                f"Int8 {verdict} than the same network's float ONNX on this machine ({row.id}, {where}: {interval})."
            )
        if row.details.get("curve") and row.details["kept_epoch"] == 0:
            said.append(f"{row.id}: no epoch of training was better on validation than what came in, which was kept.")
        if agreement := row.details.get("agreement"):
            said.append(
                f"{row.id}: ONNX Runtime and torch agree on {agreement['same_top1']} of {agreement['images']} "
                f"validation images; logits differ by {agreement['mean_logit_difference']:.2g} on average, "
                f"{agreement['largest_logit_difference']:.2g} at most."
            )
    return said


def to_table(report: Report) -> Table:
    """The table for a terminal; intervals are in the written report."""
    settings = settings_of(report)
    table = Table(header_style="bold")
    table.add_column("id")
    for name in ["test accuracy", "parameters", "MMACs", "file kB"] + [_setting_name(setting) for setting in settings]:
        table.add_column(name, justify="right")
    for row in report.rows:
        latency = _by_setting(row)
        table.add_row(
            row.id,
            _percent(row.accuracy),
            f"{row.parameters:,}",
            f"{row.macs / 1e6:.2f}",
            f"{row.size_bytes / 1e3:.1f}",
            *(f"{e.median_ms:.3f} ms {e.speedup:.2f}x" if (e := latency.get(s)) else "—" for s in settings),
        )
    return table


def to_markdown(report: Report) -> str:
    """The content of `report.md`."""
    settings = settings_of(report)
    header = ["stage", "id", "test accuracy", "95% interval", "parameters", "MMACs", "file kB"]
    header += [_setting_name(setting) for setting in settings]
    environment = report.environment
    lines = [
        f"# {report.pipeline}",
        "",
        headline(report),
        "",
        _line(header),
        _line(["---" if index < 2 else "---:" for index in range(len(header))]),
        *(_line(_row_cells(row, settings)) for row in report.rows),
        "",
        "Accuracy is scored from each stage's ONNX file in ONNX Runtime on the whole test split (k/n, Wilson 95% "
        f"interval). Latency is the median for one batch; the factor is the speed-up over `{report.baseline}` in the "
        "same setting, timed in turn, with a 95% bootstrap interval. Parameters and MACs count BatchNorm unfolded.",
        "",
        *(f"- {remark}" for remark in remarks(report)),
        "",
        f"Measured on {environment.cpu} ({environment.cores} cores; {', '.join(environment.isa) or 'no extensions'}), "
        f"{environment.gpu or 'no GPU'}, {environment.platform}; torch {environment.torch}, "
        f"ONNX Runtime {environment.onnxruntime}, Python {environment.python}; seed {report.seed}; "
        f"commit {environment.commit or 'unknown'}; pipeline {report.digest[:12]}.",
        "",
    ]
    return "\n".join(lines)


def _row_cells(row: Row, settings: Sequence[Setting]) -> list[str]:
    accuracy = row.accuracy
    parameters = f"{row.parameters:,}"
    if row.nonzero_parameters < row.parameters:
        parameters += f" ({row.nonzero_parameters:,} non-zero)"
    latency = _by_setting(row)
    return [
        row.stage,
        row.id,
        f"{_percent(accuracy)} ({accuracy.correct}/{accuracy.total})",
        f"{100 * accuracy.low:.2f} to {100 * accuracy.high:.2f}",
        parameters,
        f"{row.macs / 1e6:.2f}",
        f"{row.size_bytes / 1e3:.1f}",
        *(f"{e.median_ms:.3f} ms, {_speedup(e)}" if (e := latency.get(s)) else "—" for s in settings),
    ]


def _by_setting(row: Row) -> dict[Setting, Latency]:
    """The figures of a row by what they were taken with."""
    timed = [entry for entry in row.latency if isinstance(entry, Latency)]
    return {Setting(**entry.model_dump(include=set(Setting.model_fields))): entry for entry in timed}


def _speedup(entry: Latency) -> str:
    return f"{entry.speedup:.2f}x ({entry.speedup_low:.2f} to {entry.speedup_high:.2f})"


def _percent(accuracy: Accuracy) -> str:
    return f"{100 * accuracy.value:.2f}%"


def _threads(setting: Setting) -> str:
    return f"{setting.threads} thread{'s' if setting.threads > 1 else ''}"


def _setting_name(setting: Setting) -> str:
    engine = {"torch": "torch", "onnxruntime": "ONNX Runtime"}[setting.engine]
    where = "GPU" if setting.device == "cuda" else _threads(setting)
    return f"{engine}, {where}, batch {setting.batch}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
