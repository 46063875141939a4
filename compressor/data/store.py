"""Decoded images on disk, for folders that memory cannot hold: decoded once, shared by runs, read by position.

They are read, not mapped into memory: mapped pages count as the process's own, and a file cut short would end it.
"""

import hashlib
import math
import os
import re
import shutil
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from compressor.data.preprocess import Preprocess
from compressor.data.split import Source
from compressor.errors import ArtifactError, DataError, printable
from compressor.storage import files, tensors
from compressor.storage.code import code_digest

ABOUT, INDEX, IMAGES = "about.json", "index.safetensors", "images"
ROOM = "room.lock"
NAME = re.compile(r"[0-9a-f]{64}")
DECODED_AT_ONCE = 256  # images that wait in memory to be written
DIGEST_BYTES = 32  # SHA-256

Pixels = NDArray[np.uint8]
Decode = Callable[[str], tuple[Pixels, Sequence[str]]]
"""A file's pixels `[C, H, W]` and what was odd about it; raises `DataError` if it cannot be used."""


class About(BaseModel):
    """What is known of stored images besides their pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    notes: dict[str, int]
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """Images in a store, how many were odd in which way, and what is wrong with each file that could not be read."""

    source: "Stored"
    notes: Counter[str]
    unreadable: Sequence[str]


@dataclass(frozen=True, eq=False)
class Stored(Source):
    """Images in a file; each is checked against its digest when it is first read, and decoded again if it is damaged.

    Attributes:
        rows: where the image of each index lies in the file, int64 `[N]`.
        digests: SHA-256 of the pixels in each row of the file, uint8 `[rows, 32]`.
        paths: the file that each row was decoded from.
    """

    labels: Tensor
    rows: Tensor
    digests: Pixels
    shape: tuple[int, int, int]  # C, H, W
    file: Path
    paths: Sequence[str]
    decode: Decode
    _descriptor: int = field(init=False)
    _checked: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        descriptor = os.open(self.file, os.O_RDONLY | os.O_NOFOLLOW)  # it outlives the name, if another run makes room
        weakref.finalize(self, os.close, descriptor)
        object.__setattr__(self, "_descriptor", descriptor)
        object.__setattr__(self, "_checked", np.zeros(len(self.digests), bool))

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> Tensor:
        images = np.empty((len(indices), *self.shape), np.uint8)
        for image, row in zip(images, self.rows[indices].tolist(), strict=True):
            read = os.pread(self._descriptor, image.nbytes, row * image.nbytes)
            image.reshape(-1)[: len(read)] = np.frombuffer(read, np.uint8)
            if not self._checked[row]:
                if len(read) < image.nbytes or not np.array_equal(_digest(image), self.digests[row]):
                    self._mend(row, image)
                self._checked[row] = True
        return torch.from_numpy(images)

    def fingerprint(self, indices: Tensor) -> str:
        """SHA-256 over the digests and classes of the images at `indices`: no image is read."""
        sha = hashlib.sha256(repr((len(indices), *self.shape)).encode())
        sha.update(np.ascontiguousarray(self.digests[self.rows[indices].numpy()]).data)
        sha.update(self.labels[indices].numpy().data)
        return sha.hexdigest()

    def _mend(self, row: int, image: Pixels) -> None:
        """Decode the image of a damaged row again, into `image` and into the file.

        Raises:
            DataError: its file cannot be read any more, or holds another image now.
        """
        image[:] = self.decode(self.paths[row])[0]
        if not np.array_equal(_digest(image), self.digests[row]):
            raise DataError(f"{self.paths[row]} is not the image that it was when the run began; start the run again")
        try:
            descriptor = os.open(self.file, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:  # another run has made room; what was decoded is right all the same
            return
        try:
            held, read = os.fstat(descriptor), os.fstat(self._descriptor)
            if (held.st_dev, held.st_ino, held.st_nlink) == (read.st_dev, read.st_ino, 1):  # no file of somebody else's
                os.pwrite(descriptor, image.data, row * image.nbytes)
        finally:
            os.close(descriptor)


def stored(
    paths: Sequence[str],
    classes: Sequence[int],
    preprocess: Preprocess,
    decode: Decode,
    *,
    root: Path,
    home: Path,
    limit_bytes: int,
    advance: Callable[[int], None],
) -> Found:
    """The images of these files, decoded now unless that was done before.

    Args:
        paths: the files, whose names, sizes and times of change are what the store goes by.
        classes: the class of each.
        preprocess: the shape that `decode` gives.
        decode: from a file to pixels.
        root: the folder of the files.
        home: where stores are kept; other runs use them too.
        limit_bytes: what all of them may take; those that were not used for longest are removed.
        advance: told how many images are done.

    Raises:
        DataError: there is not enough room.
    """
    shape = preprocess.input_shape(1)[1:]
    target = home / _key(paths, preprocess, root)
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / f"{target.name}.lock"):
        found = _index(target, len(paths), shape)
        if found is None:
            with FileLock(home / ROOM):
                files.sweep(home, target.name)
                _make_room(home, len(paths) * math.prod(shape), limit_bytes)
            with files.new_folder(target) as folder:
                _decode_all(folder, paths, shape, decode, advance)
            found = _index(target, len(paths), shape)
            assert found is not None
        else:
            advance(len(paths))
        about, index = found
        os.utime(target / ABOUT, follow_symlinks=False)  # used last
        rows = index["kept"].nonzero()[:, 0]
        labels = torch.tensor(classes, dtype=torch.int64)[rows]
        digests = index["digests"].numpy().copy()  # of its own, not of the file
        source = Stored(labels, rows, digests, shape, target / IMAGES, paths, decode)
    return Found(source, Counter(about.notes), about.unreadable)


def _key(paths: Sequence[str], preprocess: Preprocess, root: Path) -> str:
    """A digest of what the files are, told without reading them, and of what is made of them."""
    made = preprocess.model_dump_json(exclude={"mean", "std"})
    sha = hashlib.sha256(f"{made} {PIL.__version__} {code_digest(Preprocess.__module__)}".encode())
    sha.update(os.fsencode(root.resolve()))
    for path in paths:
        sha.update(b"\0" + os.fsencode(path) + _state(path))
    return sha.hexdigest()


def _state(path: str) -> bytes:
    """What tells a file from what it was: the time of its last change cannot be set, as that of its content can."""
    try:
        found = Path(path).stat()
    except OSError as error:  # told where it is decoded
        return repr(error).encode(errors="replace")
    return f"\0{found.st_ino}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ctime_ns}".encode()


def _index(folder: Path, count: int, shape: tuple[int, int, int]) -> tuple[About, dict[str, Tensor]] | None:
    """What a store holds, if it is whole but for its pixels, which are checked as they are read."""
    if files.odd_in(folder) is not None:
        return None
    try:
        about = About.model_validate_json(files.read_bytes(folder / ABOUT, files.MAX_TEXT_BYTES))
        index, _ = tensors.read(folder / INDEX)
        held = (folder / IMAGES).stat().st_size
    except (OSError, ValidationError, ArtifactError):
        return None
    kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in index.items()}
    expected = {"digests": (torch.uint8, (count, DIGEST_BYTES)), "kept": (torch.bool, (count,))}
    return (about, index) if kinds == expected and held == count * math.prod(shape) else None


def _decode_all(
    folder: Path, paths: Sequence[str], shape: tuple[int, int, int], decode: Decode, advance: Callable[[int], None]
) -> None:
    """Write the images of all files, one after the other; blank where one cannot be read."""
    kept, digests = np.ones(len(paths), bool), np.empty((len(paths), DIGEST_BYTES), np.uint8)
    notes: Counter[str] = Counter()
    unreadable: list[str] = []

    def attempt(path: str) -> tuple[Pixels, Sequence[str]] | DataError:
        try:
            return decode(path)
        except DataError as error:
            return error

    with (folder / IMAGES).open("xb") as file, ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), DECODED_AT_ONCE):
            outcomes = pool.map(attempt, paths[start : start + DECODED_AT_ONCE])
            for row, outcome in enumerate(outcomes, start):
                if isinstance(outcome, DataError):
                    unreadable.append(printable(str(outcome)))
                    kept[row], image = False, np.zeros(shape, np.uint8)
                else:
                    image = np.ascontiguousarray(outcome[0])
                    notes.update(outcome[1])
                digests[row] = _digest(image)
                file.write(image.data)
                advance(1)
        file.flush()
        os.fsync(file.fileno())
    tensors.write(folder / INDEX, {"digests": torch.from_numpy(digests), "kept": torch.from_numpy(kept)})
    about = About(notes=dict(notes), unreadable=tuple(unreadable))
    files.write_text(folder / ABOUT, about.model_dump_json(indent=1) + "\n")


def _make_room(home: Path, needed: int, limit: int) -> None:
    """Remove the stores that were not used for longest, until another of `needed` bytes has room.

    Raises:
        DataError: it has none.
    """
    if needed > limit:
        raise DataError(
            f"data.store: the images take {needed / 1e9:.1f} GB decoded, and gigabytes allows {limit / 1e9:.1f}; "
            "raise it, or lower data.size or data.resize"
        )
    stores = sorted(filter(_is_store, home.iterdir()), key=lambda path: (path / ABOUT).stat().st_mtime)
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in stores}
    for path in stores:
        if sum(sizes.values()) + needed > limit and _removed(path):
            del sizes[path]
    if (free := shutil.disk_usage(home).free) < needed:
        raise DataError(
            f"data.store: the images take {needed / 1e9:.1f} GB decoded, and {home} has {free / 1e9:.1f} GB free; name "
            "a folder on another disk"
        )


def _is_store(path: Path) -> bool:
    """Whether a folder is one of ours: nothing else is ever removed."""
    named = NAME.fullmatch(path.name) is not None and path.is_dir() and files.odd_in(path) is None
    return named and {file.name for file in path.iterdir()} == {ABOUT, INDEX, IMAGES}


def _removed(store: Path) -> bool:
    """Remove a store that no run is opening; one that reads it goes on, since an open file outlives its name."""
    try:
        with FileLock(store.with_name(f"{store.name}.lock"), timeout=0):
            files.remove(store)
    except Timeout:
        return False
    return True


def _digest(image: Pixels) -> Pixels:
    """SHA-256 of an image's pixels, uint8 `[32]`."""
    return np.frombuffer(hashlib.sha256(image.data).digest(), np.uint8)
