"""How accurate a network is: accuracy with its interval, two networks on the same images, calibration, classes.

Nothing here knows about stages: it scores an ONNX file on disk.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import NormalDist

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from pydantic import model_validator
from safetensors import SafetensorError

from compressor.data.preprocess import Preprocess
from compressor.data.split import Split
from compressor.errors import ArtifactError, StageError, first_line
from compressor.evaluation.figures import Count, Figures, Share, Total
from compressor.export import onnx_file
from compressor.models.agreement import LogitsOf
from compressor.storage import files

CONFIDENCE = 0.95  # of every interval
SIGNIFICANT = 1 - CONFIDENCE  # p below which a test rejects
SCORE_BATCH = 250
CALIBRATION_BINS = 15


class Accuracy(Figures):
    """k of n images correct, with the Wilson interval (Wilson 1927)."""

    split: str
    engine: str
    correct: Count
    total: Total
    value: Share
    low: Share
    high: Share

    @model_validator(mode="after")
    def _no_more_than_all(self) -> "Accuracy":
        if self.correct > self.total:
            raise ValueError(f"{self.correct} of {self.total} images cannot be correct")
        return self

    @classmethod
    def of(cls, correct: int, total: int, *, split: str, engine: str = "onnxruntime") -> "Accuracy":
        """The accuracy of `correct` among `total`."""
        from scipy.stats import binomtest  # takes a second to import

        interval = binomtest(correct, total).proportion_ci(CONFIDENCE, method="wilson")
        low, high = float(interval.low), float(interval.high)
        return cls(split=split, engine=engine, correct=correct, total=total, value=correct / total, low=low, high=high)


class Paired(Figures):
    """A network against the baseline on the same images (McNemar 1947, exact).

    Only the baseline predicts the `lost` images correctly, only this network the `won` ones. `p_value` is that of `won`
    among `lost + won` under a fair coin. The difference in accuracy is (won - lost) / total; its interval is Bonett and
    Price's (2012): Wald's with one image added to each count. Where the test does not reject, it is widened to hold 0.
    """

    lost: Count
    won: Count
    total: Total
    p_value: Share
    difference: float
    low: float
    high: float

    @classmethod
    def of(cls, lost: int, won: int, total: int) -> "Paired":
        """The comparison, from its counts."""
        from scipy.stats import binomtest

        p_value = float(binomtest(won, lost + won).pvalue) if lost + won else 1.0
        middle, deviation = _adjusted(lost, won, total)
        half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * deviation
        low, high = middle - half, middle + half
        if p_value >= SIGNIFICANT:
            low, high = min(low, 0.0), max(high, 0.0)
        return cls(
            lost=lost, won=won, total=total, p_value=p_value, difference=(won - lost) / total, low=low, high=high
        )

    def at_least(self, confidence: float) -> float:
        """The difference in accuracy is no less, with this confidence: the one-sided bound of the same interval."""
        middle, deviation = _adjusted(self.lost, self.won, self.total)
        return middle - NormalDist().inv_cdf(confidence) * deviation


def _adjusted(lost: int, won: int, total: int) -> tuple[float, float]:
    """The difference in accuracy and its standard deviation, with one image added to each count (Bonett and Price)."""
    middle = (won - lost) / (total + 2)
    spread = (lost + won + 2) / (total + 2) - middle**2
    return middle, math.sqrt(spread / (total + 2))


@dataclass(frozen=True)
class Predictions:
    """What a network predicts for each image of a split."""

    classes: NDArray[np.int64]
    """The most probable class, int64 `[N]`."""
    confidence: NDArray[np.float32]
    """Its probability, float32 `[N]`."""
    labels: NDArray[np.int64]
    """The correct class, int64 `[N]`."""

    @classmethod
    def of(cls, model: Path, split: Split, preprocess: Preprocess) -> "Predictions":
        """The predictions of an ONNX file on a whole split, in ONNX Runtime on the CPU."""
        session = onnx_file.session(model, threads=torch.get_num_threads())
        return cls.by(partial(onnx_file.logits_of, session, source=model), split, preprocess)

    @classmethod
    def by(cls, logits_of: LogitsOf, split: Split, preprocess: Preprocess) -> "Predictions":
        """The predictions of whatever gives logits, on a whole split."""
        classes, confidence = [], []
        for images in split.batches(min(SCORE_BATCH, preprocess.max_batch)):
            logits = logits_of(preprocess.normalise(images).numpy())  # [B, classes]
            classes.append(logits.argmax(1))
            confidence.append(probabilities(logits).max(1))
        return cls(np.concatenate(classes), np.concatenate(confidence), split.labels.numpy())

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each prediction is correct, `[N]`."""
        correct: NDArray[np.bool_] = self.classes == self.labels
        return correct

    def accuracy(self, *, split: str) -> Accuracy:
        """The share of correct predictions."""
        return Accuracy.of(int(self.correct.sum()), len(self.correct), split=split)

    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that have images."""
        from sklearn.metrics import recall_score

        return float(recall_score(self.labels, self.classes, labels=np.unique(self.labels), average="macro"))

    def against(self, baseline: "Predictions") -> Paired:
        """These predictions against the baseline's, on the same images."""
        lost, won = baseline.correct & ~self.correct, self.correct & ~baseline.correct
        return Paired.of(int(lost.sum()), int(won.sum()), len(self.correct))

    def calibration_error(self) -> float:
        """Expected calibration error, 15 bins of equal width (Guo et al. 2017): mean of |accuracy - confidence|.

        Raises:
            StageError: a logit is not finite, so there is no probability.
        """
        if missing := int((~np.isfinite(self.confidence)).sum()):
            raise StageError(
                f"model.onnx has no finite logits on {missing} of {len(self.confidence)} images; its training may have "
                "diverged"
            )
        bins = np.minimum((self.confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        gap = np.bincount(bins, self.correct - self.confidence.astype(np.float64), CALIBRATION_BINS)
        return float(np.abs(gap).sum() / len(self.correct))

    def confusion(self) -> list[tuple[int, int, int]]:
        """The non-zero entries of the confusion matrix: `(class, prediction, images)`."""
        pairs = Counter(zip(self.labels.tolist(), self.classes.tolist(), strict=True))
        return [(label, predicted, count) for (label, predicted), count in sorted(pairs.items())]

    def save(self, path: Path) -> None:
        """Write them as safetensors."""
        files.write_bytes(path, safetensors.numpy.save(vars(self)))

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Read what `save` wrote.

        Raises:
            ArtifactError: the file is missing, or holds something else.
        """
        try:
            read = cls(**safetensors.numpy.load(files.read_bytes(path)))
        except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
            raise ArtifactError(f"{path}: no predictions can be read: {first_line(error)}") from error
        kinds = [(each.dtype.name, each.shape) for each in (read.classes, read.confidence, read.labels)]
        if (
            not read.labels.size
            or kinds != [(kind, (read.labels.size,)) for kind in ("int64", "float32", "int64")]
            or not ((read.classes >= 0).all() and (read.confidence >= 0).all() and (read.confidence <= 1).all())
        ):
            raise ArtifactError(f"{path}: holds no predictions (a class and a probability for each image)")
        return read


class ClassScore(Figures):
    """Precision, recall and F1 of one class, each 0 to 1; the split has so many `images` of it."""

    images: Count
    precision: Share
    recall: Share
    f1: Share


def class_scores(predictions: Predictions, classes: int) -> tuple[ClassScore, ...]:
    """Precision, recall and F1 of each class; 0 where the denominator is 0."""
    from sklearn.metrics import precision_recall_fscore_support

    columns: Sequence[NDArray[np.float64]] = precision_recall_fscore_support(
        predictions.labels, predictions.classes, labels=range(classes), zero_division=0
    )
    return tuple(
        ClassScore(images=int(images), precision=float(precision), recall=float(recall), f1=float(f1))
        for precision, recall, f1, images in zip(*columns, strict=True)
    )


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Softmax over the last axis, `[..., classes]`; NaN where a logit is not finite."""
    with np.errstate(invalid="ignore"):
        raised = np.exp(logits - logits.max(-1, keepdims=True))
    shares: NDArray[np.float32] = raised / raised.sum(-1, keepdims=True)
    return shares
