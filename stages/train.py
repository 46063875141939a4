"""Train a network on labels, or take one that is already trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from compressor import models, training
from compressor.pipeline.stage import Stage, Start
from compressor.training.settings import Training

if TYPE_CHECKING:
    from compressor import Context, TorchModel


class Train(Start, Training, Stage):
    """Minimise cross-entropy on the labels of the training images.

    With `epochs: 0`, the network is taken as it is.
    """

    recovers: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"stage": "train", "model": "resnet8", "epochs": 1}

    stage: Literal["train"] = "train"
    weights: Path | None = None
    """A safetensors file, or a state dict that loads with `weights_only`, to start from."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """The share of the target that is spread over all classes (Szegedy et al. 2016)."""

    def run(self, model: "TorchModel | None", context: "Context") -> "TorchModel":
        """The trained network.

        Raises:
            UserError: the model, its weights or the data do not fit one another.
            StageError: training diverged.
        """
        start = self.start(model, context)
        network = start.copy_network()
        if self.weights is not None:
            models.load_weights(network, models.read_weights(self.weights), source=str(self.weights))
        objective = training.CrossEntropy(self.label_smoothing, training.class_weights(self, context.data))
        details = training.fit(
            network, objective, self, context, label=self.id, masked=start.masked, frozen=start.frozen
        )
        return start.with_network(network, details=details)
