"""Who follows a run: epochs as they end, rows as they are scored and measured, files as they are written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Tracker:
    """Follows a run. A subclass overrides what it needs; everything else is ignored.

    Installed trackers are named by `tracking:` in a pipeline and found through the entry-point group
    `compressor.trackers`; `run` takes others from Python.
    """

    def begin(self, folder: Path, pipeline: Mapping[str, Any]) -> None:
        """A run starts in `folder`; `pipeline` is its content, as JSON."""

    def on_epoch(self, stage: str, point: Mapping[str, float]) -> None:
        """An epoch of a stage ended.

        `point` has `epoch` (from 1), `epochs`, `loss`, `validation_accuracy`, `learning_rate` and `seconds`.
        """

    def on_row(self, row: Mapping[str, Any]) -> None:
        """A stage has its row, as in `report.json`: first when it is scored, again once its latency is measured."""

    def on_artifact(self, path: Path) -> None:
        """A file that people look for was written: the model, the report."""

    def end(self) -> None:
        """The run ended, well or not."""
