"""How well an ONNX file agrees with the network that it was exported from."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.data.split import Split
from compressor.errors import StageError
from compressor.models.artifact import PREDICT_BATCH, TorchModel


def agreement_of(
    model: TorchModel,
    logits_of: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    split: Split,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """The network's logits on a split, and those of `logits_of`: images in the same class, absolute differences.

    `advance` is called with the number of images just compared.

    Raises:
        StageError: a logit is not finite.
    """
    images = same = 0
    total = largest = 0.0
    logits = 0
    for pixels in split.batches(min(PREDICT_BATCH, model.preprocess.max_batch)):
        inputs = model.preprocess.normalise(pixels)
        expected, got = model.predict(inputs).numpy(), logits_of(inputs.numpy())  # [B, classes]
        difference = np.abs(got - expected)
        if not np.isfinite(difference).all():
            raise StageError("the network or its ONNX file gives logits that are not finite; it may have diverged")
        images += len(got)
        same += int((got.argmax(1) == expected.argmax(1)).sum())
        total, logits = total + float(difference.sum(dtype=np.float64)), logits + difference.size
        largest = max(largest, float(difference.max()))
        advance(len(got))
    return {
        "images": images,
        "same_top1": same,
        "top1_agreement": same / images,
        "largest_logit_difference": largest,
        "mean_logit_difference": total / logits,
    }
