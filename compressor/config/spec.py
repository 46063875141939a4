"""What every part of a pipeline file is, and what is said of one that is wrong.

Settings are frozen, closed to unknown keys, and strict about what could be misread.
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from compressor.config.yaml_file import Key

Model = TypeVar("Model", bound=BaseModel)

MAX_SHOWN = 60  # characters of a wrong value
MAX_PROBLEMS = 20  # of one part of a file
MAX_PLACE = 200  # characters of where something is wrong
EXPECTED = {  # by pydantic's type of error; the rest is said in pydantic's words
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_type": "a whole number",
    "less_than": "a number below {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "model_type": "a mapping of settings",
    "path_type": "a path",
    "string_pattern_mismatch": "lower-case letters, digits, `-` and `_`, a letter or digit first",
    "string_too_long": "at most {max_length} letters",
    "string_type": "text",
    "too_long": "at most {max_length} items",
    "too_short": "at least {min_length} items",
    "tuple_type": "a list",
}


class Spec(BaseModel):
    """Settings. NaN and infinity are refused, and so are `true` and `false` where numbers are meant."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _not_misread(cls, value: Any, info: ValidationInfo) -> Any:
        """Python counts `True` as 1; a pipeline that says `epochs: true` means something else. No path holds a NUL."""
        assert info.field_name is not None
        annotation = cls.model_fields[info.field_name].annotation
        if Path in {annotation, *get_args(annotation)} and "\0" in str(value):
            raise ValueError("a path cannot hold a NUL byte")
        if not {bool, Any} & {annotation, *get_args(annotation)}:
            for part in value if isinstance(value, list | tuple) else [value]:
                if isinstance(part, bool):
                    raise ValueError(f"got {json.dumps(part)}; true and false are not allowed here")
        return value


def keys_of(spec: type[BaseModel]) -> dict[str, FieldInfo]:
    """The settings by their keys in a file; a key that is a keyword of Python has another name there."""
    return {field.alias or name: field for name, field in spec.model_fields.items()}


def validated_copy(model: Model, **changes: Any) -> Model:
    """`model` with other values for some of its fields, validated as a whole; pydantic's own copy checks nothing.

    Raises:
        ValidationError: the values do not fit.
    """
    return type(model).model_validate({**dict(model), **changes}, by_name=True)


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(arguments, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError("expected plain text, finite numbers, lists and mappings") from error
    return arguments


Arguments = Annotated[dict[str, Any], AfterValidator(_plain)]  # of a user's own factory: whatever JSON can say


def problems_of(error: ValidationError, prefix: Key, spec: type[BaseModel]) -> Iterator[tuple[Key, str]]:
    """Each key that is wrong, with what is wrong and what is expected."""
    found = error.errors()
    if len(found) > MAX_PROBLEMS:
        yield prefix, f"{len(found)} errors here; the first {MAX_PROBLEMS} are shown"
        found = found[:MAX_PROBLEMS]
    for detail in found:
        if detail["type"] == "too_short" and any(_inside(other["loc"], detail["loc"]) for other in found):
            continue  # the list is short for want of an item that is wrong itself
        place, models = _place(spec, detail["loc"])
        key = (*prefix, *place)
        given = json.dumps(detail["input"], default=str, ensure_ascii=False)
        given = given if len(given) <= MAX_SHOWN else given[:MAX_SHOWN] + "…"
        kind, context = detail["type"], detail.get("ctx", {})
        if kind == "extra_forbidden":
            names = list(keys_of(models[0])) if models else []
            expected = f"; expected one of {', '.join(f'`{name}`' for name in names)}"
            yield key, f"unknown key{did_you_mean(str(key[-1]), names) or expected}"
        elif kind == "missing":
            yield key, "is missing; it is required"
        elif kind == "value_error":
            yield key, detail["msg"].removeprefix("Value error, ")
        elif kind in EXPECTED:
            hint = did_you_mean(given.strip('"'), re.findall("'([^']*)'", context.get("expected", "")))
            example = f", as in [{given}, {given}]" if kind == "tuple_type" and str(key[-1]) == "size" else ""
            yield key, f"got {given}; expected {EXPECTED[kind].format(**context)}{example}{hint}"
        else:
            yield key, f"got {given}; {detail['msg']}"


def first_problem(error: ValidationError) -> str:
    """The first thing that does not fit, and where it stands."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place[:MAX_PLACE]}: {first['msg']}" if place else first["msg"].removeprefix("Value error, ")


def _inside(location: Key, whole: Key) -> bool:
    return len(location) > len(whole) and location[: len(whole)] == whole


def _place(spec: type[BaseModel], location: Sequence[str | int]) -> tuple[Key, list[type[BaseModel]]]:
    """Where a file has it, and the models of which it may be a field.

    Pydantic's location also says which of several models was taken, by its name (`losses.0.dist.inter`).
    """
    place: list[str | int] = []
    models, inside = [spec], [spec]
    for part in location:
        inside = models
        if isinstance(part, str) and not any(part in keys_of(model) for model in models):
            named = [model for model in models if _is_called(model, part)]
            if len(models) > 1 and named:
                models = named
                continue
            models = []
        elif isinstance(part, str):
            annotations = [keys_of(model)[part].annotation for model in models if part in keys_of(model)]
            models = [model for annotation in annotations for model in _models_in(annotation)]
        place.append(part)
    return tuple(place), inside


def _is_called(model: type[BaseModel], name: str) -> bool:
    """Whether a model is told from others by this name, the only value of one of its fields."""
    return any(get_args(field.annotation) == (name,) for field in model.model_fields.values())


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a value of this type may be, or hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for each in get_args(annotation) for model in _models_in(each)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint to append, where one of the known names is close; else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean `{close[0]}`?" if close else ""
