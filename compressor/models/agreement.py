"""How well an ONNX file agrees with the network that it was exported from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.data.split import Split
from compressor.errors import StageError
from compressor.models.artifact import PREDICT_BATCH, TorchModel

LogitsOf = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # [B, C, H, W] to [B, classes]


def agreement_of(
    model: TorchModel, computed: Mapping[str, LogitsOf], split: Split, advance: Callable[[int], None]
) -> dict[str, dict[str, Any]]:
    """The network's logits on a split, and those of its file as several engines compute them, by their names.

    For each: images in the same class, mean and largest absolute difference.

    Args:
        model: the network.
        computed: for each engine, logits `[B, classes]` of normalised images `[B, C, H, W]`.
        split: the images.
        advance: called with the number of images just compared.

    Raises:
        StageError: a logit is not finite.
    """
    counts = {name: _Agreement() for name in computed}
    for pixels in split.batches(min(PREDICT_BATCH, model.preprocess.max_batch)):
        inputs = model.preprocess.normalise(pixels)
        expected = model.predict(inputs).numpy()  # [B, classes]
        for name, logits_of in computed.items():
            counts[name].add(expected, logits_of(inputs.numpy()))
        advance(len(expected))
    return {name: each.summary for name, each in counts.items()}


@dataclass
class _Agreement:
    """What is added up over batches."""

    images: int = 0
    same: int = 0
    logits: int = 0
    total: float = 0.0
    largest: float = 0.0

    def add(self, expected: NDArray[np.float32], got: NDArray[np.float32]) -> None:
        """One more batch, `[B, classes]` each."""
        difference = np.abs(got - expected)
        if not np.isfinite(difference).all():
            raise StageError("the network or its ONNX file gives logits that are not finite; it may have diverged")
        self.images += len(got)
        self.same += int((got.argmax(1) == expected.argmax(1)).sum())
        self.logits += difference.size
        self.total += float(difference.sum(dtype=np.float64))
        self.largest = max(self.largest, float(difference.max()))

    @property
    def summary(self) -> dict[str, Any]:
        """For the report."""
        return {
            "images": self.images,
            "same_top1": self.same,
            "top1_agreement": self.same / self.images,
            "largest_logit_difference": self.largest,
            "mean_logit_difference": self.total / self.logits,
        }
