"""Files of named tensors, sealed by a digest of what is in them."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from compressor.errors import ArtifactError, first_line
from compressor.storage import files

UNREADABLE = (SafetensorError, KeyError, ValueError, RuntimeError)  # what safetensors raises, the last for odd types


def write(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> None:
    """Keep tensors, from any device and in any memory format, and texts with them; whole or not at all."""
    notes = dict(notes or {})
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, _serialized(tensors, {**notes, "seal": _seal(tensors, notes)}))


def read(path: Path, most: int | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `write` kept.

    Raises:
        ArtifactError: the file is damaged, or larger than `most`, which what is expected there takes.
    """
    try:
        files.check_plain(path)
        if most is not None and path.stat().st_size > most:
            raise ArtifactError(f"{path} holds {path.stat().st_size:,} bytes, more than it can need")
        with safe_open(path, framework="pt") as file:
            notes = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (OSError, *UNREADABLE) as error:
        raise ArtifactError(f"{path} is damaged") from error
    if notes.pop("seal", None) != _seal(tensors, notes):
        raise ArtifactError(f"{path} is damaged")
    return tensors, notes


def parse(content: bytes, *, source: Path) -> dict[str, Tensor]:
    """Tensors by name from the content of a safetensors file, which holds all that its header claims.

    Raises:
        ArtifactError: it is no such file.
    """
    try:
        return safetensors.torch.load(content)
    except UNREADABLE as error:
        raise ArtifactError(f"{source} is not a safetensors file: {first_line(error)}") from error


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and values."""
    return files.digest(_serialized(tensors))


def load_into(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors by name; what is not among them stays as it is.

    Some modules ask for the version of their state, which files of tensors do not hold: it is that of the network.
    """
    state = network.state_dict()
    state.update(tensors)
    network.load_state_dict(state)


def _seal(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    return files.digest((digest(tensors) + json.dumps(notes, sort_keys=True)).encode())


def _serialized(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    return safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata)
