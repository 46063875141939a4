"""Images by number: the one interface through which training, calibration and scoring read them."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

READ_AT_ONCE = 1000  # images, where all of a split are read
GPU_SHARE = 4  # a split takes at most a quarter of a GPU's free memory


class Source(ABC):
    """Labeled images, wherever they are kept: in memory, on disk, or rendered on demand."""

    labels: Tensor
    """The class of every image, int64 `[N]`."""

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def batch(self, indices: Tensor) -> Tensor:
        """The images at `indices` (int64 `[B]` on the CPU), uint8 `[B, C, H, W]`."""

    def whole(self, indices: Tensor) -> Iterator[Tensor]:
        """The images at `indices` before they are cut to one size, uint8 `[C, h, w]` each, where a source has more."""
        return iter(self.batch(indices))

    def fingerprint(self, indices: Tensor) -> str:
        """SHA-256 over the shape, the pixels and the classes of the images at `indices`, in their order."""
        shape = (len(indices), *self.batch(torch.zeros(1, dtype=torch.int64)).shape[1:])
        sha = hashlib.sha256(repr(shape).encode())
        for some in indices.split(READ_AT_ONCE):
            sha.update(self.batch(some).cpu().contiguous().numpy().data)
        sha.update(self.labels[indices].cpu().numpy().data)
        return sha.hexdigest()


@dataclass(frozen=True)
class InMemory(Source):
    """Images that are held in memory, or in a GPU's: uint8 `[N, C, H, W]`; and their classes int64 `[N]`."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        return self.images[indices.to(self.images.device)]


class Joined(Source):
    """The images of one split, then those of another."""

    def __init__(self, first: "Split", second: "Split") -> None:
        self.first, self.second = first, second
        self.labels = torch.cat([first.labels, second.labels])

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        of_first, first, second = self._parted(indices)
        parts = [split.batch(positions) for split, positions in ((self.first, first), (self.second, second))]
        images = parts[0].new_empty((len(indices), *parts[0].shape[1:]))
        images[of_first], images[~of_first] = parts
        return images

    def whole(self, indices: Tensor) -> Iterator[Tensor]:
        of_first, first, second = self._parted(indices)
        parts = self.second.whole(second), self.first.whole(first)
        return (next(parts[own]) for own in of_first.tolist())

    def fingerprint(self, indices: Tensor) -> str:
        of_first, first, second = self._parted(indices)
        parts = self.first.take(first).fingerprint, self.second.take(second).fingerprint
        return hashlib.sha256(repr(parts).encode() + of_first.numpy().tobytes()).hexdigest()

    def _parted(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which indices are of the first split, and the positions in each of the two."""
        of_first = indices < len(self.first)
        return of_first, indices[of_first], indices[~of_first] - len(self.first)


@dataclass(frozen=True, eq=False)
class Split:
    """Some images of a source, in an order of their own: `indices` int64 `[N]` into the source."""

    source: Source
    indices: Tensor

    @classmethod
    def of(cls, source: Source) -> "Split":
        """All images of a source."""
        return cls(source, torch.arange(len(source)))

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def labels(self) -> Tensor:
        """The class of every image, int64 `[N]`."""
        return self.source.labels[self.indices]

    @property
    def images(self) -> Tensor:
        """All images at once, uint8 `[N, C, H, W]`; only for splits that fit in memory."""
        return self.batch(torch.arange(len(self)))

    def batch(self, positions: Tensor) -> Tensor:
        """The images at `positions` (int64 `[B]`) of this split, uint8 `[B, C, H, W]`."""
        return self.source.batch(self.indices[positions])

    def whole(self, positions: Tensor) -> Iterator[Tensor]:
        """The images at `positions` of this split before they are cut to one size, uint8 `[C, h, w]` each."""
        return self.source.whole(self.indices[positions])

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images in order, uint8 `[B, C, H, W]` with B at most `size`."""
        for positions in torch.arange(len(self)).split(size):
            yield self.batch(positions)

    def take(self, positions: Tensor) -> "Split":
        """The images at `positions`."""
        return Split(self.source, self.indices[positions])

    def on(self, device: torch.device) -> "Split":
        """The same images, held by a GPU if they fit into a part of its free memory."""
        if device.type != "cuda" or not len(self):
            return self
        one = self.batch(torch.zeros(1, dtype=torch.int64))
        if one.device.type == "cuda" or len(self) * one.nbytes > torch.cuda.mem_get_info(device)[0] // GPU_SHARE:
            return self
        images = torch.empty((len(self), *one.shape[1:]), dtype=torch.uint8, device=device)
        for held, read in zip(images.split(READ_AT_ONCE), self.batches(READ_AT_ONCE), strict=True):
            held.copy_(read)
        return Split.of(InMemory(images, self.labels))

    def spread(self, count: int) -> Tensor:
        """The positions of at most `count` images at even distances: of all classes where they lie class by class."""
        return torch.linspace(0, len(self) - 1, min(count, len(self))).long()

    @cached_property
    def fingerprint(self) -> str:
        """What tells these images and classes from others."""
        return self.source.fingerprint(self.indices)
