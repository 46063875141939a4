"""CIFAR from its binary version: records of label bytes and 3,072 pixels. (The Python version is a pickle.)"""

import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compressor.console import Console
from compressor.data.reading import Read, Request, in_memory, resized
from compressor.data.split import InMemory
from compressor.errors import DataError, first_line

URL = "https://www.cs.toronto.edu/~kriz/"
CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Cifar:
    """One of the two data sets, as its archive lies on its page."""

    archive: str
    md5: str
    folder: str
    train: Sequence[str]
    test: str
    label_bytes: int
    known_labels: Sequence[str]
    labels_file: str | None = None  # its names come with the download

    def labels(self, request: Request) -> Sequence[str]:
        return self.known_labels

    def own_splits(self, request: Request) -> frozenset[str]:
        return frozenset({"test"})

    def read(self, request: Request, console: Console) -> Read:
        self._download(request.root)
        folder = request.root / self.folder

        def images(names: Iterable[str]) -> InMemory:
            try:
                records = np.concatenate([np.fromfile(folder / name, np.uint8) for name in names])
                records = records.reshape(-1, self.label_bytes + 3072)
            except (OSError, ValueError) as error:
                raise DataError(f"{folder} is damaged ({first_line(error)}); delete it and run again") from error
            pixels = records[:, self.label_bytes :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            return in_memory(resized(pixels, request.preprocess), records[:, self.label_bytes - 1])

        labels = self.known_labels
        if self.labels_file is not None:
            if not (folder / self.labels_file).is_file():
                raise DataError(f"{folder} is damaged (no {self.labels_file}); delete it and run again")
            labels = (folder / self.labels_file).read_text().split()
        return Read(images(self.train), images([self.test]), labels)

    def _download(self, root: Path) -> None:
        from torchvision.datasets.utils import check_integrity, download_url

        if (root / self.folder / self.test).is_file():
            return
        try:
            if not check_integrity(str(root / self.archive), self.md5):
                download_url(URL + self.archive, str(root), md5=self.md5)
            with tarfile.open(root / self.archive) as tar:
                tar.extractall(root, filter="data")
        except (OSError, RuntimeError, tarfile.TarError) as error:
            raise DataError(
                f"{self.folder} is not in {root} and cannot be downloaded ({first_line(error)}); put {self.archive} "
                f"(the binary version, from {URL}cifar.html) into {root}"
            ) from error


READERS = {
    "cifar10": Cifar(
        archive="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        train=[f"data_batch_{part}.bin" for part in range(1, 6)],
        test="test_batch.bin",
        label_bytes=1,
        known_labels=CIFAR10_LABELS,
    ),
    "cifar100": Cifar(
        archive="cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        train=["train.bin"],
        test="test.bin",
        label_bytes=2,
        known_labels=[f"class {number}" for number in range(100)],
        labels_file="fine_label_names.txt",
    ),
}
