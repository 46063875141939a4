"""Photographs in folders: `root/train/<class>/*` and `root/test/<class>/*`, or `root/<class>/*` alone."""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from compressor.console import Console
from compressor.data.photograph import SUFFIXES, opened
from compressor.data.preprocess import Preprocess
from compressor.data.reading import Read, Request, in_memory
from compressor.data.split import InMemory, Source
from compressor.data.store import Decode, stored
from compressor.errors import DataError

ENLARGED = 4
IN_MEMORY_BYTES = 2**28  # of a split; larger ones are kept on disk
MAX_NAMED = 5  # files in one message


@dataclass(frozen=True)
class Folder:
    """The images of one split, not yet read, and how many files were left out for their suffix."""

    paths: Sequence[str]
    classes: Sequence[int]
    left_out: Counter[str]


class ImageFolder:
    """One folder for each class, whose images may lie in folders of their own below it."""

    def labels(self, root: Path) -> Sequence[str]:
        return _labels(_split_folders(root)["train"])

    def own_splits(self, root: Path) -> frozenset[str]:
        return frozenset(_split_folders(root)) - {"train"}

    def read(self, request: Request, console: Console) -> Read:
        folders = _split_folders(request.root)
        labels = _labels(folders["train"])
        for folder in folders.values():
            if (others := _labels(folder)) != labels:
                odd = sorted(set(labels) ^ set(others))
                raise DataError(
                    f"{request.root}: {folders['train'].name} and {folder.name} have different classes; "
                    f"not in both: {', '.join(odd[:MAX_NAMED])}"
                )
        listed = {name: _listed(folder, labels) for name, folder in folders.items()}
        notes: Counter[str] = Counter()
        unreadable: list[str] = []
        with console.progress("decoding images", sum(len(each.paths) for each in listed.values())) as advance:
            read = {name: _decoded(each, request, notes, unreadable, advance) for name, each in listed.items()}
        if unreadable and not request.skip_unreadable:
            raise DataError(f"{_several(unreadable)}; repair or remove them, or set `unreadable: skip`")
        for name, source in read.items():
            if not len(source):
                raise DataError(f"{folders[name]} holds no image that can be read: {_several(unreadable)}")
        remarks = [f"{count} images are {note}" for note, count in sorted(notes.items())]
        if unreadable:
            remarks.append(f"unreadable files left out ({len(unreadable)}): {_several(unreadable)}")
        if left_out := sum((each.left_out for each in listed.values()), Counter()):
            kinds = ", ".join(f"{suffix} x {count}" for suffix, count in left_out.most_common(MAX_NAMED))
            remarks.append(f"files of other kinds left out ({left_out.total()}): {kinds}")
        if "test" in folders and folders["test"].name != "test":
            remarks.append(f"{folders['test'].name}/ is the test split; validation images are carved from train/")
        return Read(read["train"], read.get("test"), labels, read.get("validation"), remarks)


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
    validation = next((root / name for name in ("val", "valid", "validation") if (root / name).is_dir()), None)
    if (root / "test").is_dir():
        own = {"train": root / "train", "test": root / "test"}
        return own if validation is None else {**own, "validation": validation}
    if validation is None:
        raise DataError(f"{root} has a sub-folder train but none named test or val; add it, or give one folder a class")
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
        found = 0
        for path in _files(folder / label):
            if path.suffix.lower() in SUFFIXES:
                paths.append(str(path))
                classes.append(index)
                found += 1
            else:
                left_out[path.suffix.lower() or "no suffix"] += 1
        if not found:
            raise DataError(f"{folder / label} holds no image ({', '.join(sorted(SUFFIXES))})")
    return Folder(paths, classes, left_out)


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder in the order of their names, hidden ones left out."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    for where, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where, name) for name in sorted(names) if not name.startswith("."))


def _decoded(
    folder: Folder, request: Request, notes: Counter[str], unreadable: list[str], advance: Callable[[int], None]
) -> Source:
    """The images of a split; what was done to unusual ones is counted in `notes`, what is `unreadable` is named."""
    preprocess = request.preprocess

    def decode(path: str) -> tuple[NDArray[np.uint8], list[str]]:
        with opened(Path(path)) as image:
            return preprocess.pixels(image), list(_notes(image, preprocess))

    if len(folder.paths) * math.prod(preprocess.input_shape(1)) <= IN_MEMORY_BYTES:
        return _in_memory(folder, decode, preprocess, notes, unreadable, advance)
    found = stored(
        folder.paths,
        folder.classes,
        preprocess,
        decode,
        root=request.root,
        home=request.store.home,
        limit_bytes=int(request.store.gigabytes * 1e9),
        advance=advance,
    )
    notes.update(found.notes)
    unreadable.extend(found.unreadable)
    return found.source


def _in_memory(
    folder: Folder,
    decode: Decode,
    preprocess: Preprocess,
    notes: Counter[str],
    unreadable: list[str],
    advance: Callable[[int], None],
) -> InMemory:
    images = np.empty((len(folder.paths), *preprocess.input_shape(1)[1:]), np.uint8)
    kept = np.ones(len(images), bool)

    def attempt(index: int) -> Sequence[str] | DataError:
        try:
            images[index], odd = decode(folder.paths[index])
        except DataError as error:
            return error
        return odd

    with ThreadPoolExecutor() as pool:
        for index, outcome in enumerate(pool.map(attempt, range(len(images)))):
            if isinstance(outcome, DataError):
                unreadable.append(str(outcome))
                kept[index] = False
            else:
                notes.update(outcome)
            advance(1)
    return in_memory(images if kept.all() else images[kept], np.asarray(folder.classes)[kept])


def _notes(image: Image.Image, preprocess: Preprocess) -> Iterator[str]:
    height, width = preprocess.size
    if "A" in image.getbands() or "transparency" in image.info:
        yield "transparent; transparency was dropped"
    if preprocess.channels == 3 and image.mode in {"1", "L", "LA"}:
        yield "gray; they were made RGB; with data.channels: 1 all stay or become gray"
    if image.width * ENLARGED < width or image.height * ENLARGED < height:
        yield f"enlarged more than {ENLARGED} times to {height} x {width}"


def _several(unreadable: Sequence[str]) -> str:
    more = f" (and {len(unreadable) - MAX_NAMED} more)" if len(unreadable) > MAX_NAMED else ""
    return "; ".join(unreadable[:MAX_NAMED]) + more


READERS = {"image_folder": ImageFolder()}
