"""Where images come from: the data sets that `data.name` knows, read without unpickling anything.

Libraries that take seconds to import are imported by the data sets that need them.
"""

import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError

from compressor.data import glyphs
from compressor.data.preprocess import Preprocess
from compressor.errors import DataError, first_line, pass_on_out_of_memory
from compressor.storage import files

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DIGITS = [str(digit) for digit in range(10)]
CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"
ENLARGED = 4
GLYPHS_TRAIN, GLYPHS_TEST = 20_000, 4_000
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class Images(NamedTuple):
    """Pixels uint8 `[N, C, H, W]` and classes int64 `[N]`."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


class Read(NamedTuple):
    """Training images, test images where the data has a split of its own, the classes, and what was odd."""

    train: Images
    test: Images | None
    labels: Sequence[str]
    notes: Sequence[str] = ()


Reader = Callable[[Path, Preprocess, int], Read]  # root, the shape wanted, the seed of what is rendered


@dataclass(frozen=True)
class Source:
    """A data set: how to read it, and what its images are like unless the pipeline says otherwise."""

    read: Reader
    labels: Callable[[Path], Sequence[str]]  # without reading an image
    has_test: Callable[[Path], bool]  # whether the test split is the data's own
    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: int = 0
    flip: bool = False
    test: int | None = None  # images set apart where the data has no test split; a fifth by default


def _digits(root: Path, preprocess: Preprocess, seed: int) -> Read:
    """Scikit-learn's 1,797 scans of handwritten digits (8 x 8, 0..16), which ship with it."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    scans = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    images = Images(_resized(scans, preprocess), bunch.target.astype(np.int64))
    return Read(images, None, DIGITS)


def _glyphs(root: Path, preprocess: Preprocess, seed: int) -> Read:
    """Characters rendered here, which takes seconds, and kept."""
    count = GLYPHS_TRAIN + GLYPHS_TEST
    kept = root / "glyphs" / f"{count}-seed-{seed}-version-{glyphs.VERSION}.safetensors"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(kept.with_suffix(".lock")):  # another run may be at it
        if not kept.exists():
            pixels, labels = glyphs.render(count, seed)
            files.write_bytes(kept, safetensors.numpy.save({"pixels": pixels, "labels": labels}))
    try:
        arrays = safetensors.numpy.load_file(kept)
        images = Images(_resized(arrays["pixels"], preprocess), arrays["labels"])
    except (SafetensorError, KeyError) as error:
        raise DataError(f"{kept} is damaged ({first_line(error)}); delete it and run again") from error
    return Read(images, None, list(glyphs.CHARACTERS))


def _emnist(root: Path, preprocess: Preprocess, seed: int) -> Read:
    """EMNIST by class: 62 handwritten characters (Cohen et al. 2017). Its files hold every image transposed."""
    train, test = _idx("EMNIST", root, preprocess, axes=(0, 2, 1), split="byclass")
    return Read(train, test, list(glyphs.CHARACTERS))


def _mnist(name: str) -> Reader:
    def read(root: Path, preprocess: Preprocess, seed: int) -> Read:
        return Read(*_idx(name, root, preprocess), _mnist_labels(name))

    return read


def _idx(
    name: str, root: Path, preprocess: Preprocess, *, axes: tuple[int, int, int] = (0, 1, 2), **settings: str
) -> tuple[Images, Images]:
    """Torchvision's data sets in the format of MNIST: training and test images, their axes in another order."""
    from torchvision import datasets

    def images(dataset: Any) -> Images:
        pixels = _resized(dataset.data.numpy().transpose(axes), preprocess)
        return Images(pixels, dataset.targets.numpy().astype(np.int64))

    try:
        train, test = (getattr(datasets, name)(root, train=part, download=True, **settings) for part in (True, False))
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError) as error:  # what torchvision raises
        which = f"gzip.zip (from {datasets.EMNIST.url})" if name == "EMNIST" else "its four *-ubyte.gz files"
        raise DataError(
            f"{name} is missing or damaged in {root / name / 'raw'}, and cannot be downloaded ({first_line(error)}); "
            f"put {which} there"
        ) from error
    return images(train), images(test)


def _mnist_labels(name: str) -> list[str]:
    from torchvision import datasets

    return [label.replace("/", " or ") for label in getattr(datasets, name).classes]


def _cifar(archive: str, md5: str, folder: str, train: Sequence[str], label_bytes: int, test: str) -> Reader:
    """The binary version of CIFAR: records of label bytes and 3,072 pixels. (The Python version is a pickle.)"""

    def read(root: Path, preprocess: Preprocess, seed: int) -> Read:
        from torchvision.datasets.utils import check_integrity, download_url

        if not (root / folder / test).is_file():
            try:
                if not check_integrity(str(root / archive), md5):
                    download_url(CIFAR_URL + archive, str(root), md5=md5)
                with tarfile.open(root / archive) as tar:
                    tar.extractall(root, filter="data")
            except (OSError, RuntimeError, tarfile.TarError) as error:
                raise DataError(
                    f"{folder} is not in {root} and cannot be downloaded ({first_line(error)}); put {archive} "
                    f"(the binary version, from {CIFAR_URL}cifar.html) into {root}"
                ) from error

        def images(names: Iterable[str]) -> Images:
            try:
                records = np.concatenate([np.fromfile(root / folder / name, np.uint8) for name in names])
                records = records.reshape(-1, label_bytes + 3072)
            except (OSError, ValueError) as error:
                raise DataError(f"{root / folder} is damaged ({first_line(error)}); delete it and run again") from error
            pixels = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            return Images(_resized(pixels, preprocess), records[:, label_bytes - 1].astype(np.int64))

        names = root / folder / "fine_label_names.txt"
        if label_bytes == 1:
            labels: Sequence[str] = CIFAR10_LABELS
        elif names.is_file():
            labels = names.read_text().split()
        else:
            raise DataError(f"{root / folder} is damaged (no {names.name}); delete it and run again")
        return Read(images(train), images([test]), labels)

    return read


class _Folder(NamedTuple):
    """The images of a folder, not yet read."""

    paths: Sequence[Path]
    classes: Sequence[int]


def _image_folder(root: Path, preprocess: Preprocess, seed: int) -> Read:
    """`root/train/<class>/*` and `root/test/<class>/*`, or `root/<class>/*` alone."""
    train, test, labels = _listed(root)
    notes: Counter[str] = Counter()
    read = [None if folder is None else _pixels(folder, preprocess, notes) for folder in (train, test)]
    assert read[0] is not None
    return Read(read[0], read[1], labels, [f"{count} images are {note}" for note, count in sorted(notes.items())])


def _listed(root: Path) -> tuple[_Folder, _Folder | None, list[str]]:
    """The images of the training and test split, and their classes."""
    if not root.is_dir():
        raise DataError(
            f"data.root: there is no folder {root.absolute()}; give one with a sub-folder of images for each class"
        )
    if not (root / "train").is_dir():
        images, labels = _listed_classes(root)
        return images, None, labels
    if not (root / "test").is_dir():
        raise DataError(f"{root} has a sub-folder train but none named test; add it, or give one folder a class")
    train, labels = _listed_classes(root / "train")
    test, test_labels = _listed_classes(root / "test")
    if labels != test_labels:
        odd = sorted(set(labels) ^ set(test_labels))
        raise DataError(f"{root}: train and test have other classes; not in both: {', '.join(odd[:5])}")
    return train, test, labels


def _listed_classes(folder: Path) -> tuple[_Folder, list[str]]:
    try:
        labels = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
        if len(labels) < 2:
            raise DataError(
                f"{folder} needs a sub-folder of images for each of at least two classes; it has {len(labels)}"
            )
        paths: list[Path] = []
        classes: list[int] = []
        for index, label in enumerate(labels):
            found = sorted(path for path in (folder / label).iterdir() if path.suffix.lower() in SUFFIXES)
            if not found:
                raise DataError(f"{folder / label} holds no image ({', '.join(sorted(SUFFIXES))})")
            paths += found
            classes += [index] * len(found)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    return _Folder(paths, classes), labels


def _pixels(folder: _Folder, preprocess: Preprocess, notes: Counter[str]) -> Images:
    """Read the images, and count in `notes` what was done to unusual ones."""

    def pixels(path: Path) -> tuple[NDArray[np.uint8], list[str]]:
        try:
            with Image.open(path) as image:
                return preprocess.pixels(image), list(_notes(image, preprocess))
        except Exception as error:  # Pillow's decoders raise many types
            pass_on_out_of_memory(error)
            raise DataError(f"{path} is not an image that can be used: {first_line(error)}") from error

    with ThreadPoolExecutor() as pool:
        read = list(pool.map(pixels, folder.paths))
    for _, remarks in read:
        notes.update(remarks)
    return Images(np.stack([image for image, _ in read]), np.array(folder.classes, np.int64))


def _notes(image: Image.Image, preprocess: Preprocess) -> Iterator[str]:
    height, width = preprocess.size
    if "A" in image.getbands() or "transparency" in image.info:
        yield "transparent; transparency was dropped"
    if preprocess.channels == 3 and image.mode in {"1", "L", "LA"}:
        yield "gray; they were made RGB; with data.channels: 1 all stay or become gray"
    if image.width * ENLARGED < width or image.height * ENLARGED < height:
        yield f"enlarged more than {ENLARGED} times to {height} x {width}"


def _resized(images: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    """Arrays `[N, H, W]` or `[N, H, W, 3]` through the one definition of preprocessing."""
    return np.stack([preprocess.pixels(Image.fromarray(image)) for image in images])


def _always(_: Path) -> bool:
    return True


def _never(_: Path) -> bool:
    return False


SOURCES: dict[str, Source] = {
    "digits": Source(_digits, lambda _: DIGITS, _never, (8, 8), 1, (0.306,), (0.377,)),
    "mnist": Source(
        _mnist("MNIST"), lambda _: _mnist_labels("MNIST"), _always, (28, 28), 1, (0.1307,), (0.3081,), crop=2
    ),
    "fashion_mnist": Source(
        _mnist("FashionMNIST"),
        lambda _: _mnist_labels("FashionMNIST"),
        _always,
        (28, 28),
        1,
        (0.2860,),
        (0.3530,),
        crop=2,
        flip=True,
    ),
    "emnist": Source(_emnist, lambda _: glyphs.CHARACTERS, _always, (28, 28), 1, (0.1307,), (0.3081,), crop=2),
    "glyphs": Source(
        _glyphs, lambda _: glyphs.CHARACTERS, _never, (32, 32), 1, (0.097,), (0.21,), crop=2, test=GLYPHS_TEST
    ),
    "cifar10": Source(
        _cifar(
            "cifar-10-binary.tar.gz",
            "c32a1d4ab5d03f1284b67883e8d87530",
            "cifar-10-batches-bin",
            [f"data_batch_{part}.bin" for part in range(1, 6)],
            1,
            "test_batch.bin",
        ),
        lambda _: CIFAR10_LABELS,
        _always,
        (32, 32),
        3,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        crop=4,
        flip=True,
    ),
    "cifar100": Source(
        _cifar(
            "cifar-100-binary.tar.gz",
            "03b5dce01913d631647c71ecec9e9cb8",
            "cifar-100-binary",
            ["train.bin"],
            2,
            "test.bin",
        ),
        lambda _: [f"class {number}" for number in range(100)],  # their names come with the download
        _always,
        (32, 32),
        3,
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        crop=4,
        flip=True,
    ),
    "image_folder": Source(
        _image_folder,
        lambda root: _listed(root)[2],
        lambda root: _listed(root)[1] is not None,
        (224, 224),
        3,
        IMAGENET_MEAN,
        IMAGENET_STD,
    ),
}
