"""The dry run: a pipeline on one synthetic batch, so that what cannot work fails before anything is trained."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from compressor.console import Console
from compressor.data.dataset import Dataset
from compressor.data.preprocess import Preprocess
from compressor.data.settings import Augment, Data
from compressor.data.split import InMemory, Split
from compressor.errors import StageError
from compressor.models import artifact
from compressor.models.artifact import Artifact, OnnxModel, TorchModel
from compressor.models.changes import Int8
from compressor.pipeline.context import Context
from compressor.pipeline.pipeline import Pipeline
from compressor.pipeline.stage import Stage, makes, named
from compressor.quantization.float_layers import in_float
from compressor.storage import files

IMAGES = 4


def try_stages(
    pipeline: Pipeline,
    labels: tuple[str, ...],
    preprocess: Preprocess,
    *,
    device: torch.device | None = None,
    console: Console | None = None,
    scratch: Path | None = None,
    watch: Callable[[Stage, Artifact | None, Context], object] = lambda stage, *_: stage.check_files(),
) -> list[dict[str, Any]]:
    """Take a few random images through every stage in order.

    Every network is built with its weights, trained for one step, pruned, quantized, saved and loaded as the pipeline
    says, exported, and run in ONNX Runtime.

    Args:
        pipeline: what to try.
        labels: the classes of the data.
        preprocess: the shape of its images.
        device: where networks train; the CPU by default.
        console: where the stages' networks are shown.
        scratch: the folder in which networks are saved for the moment; the system's own by default.
        watch: called with each stage, the network before it and its context, before it runs; by default, the files that
            it names are checked.

    Returns:
        For each stage its id, its tag, and its network's parameters, MACs and layers that stay in float.

    Raises:
        UserError: a stage cannot work on these images; the message names the stage, the layer and the reason.
        StageError: a target is out of reach, or the network cannot be exported.
    """
    console = console or Console()
    context = Context(
        data=synthetic(labels, preprocess, pipeline.data),
        seed=pipeline.seed,
        device=device or torch.device("cpu"),
        pipeline="dry run",
    )
    model: Artifact | None = None
    made: dict[str, Artifact] = {}
    exported: set[str] = set()
    stages: list[dict[str, Any]] = []
    with TemporaryDirectory() if scratch is None else files.scratch_folder(scratch / "dry-run") as folder:
        for index, (stage, after) in enumerate(zip(pipeline.stages, (*pipeline.stages[1:], None), strict=True)):
            target = Path(folder) / stage.id
            target.mkdir()
            own = context.before(index, pipeline, made)
            with named(stage):
                watch(stage, model, own)
                stage.for_dry_run().run(model, own).save(target)
                model = made[stage.id] = artifact.load(target, factories=pipeline.factories)
                kind = _kind(model)
                if kind not in exported and (after is None or "OnnxModel" not in makes(type(after))):
                    _run_exported(model, context)
                    exported.add(kind)
            counts = model.counts
            console.say(
                f"  {stage.id} ({stage.stage}): {counts.parameters:,} parameters, {counts.macs / 1e6:.2f} MMACs"
            )
            layers, norms = model.details.get("float_layers", {}), model.details.get("float_batch_norms", 0)
            if words := in_float(layers, norms):
                console.say(f"  {stage.id} leaves in float: {words}")
            stages.append(
                {
                    "id": stage.id,
                    "stage": stage.stage,
                    "parameters": counts.parameters,
                    "macs": counts.macs,
                    "float_layers": layers,
                }
            )
    return stages


def synthetic(labels: tuple[str, ...], preprocess: Preprocess, data: Data) -> Dataset:
    """A few random images in every split but the test split."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, preprocess.input_shape(IMAGES), dtype=torch.uint8, generator=generator)
    split = Split.of(InMemory(images, torch.arange(IMAGES) % len(labels)))
    return Dataset(
        train=split,
        validation=split,
        calibration=split,
        test=split.take(torch.arange(0)),
        labels=labels,
        preprocess=preprocess,
        augment=data.augment or Augment(),
        unlabeled=None if data.unlabeled is None else split,
    )


def _kind(model: Artifact) -> str:
    """What decides whether a network can be exported: its operators, but not the number and widths of its layers."""
    if isinstance(model, OnnxModel):
        return model.digest
    changes = [change for change in model.changes if isinstance(change, Int8)]
    return f"{model.architecture} {changes}"


def _run_exported(model: Artifact, context: Context) -> None:
    """Run the ONNX file that `model` would ship as."""
    shipped = model.to_onnx(context.pipeline) if isinstance(model, TorchModel) else model
    logits = shipped.predict(context.data.preprocess.normalise(context.data.validation.images).numpy())
    expected = (IMAGES, len(context.data.labels))
    if logits.shape != expected or not np.isfinite(logits).all():
        raise StageError(
            f"ONNX Runtime returns an output of shape {list(logits.shape)}, {np.isfinite(logits).mean():.0%} of it "
            f"finite; {list(expected)} and 100% are needed"
        )
