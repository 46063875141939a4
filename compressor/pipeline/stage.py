"""A stage maps an artifact to an artifact; a context is all it may look at besides."""

import hashlib
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from pydantic import Field, model_validator

from compressor.config.spec import Arguments, Spec
from compressor.config.yaml_file import Key
from compressor.console import Console
from compressor.data.dataset import Dataset
from compressor.errors import CompressorError, StageError, UserError, first_line, is_out_of_memory
from compressor.models.architectures import Architecture, check_fits
from compressor.models.artifact import TorchModel
from compressor.storage.checkpoints import Checkpoints

GROUP = "compressor.stages"
ID_PATTERN = r"^[a-z0-9][a-z0-9_-]*$"
LONGEST_ID = 64

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
        factories: factories of one's own (`package.module:Factory`) that loaded artifacts may import.
        pipeline: digest of the pipeline, which goes into the metadata of ONNX files.
        console: where progress is shown.
        checkpoints: where unfinished trainings are kept; none are by default.
        soft_labels: the folder where teachers' stored outputs are kept; none are by default.
    """

    data: Dataset
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    teachers: Mapping[str, TorchModel] = field(default_factory=dict)
    factories: frozenset[str] = frozenset()
    pipeline: str = ""
    console: Console = field(default_factory=Console)
    checkpoints: Checkpoints | None = None
    soft_labels: Path | None = None

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
            network = architecture.build(factories=frozenset({model}))  # who makes the stage names its model
        check_fits(network, architecture, preprocess.input_shape(2))
        return TorchModel(network, architecture, preprocess, self.data.labels)

    def teacher(self, stage_id: str) -> TorchModel:
        """The earlier stage's artifact to learn from.

        Raises:
            UserError: no earlier stage has this id.
        """
        if stage_id not in self.teachers:
            known = ", ".join(self.teachers) or "none"
            raise UserError(f"teacher {stage_id!r} is not an earlier stage with a torch network; there are: {known}")
        return self.teachers[stage_id]


class Stage(Spec, Generic[In, Out]):
    """One step of a pipeline: its settings are its fields, its work is `run`.

    A stage is found through the entry-point group `compressor.stages`, whose names are the tags in `stage:`.
    The annotations of `run` say what it takes and makes; `None` among what it takes means that it can come first.
    """

    example: ClassVar[dict[str, Any]]  # small, valid settings, for the catalogue and the contract tests
    needs_recovery: ClassVar[bool] = False  # what it makes should be trained before it is rounded or shipped
    recovers: ClassVar[bool] = False  # it trains what such a stage made

    stage: str
    id: str = Field("", pattern=ID_PATTERN, max_length=LONGEST_ID, validate_default=False)

    @model_validator(mode="before")
    @classmethod
    def _id_is_the_tag_by_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and "id" not in values:
            return {**values, "id": values.get("stage", cls.model_fields["stage"].default)}
        return values

    def run(self, model: In, context: Context) -> Out:
        """Make this stage's artifact out of `model`, which is left as it is."""
        raise TypeError(f"{type(self).__name__} defines no run()")

    def rehearsal(self) -> Self:
        """This stage with as little work as takes every step of it, to be tried on a few synthetic images."""
        return self


@contextmanager
def named(stage: Stage[Any, Any]) -> Iterator[None]:
    """Say of an error in which stage it arose.

    Raises:
        StageError: memory ran out.
    """
    try:
        yield
    except CompressorError as error:
        raise type(error)(f"stage {stage.id!r}: {error}") from error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise StageError(
            f"stage {stage.id!r}: out of memory ({first_line(error)}); lower batch_size or data.size, or use a larger "
            "machine"
        ) from error


class Start(Spec):
    """Settings of a stage that trains a new network, or goes on with the one that comes in.

    Attributes:
        model: the architecture of a new network; absent, the network that comes in learns on.
        arguments: of the architecture.
    """

    model: str | None = None
    arguments: Arguments = {}

    @model_validator(mode="after")
    def _arguments_are_of_a_model(self) -> Self:
        if self.arguments and self.model is None:
            raise ValueError("arguments are those of a model, and no model is named; add `model:`, or leave them out")
        return self

    def start(self, incoming: TorchModel | None, context: Context) -> TorchModel:
        """The network that training starts from.

        Raises:
            UserError: none is named and none comes in.
            ArchitectureError: it cannot be built, or does not fit the images or classes.
        """
        if self.model is not None:
            return context.new_model(self.model, self.arguments)
        if incoming is None:
            raise UserError("there is no network to go on with; name one with `model:`")
        return incoming


def named_teachers(settings: Mapping[str, Any]) -> list[tuple[Key, str]]:
    """The ids of the stages that settings name as `teacher` or `teachers`, each with its key."""
    several = settings.get("teachers")
    named: list[tuple[Key, Any]] = [(("teacher",), settings.get("teacher"))]
    named += [(("teachers", i), each) for i, each in enumerate(several if isinstance(several, list | tuple) else ())]
    return [(key, stage_id) for key, stage_id in named if isinstance(stage_id, str)]


def takes(stage: type[Stage[Any, Any]]) -> tuple[type, ...]:
    """The artifact types that `stage.run` takes; `NoneType` among them if it can come first."""
    return _alternatives(typing.get_type_hints(stage.run)["model"])


def makes(stage: type[Stage[Any, Any]]) -> tuple[type, ...]:
    """The artifact types that `stage.run` makes."""
    return _alternatives(typing.get_type_hints(stage.run)["return"])


@cache
def discover() -> Mapping[str, type[Stage[Any, Any]]]:
    """The installed stages by tag.

    Raises:
        UserError: a package offers what is no stage or cannot be imported, or two packages offer one tag.
    """
    offered: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, _package(entry))):
        if entry.name in offered:
            packages = f"{_package(offered[entry.name])} and {_package(entry)}"
            raise UserError(f"the stage {entry.name!r} is offered by two packages, {packages}; uninstall one of them")
        offered[entry.name] = entry
    return {tag: _load(entry) for tag, entry in offered.items()}


def _load(entry: EntryPoint) -> type[Stage[Any, Any]]:
    whose = f"the stage {entry.name!r} of the package {_package(entry)}"
    try:
        kind = entry.load()
    except (Exception, SystemExit) as error:  # importing runs the package's code
        raise UserError(f"{whose} cannot be imported: {first_line(error)}; repair or uninstall it") from error
    if not (isinstance(kind, type) and issubclass(kind, Stage)):
        raise UserError(f"{whose} is no subclass of compressor.Stage; repair or uninstall it")
    if kind.model_fields["stage"].default != entry.name:
        raise UserError(f"{whose} calls itself {kind.model_fields['stage'].default!r}; the two names must be one")
    return kind


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module


def _alternatives(hint: Any) -> tuple[type, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
