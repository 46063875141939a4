"""YAML with places: every value of a file knows its line and column, for errors that point at it.

Plain values are read by the core schema of YAML 1.2, which editors follow: `1e-4` is a number, and `no`, `010` and
`12:30` are text, not false, eight and 750.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from compressor.errors import SpecError, first_line

Key = tuple[str | int, ...]  # ("stages", 1, "temperature")

MAX_VALUES = 10_000  # values in a file, aliases expanded
MAX_CHARACTERS = 200_000  # of a file
MAX_DEPTH = 50  # of one value in others
MAX_DIGITS = 400  # of a number: more than the largest float has
MAX_SHOWN = 80  # characters of a wrong option or name
TOO_DEEP = "is nested too deeply, or an alias refers to its own parent"
CORE_SCHEMA = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: Any = {}


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: Any = {}


for _name, (_pattern, _first) in CORE_SCHEMA.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$"), _first)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Text in quotes where it holds breaks that PyYAML writes plain and does not read back."""
    style = '"' if any(character in text for character in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _text)
COLLECTIONS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}
NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
TAGS = {f"tag:yaml.org,2002:{name}" for name in (*CORE_SCHEMA, "str")}


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
    if "\0" in str(path):
        raise SpecError(f"{path!r}: a path cannot hold a NUL byte")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise SpecError(f"{path}: is a pipe, a socket or a device; expected a file with a pipeline in YAML")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: is not a text file; expected a pipeline in YAML") from error
    source = parse(text, str(path))
    if source.content is None:
        raise SpecError(f"{path}: is empty; expected a pipeline in YAML")
    for override in overrides:
        _override(source, override)
    return source


def dump(content: Any) -> str:
    """YAML that `read` reads back to the same content."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def parse(text: str, name: str) -> Source:
    """The content of a YAML text, which messages call `name`.

    Raises:
        SpecError: it is not YAML, or a key stands twice.
    """
    source = Source(name, None)
    if len(text) > MAX_CHARACTERS:
        raise SpecError(f"{name}: holds more than {MAX_CHARACTERS} characters; a pipeline is smaller")
    try:
        root = yaml.compose(text, Loader=_Loader)
        if root is not None:
            source.content = _construct(root, (), source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise SpecError(f"{where}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{name}: not YAML: {first_line(error)}") from error
    except RecursionError as error:
        raise SpecError(f"{name}: {TOO_DEEP}") from error
    return source


def _construct(node: yaml.Node, key: Key, source: Source) -> Any:
    if len(source.places) > MAX_VALUES:
        raise SpecError(f"{source.name}: holds more than {MAX_VALUES} values; a pipeline is smaller")
    if len(key) > MAX_DEPTH:
        raise SpecError(f"{source.name}: {TOO_DEEP}")
    source.places[key] = _at(node, source)
    if not isinstance(node, yaml.ScalarNode) and node.tag not in COLLECTIONS:
        raise SpecError(f"{_at(node, source)}: the tag {node.tag} is not of plain YAML; leave it out")
    match node:
        case yaml.MappingNode():
            mapping: dict[str, Any] = {}
            for key_node, value_node in node.value:
                name = _scalar(key_node, source)
                if not isinstance(name, str):
                    raise SpecError(f"{_at(key_node, source)}: a key must be a word; got {name!r}")
                if name in mapping:
                    raise SpecError(f"{_at(key_node, source)}: {dotted((*key, name))}: appears twice; keep one")
                mapping[name] = _construct(value_node, (*key, name), source)
                source.places[(*key, name)] = _at(key_node, source)
            return mapping
        case yaml.SequenceNode():
            return [_construct(item, (*key, index), source) for index, item in enumerate(node.value)]
        case _:
            return _scalar(node, source)


def _scalar(node: yaml.Node, source: Source) -> Any:
    """A single value: text, a number, true, false or null."""
    if not isinstance(node, yaml.ScalarNode):
        raise SpecError(f"{_at(node, source)}: a key must be a word")
    if node.tag not in TAGS:
        raise SpecError(f"{_at(node, source)}: the tag {node.tag} is not of plain YAML; leave it out")
    if node.tag in NUMBERS and len(node.value) > MAX_DIGITS:
        raise SpecError(f"{_at(node, source)}: a number of {len(node.value)} characters is longer than any setting")
    loader = _Loader("")
    try:
        return loader.construct_object(node)
    except (yaml.YAMLError, ValueError, LookupError) as error:
        raise SpecError(f"{_at(node, source)}: not a value of plain YAML: {shortened(first_line(error))}") from error
    finally:
        loader.dispose()


def _at(node: yaml.Node, source: Source) -> str:
    return f"{source.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _override(source: Source, override: str) -> None:
    """Set one dotted key; `stages.<id>` names the stage of that id."""
    option = shortened(f"--set {override}")
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise SpecError(f"{option}: expected dotted.key=value, as in stages.teacher.epochs=5")
    try:
        value = parse(text, option).content
    except SpecError as error:
        reason = str(error).removeprefix(option).lstrip(":0123456789 ")
        raise SpecError(f"{option}: the value is not plain YAML: {reason}") from error
    target: Any = source.content
    key: Key = ()
    *parents, last = name.split(".")
    if len(parents) > MAX_DEPTH:
        raise SpecError(f"{option}: {TOO_DEEP}")
    for part in parents:
        index = _index(target, part, key, option)
        key = (*key, index)
        if isinstance(target, dict) and index not in target:
            target[index] = {}
            source.places[key] = option
        target = target[index]
    index = _index(target, last, key, option)
    key = (*key, index)
    if value is None and isinstance(target, dict):
        target.pop(index, None)  # null removes a key
    else:
        target[index] = value
    for place in [place for place in source.places if place[: len(key)] == key]:
        del source.places[place]
    source.places[key] = option


def _index(target: Any, name: str, key: Key, option: str) -> str | int:
    """What `name` indexes in `target`: a key of a mapping, or the stage of that id, or else number, in a list."""
    if isinstance(target, dict):
        return name
    if not isinstance(target, list):
        raise SpecError(f"{option}: {dotted(key) or 'the file'} holds no keys")
    ids = [stage.get("id", stage.get("stage")) if isinstance(stage, dict) else None for stage in target]
    if name in ids:
        return ids.index(name)
    if name in {str(index) for index in range(len(target))}:
        return int(name)  # as errors name it
    known = ", ".join(str(stage_id) for stage_id in ids)
    raise SpecError(f"{option}: there is no stage with the id {shortened(name)!r}; the pipeline has: {known}")


def shortened(text: str) -> str:
    """A text, shortened for a message."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def dotted(key: Key) -> str:
    """`("stages", 1, "epochs")` as `stages.1.epochs`."""
    return ".".join(shortened(str(part)) for part in key)
