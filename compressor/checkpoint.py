"""Trainings that can be interrupted: what a training was at the end of an epoch, kept in safetensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from compressor import files
from compressor.errors import ArtifactError

LAST_GOOD = "last_good"


@dataclass(frozen=True)
class Checkpoints:
    """The unfinished trainings of one stage.

    Attributes:
        folder: where they are kept.
        key: digest of all that the stage depends on; a checkpoint of another key is not read.
    """

    folder: Path
    key: str

    def save(self, label: str, start: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Keep a training in the place of what was kept of it before.

        Args:
            label: which training of the stage it is.
            start: digest of what it started from.
            tensors: its state, by names of its own choice.
            notes: what else it needs, as JSON.
        """
        written = json.dumps(notes)
        seal = files.digest((digest(tensors) + written).encode())
        metadata = {"key": self.key, "start": start, "seal": seal, "notes": written}
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_bytes(self._path(label), _serialized(tensors, metadata))

    def load(self, label: str, start: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `save` kept of this training; None if there is nothing.

        Raises:
            ArtifactError: what was kept is damaged.
        """
        path = self._path(label)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        except SafetensorError as error:
            raise ArtifactError(f"the checkpoint {path} is damaged") from error
        if (metadata.get("key"), metadata.get("start")) != (self.key, start):
            return None
        notes = metadata.get("notes", "")
        if files.digest((digest(tensors) + notes).encode()) != metadata.get("seal"):
            raise ArtifactError(f"the checkpoint {path} is damaged")
        return tensors, json.loads(notes)

    def keep_last_good(self, weights: Mapping[str, Tensor]) -> Path:
        """Keep the weights from before a training diverged; gives the file, which the stage's `weights:` can name."""
        kept = self.folder.parent.with_name(LAST_GOOD)  # which no run removes
        path = kept / f"{self.folder.name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, _serialized(weights))
        return path

    def _path(self, label: str) -> Path:
        return self.folder / f"{label}.training.safetensors"


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and values."""
    return files.digest(_serialized(tensors))


def _serialized(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Safetensors of tensors on any device, in any memory format."""
    return safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata)
