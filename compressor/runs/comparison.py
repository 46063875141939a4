"""Two runs side by side (`compress compare`), and a run beside its repetition (`compress reproduce`)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from compressor.config import yaml_file as yaml_source
from compressor.console import table
from compressor.errors import ArtifactError
from compressor.evaluation.accuracy import SIGNIFICANT, Paired, Predictions
from compressor.report.report import Report, Row
from compressor.report.wording import difference, percent, setting_name, speedup
from compressor.runs.store import PREDICTIONS, row_in

Side = tuple[Path, Report]


def paired(one: Side, row: Row, other: Side, other_row: Row) -> Paired | None:
    """`other_row` of `other` against `row` of `one`.

    None if the test images differ, or predictions are missing or made since the report.
    """
    rows = (one[0] / row.artifact, row), (other[0] / other_row.artifact, other_row)
    files = [folder / PREDICTIONS for folder, _ in rows]
    if row.scored_on != other_row.scored_on or not all(path.is_file() for path in files):
        return None
    made = [(row_in(folder), reported) for folder, reported in rows]
    if any(
        now is None or (now.sha256, now.scored_on) != (reported.sha256, reported.scored_on) for now, reported in made
    ):
        return None
    before, after = (Predictions.load(path) for path in files)
    if not np.array_equal(before.labels, after.labels):
        raise ArtifactError(f"{files[1]} and {files[0]} are of other images than their reports say")
    return after.against(before)


def comparison_table(one: Side, other: Side) -> Table:
    """What two runs ship, side by side."""
    rows = one[1].shipped_row, other[1].shipped_row
    lines = [
        ["pipeline", *(report.pipeline for _, report in (one, other))],
        ["shipped", *(row.id for row in rows)],
        ["test accuracy", *(_accuracy(row) for row in rows)],
        ["calibration error", *(f"{100 * row.calibration_error:.2f}%" for row in rows)],
        ["parameters", *(f"{row.parameters:,}" for row in rows)],
        ["MMACs", *(f"{row.macs / 1e6:.2f}" for row in rows)],
        ["file kB", *(f"{row.size_bytes / 1e3:.1f}" for row in rows)],
        ["baseline", *(f"{r.baseline}, {percent(r.baseline_row.accuracy)}" for _, r in (one, other))],
    ]
    for setting in dict.fromkeys((*rows[0].timed, *rows[1].timed)):
        cells = [f"{e.median_ms:.3f} ms, {speedup(e)}" if (e := row.timed.get(setting)) else "—" for row in rows]
        lines.append([setting_name(setting), *cells])
    return table(["", str(one[0]), str(other[0])], lines)


def comparison_of(one: Side, other: Side) -> dict[str, Any]:
    """The same as JSON; `paired` is the second against the first on the same test images, null where they differ."""
    rows = one[1].shipped_row, other[1].shipped_row
    together = paired(one, rows[0], other, rows[1])
    return {
        "runs": [str(folder) for folder, _ in (one, other)],
        "shipped": [row.model_dump(mode="json", exclude={"details", "made_from"}) for row in rows],
        "paired": None if together is None else together.model_dump(mode="json"),
        "differences": [*_machines(one[1], other[1]), *_settings(one[1], other[1])],
    }


def comparison_remarks(one: Side, other: Side) -> Iterator[str]:
    """How the second run compares with the first, and where their pipelines differ."""
    rows = one[1].shipped_row, other[1].shipped_row
    together = paired(one, rows[0], other, rows[1])
    if together is None:
        yield (
            "Not compared image by image: the test images differ, or the stages' folders are missing or newer than the "
            "report (if a run was interrupted, repeat its command to finish it)."
        )
    else:
        yield (
            f"On the same {together.total:,} test images {other[0]} is {difference(together, str(one[0]))} "
            f"(McNemar's exact p = {together.p_value:.2g})."
        )
    yield (
        "Speed-ups are each over the run's own baseline; "
        f"compress bench {other[0] / 'model.onnx'} --against {one[0] / 'model.onnx'} times the two in turn."
    )
    yield from _machines(one[1], other[1])
    yield from _settings(one[1], other[1])


def drift(one: Side, other: Side) -> tuple[Table, bool]:
    """Each stage of a run beside the same stage repeated, and whether any differs by more than noise."""
    lines = []
    differs = False
    for row in one[1].rows:
        again = other[1].row(row.id)
        if row.sha256 == again.sha256:
            file, verdict = "byte-identical", "equal"
        else:
            file = "other bytes"
            together = paired(one, row, other, again)
            if together is None:
                verdict = "differs: different bytes, and no predictions for the same images"
            elif together.p_value < SIGNIFICANT:
                verdict = f"differs: {difference(together, 'recorded')}"
            else:
                verdict = f"within noise: {difference(together, 'recorded')}"
        differs |= verdict.startswith("differs")
        lines.append([row.id, file, _accuracy(row), _accuracy(again), verdict])
    repeated = {each.engine: each for each in other[1].engines}
    for each in one[1].engines:
        if (now := repeated.get(each.engine)) is None:
            lines.append([f"for {each.engine}", "", percent(each.accuracy), "—", "differs: not made"])
            differs = True
        else:
            file = "byte-identical" if each.sha256 == now.sha256 else "other bytes"
            lines.append([f"for {each.engine}", file, percent(each.accuracy), percent(now.accuracy), ""])
    return table(["stage", "file", "recorded", "repeated", "verdict"], lines), differs


def surroundings(one: Report, other: Report) -> Iterator[str]:
    """What changed when a run was repeated (data, machine, versions), and how the speed-ups compare."""
    if one.data.fingerprint != other.data.fingerprint:
        yield f"the data differ: fingerprint {one.data.fingerprint[:12]}, now {other.data.fingerprint[:12]}"
    yield from _machines(one, other)
    setting = one.headline_setting
    again = other.shipped_row.timed.get(setting) if setting is not None else None
    if setting is not None and again is not None:
        entry = one.shipped_row.timed[setting]
        apart = entry.speedup_low > again.speedup_high or again.speedup_low > entry.speedup_high
        yield f"speed-up {speedup(entry)}, now {speedup(again)}: {'differs' if apart else 'within noise'}"


def _machines(one: Report, other: Report) -> Iterator[str]:
    before, after = (report.environment.model_dump() for report in (one, other))
    for name, value in before.items():
        if value != after[name]:
            yield f"{name}: {_plain(value)} | {_plain(after[name])}"


def _settings(one: Report, other: Report) -> Iterator[str]:
    before, after = (dict(_flat(yaml_source.parse(report.spec, "spec").content)) for report in (one, other))
    for key in dict.fromkeys((*before, *after)):
        one_is, other_is = _plain(before.get(key)), _plain(after.get(key))
        if one_is != other_is:
            yield f"{key}: {one_is} | {other_is}"


def _flat(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted key; a stage by its id."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _flat(value, f"{key}.{name}" if key else str(name))
    elif isinstance(content, list) and content and all(isinstance(each, dict) for each in content):
        for index, value in enumerate(content):
            yield from _flat(value, f"{key}.{value.get('id', index)}")
    else:
        yield key, content


def _plain(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(str(each) for each in value) or "none"
    return "none" if value is None else str(value)


def _accuracy(row: Row) -> str:
    accuracy = row.accuracy
    return f"{percent(accuracy)} ({100 * accuracy.low:.2f} to {100 * accuracy.high:.2f})"


def load_run(folder: Path) -> Side:
    """A run folder, with its report.

    Raises:
        ArtifactError: there is none.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not the folder of a run")
    return folder, Report.load(folder)
