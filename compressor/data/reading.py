"""What a data set's module offers: a reader, which lists classes and reads images."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from compressor.console import Console
from compressor.data.preprocess import Preprocess
from compressor.data.settings import Columns, Store
from compressor.data.split import InMemory, Source


@dataclass(frozen=True)
class Request:
    """What is wanted of a reader.

    Attributes:
        root: where the files lie.
        preprocess: the shape of the images.
        seed: of what is rendered.
        skip_unreadable: whether files that cannot be decoded are left out.
        store: where images are kept that memory cannot hold.
        hub: the name on Hugging Face's hub, if they do not lie in `root`.
        revision: the commit there.
        columns: which hold images and classes.
        whole: whether training cuts parts out of whole images.
        unlabeled: the folder of images without classes.
    """

    root: Path
    preprocess: Preprocess
    seed: int
    skip_unreadable: bool = False
    store: Store = field(default_factory=Store)
    hub: str | None = None
    revision: str | None = None
    columns: Columns = field(default_factory=Columns)
    whole: bool = False
    unlabeled: Path | None = None


class Read(NamedTuple):
    """Training images, the other splits where the data has its own, the names of the classes, and what was odd.

    `unlabeled` images have no class; the one that they are given is not read.
    """

    train: Source
    test: Source | None
    labels: Sequence[str]
    validation: Source | None = None
    notes: Sequence[str] = ()
    unlabeled: Source | None = None


class Reader(Protocol):
    """Reads one data set."""

    def labels(self, request: Request) -> Sequence[str]:
        """The names of the classes, without reading an image.

        Raises:
            DataError: the files that name them are missing.
        """

    def own_splits(self, request: Request) -> frozenset[str]:
        """Which of `test` and `validation` the data has itself."""

    def read(self, request: Request, console: Console) -> Read:
        """The images, shaped as the request's preprocessing wants them.

        Raises:
            DataError: they are missing, damaged or unreadable.
        """


@dataclass(frozen=True)
class Undecoded:
    """The images of a split, not yet decoded.

    Attributes:
        names: what each is called where something is wrong with it.
        classes: the class of each.
        opened: each image by its position, to be decoded within a block.
        files: the files that hold them, whose names, sizes and times of change tell them from others.
        version: what else does.
    """

    names: Sequence[str]
    classes: Sequence[int]
    opened: Callable[[int], AbstractContextManager[Image.Image]]
    files: Sequence[str]
    version: str


def in_memory(images: NDArray[np.uint8], labels: NDArray[np.integer]) -> InMemory:
    """Arrays `[N, C, H, W]` and `[N]` as a source."""
    return InMemory(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64)))


def resized(images: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    """Arrays `[N, H, W]` or `[N, H, W, 3]` through the one definition of preprocessing."""
    return np.stack([preprocess.pixels(Image.fromarray(image)) for image in images])
