"""What a stage's artifact depends on, as digests, which decide whether and why it will be made again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.environment import environment
from compressor.models.artifact import Artifact
from compressor.pipeline.context import Context
from compressor.pipeline.pipeline import Pipeline
from compressor.pipeline.stage import Stage, makes, named_teachers
from compressor.storage import files
from compressor.storage.code import code_digests

# Names and paths; what they refer to counts by its content.
NOT_DECIDING: Any = {"id": True, "teacher": True, "teachers": True, "weights": True, "target": {"table"}}
EXPORTERS = ("torch", "onnx", "onnxruntime")


def made_from(stage: Stage, before: Artifact | None, context: Context, code: Mapping[str, str]) -> dict[str, str]:
    """The digest of everything that decides a stage's artifact, by name; no folder names or times.

    Nor the device: what a GPU has trained is used on other machines. Settings that time or probe one refer to it.
    """
    weights, ships = getattr(stage, "weights", None), "OnnxModel" in makes(type(stage))
    decides = {
        "its settings": stage.model_dump(mode="json", exclude=NOT_DECIDING),
        "its weights": files.digest_of(weights) if isinstance(weights, Path) else weights,
        "the network before it": before.digest if before is not None else None,
        "its teachers": [context.teachers[stage_id].digest for _, stage_id in named_teachers(vars(stage))],
        "what its settings refer to": stage.decided_by(context),
        "the data": context.data.fingerprint,
        "the seed": context.seed,
        "the pipeline": context.pipeline if ships else None,
        "the exporters": exporters() if ships else None,
    }
    return {**{name: files.digest_json(value) for name, value in decides.items()}, **code}


def exporters() -> dict[str, str]:
    """The versions of the libraries that write and run an ONNX file."""
    return {name: environment().versions[name] for name in EXPORTERS}


def key_of(parts: Mapping[str, str]) -> str:
    """One SHA-256 over all digests."""
    return files.digest_json(dict(parts))


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of what has changed."""
    return [name for name in dict.fromkeys((*now, *before)) if before.get(name) != now.get(name)]


def code_of(stage: Stage, pipeline: Pipeline) -> dict[str, str]:
    """The code that the stage and the pipeline's own networks can reach, as digests.

    Raises:
        UserError: the module of a factory cannot be found.
    """
    factories = (factory.partition(":")[0] for factory in sorted(pipeline.factories))
    return code_digests(type(stage).__module__, *factories)
