"""A stage maps an artifact to an artifact: its fields are the settings, `run` does the work."""

import types
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from compressor import plugins
from compressor.config.spec import Arguments, Spec
from compressor.config.yaml_file import Key
from compressor.errors import CompressorError, StageError, UserError, first_line, is_out_of_memory

if TYPE_CHECKING:
    from compressor.evaluation import Layer
    from compressor.models.artifact import Artifact, TorchModel
    from compressor.pipeline.context import Context

ID_PATTERN = r"^[a-z0-9][a-z0-9_-]*$"
MAX_ID_LENGTH = 64
NOTHING = "None"


class Stage(Spec):
    """One step of a pipeline.

    A stage is found through the entry-point group `compressor.stages`, whose names are the tags in `stage:`.
    The annotations of `run` say what it takes and makes; if it accepts `None`, the stage can come first.
    """

    example: ClassVar[dict[str, Any]]  # small, valid settings, for the catalogue and the contract tests
    needs_recovery: ClassVar[bool] = False  # its result should be trained before it is quantized or exported
    recovers: ClassVar[bool] = False  # it trains the result of such a stage
    makes_integers: ClassVar[bool] = False  # networks are faster behind it, and latency targets before it are meant so

    stage: str
    """Which stage this is."""
    id: str = Field("", pattern=ID_PATTERN, max_length=MAX_ID_LENGTH, validate_default=False)
    """Names the stage's folder and row; by default the tag."""

    @model_validator(mode="before")
    @classmethod
    def _id_is_the_tag_by_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and "id" not in values:
            return {**values, "id": values.get("stage", cls.model_fields["stage"].default)}
        return values

    def run(self, model: Any, context: "Context") -> "Artifact":
        """Make this stage's artifact from `model`, which is not changed."""
        raise TypeError(f"{type(self).__name__} defines no run()")

    def expected_data(self, channels: int) -> Mapping[str, Any]:
        """Settings of `data`, for images of so many channels, that the stage would have if it comes first.

        They hold where the pipeline leaves them open.
        """
        return {}

    def decided_by(self, context: "Context") -> Any:
        """What decides the artifact besides the settings, the incoming network, data, seed and device, as JSON."""
        return None

    def check_files(self) -> None:
        """Refuse files that the settings name and that cannot be used, before anything is trained."""

    @property
    def engines(self) -> tuple[str, ...]:
        """What its file is for, besides ONNX Runtime."""
        return ()

    @property
    def data_parallel(self) -> bool:
        """Whether all processes of a run take part; else the first one runs the stage, and the others wait."""
        return False

    def timed_layers(self, model: Any, context: "Context") -> "Collection[Layer]":
        """The layers whose times decide what the stage makes of `model`, for tables of other machines."""
        return ()

    def for_dry_run(self) -> Self:
        """This stage with as little work as still takes every step, for a few synthetic images."""
        return self


@contextmanager
def named(stage: Stage) -> Iterator[None]:
    """Name the stage in an error that arises in it.

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
    """Settings of a stage that trains a new network or the incoming one."""

    model: str | None = Field(None, max_length=200)
    """The architecture of a new network; without one, the incoming network is trained further."""
    arguments: Arguments = {}
    """Arguments of the architecture."""

    @model_validator(mode="after")
    def _arguments_are_of_a_model(self) -> Self:
        if self.arguments and self.model is None:
            raise ValueError("arguments belong to a model, but no model is named; add `model:`, or leave them out")
        return self

    @property
    def all_arguments(self) -> dict[str, Any]:
        """The arguments that the architecture is built with."""
        return self.arguments

    def start(self, incoming: "TorchModel | None", context: "Context") -> "TorchModel":
        """The network that training starts from.

        Raises:
            UserError: no model is named, and there is no incoming network.
            ArchitectureError: it cannot be built, or does not fit the images or classes.
        """
        if self.model is not None:
            return context.new_model(self.model, self.all_arguments)
        if incoming is None:
            raise UserError("there is no network to train further; name one with `model:`")
        return incoming


def named_teachers(settings: Mapping[str, Any]) -> list[tuple[Key, str]]:
    """The ids of the stages that settings name as `teacher` or `teachers`, each with its key."""
    several = settings.get("teachers")
    named: list[tuple[Key, Any]] = [(("teacher",), settings.get("teacher"))]
    named += [(("teachers", i), each) for i, each in enumerate(several if isinstance(several, list | tuple) else ())]
    return [(key, stage_id) for key, stage_id in named if isinstance(stage_id, str)]


def takes(stage: type[Stage]) -> frozenset[str]:
    """The names of the artifact types that `stage.run` takes; `None` among them if it can come first."""
    return _names(stage.run.__annotations__["model"])


def makes(stage: type[Stage]) -> frozenset[str]:
    """The names of the artifact types that `stage.run` makes."""
    return _names(stage.run.__annotations__["return"])


@cache
def discover() -> Mapping[str, type[Stage]]:
    """The installed stages by tag.

    Raises:
        UserError: a package offers something that is not a stage or cannot be imported, or two packages offer one tag.
    """
    stages: dict[str, type[Stage]] = {}
    for tag, entry in plugins.offered(plugins.STAGES, "stage").items():
        stages[tag] = plugins.load(entry, "stage", Stage)
        own = stages[tag].model_fields["stage"].default
        if own != tag:
            whose = f"the stage {tag!r} of the package {plugins.package_of(entry)}"
            raise UserError(f"{whose} calls itself {own!r}; the two names must match")
    return stages


def _names(hint: Any) -> frozenset[str]:
    """The types of an annotation, by name; it may be text, so that reading it imports nothing."""
    if isinstance(hint, str):
        return frozenset(part.strip().strip("\"'") for part in hint.split("|"))
    alternatives = hint.__args__ if isinstance(hint, types.UnionType) else (hint,)
    return frozenset(NOTHING if each in (None, types.NoneType) else each.__name__ for each in alternatives)
