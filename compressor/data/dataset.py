"""Images in memory: data sets, their train / validation / calibration / test split, and batched augmentation.

Pixels are kept as uint8 `[N, C, H, W]`; augmentation and normalisation happen in batches, on the device that trains.
Validation is carved from the training images by seed, and choices are made on it; calibration images are training
images; the test split is read for the report only.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from compressor.config.spec import Spec
from compressor.data.preprocess import Preprocess
from compressor.data.sources import SOURCES, Images
from compressor.errors import DataError

LARGEST_SIDE = 4096
CALIBRATION_BATCH = 128
Count = Annotated[int, Field(ge=1, le=100_000_000)]
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]


class Augment(Spec):
    """Random changes to training images.

    Attributes:
        crop: cut each from itself padded by so many black pixels.
        flip: mirror half of them.
    """

    crop: int = Field(0, ge=0, le=LARGEST_SIDE)
    flip: bool = False


class Data(Spec):
    """Which images, at what size, split how.

    Attributes:
        name: `image_folder` reads `root/train/<class>/*` and `root/test/<class>/*`, or `root/<class>/*` split by seed.
        root: folder of the files, or where torchvision downloads them to.
        size: `[height, width]` that every image is resized to; the data set's own by default (224 x 224 for a folder).
        channels: 1 (gray) or 3 (RGB); the data set's own by default, 3 for a folder.
        mean: of each channel, for pixels in 0..1; the data set's own by default, ImageNet's for a folder in RGB.
        std: as `mean`.
        train: images that are trained on, drawn by the seed; all by default.
        validation: images carved from the training images; a tenth by default.
        test: images set apart where the data has no test split of its own; a fifth by default.
        calibration: training images that ranges and BatchNorm statistics are estimated on.
        augment: what training does to images; the data set's own by default, nothing for a folder.
    """

    name: Literal["digits", "cifar10", "cifar100", "mnist", "fashion_mnist", "emnist", "glyphs", "image_folder"]
    root: Path = Path("data")
    size: tuple[Side, Side] | None = None
    channels: Literal[1, 3] | None = None
    mean: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    std: tuple[Annotated[float, Field(ge=1e-3, le=1)], ...] | None = None
    train: Count | None = None
    validation: Count | None = None
    test: Count | None = None
    calibration: Count = 512
    augment: Augment | None = None

    @model_validator(mode="after")
    def _figures_fit_the_channels(self) -> Self:
        try:
            self.preprocess()
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
        return self

    def labels(self) -> tuple[str, ...]:
        """The classes, without reading an image.

        Raises:
            DataError: they are named by folders or files, and these are missing; or `test` has no effect.
        """
        self._check_test()
        return tuple(SOURCES[self.name].labels(self.root))

    def load(self, seed: int) -> "Dataset":
        """Read and split the images.

        Raises:
            DataError: they are missing or unreadable, or there are too few for the split.
        """
        source, preprocess = SOURCES[self.name], self.preprocess()
        self._check_test()
        train, test, labels, notes = source.read(self.root, preprocess, seed)
        if test is None:
            train, test = _split(train, self.test or source.test or max(len(train.labels) // 5, 1), seed, "test")
        train, validation = _split(train, self.validation or max(len(train.labels) // 10, 1), seed, "validation")
        if self.train is not None:
            train = _drawn(train, self.train, seed)
        chosen = np.random.default_rng(seed).permutation(len(train.labels))[: self.calibration]
        augment = self.augment or Augment(crop=source.crop, flip=source.flip)
        return Dataset(
            train=Split.of(train),
            validation=Split.of(validation),
            calibration=Split.of(train).take(torch.from_numpy(np.sort(chosen))),
            test=Split.of(test),
            labels=tuple(labels),
            preprocess=preprocess,
            augment=augment,
            notes=tuple(notes),
        )

    def _check_test(self) -> None:
        if self.test is not None and SOURCES[self.name].has_test(self.root):
            raise DataError("data.test: the data has a test split of its own, which is used whole; leave `test` out")

    def preprocess(self) -> Preprocess:
        """How an image becomes an input."""
        source = SOURCES[self.name]
        channels = self.channels or source.channels
        own = channels == source.channels
        mean = self.mean if self.mean is not None else (source.mean if own else (0.5,) * channels)
        std = self.std if self.std is not None else (source.std if own else (0.5,) * channels)
        return Preprocess(size=self.size or source.size, channels=channels, mean=mean, std=std)


@dataclass(frozen=True)
class Split:
    """Images uint8 `[N, C, H, W]` and their classes int64 `[N]`."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, images: Images) -> "Split":
        """The same, as tensors."""
        return cls(torch.from_numpy(np.ascontiguousarray(images.pixels)), torch.from_numpy(images.labels))

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the pixels and classes."""
        sha = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        sha.update(self.images.numpy().data)
        sha.update(self.labels.numpy().data)
        return sha.hexdigest()

    def take(self, indices: Tensor) -> "Split":
        """The images at `indices`."""
        return Split(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> "Split":
        """The same on another device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """Everything a run knows of its images. `notes` say what was odd about their files."""

    train: Split
    validation: Split
    calibration: Split
    test: Split
    labels: tuple[str, ...]
    preprocess: Preprocess
    augment: Augment = field(default_factory=Augment)
    notes: tuple[str, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the pixels and classes of every split, the labels and the preprocessing."""
        sha = hashlib.sha256(repr((self.labels, self.preprocess, self.augment)).encode())
        for split in (self.train, self.validation, self.calibration, self.test):
            sha.update(split.fingerprint.encode())
        return sha.hexdigest()

    def calibration_batches(self, size: int = CALIBRATION_BATCH) -> Iterator[Tensor]:
        """The calibration images, normalised, in batches `[B, C, H, W]` of about equal size, at most `size`."""
        images = self.calibration.images
        for chunk in images.tensor_split(math.ceil(len(images) / size)):
            yield self.preprocess.normalise(chunk)

    def without_test(self) -> "Dataset":
        """The same with an empty test split: what stages are given."""
        return replace(self, test=self.test.take(torch.arange(0)))


@dataclass(frozen=True)
class View:
    """One random view of every training image: offsets of the crop `[N, 2]` and whether it is mirrored `[N]`."""

    offsets: Tensor
    flips: Tensor

    @classmethod
    def draw(cls, augment: Augment, count: int, seed: int) -> "View":
        """A view of `count` images, the same for the same arguments."""
        generator = torch.Generator().manual_seed(seed)
        offsets = torch.randint(0, 2 * augment.crop + 1, (count, 2), generator=generator)
        flips = torch.rand(count, generator=generator) < (0.5 if augment.flip else 0.0)
        return cls(offsets, flips)

    def of(self, images: Tensor, indices: Tensor, crop: int) -> Tensor:
        """These views of `images` (uint8 `[B, C, H, W]`, the training images at `indices`), padded with black."""
        flips = self.flips[indices].to(images.device)
        offsets = self.offsets[indices].to(images.device)
        height, width = images.shape[2:]
        images = torch.where(flips.view(-1, 1, 1, 1), images.flip(3), images)
        if not crop:
            return images
        padded = torch.nn.functional.pad(images, (crop,) * 4)
        rows = offsets[:, 0, None] + torch.arange(height, device=images.device)  # [B, H]
        columns = offsets[:, 1, None] + torch.arange(width, device=images.device)  # [B, W]
        batch = torch.arange(len(images), device=images.device).view(-1, 1, 1)
        picked = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]  # [B, H, W, C]
        return picked.permute(0, 3, 1, 2)


def _split(images: Images, count: int, seed: int, purpose: str) -> tuple[Images, Images]:
    """Set `count` images apart, in the proportions of the classes where both parts can hold one of each."""
    from sklearn.model_selection import train_test_split  # takes seconds, and a wrong pipeline is told before

    everything, classes = np.arange(len(images.labels)), np.bincount(images.labels)
    if len(everything) - count < len(classes):
        raise DataError(f"{len(everything)} images of {len(classes)} classes cannot give {count} for {purpose}")
    enough = classes.min() >= 2 and count >= len(classes)
    stratify = images.labels if enough else None
    rest, chosen = train_test_split(everything, test_size=count, random_state=seed, stratify=stratify)
    return _at(images, np.sort(rest)), _at(images, np.sort(chosen))


def _drawn(images: Images, count: int, seed: int) -> Images:
    """`count` images, in the proportions of the classes where it can hold one of each."""
    if count > len(images.labels):
        raise DataError(f"data.train: {count} images are asked for, and {len(images.labels)} are left to train on")
    if count < (classes := len(np.unique(images.labels))):
        raise DataError(f"data.train: {count} images cannot hold one of each of {classes} classes")
    if count == len(images.labels):
        return images
    return _split(images, len(images.labels) - count, seed, "training")[0]


def _at(images: Images, indices: NDArray[np.int64] | Sequence[int]) -> Images:
    return Images(images.pixels[indices], images.labels[indices])
