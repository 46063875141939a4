"""Trainings that can be interrupted: what a training was at the end of an epoch, kept in safetensors."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from compressor.errors import ArtifactError
from compressor.storage import tensors as stored

LAST_GOOD = "last_good"


@dataclass
class Checkpoints:
    """The unfinished trainings of one stage.

    Attributes:
        folder: where they are kept.
        key: digest of all that the stage depends on; a checkpoint of another key is not read.
        started: when this run of the stage began, by the monotonic clock.
        earlier: seconds that interrupted runs of the stage took up to the checkpoints that were loaded.
    """

    folder: Path
    key: str
    started: float = field(default_factory=time.monotonic)
    earlier: float = 0.0

    @property
    def seconds(self) -> float:
        """What the stage has taken so far, interrupted runs included."""
        return self.earlier + time.monotonic() - self.started

    def save(self, label: str, start: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Keep a training in the place of what was kept of it before.

        Args:
            label: which training of the stage it is.
            start: digest of what it started from.
            tensors: its state, by names of its own choice.
            notes: what else it needs, as JSON.
        """
        about = {"key": self.key, "start": start, "seconds": str(self.seconds), "notes": json.dumps(notes)}
        stored.write(self._path(label), tensors, about)

    def load(self, label: str, start: str, most: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `save` kept of this training; None if there is nothing.

        Raises:
            ArtifactError: what was kept is damaged, or takes more than `most` bytes.
        """
        path = self._path(label)
        if not path.exists():
            return None
        try:
            tensors, metadata = stored.read(path, most)
        except ArtifactError as error:
            raise ArtifactError(f"the checkpoint {error}") from error
        if (metadata.get("key"), metadata.get("start")) != (self.key, start):
            return None
        try:
            notes, seconds = json.loads(metadata["notes"]), float(metadata["seconds"])
        except (KeyError, ValueError, RecursionError) as error:
            raise ArtifactError(f"the checkpoint {path} holds no notes or no time") from error
        if not 0 <= seconds < math.inf:
            raise ArtifactError(f"the checkpoint {path} says that it took {seconds} seconds")
        self.earlier = max(self.earlier, seconds)
        return tensors, notes

    def keep_last_good(self, weights: Mapping[str, Tensor]) -> Path:
        """Keep the weights from before a training diverged; gives the file, which the stage's `weights:` can name."""
        kept = self.folder.parent.with_name(LAST_GOOD)  # which no run removes
        path = kept / f"{self.folder.name}.safetensors"
        stored.write(path, weights)
        return path

    def _path(self, label: str) -> Path:
        return self.folder / f"{label}.training.safetensors"
