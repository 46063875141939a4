"""What follows a run: epochs as they end, rows as they are scored and measured, files as they are written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Tracker:
    """Follows a run. A subclass overrides what it needs; everything else is ignored.

    A pipeline names installed trackers in `tracking:`; they are found through the entry-point group
    `compressor.trackers`. From Python, `run` takes others.
    """

    def begin(self, folder: Path, pipeline: Mapping[str, Any]) -> None:
        """A run starts in `folder`; `pipeline` is its content, as JSON."""

    def on_epoch(self, stage: str, point: Mapping[str, float]) -> None:
        """An epoch of a stage ended.

        `point` has `epoch` (from 1), `epochs`, `loss`, `validation_accuracy`, `learning_rate` and `seconds`.
        """

    def on_row(self, row: Mapping[str, Any]) -> None:
        """A stage has a row, as in `report.json`: first when it is scored, and again once its latency is measured."""

    def on_artifact(self, path: Path) -> None:
        """A file for users was written: the model or a report."""

    def on_failure(self, error: BaseException) -> None:
        """The run failed, or was interrupted (`KeyboardInterrupt`); `end` follows."""

    def end(self) -> None:
        """The run ended, whether it succeeded or failed."""
