"""The JSON Schema of a pipeline file: completion and checks in editors."""

import inspect
import re
from typing import Annotated, Any, Union

from pydantic import BaseModel, Field, create_model

from compressor.pipeline import Pipeline
from compressor.stage import discover


def json_schema() -> dict[str, Any]:
    """The schema of a pipeline file, with every installed stage.

    Descriptions are those of the classes' docstrings.
    """
    catalogue = discover()
    stage = Annotated[Union[tuple(catalogue.values())], Field(discriminator="stage")]  # type: ignore[valid-type] # noqa: UP007
    whole: Any = create_model("Pipeline", __base__=Pipeline, stages=(tuple[stage, ...], Field(min_length=1)))
    schema: dict[str, Any] = whole.model_json_schema()
    models = {kind.__name__: kind for kind in (*catalogue.values(), *_parts(whole))}
    _describe(schema, Pipeline)
    for name, definition in schema["$defs"].items():
        _describe(definition, models[name])
    for kind in catalogue.values():
        definition = schema["$defs"][kind.__name__]
        definition["required"] = ["stage", *definition.get("required", [])]
        del definition["properties"]["id"]["default"]  # it is the tag
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "A pipeline of compressor"}


def _describe(definition: dict[str, Any], model: type[BaseModel]) -> None:
    """Give a model's properties the descriptions of its docstring, or of those it inherits from."""
    definition["description"] = inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    described = {k: v for base in reversed(model.__mro__) for k, v in _attributes(base.__doc__ or "").items()}
    for name, content in definition["properties"].items():
        content.pop("title", None)
        if name in described:
            content["description"] = described[name]


def _attributes(docstring: str) -> dict[str, str]:
    """The entries of a docstring's section `Attributes:`."""
    section = inspect.cleandoc(docstring).partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for name, text in entries}


def _parts(model: type[BaseModel]) -> set[type[BaseModel]]:
    """The models that stand in the fields of a model and of its stages."""
    found: set[type[BaseModel]] = set()
    waiting: list[Any] = [model, *discover().values()]
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if kind not in found:
                found.add(kind)
                waiting += [info.annotation for info in kind.model_fields.values()]
        else:
            waiting += getattr(kind, "__args__", ())
    return found
