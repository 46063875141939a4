"""What a stage's artifact depends on, as one digest: what decides whether it is made again."""

from collections.abc import Mapping
from pathlib import Path

from compressor.models.artifact import Artifact, OnnxModel, TorchModel
from compressor.pipeline.pipeline import AnyStage, Pipeline
from compressor.pipeline.stage import Context, discover, makes, named_teachers
from compressor.storage import files
from compressor.storage.code import code_digest


def stage_key(
    stage: AnyStage, before: Artifact | None, teachers: Mapping[str, TorchModel], context: Context, sources: str
) -> str:
    """SHA-256 over all that a stage's artifact depends on, but no folder name or time."""
    weights = getattr(stage, "weights", None)
    return files.digest_json(
        {
            "settings": stage.model_dump(mode="json", exclude={"id", "teacher", "teachers", "weights"}),
            "weights": _digest_of(weights) if weights is not None else None,
            "before": before.digest if before is not None else None,
            "teachers": [teachers[stage_id].digest for _, stage_id in named_teachers(vars(stage))],
            "data": context.data.fingerprint,
            "seed": context.seed,
            "device": context.device.type,
            "sources": sources,
            "metadata": context.pipeline if OnnxModel in makes(type(stage)) else None,
        }
    )


def _digest_of(path: Path) -> str | None:
    try:
        return files.digest(path.read_bytes())
    except OSError:
        return None  # the stage says what is wrong with it


def source_digest(pipeline: Pipeline) -> str:
    """The digest of the code: the packages of this project, of the pipeline's stages, and of its factories."""
    catalogue = discover()
    stages = {catalogue[stage.stage].__module__ for stage in pipeline.stages}
    return code_digest(stages | {factory.partition(":")[0] for factory in pipeline.factories})
