"""`manifest.json`: what a folder says of the artifact in it, checked before anything is built from it."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from compressor.config.spec import first_problem
from compressor.data.preprocess import Preprocess
from compressor.errors import ArtifactError
from compressor.models.architectures import Architecture
from compressor.models.changes import Change, Int8
from compressor.storage import files

MANIFEST = "manifest.json"
MAX_CHANGES = 100  # of one network: each is replayed on loading

Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Engine = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class Counts(BaseModel):
    """The size of a network with BatchNorm counted and unfolded, whatever was folded or quantized since."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: Count
    nonzero_parameters: Count
    macs: Count  # multiply-adds of convolutions and linear layers for one image

    @model_validator(mode="after")
    def _no_more_than_all(self) -> Self:
        if self.nonzero_parameters > self.parameters:
            raise ValueError(f"{self.nonzero_parameters} of {self.parameters} parameters cannot be other than zero")
        return self


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    preprocess: Preprocess
    labels: tuple[str, ...] = Field(min_length=1)
    versions: dict[str, str]
    digest: Digest  # SHA-256 of the file beside it
    details: dict[str, Any]


class TorchManifest(_Manifest):
    """`manifest.json` beside `weights.safetensors`."""

    kind: Literal["torch"] = "torch"
    architecture: Architecture
    changes: tuple[Change, ...] = Field(max_length=MAX_CHANGES)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        built = self.architecture.num_classes, self.architecture.in_channels
        if built != (len(self.labels), self.preprocess.channels):
            raise ValueError(
                f"the architecture has {built[0]} classes and {built[1]} channels, the labels and images "
                f"{len(self.labels)} and {self.preprocess.channels}"
            )
        if sum(isinstance(change, Int8) for change in self.changes) > 1:
            raise ValueError("a network is quantized once")
        return self


class OnnxManifest(_Manifest):
    """`manifest.json` beside `model.onnx`."""

    kind: Literal["onnx"] = "onnx"
    counts: Counts
    quantized: bool
    engines: tuple[Engine, ...] = ()
    own_files: dict[Literal["tensorrt"], Digest] = {}


Manifest = TorchManifest | OnnxManifest
_MANIFEST: TypeAdapter[Manifest] = TypeAdapter(Annotated[Manifest, Field(discriminator="kind")])


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the artifact in `folder`.

    Raises:
        ArtifactError: there is none, or what it says cannot be.
    """
    path = folder / MANIFEST
    try:
        return _MANIFEST.validate_json(files.read_bytes(path, files.MAX_TEXT_BYTES))
    except OSError as error:
        raise ArtifactError(f"{folder} holds no readable artifact: {error.strerror}: {error.filename}") from error
    except ValidationError as error:
        raise ArtifactError(f"{path}: not a manifest of this version: {first_problem(error)}") from error
