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
from collections.abc import Callable, Collection, Sequence
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
from compressor.data.reading import Undecoded
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
Decode = Callable[[int], tuple[Pixels, Sequence[str]]]
"""An image's pixels `[C, H, W]` and what was odd about it; raises `DataError` if it cannot be used."""


class About(BaseModel):
    """What is known of stored images besides their pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    notes: dict[str, int]
    unreadable: tuple[str, ...]


def check_room(needed: int, limit: int) -> None:
    """Refuse the images of a run if they take more bytes than all stores may.

    Raises:
        DataError: they do.
    """
    if needed > limit:
        raise DataError(
            f"data.store: the images take {needed / 1e9:.1f} GB decoded, and gigabytes allows {limit / 1e9:.1f}; "
            "raise it, or lower data.size or data.resize"
        )


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
        names: of the image that each row was decoded from.
        decode: that image by its row.
    """

    labels: Tensor
    rows: Tensor
    digests: Pixels
    shape: tuple[int, int, int]  # C, H, W
    file: Path
    names: Sequence[str]
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
        image[:] = self.decode(row)[0]
        if not np.array_equal(_digest(image), self.digests[row]):
            raise DataError(f"{self.names[row]} is not the image that it was when the run began; start the run again")
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
    images: Undecoded,
    preprocess: Preprocess,
    decode: Decode,
    *,
    home: Path,
    limit_bytes: int,
    beside: Collection[Path] = (),
    advance: Callable[[int], None],
) -> Found:
    """These images, decoded now unless that was done before.

    Args:
        images: which ones.
        preprocess: the shape that `decode` gives.
        decode: an image by its position.
        home: where stores are kept; other runs use them too.
        limit_bytes: what all of them may take; those that were not used for longest are removed.
        beside: stores that the same run uses, which are not.
        advance: told how many images are done.

    Raises:
        DataError: there is not enough room.
    """
    shape = preprocess.input_shape(1)[1:]
    count = len(images.names)
    target = home / _key(images, preprocess)
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / f"{target.name}.lock"):
        found = _index(target, count, shape)
        if found is None:
            with FileLock(home / ROOM):
                files.sweep(home, target.name)
                _make_room(home, count * math.prod(shape), limit_bytes, beside)
            with files.new_folder(target) as folder:
                _decode_all(folder, count, shape, decode, advance)
            found = _index(target, count, shape)
            assert found is not None
        else:
            advance(count)
        about, index = found
        os.utime(target / ABOUT, follow_symlinks=False)  # used last
        rows = index["kept"].nonzero()[:, 0]
        labels = torch.tensor(images.classes, dtype=torch.int64)[rows]
        digests = index["digests"].numpy().copy()  # of its own, not of the file
        source = Stored(labels, rows, digests, shape, target / IMAGES, images.names, decode)
    return Found(source, Counter(about.notes), about.unreadable)


def _key(images: Undecoded, preprocess: Preprocess) -> str:
    """A digest of what the images are, told without reading them, and of what is made of them."""
    made = preprocess.model_dump_json(exclude={"mean", "std"})
    sha = hashlib.sha256(f"{made} {PIL.__version__} {code_digest(Preprocess.__module__)}".encode())
    sha.update(os.fsencode(images.version))
    for path in images.files:
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
    folder: Path, count: int, shape: tuple[int, int, int], decode: Decode, advance: Callable[[int], None]
) -> None:
    """Write all images, one after the other; blank where one cannot be read."""
    kept, digests = np.ones(count, bool), np.empty((count, DIGEST_BYTES), np.uint8)
    notes: Counter[str] = Counter()
    unreadable: list[str] = []

    def attempt(row: int) -> tuple[Pixels, Sequence[str]] | DataError:
        try:
            return decode(row)
        except DataError as error:
            return error

    with (folder / IMAGES).open("xb") as file, ThreadPoolExecutor() as pool:
        for start in range(0, count, DECODED_AT_ONCE):
            outcomes = pool.map(attempt, range(start, min(start + DECODED_AT_ONCE, count)))
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


def _make_room(home: Path, needed: int, limit: int, beside: Collection[Path]) -> None:
    """Remove the stores that were not used for longest, until another of `needed` bytes has room.

    Raises:
        DataError: it has none.
    """
    stores = sorted(filter(_is_store, home.iterdir()), key=lambda path: (path / ABOUT).stat().st_mtime)
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in stores}
    for path in stores:
        if path not in beside and sum(sizes.values()) + needed > limit and _removed(path):
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
