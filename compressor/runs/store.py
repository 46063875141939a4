"""A finished stage: its folder is written whole and sealed, and taken over by later runs that would make the same."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compressor.config.spec import validated_copy
from compressor.data.dataset import Dataset
from compressor.errors import StageError
from compressor.evaluation.accuracy import Answers
from compressor.export import onnx_file
from compressor.models import artifact
from compressor.models.artifact import ONNX, Artifact, OnnxModel, TorchModel
from compressor.pipeline.pipeline import AnyStage
from compressor.pipeline.stage import Context
from compressor.report.report import Scored, first_problem
from compressor.storage import files

ANSWERS = "answers.safetensors"
ROW = "row.json"


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

    @property
    def answers(self) -> Answers:
        """What that file says of the test split."""
        return Answers.load(self.folder / ANSWERS)


def finish(
    stage: AnyStage, made: Artifact, context: Context, data: Dataset, *, key: str, target: Path, seconds: float
) -> Finished:
    """Save what a stage made, load it back, export and score it.

    Args:
        stage: what made it.
        made: what it made.
        context: of the run.
        data: with the test split, which stages are not given.
        key: digest of all that it depends on.
        target: the folder to keep it in.
        seconds: that it took.
    """
    with _whole(target) as folder:
        made.save(folder)
        loaded = artifact.load(folder, factories=context.factories)
        shipped = _shipped(loaded, context)
        try:
            row = Scored(
                id=stage.id,
                stage=stage.stage,
                artifact=f"{target.parent.name}/{target.name}",
                seconds=round(seconds, 3),
                **_measured(shipped, folder, data),
                parameters=shipped.counts.parameters,
                nonzero_parameters=shipped.counts.nonzero_parameters,
                macs=shipped.counts.macs,
                details=dict(loaded.details),
                key=key,
            )
        except ValidationError as error:
            raise StageError(f"a report cannot show what it says of its result: {first_problem(error)}") from error
        files.write_text(folder / ROW, row.model_dump_json(indent=1) + "\n")
    return Finished(loaded, target, row)


def take_over(target: Path, key: str, context: Context, data: Dataset) -> Finished | None:
    """The stage in `target`, if it was made by this key and is whole.

    It is exported again if its file names another pipeline, and scored again if the test split is another.
    """
    if not target.exists():
        return None
    damage = files.damaged(target)
    if damage is not None:
        context.console.say(f"{damage}; it is made again")
        return None
    try:
        row = Scored.model_validate_json((target / ROW).read_bytes())
    except (OSError, ValidationError):  # whole, but of another version
        return None
    if row.key != key:
        return None
    done = Finished(artifact.load(target, factories=context.factories), target, row)
    if row.scored_on == data.test.fingerprint and onnx_file.pipeline_of(done.onnx) == context.pipeline:
        return done
    with _whole(target) as folder:
        shutil.copytree(target, folder, dirs_exist_ok=True)
        row = validated_copy(row, **_measured(_shipped(done.artifact, context), folder, data))
        files.write_text(folder / ROW, row.model_dump_json(indent=1) + "\n")
    return replace(done, row=row)


def sweep(stages: Path) -> None:
    """Remove what a run that was killed left half-made."""
    for pattern in (".*.partial", ".*.old"):
        for left in stages.glob(pattern):
            shutil.rmtree(left)


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A folder that is sealed and takes the place of `target` once the block is done, and is removed if it fails."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        files.seal(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    files.replace_folder(partial, target)


def _measured(shipped: OnnxModel, folder: Path, data: Dataset) -> dict[str, Any]:
    """Write the file that a stage would ship as into its folder, with its answers; the part of a row they decide."""
    files.write_bytes(folder / ONNX, shipped.content)
    answers = Answers.of(folder / ONNX, data.test, data.preprocess)
    answers.save(folder / ANSWERS)
    return {
        "size_bytes": len(shipped.content),
        "sha256": files.digest(shipped.content),
        "accuracy": answers.accuracy(split="test"),
        "calibration_error": answers.calibration_error(),
        "scored_on": data.test.fingerprint,
    }


def _shipped(made: Artifact, context: Context) -> OnnxModel:
    """The ONNX file that an artifact would ship as."""
    return made.to_onnx(context.pipeline) if isinstance(made, TorchModel) else made
