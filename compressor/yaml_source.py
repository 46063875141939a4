"""YAML with places: every value of a file knows its line and column, for errors that point at it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from compressor.errors import SpecError, first_line

Key = tuple[str | int, ...]  # ("stages", 1, "temperature")


@dataclass
class Source:
    """The content of a pipeline file, and where each part of it stands."""

    name: str
    content: Any
    places: dict[Key, str] = field(default_factory=dict)  # "file:line:column", or "--set key=value"

    def place(self, key: Key) -> str:
        """Where `key` stands, or else what it would stand in."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, self.name)


def read(path: Path, overrides: Sequence[str] = ()) -> Source:
    """Read a YAML file safely and apply `--set` overrides (`dotted.key=value`, the value in YAML).

    Raises:
        SpecError: the file or an override cannot be read, or a key stands twice.
    """
    source = Source(str(path), None)
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: is not a text file; expected a pipeline in YAML") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise SpecError(f"{where}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not YAML: {error}") from error
    if root is None:
        raise SpecError(f"{path}: is empty; expected a pipeline in YAML")
    try:
        source.content = _construct(root, (), source)
    except RecursionError as error:
        raise SpecError(f"{path}: an alias refers to what it stands in") from error
    for override in overrides:
        _override(source, override)
    return source


def _construct(node: yaml.Node, key: Key, source: Source) -> Any:
    source.places[key] = _at(node, source)
    match node:
        case yaml.MappingNode():
            mapping: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                name = _scalar(key_node, source)
                if not isinstance(name, str):
                    raise SpecError(f"{_at(key_node, source)}: a key must be a word; got {name!r}")
                if name in mapping:
                    raise SpecError(f"{_at(key_node, source)}: {_dotted((*key, name))}: stands here twice; keep one")
                mapping[name] = _construct(value_node, (*key, name), source)
                source.places[(*key, name)] = _at(key_node, source)
            return mapping
        case yaml.SequenceNode():
            return [_construct(item, (*key, index), source) for index, item in enumerate(node.value)]
        case _:
            return _scalar(node, source)


def _scalar(node: yaml.Node, source: Source) -> Any:
    """A single value, by the rules of YAML's safe loader."""
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise SpecError(f"{_at(node, source)}: not a value of plain YAML: {first_line(error)}") from error
    finally:
        loader.dispose()


def _at(node: yaml.Node, source: Source) -> str:
    return f"{source.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _override(source: Source, override: str) -> None:
    """Set one dotted key; `stages.<id>` names the stage of that id."""
    option = f"--set {override}"
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise SpecError(f"{option}: expected dotted.key=value, as in stages.teacher.epochs=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"{option}: the value is not YAML") from error
    target: Any = source.content
    key: Key = ()
    names = dotted.split(".")
    for depth, name in enumerate(names):
        last = depth == len(names) - 1
        part: str | int = name
        if isinstance(target, list):
            part = _stage_index(target, name, option)
        elif not isinstance(target, dict):
            raise SpecError(f"{option}: {_dotted(key)} holds no keys")
        key = (*key, part)
        if last:
            target[part] = value
        elif isinstance(part, int):
            target = target[part]
        else:
            target = target.setdefault(part, {})
    for place in [place for place in source.places if place[: len(key)] == key]:
        del source.places[place]
    source.places[key] = option


def _stage_index(stages: list[Any], name: str, option: str) -> int:
    ids = [stage.get("id", stage.get("stage")) if isinstance(stage, dict) else None for stage in stages]
    if name in ids:
        return ids.index(name)
    known = ", ".join(str(stage_id) for stage_id in ids)
    raise SpecError(f"{option}: there is no stage with the id {name!r}; the pipeline has: {known}")


def _dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)
