"""What a stage receives besides its incoming artifact, and what the run does for it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compressor.console import Console
from compressor.data.dataset import Dataset
from compressor.errors import UserError
from compressor.models.architectures import Architecture, check_fits, check_is_saved
from compressor.models.artifact import Artifact, TorchModel
from compressor.storage.checkpoints import Checkpoints
from compressor.tracking import Tracker

if TYPE_CHECKING:
    from compressor.pipeline.pipeline import Pipeline


@dataclass(frozen=True)
class Services:
    """What a run does for its stages; none of it affects a result."""

    console: Console = field(default_factory=Console)
    """Where progress is shown."""
    trackers: tuple[Tracker, ...] = ()
    """Trackers that follow the run."""
    checkpoints: Checkpoints | None = None
    """Where checkpoints of unfinished trainings are kept; by default nowhere."""
    soft_labels: Path | None = None
    """The folder where teachers' outputs are stored; by default none."""

    def on_epoch(self, stage: str, point: Mapping[str, float]) -> None:
        """Tell the console and all trackers that an epoch ended."""
        for tracker in (self.console, *self.trackers):
            tracker.on_epoch(stage, point)

    def on_row(self, row: Mapping[str, Any]) -> None:
        """Tell everyone that a stage was scored."""
        for tracker in (self.console, *self.trackers):
            tracker.on_row(row)


@dataclass(frozen=True)
class Context:
    """Everything that decides what a stage makes, besides its settings and its incoming artifact."""

    data: Dataset
    """The images; a run passes stages an empty test split."""
    seed: int = 0
    """Every random choice derives from it."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where networks are trained."""
    teachers: Mapping[str, TorchModel] = field(default_factory=dict)
    """The artifacts of earlier stages, by id."""
    baseline: Artifact | None = None
    """What the report compares with, if it was made already."""
    ships_int8: bool = False
    """Whether a later stage quantizes what this one makes."""
    pipeline: str = ""
    """The digest of the pipeline, which goes into the metadata of ONNX files."""
    services: Services = field(default_factory=Services)
    """What the run does for the stage."""

    def before(self, index: int, pipeline: "Pipeline", made: Mapping[str, Artifact]) -> "Context":
        """What the stage with this index in a pipeline is given; the earlier ones have `made` artifacts, by id."""
        return replace(
            self,
            teachers={name: each for name, each in made.items() if isinstance(each, TorchModel)},
            baseline=made.get(pipeline.baseline_id),
            ships_int8=any(later.makes_integers for later in pipeline.stages[index + 1 :]),
        )

    def with_images_on_device(self) -> "Context":
        """The same, with the training images on the device, if it is a GPU and they fit: they are augmented there."""
        return replace(self, data=self.data.on(self.device))

    def seed_for(self, purpose: str) -> int:
        """A separate seed for each purpose."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{purpose}".encode()).digest()[:6])

    def new_model(self, model: str, arguments: dict[str, Any]) -> TorchModel:
        """An untrained network for this data, initialised by the seed.

        Raises:
            ArchitectureError: it cannot be built, or does not fit the images or classes.
        """
        preprocess = self.data.preprocess
        architecture = Architecture(
            model=model,
            arguments=arguments,
            num_classes=len(self.data.labels),
            in_channels=preprocess.channels,
        )
        named = frozenset({model})  # by the settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed_for("initial weights"))
            network = architecture.build(factories=named)
        check_fits(network, architecture, preprocess.input_shape(2))
        check_is_saved(network, architecture, named, preprocess.input_shape(2))
        return TorchModel.of_new(network, architecture, preprocess, self.data.labels)

    def teacher(self, stage_id: str) -> TorchModel:
        """The earlier stage's artifact to learn from.

        Raises:
            UserError: no earlier stage has this id.
        """
        if stage_id not in self.teachers:
            known = ", ".join(self.teachers) or "none"
            raise UserError(f"teacher {stage_id!r} is not an earlier stage with a torch network; those are: {known}")
        return self.teachers[stage_id]
