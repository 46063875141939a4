"""Augmentation by view: view number v of training image i is a function of the seed, v and i, and of nothing else.

So it does not matter in which batch, order or run an image is shown, and a teacher's outputs can be stored by view.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.data.dataset import Dataset
from compressor.data.preprocess import Preprocess
from compressor.data.settings import Augment
from compressor.data.split import Split


@dataclass(frozen=True)
class Shift:
    """Where every training image is cropped, and whether it is mirrored.

    Attributes:
        crop: by how many black pixels an image is padded on each side.
        offsets: of the crop in the padded image, int64 `[N, 2]`.
        flips: bool `[N]`.
    """

    crop: int
    offsets: Tensor
    flips: Tensor

    @classmethod
    def draw(cls, augment: Augment, count: int, generator: torch.Generator, number: int = 0) -> Self:
        """That of `count` images in the view of this number."""
        offsets = torch.randint(0, 2 * augment.crop + 1, (count, 2), generator=generator)
        flips = torch.rand(count, generator=generator) < (0.5 if augment.flip else 0.0)
        if augment.alternate:
            mirrored_first = torch.rand(count, generator=torch.Generator().manual_seed(0)) < 0.5  # in every even view
            flips = mirrored_first if number % 2 == 0 else ~mirrored_first
        return cls(augment.crop, offsets, flips)

    def of(self, images: Tensor, indices: Tensor) -> Tensor:
        """`images` (uint8 `[B, C, H, W]`, the training images at `indices`), mirrored and cropped."""
        flips = self.flips[indices].to(images.device)
        offsets = self.offsets[indices].to(images.device)
        height, width = images.shape[2:]
        images = torch.where(flips.view(-1, 1, 1, 1), images.flip(3), images)
        if not self.crop:
            return images
        padded = torch.nn.functional.pad(images, (self.crop,) * 4)
        rows = offsets[:, 0, None] + torch.arange(height, device=images.device)  # [B, H]
        columns = offsets[:, 1, None] + torch.arange(width, device=images.device)  # [B, W]
        batch = torch.arange(len(images), device=images.device).view(-1, 1, 1)
        picked = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]  # [B, H, W, C]
        return picked.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Mix:
    """What every training image is mixed with, and how: blended (mixup, Zhang et al. 2018), or a box of the other
    pasted into it (CutMix, Yun et al. 2019).

    Attributes:
        partners: the other image, int64 `[N]`; each image is the partner of one.
        shares: of the image where it is blended, float32 `[N]`; 1 where a box is pasted.
        boxes: what is pasted: the first row, the row after the last, and likewise the columns, int64 `[N, 4]`.
    """

    partners: Tensor
    shares: Tensor
    boxes: Tensor

    @classmethod
    def draw(cls, augment: Augment, size: tuple[int, int], count: int, seed: int) -> Self:
        """That of `count` images of `size`."""
        random = np.random.default_rng(seed)
        partners = random.permutation(count)
        cut = random.random(count) < bool(augment.cutmix) / (bool(augment.mixup) + bool(augment.cutmix))
        blended = random.beta(augment.mixup or 1, augment.mixup or 1, count)
        kept = random.beta(augment.cutmix or 1, augment.cutmix or 1, count)  # of the area
        sides = np.array(size)
        centers = np.floor(random.random((count, 2)) * sides)  # [N, 2], row and column
        halves = np.floor(np.sqrt(1 - kept)[:, None] * sides / 2)
        boxes = np.stack([centers - halves, centers + halves], 2).clip(0, sides[:, None])  # [N, 2, 2]
        boxes[~cut] = 0
        shares = np.where(cut, 1.0, blended).astype(np.float32)
        return cls(torch.from_numpy(partners), torch.from_numpy(shares), torch.from_numpy(boxes).long().flatten(1))

    def own(self, indices: Tensor, size: tuple[int, int], device: torch.device) -> Tensor:
        """How much of each pixel is of the image itself, for the images at `indices`: float32 `[B, H, W]`."""
        top, bottom, left, right = self.boxes[indices].to(device)[:, :, None].unbind(1)  # [B, 1]
        rows, columns = (torch.arange(side, device=device) for side in size)
        in_rows, in_columns = (top <= rows) & (rows < bottom), (left <= columns) & (columns < right)  # [B, H], [B, W]
        pasted = in_rows[:, :, None] & in_columns[:, None, :]
        return self.shares[indices].to(device)[:, None, None] * ~pasted

    def kept(self, indices: Tensor, size: tuple[int, int]) -> Tensor:
        """The share of the image itself, for the images at `indices`: float32 `[B]`, the mean of `own`."""
        top, bottom, left, right = self.boxes[indices].unbind(1)
        return self.shares[indices] * (1 - (bottom - top) * (right - left) / math.prod(size))


@dataclass(frozen=True)
class View:
    """One random view of every training image.

    Torchvision's transforms draw from torch's global generator, which is seeded for every image.

    Attributes:
        images: the training images.
        classes: how many there are.
        seed: of this view.
        shift: how they are cropped and mirrored.
        whole: whether a part is cut out of all of an image, not of what the other splits are given of theirs.
        change: what is done to an image alone before, uint8 `[C, h, w]` to `[C, H, W]`; None if nothing is.
        mix: how they are mixed at last; None if they are not.
    """

    images: Split
    classes: int
    seed: int
    shift: Shift
    whole: bool
    change: Callable[[Tensor], Tensor] | None
    mix: Mix | None

    @classmethod
    def draw(cls, data: Dataset, seed: int, number: int = 0) -> Self:
        """View `number` of the training images of `data`, the same for the same arguments."""
        augment, preprocess, count = data.augment, data.preprocess, len(data.train)
        shift = Shift.draw(augment, count, torch.Generator().manual_seed(seed), number)
        mix = Mix.draw(augment, preprocess.size, count, seed) if augment.mixup or augment.cutmix else None
        whole, change = augment.resized_crop is not None, _change(augment, preprocess)
        return cls(data.train, len(data.labels), seed, shift, whole, change, mix)

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The view of the training images at `indices` (int64 `[B]`).

        Returns:
            Their pixels `[B, C, H, W]` in 0..255, and their classes int64 `[B]`; if images are mixed, the share of each
            class in them, float32 `[B, classes]`.
        """
        pixels, labels = self._alone(indices, device), self._labels(indices, device)
        if self.mix is None:
            return pixels, labels
        partners, size = self.mix.partners[indices], (pixels.shape[2], pixels.shape[3])
        own = self.mix.own(indices, size, device)[:, None]  # [B, 1, H, W]
        mixed = own * pixels + (1 - own) * self._alone(partners, device)
        shares = self.mix.kept(indices, size).to(device)[:, None]
        classes, others = (F.one_hot(each, self.classes) for each in (labels, self._labels(partners, device)))
        return mixed, shares * classes + (1 - shares) * others

    def _labels(self, indices: Tensor, device: torch.device) -> Tensor:
        return self.images.labels[indices].to(device)

    def _alone(self, indices: Tensor, device: torch.device) -> Tensor:
        """Every image before it is mixed, uint8 `[B, C, H, W]`."""
        if self.change is None:
            return self.shift.of(self.images.batch(indices).to(device), indices)
        changed = []
        images = self.images.whole(indices) if self.whole else self.images.batch(indices)
        with torch.random.fork_rng(devices=[]):
            for image, index in zip(images, indices.tolist(), strict=True):
                self._seed(index)
                changed.append(self.change(image))
        return self.shift.of(torch.stack(changed).to(device), indices)

    def _seed(self, index: int) -> None:
        """Seed torch's global generator for an image. That of a GPU is left alone."""
        drawn = hashlib.sha256(f"{self.seed}/change {index}".encode()).digest()
        torch.default_generator.manual_seed(int.from_bytes(drawn[:4]))


def _change(augment: Augment, preprocess: Preprocess) -> Callable[[Tensor], Tensor] | None:
    """What is done to each image alone, before `Shift`; Pillow does most of it faster than torch."""
    if not augment.one_by_one:
        return None
    from torchvision.transforms import v2  # takes a second to import

    steps: list[Any] = []
    if augment.resized_crop is not None:
        how = v2.InterpolationMode(preprocess.interpolation)
        steps.append(v2.RandomResizedCrop(preprocess.size, scale=augment.resized_crop, interpolation=how))
    if augment.randaugment is not None:
        steps.append(v2.RandAugment(augment.randaugment.operations, augment.randaugment.magnitude))
    if augment.color:
        steps.append(v2.ColorJitter(augment.color, augment.color, augment.color, augment.color / 4))
    if steps:
        steps = [v2.ToPILImage(), *steps, v2.PILToTensor()]
    if augment.erase:
        steps.append(v2.RandomErasing(augment.erase, value=[255 * mean for mean in preprocess.mean]))
    changed: Callable[[Tensor], Tensor] = v2.Compose(steps)
    return changed
