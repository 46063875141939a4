"""Torchvision's data sets in the format of MNIST, which it downloads and checks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compressor.console import Console
from compressor.data.reading import Read, Request, in_memory, resized
from compressor.data.sources.glyph_images import CHARACTERS
from compressor.data.split import InMemory
from compressor.errors import DataError, first_line


@dataclass(frozen=True)
class Mnist:
    """One of them, by its name in torchvision."""

    name: str
    axes: tuple[int, int, int] = (0, 1, 2)  # of its files: image, row, column
    split: str | None = None

    def labels(self, request: Request) -> Sequence[str]:
        from torchvision import datasets

        return [label.replace("/", " or ") for label in getattr(datasets, self.name).classes]

    def own_splits(self, request: Request) -> frozenset[str]:
        return frozenset({"test"})

    def read(self, request: Request, console: Console) -> Read:
        from torchvision import datasets

        settings = {} if self.split is None else {"split": self.split}

        def images(train: bool) -> InMemory:
            dataset: Any = getattr(datasets, self.name)(request.root, train=train, download=True, **settings)
            pixels = resized(dataset.data.numpy().transpose(self.axes), request.preprocess)
            return in_memory(pixels, dataset.targets.numpy())

        try:
            train, test = images(train=True), images(train=False)
        except (OSError, RuntimeError, ValueError, KeyError, AssertionError) as error:  # what torchvision raises
            which = f"gzip.zip (from {datasets.EMNIST.url})" if self.name == "EMNIST" else "its four *-ubyte.gz files"
            raise DataError(
                f"{self.name} is missing or damaged in {request.root / self.name / 'raw'}, and cannot be downloaded "
                f"({first_line(error)}); put {which} there"
            ) from error
        return Read(train, test, self.labels(request))


class Emnist(Mnist):
    """62 handwritten characters (Cohen et al. 2017). Its files hold every image transposed."""

    def labels(self, request: Request) -> Sequence[str]:
        return tuple(CHARACTERS)


READERS = {
    "mnist": Mnist("MNIST"),
    "fashion_mnist": Mnist("FashionMNIST"),
    "emnist": Emnist("EMNIST", axes=(0, 2, 1), split="byclass"),
}
