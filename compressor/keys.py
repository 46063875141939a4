"""What a stage's artifact depends on, as one digest: what decides whether it is made again."""

import ast
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from compressor import files
from compressor.artifact import Artifact, OnnxModel, TorchModel
from compressor.errors import UserError
from compressor.pipeline import AnyStage, Pipeline
from compressor.stage import Context, discover, makes, named_teachers


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
    modules = {__name__, *(catalogue[stage.stage].__module__ for stage in pipeline.stages)}
    modules |= {factory.partition(":")[0] for factory in pipeline.factories}
    sources = {path for module in modules for path in _sources(module)}
    return files.digest_json(sorted([name, files.digest(path.read_bytes())] for name, path in sources))


def _sources(module: str) -> Iterator[tuple[str, Path]]:
    """The Python files of the top-level package that holds `module`, by their names in it.

    A module that is one file is taken with those beside it that it imports.
    """
    package = module.partition(".")[0]
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not (spec.has_location or spec.submodule_search_locations):
        raise UserError(
            f"{module} is no Python file or package that can be imported; it is looked for beside the pipeline, "
            "where you are, and among what is installed"
        )
    if spec.submodule_search_locations is None:
        yield from _with_neighbours(Path(str(spec.origin)), {})
        return
    for folder in spec.submodule_search_locations:
        for path in Path(folder).rglob("*.py"):
            yield f"{package}/{path.relative_to(folder).as_posix()}", path


def _with_neighbours(path: Path, known: dict[str, Path]) -> Iterator[tuple[str, Path]]:
    """A file, and those of its folder that it imports, and so on; each by its name, once."""
    if path.stem in known or not path.is_file():
        return
    known[path.stem] = path
    yield path.stem, path
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return  # importing it says what is wrong
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for name in names:
            yield from _with_neighbours(path.with_name(f"{name.partition('.')[0]}.py"), known)
