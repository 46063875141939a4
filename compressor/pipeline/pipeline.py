"""A pipeline: data and a tuple of stages, read from YAML and checked before anything runs."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, InstanceOf, SerializeAsAny, ValidationError, field_validator, model_validator

from compressor.config import yaml_file as yaml_source
from compressor.config.factories import factory_of
from compressor.config.spec import Spec, did_you_mean, problems_of, validated_copy
from compressor.config.yaml_file import Key, Source, dotted
from compressor.data.settings import Data, Store
from compressor.errors import SpecError
from compressor.pipeline.measure import Measure, TrackerName
from compressor.pipeline.stage import ID_PATTERN, MAX_ID_LENGTH, NOTHING, Stage, discover, makes, named_teachers, takes
from compressor.storage import files

MAX_SEED = 2**32 - 1  # numpy's
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class Pipeline(Spec):
    """A run, as data."""

    name: str = Field(pattern=ID_PATTERN, max_length=MAX_ID_LENGTH)
    """Names the default output folder."""
    seed: Seed = 0
    """Every random choice derives from it."""
    seeds: tuple[Seed, ...] = ()
    """Run once with each, instead of `seed`; the first one ships, the others show how much is chance."""
    license: str = Field("", max_length=200)
    """The license of the weights, for the model card."""
    data: Data
    """The images."""
    stages: tuple[SerializeAsAny[InstanceOf[Stage]], ...] = Field(min_length=1)
    """In order; each takes the output of the one before."""
    measure: Measure = Measure()
    """What latency is measured on."""
    tracking: tuple[TrackerName, ...] = ()
    """What the run is logged to: TensorBoard, MLflow (each an extra), or a tracker of another package."""
    baseline: str = Field("", validate_default=False)
    """The id of the stage that the others are compared with; the first by default."""

    @model_validator(mode="after")
    def _check_connections(self) -> "Pipeline":
        wrong = [message for _, message in _disconnected([_Link.of(stage) for stage in self.stages], self.baseline)]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is listed twice; it would repeat the same run")
        return seeds

    @model_validator(mode="after")
    def _one_way_to_say_the_seed(self) -> "Pipeline":
        if self.seeds and "seed" in self.model_fields_set:
            raise ValueError("seed and seeds are both given; leave one out")
        return self

    @property
    def repeats(self) -> tuple["Pipeline", ...]:
        """This pipeline with each of its seeds."""
        return tuple(validated_copy(self, seed=seed, seeds=()) for seed in self.seeds) or (self,)

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
        """SHA-256 of everything that decides the result: data, seed and stages, but no paths and no `measure`."""
        content = self.model_dump(mode="json", include={"data", "seed", "stages"})
        for where in ("root", "store"):
            del content["data"][where]
        if "unlabeled" in content["data"]:
            content["data"]["unlabeled"] = "given"
        for stage, written in zip(self.stages, content["stages"], strict=True):
            if isinstance(getattr(stage, "weights", None), Path):
                written["weights"] = "given"
            if isinstance(target := written.get("target"), dict) and target.get("table") is not None:
                target["table"] = "given"
        return files.digest_json(content)

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Pipeline":
        """Read a pipeline from YAML, with `--set` overrides (`stages.teacher.epochs=5`).

        Raises:
            SpecError: everything that is wrong with it, each error with file, line and column.
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
        problems: list[tuple[Key, str]] = []
        stages = _parse_stages(content.get("stages"), problems)
        if isinstance(content.get("stages"), list):
            links = [_Link.read(stage) for stage in content["stages"]]
            problems += [
                (_in_file(key, content), message) for key, message in _disconnected(links, content.get("baseline"))
            ]
        try:
            pipeline = cls.model_validate({**content, "stages": stages} if "stages" in content else content)
        except ValidationError as error:
            problems += [problem for problem in problems_of(error, (), cls) if not _said(problem[0], problems)]
        if problems:
            lines = [": ".join(filter(None, (source.place(key), dotted(key), what))) for key, what in problems]
            raise SpecError(*sorted(lines, key=_line_and_column))
        return pipeline

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed but seldom intended, one sentence each."""
        found = []
        hurt = None
        for stage in self.stages:
            if hurt is not None and stage.recovers:
                hurt = None
            elif hurt is not None and not stage.needs_recovery:
                found.append(
                    f"stage {stage.id!r} follows {hurt!r}, which needs recovery, and nothing trains in between; "
                    "accuracy may collapse (put a distill or train without `model` there)"
                )
                hurt = None
            if stage.needs_recovery:
                hurt = stage.id
        return tuple(found)

    def to_yaml(self) -> str:
        """The pipeline as YAML; `load` reads it back to an equal one."""
        return yaml_source.dump(self.model_dump(mode="json", exclude={"seed"} if self.seeds else None))


@dataclass(frozen=True)
class _Link:
    """What decides whether a stage connects. `kind` is None if it is not known."""

    id: str | None
    kind: type[Stage] | None
    teachers: Sequence[tuple[Key, str]]  # each with its key in the stage
    needs_model: bool  # it could train a new network, but names no model
    against_baseline: bool  # its target is a speed-up

    @classmethod
    def of(cls, stage: Stage) -> "_Link":
        return cls._with(type(stage), {name: getattr(stage, name) for name in type(stage).model_fields})

    @classmethod
    def read(cls, content: Any) -> "_Link":
        """A stage as written in the file, valid or not."""
        if not isinstance(content, dict):
            return cls(None, None, (), False, False)
        tag = content.get("stage")
        return cls._with(discover().get(tag) if isinstance(tag, str) else None, {"id": tag, **content})

    @classmethod
    def _with(cls, kind: type[Stage] | None, settings: Mapping[str, Any]) -> "_Link":
        words = {name: value for name, value in settings.items() if isinstance(value, str)}
        fields = kind.model_fields if kind is not None else {}
        needs_model = "model" in fields and settings.get("model") is None
        teachers = named_teachers({name: value for name, value in settings.items() if name in fields})
        target = settings.get("target") if "target" in fields else None
        speedup = target.get("speedup") if isinstance(target, dict) else getattr(target, "speedup", None)
        return cls(words.get("id"), kind, teachers, needs_model, speedup is not None)


def _disconnected(links: Sequence[_Link], baseline: Any) -> Iterator[tuple[Key, str]]:
    """Duplicate ids, neighbours that do not connect, missing teachers and baselines: the key of each, and why."""
    made: frozenset[str] | None = frozenset({NOTHING})
    before = "nothing before it"
    earlier: dict[str | None, frozenset[str] | None] = {}
    for index, link in enumerate(links):
        key: Key = ("stages", index)
        known = ", ".join(f"`{stage_id}`" for stage_id in earlier if stage_id) or "none"
        if link.id is not None and link.id in earlier:
            yield (*key, "id"), f"two stages have the id {link.id!r}; give each its own"
        if link.kind is not None and made is not None and not made <= takes(link.kind):
            yield key, f"stage {link.id!r} takes {_words(takes(link.kind))}, but there is {before}"
        for where, teacher in link.teachers:
            if teacher not in earlier:
                hint = did_you_mean(teacher, [i for i in earlier if i]) or f"; earlier are: {known}"
                yield (*key, *where), f"{teacher!r} is not the id of an earlier stage{hint}"
            elif "TorchModel" not in (earlier[teacher] or {"TorchModel"}):
                kinds = _words(earlier[teacher] or ())
                yield (*key, *where), f"{teacher!r} makes {kinds}, which cannot teach; name a stage before the export"
        if index == 0 and link.needs_model:
            yield key, f"stage {link.id!r} comes first, so it needs a model; expected `model:`, as in `model: resnet20`"
        if link.against_baseline and (baseline or links[0].id) not in earlier:
            yield (*key, "target", "speedup"), "it is against the baseline, which has to be an earlier stage"
        made = makes(link.kind) if link.kind is not None else None
        before = f"{_words(made or ())} before it, from stage {link.id!r}"
        earlier[link.id] = made
    if isinstance(baseline, str) and baseline and baseline not in earlier:
        ids = ", ".join(f"`{stage_id}`" for stage_id in earlier)
        yield ("baseline",), f"{baseline!r} is not the id of a stage; expected one of {ids}"


def _parse_stages(raw: Any, problems: list[tuple[Key, str]]) -> Any:
    """The stages, each by its tag; errors are added to `problems`."""
    if not isinstance(raw, list):
        return raw  # the pipeline's own check says what is wrong with it
    catalogue = discover()
    installed = ", ".join(f"`{tag}`" for tag in catalogue)
    stages = []
    for index, content in enumerate(raw):
        key: Key = ("stages", index)
        tag = content.get("stage") if isinstance(content, dict) else None
        if not isinstance(content, dict) or tag is None:
            problems.append((key, f"names no stage; expected a mapping with `stage:` and one of {installed}"))
        elif not isinstance(tag, str) or tag not in catalogue:
            hint = did_you_mean(str(tag), catalogue) or f"; expected one of {installed}"
            problems.append(((*key, "stage"), f"there is no stage {tag!r}{hint}"))
        else:
            try:
                stages.append(catalogue[tag].model_validate(content))
            except ValidationError as error:
                problems += problems_of(error, key, catalogue[tag])
    return stages if len(stages) == len(raw) else None


def _said(key: Key, problems: Sequence[tuple[Key, str]]) -> bool:
    """Whether pydantic only repeats for the whole what was reported for its parts."""
    said = [other for other, _ in problems]
    return key in said or (not key and bool(said)) or (key == ("stages",) and any(k[:1] == key for k in said))


def _in_file(key: Key, content: Any) -> Key:
    """`key`, or its parent if the file does not contain it: an id may be a default."""
    for depth, part in enumerate(key):
        if isinstance(content, dict) and part not in content:
            return key[:depth]
        content = content[part]
    return key


def _line_and_column(problem: str) -> tuple[int, int]:
    place = re.search(r":(\d+):(\d+): ", problem)
    return (int(place[1]), int(place[2])) if place else (0, 0)


def _words(kinds: Iterable[str]) -> str:
    names = {NOTHING: "nothing", "TorchModel": "a torch network", "OnnxModel": "an ONNX file"}
    return " or ".join(names.get(kind, kind) for kind in sorted(kinds, reverse=True))


def without_places(pipeline: Pipeline) -> Pipeline:
    """A pipeline that somebody else wrote, without what says where to write: trackers, and the store of images."""
    return pipeline.model_copy(update={"tracking": (), "data": validated_copy(pipeline.data, store=Store())})
