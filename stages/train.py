"""Train a network on labels, or take one that is already trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from compressor import models, training
from compressor.config.factories import LIBRARIES
from compressor.config.spec import validated_copy
from compressor.pipeline.stage import Stage, Start
from compressor.training.settings import Training

if TYPE_CHECKING:
    from torch import nn

    from compressor import Context, TorchModel
    from compressor.models import Pretrained

PretrainedName = Annotated[str, StringConstraints(pattern=r"^pretrained(:[\w.-]{1,200})?$")]


class Train(Start, Training, Stage):
    """Minimise cross-entropy on the labels of the training images.

    With `epochs: 0`, the network is taken as it is.
    """

    recovers: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"stage": "train", "model": "resnet8", "epochs": 1}

    stage: Literal["train"] = "train"
    weights: PretrainedName | Path | None = None
    """A safetensors file, a state dict that loads with `weights_only`, or `pretrained` for those of the library."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """The share of the target that is spread over all classes (Szegedy et al. 2016)."""

    @field_validator("weights", mode="before")
    @classmethod
    def _weights_are_named(cls, value: Any) -> Any:
        if not isinstance(value, str | Path | None):
            raise ValueError(f"got {value!r}; expected a file, or `pretrained`")
        return value

    @model_validator(mode="after")
    def _pretrained_weights_are_of_a_library(self) -> Self:
        if isinstance(self.weights, str) and (self.model or "").partition(":")[0] not in LIBRARIES:
            raise ValueError(f"weights: {self.weights} needs a model of a library: torchvision:NAME or timm:NAME")
        return self

    @property
    def pretrained(self) -> "Pretrained | None":
        """The trained weights of a library that the stage starts from; nothing is downloaded.

        Raises:
            ArchitectureError: the library has none, or none of that version.
        """
        if not isinstance(self.weights, str):
            return None
        assert self.model is not None
        return models.pretrained(self.model, self.weights.partition(":")[2])

    @property
    def all_arguments(self) -> dict[str, Any]:
        """The arguments of the architecture, with those that its pretrained weights need."""
        return {**(self.pretrained.arguments if self.pretrained is not None else {}), **self.arguments}

    def expected_data(self, channels: int) -> Mapping[str, Any]:
        """What the pretrained weights were evaluated with."""
        return self.pretrained.data_for(channels) if self.pretrained is not None else {}

    def for_dry_run(self) -> Self:
        """With pretrained weights only looked up: a dry run downloads nothing."""
        stage = super().for_dry_run()
        return stage if self.pretrained is None else validated_copy(stage, weights=None, arguments=self.all_arguments)

    def run(self, model: "TorchModel | None", context: "Context") -> "TorchModel":
        """The trained network.

        Raises:
            UserError: the model, its weights or the data do not fit one another.
            StageError: training diverged.
        """
        start = self.start(model, context)
        network = start.copy_network()
        origin = self._load_weights(network, start)
        objective = training.CrossEntropy(self.label_smoothing, training.class_weights(self, context.data))
        details = training.fit(network, objective, self, context, label=self.id, start=start)
        return start.with_network(network, details={**details, **origin})

    def _load_weights(self, network: "nn.Module", start: "TorchModel") -> dict[str, Any]:
        """Load the weights that are named, if any; returns what a report says of pretrained ones."""
        if self.pretrained is not None:
            return {"pretrained": models.load_pretrained(network, self.pretrained, start.architecture)}
        if self.weights is not None:
            models.load_weights(network, models.read_weights(Path(self.weights)), source=str(self.weights))
        return {}
