"""TensorBoard: curves and figures as scalars, the report as text; installed by the extra `tensorboard`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.errors import UserError
from compressor.runs.trackers.figures import figures
from compressor.tracking import Tracker

EVENTS = "tensorboard"


class TensorBoard(Tracker):
    """Writes event files into `DIR/tensorboard`; `tensorboard --logdir runs` shows every run."""

    def begin(self, folder: Path, pipeline: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "tracking: tensorboard is not installed; run `pip install 'compressor[tensorboard]'`"
            ) from error
        self.writer: Any = SummaryWriter(str(folder / EVENTS))

    def on_epoch(self, stage: str, point: Mapping[str, float]) -> None:
        for name in ("loss", "validation_accuracy", "learning_rate"):
            self.writer.add_scalar(f"{stage}/{name}", point[name], int(point["epoch"]))

    def on_row(self, row: Mapping[str, Any]) -> None:
        for name, value in figures(row).items():
            self.writer.add_scalar(f"{row['id']}/{name}", value)

    def on_artifact(self, path: Path) -> None:
        content = path.read_text(encoding="utf-8") if path.suffix == ".md" else str(path.absolute())
        self.writer.add_text(path.name, content)

    def end(self) -> None:
        self.writer.close()
