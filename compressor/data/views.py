"""Augmentation by view: view number v of training image i is a function of the seed, v and i, and of nothing else.

So it does not matter in which batch, order or run an image is shown, and a teacher's outputs can be stored by view.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
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
class View:
    """One random view of every training image.

    Torchvision's transforms draw from torch's global generator, which is seeded for every image. Where images are
    mixed, each has a partner, and is the partner of one.

    Attributes:
        images: the training images.
        seed: of this view.
        shift: how they are cropped and mirrored.
        whole: whether a part is cut out of all of an image, not of what the other splits are given of theirs.
        change: what is done to an image alone before, uint8 `[C, h, w]` to `[C, H, W]`; None if nothing is.
        mix: mixes two images `[2, C, H, W]` and their classes `[2]`; None if none are mixed.
        partners: what each image is mixed with, int64 `[N]`.
    """

    images: Split
    seed: int
    shift: Shift
    whole: bool
    change: Callable[[Tensor], Tensor] | None
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    partners: Tensor

    @classmethod
    def draw(cls, data: Dataset, seed: int, number: int = 0) -> Self:
        """View `number` of the training images of `data`, the same for the same arguments."""
        generator = torch.Generator().manual_seed(seed)
        shift = Shift.draw(data.augment, len(data.train), generator, number)
        partners = torch.randperm(len(data.train), generator=generator)
        change, mix = _change(data.augment, data.preprocess), _mix(data.augment, len(data.labels))
        return cls(data.train, seed, shift, data.augment.resized_crop is not None, change, mix, partners)

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The view of the training images at `indices` (int64 `[B]`).

        Returns:
            Their pixels `[B, C, H, W]` in 0..255, and their classes int64 `[B]`; if images are mixed, the share of each
            class in them, float32 `[B, classes]`.
        """
        pixels, labels = self._alone(indices, device), self.images.labels[indices]
        if self.mix is not None:
            pixels, labels = self._mixed(indices, pixels, labels)
        return pixels.to(device), labels.to(device)

    def _alone(self, indices: Tensor, device: torch.device) -> Tensor:
        """Every image before it is mixed, uint8 `[B, C, H, W]`."""
        if self.change is None:
            return self.shift.of(self.images.batch(indices).to(device), indices)
        changed = []
        images = self.images.whole(indices) if self.whole else self.images.batch(indices)
        with torch.random.fork_rng(devices=[]):
            for image, index in zip(images, indices.tolist(), strict=True):
                self._seed("change", index)
                changed.append(self.change(image))
        return self.shift.of(torch.stack(changed).to(device), indices)

    def _mixed(self, indices: Tensor, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Every image mixed with its partner's view, and their labels."""
        assert self.mix is not None
        partners = self.partners[indices]
        pairs = zip(pixels, self._alone(partners, pixels.device), strict=True)
        classes = torch.stack([labels, self.images.labels[partners]], 1).to(pixels.device)  # [B, 2]
        images, shares = [], []
        with torch.random.fork_rng(devices=[]):
            for pair, both, index in zip(pairs, classes, indices.tolist(), strict=True):
                self._seed("mix", index)
                mixed, share = self.mix(torch.stack(pair).float(), both)  # [2, C, H, W], [2]
                images.append(mixed[0])  # torchvision mixes the second with the first, too
                shares.append(share[0])
        return torch.stack(images), torch.stack(shares)

    def _seed(self, purpose: str, index: int) -> None:
        """Seed torch's global generator for an image. That of a GPU is left alone."""
        drawn = hashlib.sha256(f"{self.seed}/{purpose} {index}".encode()).digest()
        torch.default_generator.manual_seed(int.from_bytes(drawn[:4]))


def _change(augment: Augment, preprocess: Preprocess) -> Callable[[Tensor], Tensor] | None:
    """What is done to each image alone, before `Shift`; Pillow does most of it faster than torch."""
    if not (augment.resized_crop or augment.randaugment or augment.color or augment.erase):
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


def _mix(augment: Augment, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """How two images become one."""
    if not (augment.mixup or augment.cutmix):
        return None
    from torchvision.transforms import v2

    ways: list[Any] = []
    if augment.mixup:
        ways.append(v2.MixUp(alpha=augment.mixup, num_classes=classes))
    if augment.cutmix:
        ways.append(v2.CutMix(alpha=augment.cutmix, num_classes=classes))
    mixed: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = v2.RandomChoice(ways)
    return mixed
