"""A data set split for a run: training, validation, calibration and test images.

Pixels are uint8 `[N, C, H, W]`; augmentation and normalisation happen in batches, on the device that trains. Validation
images are carved from the training images by the seed, and choices are made on them; calibration images are training
images; the test split is read for the report only.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from compressor.data.preprocess import Preprocess
from compressor.data.settings import Augment
from compressor.data.split import Joined, Split
from compressor.errors import UserError

CALIBRATION_BATCH = 128


@dataclass(frozen=True)
class Dataset:
    """Everything a run knows about its images. `notes` say what was odd about their files.

    `unlabeled` images have no class; teachers say what is on them. Networks are judged on `test`, which are the
    validation images instead where `judged_on` says so.
    """

    train: Split
    validation: Split
    calibration: Split
    test: Split
    labels: tuple[str, ...]
    preprocess: Preprocess
    augment: Augment = field(default_factory=Augment)
    notes: tuple[str, ...] = ()
    unlabeled: Split | None = None
    judged_on: Literal["test", "validation"] = "test"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the pixels and classes of every split, the labels and the preprocessing."""
        sha = hashlib.sha256(repr((self.labels, self.preprocess, self.augment)).encode())
        for split in (self.train, self.validation, self.calibration, self.test, self.unlabeled):
            if split is not None:
                sha.update(split.fingerprint.encode())
        return sha.hexdigest()

    def calibration_batches(self, size: int = CALIBRATION_BATCH, images: int | None = None) -> Iterator[Tensor]:
        """The calibration images, or the first `images`, normalised, in batches `[B, C, H, W]` of about equal size.

        `size` is the most that a batch holds; fewer, if they are large.
        """
        count = min(len(self.calibration), images or len(self.calibration))
        for positions in torch.arange(count).tensor_split(math.ceil(count / min(size, self.preprocess.max_batch))):
            yield self.preprocess.normalise(self.calibration.batch(positions))

    def on(self, device: torch.device) -> "Dataset":
        """The same, with the training images on a GPU if they fit, unless images are augmented one by one."""
        return self if self.augment.one_by_one else replace(self, train=self.train.on(device))

    def with_unlabeled(self) -> "Dataset":
        """The same, with images that have no class behind the training images.

        Raises:
            UserError: there are none.
        """
        if self.unlabeled is None:
            raise UserError("unlabeled: true needs images without classes; name their folder in data.unlabeled")
        return replace(self, train=Split.of(Joined(self.train, self.unlabeled)))

    def without_test(self) -> "Dataset":
        """The same with an empty test split: what stages are given."""
        return replace(self, test=self.test.take(torch.arange(0)))

    def judged_on_validation(self) -> "Dataset":
        """The same, judged on the validation images: choices between whole pipelines leave the test images alone."""
        return replace(self, test=self.validation, judged_on="validation")
