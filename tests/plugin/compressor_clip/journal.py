"""Another tracker: a text file with a line for each event."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor import Tracker


class Journal(Tracker):
    """Writes `journal.txt` into the run's folder."""

    def begin(self, folder: Path, pipeline: Mapping[str, Any]) -> None:
        self.path = folder / "journal.txt"
        self.lines = [f"begin {pipeline['name']}"]

    def on_epoch(self, stage: str, point: Mapping[str, float]) -> None:
        self.lines.append(f"epoch {stage} {point['epoch']} of {point['epochs']}")

    def on_row(self, row: Mapping[str, Any]) -> None:
        self.lines.append(f"row {row['id']} {'measured' if row.get('latency') else 'scored'}")

    def on_artifact(self, path: Path) -> None:
        self.lines.append(f"artifact {path.name}")

    def end(self) -> None:
        self.path.write_text("\n".join([*self.lines, "end"]) + "\n")
