"""A pipeline: data and a tuple of stages, read from YAML and checked before anything runs."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from compressor import files, yaml_source
from compressor.architectures import factory_of
from compressor.artifact import TorchModel
from compressor.data import Data
from compressor.errors import SpecError
from compressor.stage import ID_PATTERN, Stage, discover, makes, takes
from compressor.yaml_source import Key, Source

if TYPE_CHECKING:
    AnyStage = Stage[Any, Any]
else:
    AnyStage = InstanceOf[Stage]  # a parametrized generic would be validated anew, as if it had no fields


class Measure(BaseModel):
    """What latency is measured on: every combination that the machine has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engines: tuple[Literal["torch", "onnxruntime"], ...] = ("torch", "onnxruntime")
    devices: tuple[Literal["cpu", "cuda"], ...] = ("cpu", "cuda")
    threads: tuple[PositiveInt, ...] = Field((1,), min_length=1)
    batches: tuple[PositiveInt, ...] = Field((1,), min_length=1)


class Pipeline(BaseModel):
    """A run, as data.

    Attributes:
        name: names the default output folder.
        seed: what every random choice derives from.
        data: the images.
        stages: in order; each takes what the one before it makes.
        measure: what latency is measured on.
        baseline: id of the stage that the others are compared with; the first by default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=ID_PATTERN)
    seed: int = Field(0, ge=0)
    data: Data
    stages: tuple[SerializeAsAny[AnyStage], ...] = Field(min_length=1)
    measure: Measure = Measure()
    baseline: str = Field("", validate_default=False)

    @model_validator(mode="after")
    def _check_connections(self) -> "Pipeline":
        connections(self.stages)
        if self.baseline and self.baseline not in {stage.id for stage in self.stages}:
            raise ValueError(f"baseline {self.baseline!r} is not the id of a stage")
        return self

    @property
    def baseline_id(self) -> str:
        """Id of the stage that the others are compared with."""
        return self.baseline or self.stages[0].id

    @property
    def factories(self) -> frozenset[str]:
        """The factories that this pipeline names, and so may import."""
        models = (getattr(stage, "model", None) for stage in self.stages)
        factories = (factory_of(model) for model in models if isinstance(model, str))
        return frozenset(factory for factory in factories if factory is not None)

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides what is made: data, seed and stages, but not what is then measured."""
        return files.digest_json(self.model_dump(mode="json", include={"data", "seed", "stages"}))

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Pipeline":
        """Read a pipeline from YAML, with `--set` overrides (`stages.teacher.epochs=5`).

        Raises:
            SpecError: all that is wrong with it, each with file, line and column.
        """
        return cls.parse(yaml_source.read(Path(path), overrides))

    @classmethod
    def parse(cls, source: Source) -> "Pipeline":
        """A pipeline from the content of a YAML file.

        Raises:
            SpecError: as `load`.
        """
        content = source.content
        if not isinstance(content, dict):
            raise SpecError(f"{source.name}: expected a mapping with the keys name, data and stages")
        problems: list[str] = []
        stages = _parse_stages(content.get("stages"), source, problems)
        try:
            pipeline = cls.model_validate({**content, "stages": stages})
        except ValidationError as error:
            problems += _problems(error, (), source, cls)
        if problems:
            raise SpecError("\n".join(problems))
        return pipeline

    def to_yaml(self) -> str:
        """The pipeline as YAML that `load` reads back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def connections(stages: Sequence[AnyStage]) -> None:
    """Check that ids are unique, neighbours connect, and teachers come earlier.

    Raises:
        ValueError: the first that does not hold, in words.
    """
    made: tuple[type, ...] = (type(None),)
    before = "nothing before it"
    earlier: dict[str, tuple[type, ...]] = {}
    for stage in stages:
        if stage.id in earlier:
            raise ValueError(f"two stages have the id {stage.id!r}; give each its own")
        if not set(made) <= set(takes(type(stage))):
            raise ValueError(
                f"stage {stage.id!r} ({stage.stage}) takes {_words(takes(type(stage)))}, but there is {before}"
            )
        teacher = getattr(stage, "teacher", None)
        if teacher is not None and teacher not in earlier:
            raise ValueError(f"stage {stage.id!r}: teacher {teacher!r} is not the id of an earlier stage")
        if teacher is not None and TorchModel not in earlier[teacher]:
            raise ValueError(
                f"stage {stage.id!r}: teacher {teacher!r} makes {_words(earlier[teacher])}, which cannot teach"
            )
        if not earlier and getattr(stage, "model", "") is None:
            raise ValueError(f"stage {stage.id!r} comes first, so it needs a model")
        made = makes(type(stage))
        before = f"{_words(made)} before it, from stage {stage.id!r}"
        earlier[stage.id] = made


def _parse_stages(raw: Any, source: Source, problems: list[str]) -> Any:
    """Each stage by its tag; what is wrong with them goes into `problems`."""
    if not isinstance(raw, list):
        return raw  # the pipeline's own check says what is wrong with it
    catalogue = discover()
    stages = []
    for index, content in enumerate(raw):
        key: Key = ("stages", index)
        tag = content.get("stage") if isinstance(content, dict) else None
        if not isinstance(content, dict) or tag is None:
            problems.append(
                f"{source.place(key)}: stages.{index}: names no stage; expected `stage:` and one of "
                f"{', '.join(catalogue)}"
            )
        elif tag not in catalogue:
            hint = _did_you_mean(str(tag), list(catalogue))
            problems.append(
                f"{source.place((*key, 'stage'))}: stages.{index}.stage: there is no stage {tag!r}{hint}; "
                f"installed are {', '.join(catalogue)}"
            )
        else:
            try:
                stages.append(catalogue[tag].model_validate(content))
                continue
            except ValidationError as error:
                problems += _problems(error, key, source, catalogue[tag])
    return stages if len(stages) == len(raw) else None


def _problems(error: ValidationError, prefix: Key, source: Source, model: type[BaseModel]) -> list[str]:
    problems = []
    for detail in error.errors():
        key = (*prefix, *detail["loc"])
        if key == ("stages",) and detail["input"] is None and "stages" in (source.content or {}):
            continue  # said of the stage itself already
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = f"unknown key{_did_you_mean(str(key[-1]), _fields(model, detail['loc']))}"
        elif detail["type"] == "missing":
            message = "is required"
        name = ".".join(str(part) for part in key)
        problems.append(f"{source.place(key)}: {name}: {message}" if name else f"{source.place(key)}: {message}")
    return problems


def _fields(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The names that could stand where `location` points."""
    for part in location[:-1]:
        annotation = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def _words(kinds: Sequence[type]) -> str:
    names = {"NoneType": "nothing", "TorchModel": "a torch network", "OnnxModel": "an ONNX file"}
    return " or ".join(names.get(kind.__name__, kind.__name__) for kind in kinds)
