"""Finished stages: their folders are written whole and sealed, and reused by later runs that would make the same."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from compressor.config.spec import first_problem, validated_copy
from compressor.data.dataset import Dataset
from compressor.errors import ArtifactError, StageError, UserError
from compressor.evaluation.accuracy import Predictions
from compressor.export import onnx_file, reading
from compressor.models import artifact
from compressor.models.architectures import check_fits
from compressor.models.artifact import ONNX, WEIGHTS, Artifact, OnnxModel, TorchModel
from compressor.models.manifest import MANIFEST, Counts, read_manifest
from compressor.pipeline.context import Context
from compressor.pipeline.stage import Stage
from compressor.report.report import Scored
from compressor.runs import keys
from compressor.storage import files
from compressor.storage.code import code_digest

PREDICTIONS = "answers.safetensors"
ROW = "row.json"
MAX_NAMED = 4
TRIED = 2  # images that a network is tried on before it is reused


@dataclass(frozen=True)
class Finished:
    """A stage that is done: its artifact as loaded back, where it lies, and how it scored."""

    artifact: Artifact
    folder: Path
    row: Scored

    @property
    def onnx(self) -> Path:
        """The file that this stage would ship as."""
        return self.folder / ONNX

    def onnx_for(self, engine: str) -> Path:
        """The file that this engine reads."""
        own = isinstance(self.artifact, OnnxModel) and engine in self.artifact.own_files
        return self.folder / artifact.file_for(engine) if own else self.onnx

    @property
    def engines(self) -> tuple[str, ...]:
        """What the file was made for, ONNX Runtime aside."""
        return self.artifact.engines if isinstance(self.artifact, OnnxModel) else ()

    @property
    def predictions(self) -> Predictions:
        """That file's predictions on the test split."""
        return Predictions.load(self.folder / PREDICTIONS)


def finish(
    stage: Stage,
    made: Artifact,
    context: Context,
    data: Dataset,
    *,
    parts: Mapping[str, str],
    factories: frozenset[str],
    target: Path,
    seconds: float,
) -> Finished:
    """Save what a stage made, load it back, export and score it.

    Args:
        stage: what made it.
        made: what it made.
        context: of the run.
        data: with the test split, which stages are not given.
        parts: digests of all that it depends on.
        factories: factories of one's own that may be imported to load it.
        target: the folder to keep it in.
        seconds: that it took.
    """
    with files.whole_folder(target) as folder:
        made.save(folder)
        loaded = artifact.load(folder, factories=factories)
        shipped = _shipped(loaded, context)
        try:
            row = Scored(
                id=stage.id,
                stage=stage.stage,
                artifact=name_of(target),
                seconds=round(seconds, 3),
                **_scored(shipped, folder, data),
                details=dict(loaded.details),
                key=keys.key_of(parts),
                made_from=dict(parts),
            )
        except ValidationError as error:
            raise StageError(f"a report cannot show what it says of its result: {first_problem(error)}") from error
        files.write_text(folder / ROW, row.model_dump_json(indent=1) + "\n")
    return Finished(loaded, target, row)


def reuse(
    stage: Stage,
    target: Path,
    parts: Mapping[str, str],
    context: Context,
    data: Dataset,
    factories: frozenset[str],
) -> Finished | None:
    """The stage in `target`, if it was made from the same and is whole; if not, what is wrong or changed is said.

    Its file then names this pipeline; it is scored again if the test split or the code that scores is another.
    What is in the folder is data, which may come from anyone: nothing is taken that does not fit the run.
    """
    say = context.services.console.say
    if not target.exists():
        return None
    damage = files.damaged(target)
    if damage is not None:
        say(f"{damage}; it will be made again")
        return None
    row = row_in(target)
    if row is None:
        say(f"{target} was made by another version; it will be made again")
        return None
    if changed := keys.changes(row.made_from, parts):
        more = f" and {len(changed) - MAX_NAMED} more" if len(changed) > MAX_NAMED else ""
        say(f"{target.name} will be made again, since this has changed: {', '.join(changed[:MAX_NAMED])}{more}")
        return None
    try:
        done = Finished(_loaded(stage, target, row, parts, data, factories), target, row)
        done = _of_pipeline(done, context.pipeline)
        stands = _stands(done, context, data)
    except UserError as error:
        say(f"{error}; it will be made again")
        return None
    if stands:
        return done
    with files.whole_folder(target) as folder:
        shutil.copytree(target, folder, dirs_exist_ok=True)
        row = validated_copy(row, **_scored(_shipped(done.artifact, context), folder, data))
        files.write_text(folder / ROW, row.model_dump_json(indent=1) + "\n")
    return replace(done, row=row)


def _of_pipeline(done: Finished, pipeline: str) -> Finished:
    """The stage whose file names this pipeline; the network in it, and so its scores, are the same.

    Raises:
        UserError: the file cannot be read.
    """
    written, parsed = reading.read(done.onnx)
    if reading.pipeline_of(parsed) in (None, pipeline) or files.digest(written) != done.row.sha256:
        return done
    content = onnx_file.with_pipeline(parsed, pipeline)
    row = validated_copy(done.row, size_bytes=len(content), sha256=files.digest(content))
    with files.whole_folder(done.folder) as folder:
        shutil.copytree(done.folder, folder, dirs_exist_ok=True, copy_function=files.link)
        files.write_bytes(folder / ONNX, content)
        files.write_text(folder / ROW, row.model_dump_json(indent=1) + "\n")
    return replace(done, row=row)


def row_in(folder: Path) -> Scored | None:
    """The row of a stage; None if it cannot be read, or is of another version."""
    try:
        return Scored.model_validate_json(files.read_bytes(folder / ROW, files.MAX_TEXT_BYTES))
    except (OSError, ValidationError):
        return None


def name_of(target: Path) -> str:
    """A stage's folder within that of the run."""
    return f"{target.parent.name}/{target.name}"


def _loaded(
    stage: Stage, target: Path, row: Scored, parts: Mapping[str, str], data: Dataset, factories: frozenset[str]
) -> Artifact:
    """The artifact in `target`, if it and its row are of this stage and it computes on this run's images.

    Raises:
        UserError: it cannot be loaded, or does not fit.
    """
    if (row.id, row.stage, row.artifact, row.key) != (stage.id, stage.stage, name_of(target), keys.key_of(parts)):
        raise ArtifactError(f"{target / ROW} is of another stage")
    manifest = read_manifest(target)
    if (manifest.preprocess, manifest.labels) != (data.preprocess, data.labels):
        raise ArtifactError(f"{target / MANIFEST} names other classes or other preprocessing than the data")
    loaded = artifact.load(target, factories=factories)
    if isinstance(loaded, TorchModel):
        check_fits(loaded.network, loaded.architecture, data.preprocess.input_shape(TRIED))
        _check_logits(loaded.predict(_few(data)).numpy(), data, target / WEIGHTS)
        return loaded
    own = {name for name in stage.engines if loaded.quantized and name in onnx_file.SIGNED}
    if (loaded.engines, set(loaded.own_files)) != (stage.engines, own):
        raise ArtifactError(f"{target / MANIFEST} is for other engines than the stage")
    for path in (target / ONNX, *(target / artifact.file_for(name) for name in own)):
        if reading.about(path) != (data.preprocess, data.labels):
            raise ArtifactError(f"{path} names other classes or other preprocessing than the data")
        if path.name != ONNX:
            logits = onnx_file.logits_of(onnx_file.session(path), _few(data).numpy(), source=path)
            _check_logits(logits, data, path)
    return loaded


def _stands(done: Finished, context: Context, data: Dataset) -> bool:
    """Whether the file and the scores of a stage are those that exporting and scoring would give now.

    Raises:
        UserError: the file or its predictions cannot be read, or the file cannot be run.
    """
    row, predictions = done.row, done.predictions
    accuracy = predictions.accuracy(split=data.judged_on)
    if reading.about(done.onnx) != (data.preprocess, data.labels):
        return False
    logits = onnx_file.logits_of(onnx_file.session(done.onnx), _few(data).numpy(), source=done.onnx)
    _check_logits(logits, data, done.onnx)
    return (
        row.scored_on == data.test.fingerprint
        and row.scored_by == _scoring()
        and reading.pipeline_of(reading.read(done.onnx)[1]) == context.pipeline
        and (row.sha256, row.size_bytes) == (files.digest(done.onnx.read_bytes()), done.onnx.stat().st_size)
        and row.model_dump(include=set(Counts.model_fields)) == done.artifact.counts.model_dump()
        and np.array_equal(predictions.labels, data.test.labels.numpy())
        and int(predictions.classes.max()) < len(data.labels)
        and (row.accuracy, row.balanced_accuracy, row.calibration_error)
        == (accuracy, predictions.balanced_accuracy(), predictions.calibration_error())
    )


def _few(data: Dataset) -> Tensor:
    """Images to try a network on, as its input `[N, C, H, W]`."""
    return data.preprocess.normalise(data.test.batch(torch.arange(min(TRIED, len(data.test)))))


def _check_logits(logits: NDArray[np.float32], data: Dataset, source: Path) -> None:
    if logits.shape[1:] != (len(data.labels),) or not np.isfinite(logits).all():
        raise ArtifactError(f"{source} does not give one finite logit for each class")


def _scored(shipped: OnnxModel, folder: Path, data: Dataset) -> dict[str, Any]:
    """Write the file that a stage would ship as, and its predictions; gives the part of a row that they decide."""
    files.write_bytes(folder / ONNX, shipped.content)
    predictions = Predictions.of(folder / ONNX, data.test, data.preprocess)
    predictions.save(folder / PREDICTIONS)
    return {
        "size_bytes": len(shipped.content),
        "sha256": files.digest(shipped.content),
        **shipped.counts.model_dump(),
        "accuracy": predictions.accuracy(split=data.judged_on),
        "balanced_accuracy": predictions.balanced_accuracy(),
        "calibration_error": predictions.calibration_error(),
        "scored_on": data.test.fingerprint,
        "scored_by": _scoring(),
    }


def _shipped(made: Artifact, context: Context) -> OnnxModel:
    """The ONNX file that an artifact would ship as."""
    return made.to_onnx(context.pipeline) if isinstance(made, TorchModel) else made


def _scoring() -> str:
    """The digest of what exports and scores a file: the code that scores, and the libraries."""
    return files.digest_json([code_digest(Predictions.__module__), keys.exporters()])
