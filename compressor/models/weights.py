"""Weights as users bring them: safetensors, or a state dict that loads with `weights_only`; nothing is unpickled."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from compressor.errors import ArtifactError, pass_on_out_of_memory
from compressor.storage import files, tensors

PICKLES = (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")  # how torch.save and pickle begin a file


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file, or from a state dict that torch loads with `weights_only`.

    Raises:
        ArtifactError: the file is missing, or holds anything else.
    """
    try:
        files.check_plain(path)
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                if file.read(2) in PICKLES:
                    raise ArtifactError(f"weights: {path} is a pickle, not a safetensors file; it is not read")
            state: Any = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ArtifactError:
        raise
    except FileNotFoundError as error:
        raise ArtifactError(f"weights: there is no file {path}") from error
    except OSError as error:
        raise ArtifactError(f"weights: {path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise ArtifactError(f"weights: {path} is not a safetensors file: {error}") from error
    except Exception as error:  # torch's weights-only unpickler raises many types, with paragraphs of advice
        pass_on_out_of_memory(error)
        raise ArtifactError(
            f"weights: {path} is not a state dict that loads with weights_only; save it as safetensors"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        entries = state.items() if isinstance(state, dict) else ()
        held = [str(name) for name, value in entries if isinstance(value, dict)]
        hint = f"; it holds {', '.join(repr(name) for name in held[:3])}: save that part alone" if held else ""
        raise ArtifactError(f"weights: {path} is not a state dict (names to tensors){hint}")
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_complex():
            raise ArtifactError(f"weights: {name} in {path} is no plain tensor of real numbers")
        if not bool(tensor.isfinite().all()):
            raise ArtifactError(f"weights: {name} in {path} holds numbers that are not finite; its training diverged")
    return state


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Load `weights` into `network`, every name and shape as it is.

    Raises:
        ArtifactError: they do not fit; the first misfits are named with both shapes.
    """
    misfits = list(_misfits(network.state_dict(), weights))
    if misfits:
        more = f" (and {len(misfits) - 3} more)" if len(misfits) > 3 else ""
        wrapped = all(name.startswith("module.") for name in weights)
        hint = "; its names begin with `module.` (DataParallel): take that off and save it again" if wrapped else ""
        raise ArtifactError(f"{source} does not fit the network: {'; '.join(misfits[:3])}{more}{hint}")
    tensors.load_into(network, weights)  # only BatchNorm's counters may be absent, checked above


def _misfits(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Iterator[str]:
    for name, tensor in expected.items():
        if name not in given:
            if not name.endswith("num_batches_tracked"):
                yield f"{name} {list(tensor.shape)} is missing"
        elif given[name].shape != tensor.shape:
            yield f"{name} is {list(given[name].shape)}, the network needs {list(tensor.shape)}"
    for name in (name for name in given if name not in expected):
        yield f"{name} {list(given[name].shape)} is not in the network"
