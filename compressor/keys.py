"""What a stage's artifact depends on, as one digest: what decides whether it is made again."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from compressor import files
from compressor.artifact import Artifact, OnnxModel, TorchModel
from compressor.errors import UserError
from compressor.pipeline import AnyStage, Pipeline
from compressor.stage import Context, discover, makes


def stage_key(
    stage: AnyStage, before: Artifact | None, teachers: Mapping[str, TorchModel], context: Context, sources: str
) -> str:
    """SHA-256 over all that a stage's artifact depends on, but no folder name or time."""
    teacher = getattr(stage, "teacher", None)
    weights = getattr(stage, "weights", None)
    return files.digest_json(
        {
            "settings": stage.model_dump(mode="json", exclude={"id", "teacher", "weights"}),
            "weights": _digest_of(weights) if weights is not None else None,
            "before": before.digest if before is not None else None,
            "teacher": teachers[teacher].digest if teacher is not None else None,
            "data": context.data.fingerprint,
            "seed": context.seed,
            "device": context.device.type,
            "sources": sources,
            "metadata": context.pipeline if OnnxModel in makes(type(stage)) else None,
        }
    )


def _digest_of(path: Path) -> str | None:
    return files.digest(path.read_bytes()) if path.is_file() else None


def source_digest(pipeline: Pipeline) -> str:
    """The digest of the code: this package, the packages of the pipeline's stages, and its factories' modules."""
    catalogue = discover()
    packages = {__name__.partition(".")[0]} | {
        catalogue[stage.stage].__module__.partition(".")[0] for stage in pipeline.stages
    }
    sources = {_source(factory.partition(":")[0]) for factory in pipeline.factories}
    for name in packages:
        sources |= set(_source(name).parent.rglob("*.py"))
    return files.digest_json(sorted([path.name, files.digest(path.read_bytes())] for path in sources))


def _source(module: str) -> Path:
    try:
        spec = find_spec(module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        raise UserError(f"{module} cannot be imported; expected a Python file or package, importable from here")
    return Path(spec.origin)
