"""What a smaller network gets wrong: by class, by image, and on corrupted images."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from compressor.console import Console
from compressor.data.corruptions import CORRUPTIONS
from compressor.data.dataset import Dataset
from compressor.data.split import InMemory, Split
from compressor.evaluation.accuracy import SCORE_BATCH, Accuracy, ClassScore, Predictions, class_scores
from compressor.evaluation.figures import Count, Figures, Share
from compressor.storage import files

SHOWN = 24  # negative flips, and positive ones
THUMBNAIL = 96  # pixels of the longer side, at most
CORRUPTED_IMAGES = 2000


class Flip(Figures):
    """An image that only one of two networks predicts correctly: its index in the test split, class, both predictions.

    `confidence` is the probability of the shipped network's prediction; `png` is the image in base64.
    """

    image: Count
    label: Count
    baseline: Count
    shipped: Count
    confidence: Share
    png: str


class Corrupted(Figures):
    """Accuracy of both networks on images that were corrupted in one way."""

    corruption: str
    strength: str
    baseline: Accuracy
    shipped: Accuracy


class Regressions(Figures):
    """The shipped network beside the baseline.

    `confusion` is the shipped network's, `(class, prediction, images)`; `newly_wrong` and `newly_right` are the flips
    in which it is most confident, at most 24 each; `corrupted` is on at most 2,000 test images. `key` is the digest of
    the costly part and of everything that it depends on.
    """

    baseline_classes: tuple[ClassScore, ...]
    shipped_classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[Count, Count, Count], ...]
    newly_wrong: tuple[Flip, ...]
    newly_right: tuple[Flip, ...]
    corrupted: tuple[Corrupted, ...]
    key: str

    def by_loss(self) -> list[tuple[int, ClassScore, ClassScore]]:
        """Each class with the scores of the baseline and the shipped network, the largest losses of recall first."""
        pairs = enumerate(zip(self.baseline_classes, self.shipped_classes, strict=True))
        return sorted(
            ((index, before, after) for index, (before, after) in pairs),
            key=lambda each: (each[2].recall - each[1].recall, each[0]),
        )


def regressions_of(
    baseline: tuple[Path, Predictions],
    shipped: tuple[Path, Predictions],
    data: Dataset,
    known: Regressions | None,
    console: Console | None = None,
) -> Regressions:
    """What the shipped network does worse and better than the baseline.

    Args:
        baseline: its ONNX file, and its predictions on the test split.
        shipped: as `baseline`.
        data: with the test split.
        known: of an earlier report; its part on corrupted images is reused if nothing that it depends on has changed.
        console: where progress is shown.
    """
    test = data.test
    depends_on = [files.digest(baseline[0].read_bytes()), files.digest(shipped[0].read_bytes()), test.fingerprint]
    if known is not None and known.key == _key(depends_on, known.corrupted):
        corrupted = known.corrupted
    else:
        made = _on_corrupted(baseline[0], shipped[0], data)
        corrupted = tuple((console or Console()).follow("corrupting images", made, len(CORRUPTIONS)))
    before, after = baseline[1].correct, shipped[1].correct
    return Regressions(
        baseline_classes=class_scores(baseline[1], len(data.labels)),
        shipped_classes=class_scores(shipped[1], len(data.labels)),
        confusion=tuple(shipped[1].confusion()),
        newly_wrong=tuple(_flips(before & ~after, baseline[1], shipped[1], test)),
        newly_right=tuple(_flips(after & ~before, baseline[1], shipped[1], test)),
        corrupted=corrupted,
        key=_key(depends_on, corrupted),
    )


def _key(depends_on: list[str], corrupted: tuple[Corrupted, ...]) -> str:
    return files.digest_json([*depends_on, *(each.model_dump(mode="json") for each in corrupted)])


def _flips(which: NDArray[np.bool_], baseline: Predictions, shipped: Predictions, test: Split) -> Iterator[Flip]:
    """The images of `which` (`[N]`) in which the shipped network is most confident."""
    chosen = np.flatnonzero(which)
    for index in chosen[np.argsort(-shipped.confidence[chosen], kind="stable")][:SHOWN].tolist():
        yield Flip(
            image=index,
            label=int(test.labels[index]),
            baseline=int(baseline.classes[index]),
            shipped=int(shipped.classes[index]),
            confidence=float(shipped.confidence[index]),
            png=thumbnail(test.batch(torch.tensor([index]))[0].permute(1, 2, 0).numpy()),
        )


def thumbnail(pixels: NDArray[np.uint8]) -> str:
    """`[H, W, C]` as a PNG of at most 96 pixels a side, in base64."""
    return png(shrunk(pixels))


def shrunk(pixels: NDArray[np.uint8]) -> Image.Image:
    """`[H, W, C]` as an image of at most 96 pixels a side."""
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def png(image: Image.Image) -> str:
    """An image as PNG, in base64."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _on_corrupted(baseline: Path, shipped: Path, data: Dataset) -> Iterator[Corrupted]:
    chosen = np.sort(np.random.default_rng(0).permutation(len(data.test))[:CORRUPTED_IMAGES])
    clean = data.test.take(torch.from_numpy(chosen))
    for corruption in CORRUPTIONS:
        corrupted = [corruption.apply(images.numpy()) for images in clean.batches(SCORE_BATCH)]
        split = Split.of(InMemory(torch.from_numpy(np.concatenate(corrupted)), clean.labels))
        before, after = (Predictions.of(model, split, data.preprocess) for model in (baseline, shipped))
        yield Corrupted(
            corruption=corruption.name,
            strength=corruption.strength,
            baseline=before.accuracy(split="test, corrupted"),
            shipped=after.accuracy(split="test, corrupted"),
        )
