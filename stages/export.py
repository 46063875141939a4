"""Write the ONNX file that ships, and hold it against the network it came from."""

import math
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from compressor.config.spec import validated_copy
from compressor.errors import StageError
from compressor.models.artifact import PREDICT_BATCH, OnnxModel, TorchModel
from compressor.pipeline.context import Context
from compressor.pipeline.stage import Stage


class Export(Stage):
    """Export to ONNX and compare with the torch network on the validation images, in ONNX Runtime.

    Attributes:
        opset: the version of ONNX's operators that the file uses.
        agreement: the least share of validation images that torch and ONNX Runtime must put in the same class.
    """

    example: ClassVar[dict[str, Any]] = {"stage": "export"}

    stage: Literal["export"] = "export"
    opset: int = Field(18, ge=18, le=23)
    agreement: float = Field(0.99, ge=0, le=1)

    def rehearsal(self) -> Self:
        """Any agreement will do: an untrained network is undecided between classes."""
        return validated_copy(self, agreement=0.0)

    def run(self, model: TorchModel, context: Context) -> OnnxModel:
        """The ONNX file.

        Raises:
            StageError: it cannot be written, or agrees with the network on too few images.
        """
        exported = model.to_onnx(context.pipeline, self.opset)
        preprocess, validation = context.data.preprocess, context.data.validation
        size = min(PREDICT_BATCH, preprocess.max_batch)
        batches = validation.batches(size)
        batches = context.services.console.follow("checking agreement", batches, math.ceil(len(validation) / size))
        pairs = [_both(model, exported, preprocess.normalise(images)) for images in batches]
        expected, got = (np.concatenate(logits) for logits in zip(*pairs, strict=True))  # [N, classes]
        difference = np.abs(got - expected)
        if not np.isfinite(difference).all():
            raise StageError("a logit of the network or of its ONNX file is not finite; its training may have diverged")
        same = int((got.argmax(1) == expected.argmax(1)).sum())
        agreement = {
            "images": len(got),
            "same_top1": same,
            "top1_agreement": same / len(got),
            "largest_logit_difference": float(difference.max()),
            "mean_logit_difference": float(difference.mean()),
        }
        if same / len(got) < self.agreement:
            raise StageError(
                f"ONNX Runtime and torch agree on {same} of {len(got)} validation images, under the "
                f"{self.agreement:.1%} asked for; the largest logit difference is {difference.max():.3g}"
            )
        return exported.with_details({"opset": self.opset, "agreement": agreement})


def _both(model: TorchModel, exported: OnnxModel, inputs: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits of the network in torch and of its file in ONNX Runtime."""
    return model.predict(inputs).numpy(), exported.predict(inputs.numpy())
