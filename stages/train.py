"""Train a network on labels, or take one that is trained already."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from compressor.models.artifact import TorchModel, load_weights, read_weights
from compressor.pipeline.stage import Context, Stage, Start
from compressor.training.loop import Batch, fit
from compressor.training.settings import Training


class Train(Start, Training, Stage[TorchModel | None, TorchModel]):
    """Minimise cross-entropy on the labels of the training images.

    Attributes:
        weights: a safetensors file, or a state dict that loads with `weights_only`, to start from.
        label_smoothing: the share of the target spread over all classes (Szegedy et al. 2016).

    With `epochs: 0` the network is taken as it is.
    """

    recovers: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"stage": "train", "model": "resnet8", "epochs": 1}

    stage: Literal["train"] = "train"
    weights: Path | None = None
    label_smoothing: float = Field(0.0, ge=0, lt=1)

    def run(self, model: TorchModel | None, context: Context) -> TorchModel:
        """The trained network.

        Raises:
            UserError: the model, its weights or the data do not fit one another.
            StageError: training diverged.
        """
        start = self.start(model, context)
        network = start.copy_network()
        if self.weights is not None:
            load_weights(network, read_weights(self.weights), source=str(self.weights))

        def loss(logits: Tensor, batch: Batch) -> Tensor:
            return F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)

        details = fit(network, loss, self, context, label=self.id, masked=start.masked)
        return start.with_network(network, details=details)
