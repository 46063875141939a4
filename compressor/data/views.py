"""Augmentation by view: view number v of all training images is a function of the seed and v."""

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.data.settings import Augment


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
