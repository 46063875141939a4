"""Photographs in folders: `root/train/<class>/*` and `root/test/<class>/*`, or `root/<class>/*` alone."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from compressor.console import Console
from compressor.data.decoding import MAX_NAMED, decoded
from compressor.data.photograph import SUFFIXES, files_below, opened
from compressor.data.reading import Read, Request, Undecoded
from compressor.errors import DataError


@dataclass(frozen=True)
class Folder:
    """The images of one split, not yet read, and how many files were left out for their suffix."""

    paths: Sequence[str]
    classes: Sequence[int]
    left_out: Counter[str]


class ImageFolder:
    """One folder for each class, whose images may lie in folders of their own below it."""

    def labels(self, request: Request) -> Sequence[str]:
        folders = _split_folders(request.root)
        labels = _labels(folders["train"])
        for folder in folders.values():
            if (others := _labels(folder)) != labels:
                odd = sorted(set(labels) ^ set(others))
                raise DataError(
                    f"{request.root}: {folders['train'].name} and {folder.name} have different classes; "
                    f"not in both: {', '.join(odd[:MAX_NAMED])}"
                )
        if request.unlabeled is not None:
            _check_loose(request.unlabeled, folders.values())
        return labels

    def own_splits(self, request: Request) -> frozenset[str]:
        return frozenset(_split_folders(request.root)) - {"train"}

    def read(self, request: Request, console: Console) -> Read:
        folders, labels = _split_folders(request.root), self.labels(request)
        listed = {name: _listed(folder, labels) for name, folder in folders.items()}
        if request.unlabeled is not None:
            listed["unlabeled"] = _loose(request.unlabeled)
        _check_apart(listed)
        read, remarks = decoded({name: _undecoded(each, request) for name, each in listed.items()}, request, console)
        if left_out := sum((each.left_out for each in listed.values()), Counter()):
            kinds = ", ".join(f"{suffix} x {count}" for suffix, count in left_out.most_common(MAX_NAMED))
            remarks.append(f"files of other kinds left out ({left_out.total()}): {kinds}")
        if "test" in folders and folders["test"].name != "test":
            remarks.append(f"{folders['test'].name}/ is the test split; validation images are carved from train/")
        return Read(
            read["train"], read.get("test"), labels, read.get("validation"), remarks, unlabeled=read.get("unlabeled")
        )


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split that the data has itself: `train`, `test`, `validation`.

    `val` alone beside `train` is what is scored, as in ImageNet; beside `test` too it is what choices are made on.
    """
    if not root.is_dir():
        raise DataError(
            f"data.root: there is no folder {root.absolute()}; give one with a sub-folder of images for each class"
        )
    if not (root / "train").is_dir():
        return {"train": root}
    named = [root / name for name in ("val", "valid", "validation") if (root / name).is_dir()]
    if len(named) > 1:
        names = " and ".join(folder.name for folder in named)
        raise DataError(f"{root} has {names}; keep the one with the validation images")
    validation = named[0] if named else None
    if (root / "test").is_dir():
        own = {"train": root / "train", "test": root / "test"}
        return own if validation is None else {**own, "validation": validation}
    if validation is None:
        raise DataError(
            f"{root} has a sub-folder train but none named test or val; add it, or use one folder per class, none of "
            "them called train"
        )
    return {"train": root / "train", "test": validation}


def _labels(folder: Path) -> list[str]:
    try:
        labels = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    if len(labels) < 2:
        raise DataError(f"{folder} needs a sub-folder of images for each of at least two classes; it has {len(labels)}")
    for label in labels:
        try:
            label.encode()  # bytes that are no UTF-8 are surrogates here
        except UnicodeEncodeError as error:
            raise DataError(f"{folder} has a sub-folder {label!r} whose name is not UTF-8; rename it") from error
    return labels


def _listed(folder: Path, labels: Sequence[str]) -> Folder:
    paths: list[str] = []
    classes: list[int] = []
    left_out: Counter[str] = Counter()
    for index, label in enumerate(labels):
        found = _images(folder / label, left_out)
        paths += found
        classes += [index] * len(found)
    return Folder(paths, classes, left_out)


def _check_apart(listed: Mapping[str, Folder]) -> None:
    """Refuse folders whose images would be in two splits, or in two classes, as links may have it."""
    owners: dict[str, tuple[str, int]] = {}
    real = cache(os.path.realpath)
    for split, images in listed.items():
        for path, index in zip(images.paths, images.classes, strict=True):
            folder = str(real(os.path.dirname(path)))  # noqa: PTH120 - of a million files
            if owners.setdefault(folder, (split, index)) != (split, index):
                raise DataError(f"{folder} is, by way of a link, in two splits or two classes; remove the link")


def _check_loose(folder: Path, classes: Iterable[Path]) -> None:
    """Refuse a folder of images without classes that is missing, or has to do with one whose images have classes."""
    if not folder.is_dir():
        raise DataError(f"data.unlabeled: there is no folder {folder.absolute()}; give one that holds images")
    for other in classes:
        if folder.resolve().is_relative_to(other.resolve()) or other.resolve().is_relative_to(folder.resolve()):
            raise DataError(
                f"data.unlabeled: {folder} and {other}, whose images have classes, lie in one another; move it"
            )


def _loose(folder: Path) -> Folder:
    """All images below a folder, which have no class."""
    left_out: Counter[str] = Counter()
    paths = _images(folder, left_out)
    return Folder(paths, [0] * len(paths), left_out)


def _images(folder: Path, left_out: Counter[str]) -> list[str]:
    """The images below a folder; files of other kinds are counted."""
    found: list[str] = []
    for path in files_below(folder):
        if path.suffix.lower() in SUFFIXES:
            found.append(str(path))
        else:
            left_out[path.suffix.lower() or "no suffix"] += 1
    if not found:
        raise DataError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))})")
    return found


def _undecoded(folder: Folder, request: Request) -> Undecoded:
    def open_image(index: int) -> AbstractContextManager[Image.Image]:
        return opened(Path(folder.paths[index]))

    return Undecoded(folder.paths, folder.classes, open_image, folder.paths, str(request.root.resolve()))


READERS = {"image_folder": ImageFolder()}
