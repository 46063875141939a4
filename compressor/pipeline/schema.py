"""The JSON Schema of a pipeline file: completion and checks in editors."""

from typing import Any

from pydantic import Field, create_model
from pydantic.json_schema import models_json_schema

from compressor.pipeline.pipeline import Pipeline
from compressor.pipeline.stage import Stage, discover


def json_schema() -> dict[str, Any]:
    """The schema of a pipeline file, with every installed stage.

    Descriptions are the docstrings of the fields.
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
    for definition in (schema, *definitions.values()):
        for content in definition.get("properties", {}).values():
            content.pop("title", None)
    for reference in of_tag.values():
        definition = definitions[reference.rpartition("/")[2]]
        definition["required"] = ["stage", *definition.get("required", [])]
        definition["properties"]["stage"]["description"] = Stage.model_fields["stage"].description
        del definition["properties"]["id"]["default"]  # it is the tag
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "A pipeline of compressor",
        "$defs": definitions,
    }
