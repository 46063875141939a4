"""A stage maps an artifact to an artifact; a context is all it may look at besides."""

import hashlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Generic, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from compressor.architectures import Architecture, check_fits
from compressor.artifact import TorchModel
from compressor.console import Console
from compressor.data import Dataset
from compressor.errors import UserError

GROUP = "compressor.stages"
ID_PATTERN = r"^[a-z0-9][a-z0-9_-]*$"

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Context:
    """What a stage works with besides the artifact it is given.

    Attributes:
        data: the images; a run gives stages an empty test split.
        seed: what every random choice derives from.
        device: where networks are trained.
        teachers: the artifacts of earlier stages, by id.
        factories: factories of one's own (`package.module:Factory`) that may be imported.
        pipeline: digest of the pipeline, which goes into the metadata of ONNX files.
        console: where progress is shown.
    """

    data: Dataset
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    teachers: Mapping[str, TorchModel] = field(default_factory=dict)
    factories: frozenset[str] = frozenset()
    pipeline: str = ""
    console: Console = field(default_factory=Console)

    def seed_for(self, purpose: str) -> int:
        """A seed of its own for every purpose."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{purpose}".encode()).digest()[:6])

    def new_model(self, model: str, arguments: dict[str, Any]) -> TorchModel:
        """An untrained network for this data, initialised by the seed.

        Raises:
            ArchitectureError: it cannot be built, or does not fit the images or classes.
        """
        preprocess = self.data.preprocess
        architecture = Architecture(
            model=model,
            arguments=arguments,
            num_classes=len(self.data.labels),
            in_channels=preprocess.channels,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed_for("initial weights"))
            network = architecture.build(factories=self.factories)
        check_fits(network, architecture, preprocess.input_shape(2))
        return TorchModel(network, architecture, preprocess, self.data.labels)

    def start_model(self, model: str | None, arguments: dict[str, Any], incoming: TorchModel | None) -> TorchModel:
        """What training starts from: a new network where `model` names one, else the one that comes in.

        Raises:
            UserError: there is neither.
        """
        if model is not None:
            return self.new_model(model, arguments)
        if incoming is None:
            raise UserError("there is no network to go on with; name one with `model:`")
        return incoming

    def teacher(self, stage_id: str) -> nn.Module:
        """The network of an earlier stage, to learn from.

        Raises:
            UserError: no earlier stage has this id.
        """
        if stage_id not in self.teachers:
            known = ", ".join(self.teachers) or "none"
            raise UserError(f"teacher {stage_id!r} is not an earlier stage with a torch network; there are: {known}")
        return self.teachers[stage_id].copy_network()


class Stage(BaseModel, Generic[In, Out]):
    """One step of a pipeline: its settings are its fields, its work is `run`.

    A stage is found through the entry-point group `compressor.stages`, whose names are the tags in `stage:`.
    The annotations of `run` say what it takes and makes; `None` among what it takes means that it can come first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    example: ClassVar[dict[str, Any]]  # small, valid settings, for the catalogue and the contract tests

    stage: str
    id: str = Field("", pattern=ID_PATTERN, validate_default=False)

    @model_validator(mode="before")
    @classmethod
    def _id_is_the_tag_by_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and "id" not in values:
            return {**values, "id": values.get("stage", cls.model_fields["stage"].default)}
        return values

    def run(self, model: In, context: Context) -> Out:
        """Make this stage's artifact out of `model`, which is left as it is."""
        raise TypeError(f"{type(self).__name__} defines no run()")


def takes(stage: type[Stage[Any, Any]]) -> tuple[type, ...]:
    """The artifact types that `stage.run` takes; `NoneType` among them if it can come first."""
    return _alternatives(typing.get_type_hints(stage.run)["model"])


def makes(stage: type[Stage[Any, Any]]) -> tuple[type, ...]:
    """The artifact types that `stage.run` makes."""
    return _alternatives(typing.get_type_hints(stage.run)["return"])


@cache
def discover() -> Mapping[str, type[Stage[Any, Any]]]:
    """The installed stages by tag."""
    return {entry.name: entry.load() for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def _alternatives(hint: Any) -> tuple[type, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
