"""The JSON Schema of a pipeline file: completion and checks in editors."""

import inspect
import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field, create_model
from pydantic.json_schema import models_json_schema

from compressor.pipeline.pipeline import Pipeline
from compressor.pipeline.stage import discover


def json_schema() -> dict[str, Any]:
    """The schema of a pipeline file, with every installed stage.

    Descriptions are those of the classes' docstrings.
    """
    catalogue = discover()
    whole: Any = create_model("Pipeline", __base__=Pipeline, stages=(list[dict[str, Any]], Field(min_length=1)))
    kinds: list[Any] = [whole, *catalogue.values()]
    references, generated = models_json_schema([(kind, "validation") for kind in kinds])
    definitions = generated["$defs"]
    schema = definitions.pop("Pipeline")
    of_tag = {tag: references[(kind, "validation")]["$ref"] for tag, kind in catalogue.items()}
    schema["properties"]["stages"]["items"] = {
        "oneOf": [{"$ref": reference} for reference in of_tag.values()],
        "discriminator": {"propertyName": "stage", "mapping": of_tag},
    }
    _describe(schema, Pipeline)
    for part in _parts(kinds):
        if part.__name__ in definitions:
            _describe(definitions[part.__name__], part)
    for reference in of_tag.values():
        definition = definitions[reference.rpartition("/")[2]]
        definition["required"] = ["stage", *definition.get("required", [])]
        del definition["properties"]["id"]["default"]  # it is the tag
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "A pipeline of compressor",
        "$defs": definitions,
    }


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


def _parts(models: Sequence[Any]) -> set[type[BaseModel]]:
    """The models, and those that stand in their fields."""
    found: set[type[BaseModel]] = set()
    waiting = list(models)
    while waiting:
        kind = waiting.pop()
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            waiting += getattr(kind, "__args__", ())
        elif kind not in found:
            found.add(kind)
            waiting += [info.annotation for info in kind.model_fields.values()]
    return found
